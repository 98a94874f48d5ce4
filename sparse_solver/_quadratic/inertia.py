"""How many eigenvalues of a symmetric (Hermitian) matrix are negative, where its factorisation does not tell.

Eigenvalues keep their signs if the matrix is scaled from both sides alike, S K S, or changed by less than the distance to
the nearest singular one, which is the smallest singular value. So: scale until all rows have the same size; measure that
distance by inverse iteration, for which there is a factor; and count the signs for a matrix that is nearer, and that can be
factored without exchanging rows. (J. J. Sylvester, 1852, and H. Weyl, 1912; D. Ruiz, "A scaling algorithm to equilibrate
both rows and columns norms in matrices", RAL-TR-2001-034.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

from .._factor.ladder import factor_matrix
from .._factor.options import Options
from .._sparse.structure import Structure
from .._sparse.triangle import Arrangement, Coverage, arrangement_of
from .._sparse.values import probe_vector, to_double
from ..errors import NotPositiveDefiniteError, SingularMatrixError

_SAFE = 0.1  # of the distance: it is estimated


def whole(arrangement: Arrangement, values: Tensor) -> csr_matrix:
    """The Hermitian matrix with these entries, or with these in its upper triangle, in double precision, on the host."""
    from scipy.sparse import csr_matrix, diags, triu

    n = arrangement.crow.numel() - 1
    parts = (part.cpu().numpy() for part in (to_double(values), arrangement.col, arrangement.crow))
    triangle = csr_matrix(tuple(parts), shape=(n, n))
    upper = triu(triangle, format="csr")
    return (upper + upper.conj().T - diags(upper.diagonal(), shape=(n, n))).tocsr()


def equilibrating(K: csr_matrix) -> Any:
    """(n,) powers of two s for which the largest entries in the rows of s_i K_ij s_j are near one; one for empty rows."""
    import numpy as np

    s = np.ones(K.shape[0])
    for _ in range(6):
        s /= np.exp2(np.round(np.log2(_largest(K, s)) / 2))
    return s


def _largest(K: csr_matrix, s: Any) -> Any:
    """(n,) the largest modulus in each row of s_i K_ij s_j, one for empty rows."""
    import numpy as np
    from scipy.sparse import diags

    scaled = diags(s) @ abs(K) @ diags(s)
    largest = scaled.max(axis=1).toarray().ravel() if scaled.nnz else np.zeros_like(s)
    return np.where(largest > 0, largest, 1.0)


def _scalings(K: csr_matrix, is_constraint: Any) -> Iterator[Any]:
    """Two that make all rows of K as large: all at once, or for Q first, and then for the constraints. Neither is always
    the better one, since constraints can be scaled against unknowns without changing C."""
    import numpy as np
    from scipy.sparse import diags

    yield equilibrating(K)
    chosen = diags((~is_constraint).astype(float))
    s = equilibrating((chosen @ K @ chosen).tocsr())
    yield np.where(is_constraint, s / np.exp2(np.round(np.log2(_largest(K, s)))), s)


def negative_eigenvalues(
    K: csr_matrix, solve: Callable[[Tensor], Tensor], eps: float, objective: Objective
) -> int | None:
    """How many there are, where K = [[Q, Cᴴ], [C, 0]] up to the order of rows; None if that cannot be told.
    Raises SingularMatrixError.

    `solve` applies K⁻¹ to the rows of (1, n) numbers, with rounding errors of `eps`.
    """
    candidates = [
        (_distance_to_singularity(s, solve, eps), s)
        for s in _scalings(K, objective.is_constraint.numpy())
    ]
    distance, s = max(candidates, key=lambda candidate: candidate[0])
    if not distance > 0:
        raise SingularMatrixError(
            "once rows have the same size, rounding errors make it singular", engine=None, row=None
        )
    # Most Q are semidefinite. Where Q + δ is definite, K with Q + δ has one negative eigenvalue a constraint; so has K.
    if objective.is_definite(s, _SAFE * distance):
        return objective.constraints
    return _counted(K, s, distance, objective)


class Objective:
    """Q, as a part of the upper triangle of K with this arrangement and these values; `blocks` of equal K, perhaps.

    `structure`, `stored` : that of K, which remembers the places, and the triangle that it holds, if it is one only
    """

    def __init__(
        self,
        arrangement: Arrangement,
        values: Tensor,
        constraints: int,
        blocks: int,
        structure: Structure,
        triangle: str | None,
    ):
        self.constraints = blocks * constraints
        self._values = values.cpu()  # where all of this is computed
        self.is_constraint = _is_constraint(structure.shape[0], blocks, constraints)

        coverage = arrangement.coverage
        self._entries, self._rows, self._shifted = structure.remember(
            _find_objective, coverage, triangle, blocks, constraints
        )

    def is_definite(self, s: Any, shift: float) -> bool:
        """Whether S Q S + shift is positive definite."""
        scale, count = torch.from_numpy(s)[self._rows], self._entries.numel()
        rows, cols = self._shifted.rows[:count], self._shifted.cols[:count]
        scaled = to_double(self._values).index_select(0, self._entries) * scale[rows] * scale[cols]
        if scaled.is_complex():  # to rounding errors of the caller's numbers it is
            scaled = torch.where(rows == cols, scaled.real.to(scaled.dtype), scaled)
        shifts = scaled.new_full((self._rows.numel(),), shift)
        try:
            factor_matrix(self._shifted, torch.cat((scaled, shifts)), Options("spd", "upper"))
        except (NotPositiveDefiniteError, SingularMatrixError):
            return False
        return True


def _find_objective(
    structure: Structure, coverage: Coverage, triangle: str | None, blocks: int, constraints: int
) -> tuple[Tensor, Tensor, Structure]:
    """Which entries of an arrangement of K are Q's, which rows, and the structure of Q + δ."""
    arrangement = arrangement_of(structure, coverage, triangle)
    kept = ~_is_constraint(structure.shape[0], blocks, constraints)
    places = arrangement.rows.cpu(), arrangement.col.cpu()
    rows, entries = torch.nonzero(kept).squeeze(-1), kept[places[0]] & kept[places[1]]
    number, chosen = kept.cumsum(0) - 1, torch.nonzero(entries).squeeze(-1)
    row, col = (torch.cat((number[at[chosen]], torch.arange(len(rows)))) for at in places)
    return chosen, rows, Structure(row, col, (len(rows), len(rows)))


