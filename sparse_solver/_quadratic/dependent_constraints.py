"""Which constraints depend on each other, and which contradict each other: asked when a factorisation has failed.

A dependence is a vector y ≠ 0 with yᴴ C = 0, and C x = d has a solution only if yᴴ d = 0 for all of them. The projection
of a vector r on these y is what remains of α² (C Cᴴ + α²)⁻¹ r for small α, which multiplies what belongs to a singular value σ
of C by α² / (σ² + α²). As a part of the solution of

    [[α, Cᴴ], [C, −α]] [z; y] = [0; −α r],

in which C is not squared, it tells σ from zero down to rounding errors, relative to rows and columns of equal size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

from .._sparse.structure import Structure
from .._sparse.values import probe_vector
from .inertia import equilibrating


class Dependences:
    """Those of the rows of C, whose entries are exact to a relative error of `eps`."""

    def __init__(self, C: csr_matrix, eps: float):
        from scipy.sparse import bmat, diags, identity
        from scipy.sparse.linalg import splu

        m, n = C.shape
        s = equilibrating(bmat([[None, C.conj().T], [C, None]], format="csr"))
        self.scale, self._alpha = s[n:], eps**0.75
        self.C = (diags(s[n:]) @ C @ diags(s[:n])).tocsr()
        blocks = [
            [self._alpha * identity(n), self.C.conj().T],
            [self.C, -self._alpha * identity(m)],
        ]
        self._lu = splu(bmat(blocks, format="csc", dtype=C.dtype))

    def _solved(self, right: Any) -> tuple[Any, Any]:
        import numpy as np

        n = self.C.shape[1]
        both = self._lu.solve(
            np.vstack((np.zeros((n, right.shape[1]), self.C.dtype), right.astype(self.C.dtype)))
        )
        return both[:n], both[n:]

    def project(self, right: Any) -> Any:
        """(m, k) the projections of the columns of `right` on the y of the scaled C."""
        for _ in range(3):
            right = self._solved(-self._alpha * right)[1]
        return right

    def smallest_solution(self, right: Any) -> Any:
        """(n, k) the x of least norm that the scaled C takes to the columns of `right`."""
        return self._solved(right)[0]

    def rows(self) -> tuple[int, ...]:
        """The rows that take part in one: where a y that is left to chance is not zero."""
        m = self.C.shape[0]
        # Two, since what one leaves of two equal rows is the difference of two of its numbers.
        chance = torch.cat(
            (probe_vector(m, torch.float64, 0.25), probe_vector(m, torch.float64, 0.0).flip(1))
        )
        y = self.project(chance.numpy().T)
        size = abs(y).max(initial=0.0)
        # With a dependence it is about as large as what was projected; and it has to be what it is taken for.
        remains = abs(self.C.conj().T @ y).max(initial=0.0)
        if size < 1e-6 or remains > 1e3 * self._alpha * size:
            return ()
        return tuple((abs(y) > 1e-6 * size).any(1).nonzero()[0].tolist())


def conflicting_rows(
    C: Structure, values: Tensor, known: Tensor, y: Tensor, d: Tensor, eps: float
) -> tuple[int, ...]:
    """The rows of C that contradict each other: where a row of `d` (k, m), less what the known entries, the rows of `y`
    (k, p), contribute, is not what C can give; up to the rounding errors of what it should be the sum of."""
    import numpy as np
    from scipy.sparse import bmat, csc_matrix
    from scipy.sparse.csgraph import connected_components

    matrix = csc_matrix((values.numpy(), (C.rows.numpy(), C.cols.numpy())), shape=C.shape)
    is_known = torch.zeros(C.shape[1], dtype=torch.bool, device="cpu").index_fill(0, known, True)
    held, free = (
        matrix[:, known.numpy()],
        matrix[:, torch.nonzero(~is_known).squeeze(-1).numpy()].tocsr(),
    )
    rows = np.array(Dependences(free, eps).rows(), dtype=np.int64)
    if not rows.size:
        return ()
    free, held, right, forced = free[rows], held.tocsr()[rows], d.mT.numpy()[rows], y.mT.numpy()
    dependences = Dependences(free, eps)
    scale = dependences.scale[:, None]
    rest = scale * (right - held @ forced)
    left = dependences.project(rest)
    # Rounding errors come from the terms of these sums: d, what the known entries give, and what the least x gives.
    solution = dependences.smallest_solution(rest - left)
    size = scale * (abs(right) + abs(held) @ abs(forced)) + abs(dependences.C) @ abs(solution)
    # Rows that share no unknown, not even by others, have nothing to do with each other.
    component = connected_components(
        bmat([[None, abs(free)], [abs(free).T, None]]), directed=False
    )[1][: len(rows)]

    def in_component(numbers: Any) -> Any:
        largest = np.zeros((component.max() + 1, numbers.shape[1]))
        np.maximum.at(largest, component, numbers)
        return largest[component]

    worst = in_component(abs(left))
    wrong = (worst > 64 * eps * in_component(size)) & (abs(left) > 1e-6 * worst)
    return tuple(rows[wrong.any(1)].tolist())