def _is_constraint(n: int, blocks: int, constraints: int) -> Tensor:
    """(n,) which rows of K, with equal blocks, are constraints."""
    size = n // blocks
    return torch.arange(n, device="cpu") % max(size, 1) >= size - constraints


def _distance_to_singularity(s: Any, solve: Callable[[Tensor], Tensor], eps: float) -> float:
    """The smallest singular value of S K S, or hardly more; zero where that is below the rounding errors of `solve`."""
    scale = torch.from_numpy(s)
    right = probe_vector(scale.numel(), torch.float64, 0.0)
    growth = float("nan")
    for _ in range(5):
        right = right / torch.linalg.vector_norm(right)
        right = to_double(solve(right / scale)) / scale
        growth = float(torch.linalg.vector_norm(right))
    distance = 1 / growth if growth > 0 else 0.0
    return distance if distance > max(10 * eps, 1e3 * torch.finfo(torch.float64).eps) else 0.0


def _counted(K: csr_matrix, s: Any, distance: float, objective: Objective) -> int | None:
    """The signs of the pivots of S K S with δ added for unknowns and subtracted for constraints, against zero pivots."""
    import numpy as np
    from scipy.sparse import diags
    from scipy.sparse.linalg import splu

    shifts = np.where(objective.is_constraint.numpy(), -1.0, 1.0) * _SAFE * distance
    shifted = (diags(s) @ K @ diags(s) + diags(shifts)).tocsc()
    options = {"SymmetricMode": True, "Equil": False}
    try:
        lu = splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
    except RuntimeError:  # a pivot of zero
        return None
    if not np.array_equal(lu.perm_r, lu.perm_c):
        return None
    # Without exchanges pivots may have been small, and errors large: how large, scattered numbers of order one tell.
    v = np.sqrt(3) * probe_vector(K.shape[0], torch.float64, 0.0).numpy()[0]
    permuted = np.empty_like(v)
    permuted[lu.perm_c] = v
    error = np.linalg.norm((lu.L @ (lu.U @ permuted))[lu.perm_r] - shifted @ v)
    return int((lu.U.diagonal().real < 0).sum()) if error < _SAFE * distance else None
