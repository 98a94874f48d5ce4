"""Constraints that depend on each other, and constraints that contradict each other.

The rows of C are dependent if yᴴ C = 0 for some y ≠ 0, and C x = d has a solution only if yᴴ d = 0
for all such y. The orthogonal projection of a vector r onto these y is the limit of
α² (C Cᴴ + α²)⁻¹ r for α → 0, which multiplies the component of r along a left singular vector of C
by α² / (σ² + α²), σ being the singular value. It is the part y of the solution of

    [[α, Cᴴ], [C, −α]] [z; y] = [0; −α r],

in which C is not squared, so that singular values are distinguished from zero down to rounding
errors. Rows and columns of C are first scaled to equal size.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

from .._sparse.structure import Structure
from .._sparse.values import CPU, PROBE_MEAN, probe_vector, to_double
from .._torch.dynamo import disable_dynamo
from .._torch.modes import is_transformed
from ..errors import InfeasibleConstraintsError, RedundantConstraintsError
from .inertia import equilibrate

# α is this power of eps: small beside the singular values that count, large beside rounding errors.
_ALPHA_POWER = 0.75
# Each projection damps components with σ > 0 again by α² / (σ² + α²).
_PROJECTIONS = 3
# Components of a projection below this fraction of the largest one are rounding errors.
_NEGLIGIBLE = 1e-6
# A projection y with |Cᴴ y| above this multiple of α |y| is not a dependence.
_LARGEST_REMAINDER = 1e3
# The rounding errors of a sum of few terms, in units of eps times the largest term.
_SUM_ERRORS = 64
# A message lists at most this many constraints.
_LISTED = 10


class Dependences:
    """The dependences between the rows of C, whose entries have relative errors of `eps`.

    C, scale : the scaled matrix, and the factors (m,) of its rows
    """

    def __init__(self, C: csr_matrix, eps: float):
        from scipy.sparse import bmat, diags, identity
        from scipy.sparse.linalg import splu

        m, n = C.shape
        s = equilibrate(bmat([[None, C.conj().T], [C, None]], format="csr"))
        self.scale, self._alpha = s[n:], eps**_ALPHA_POWER
        self.C = (diags(s[n:]) @ C @ diags(s[:n])).tocsr()
        top = [self._alpha * identity(n), self.C.conj().T]
        bottom = [self.C, -self._alpha * identity(m)]
        self._lu = splu(bmat([top, bottom], format="csc", dtype=C.dtype))

    def _solve(self, right: Any) -> tuple[Any, Any]:
        """The parts z and y of the solution for the right-hand side [0; right]."""
        import numpy as np

        n = self.C.shape[1]
        top = np.zeros((n, right.shape[1]), self.C.dtype)
        solution = self._lu.solve(np.vstack((top, right.astype(self.C.dtype))))
        return solution[:n], solution[n:]

    def project(self, right: Any) -> Any:
        """(m, k) the projections of the columns of `right` onto the y with yᴴ C = 0."""
        for _ in range(_PROJECTIONS):
            right = self._solve(-self._alpha * right)[1]
        return right

    def find_least_solution(self, right: Any) -> Any:
        """(n, k) the x of least norm with C x = `right`, as far as there is one."""
        return self._solve(right)[0]

    def find_rows(self) -> tuple[int, ...]:
        """The rows that take part in a dependence: those where a generic y is not zero."""
        m = self.C.shape[0]
        # Two probes, since the projection of one on two equal rows is a difference of its entries.
        first = probe_vector(m, torch.float64, PROBE_MEAN)
        probes = torch.cat((first, probe_vector(m, torch.float64, 0.0).flip(1)))
        y = self.project(probes.numpy().T)
        size = abs(y).max(initial=0.0)
        remainder = abs(self.C.conj().T @ y).max(initial=0.0)
        if size < _NEGLIGIBLE or remainder > _LARGEST_REMAINDER * self._alpha * size:
            return ()
        return tuple((abs(y) > _NEGLIGIBLE * size).any(1).nonzero()[0].tolist())


@disable_dynamo
def check_feasible(
    C: Structure,
    values: Tensor,
    fixed: Tensor | None,
    right: dict[str, Tensor],
    cause: RedundantConstraintsError,
) -> None:
    """Raise InfeasibleConstraintsError if dependent constraints contradict each other.

    `values` (..., nnz) are those of C; `right` has the rows (..., k, p) of "fixed_values" and
    (..., k, m) of "d". Under transforms, which hide the numbers, nothing is raised.
    """
    if is_transformed(values, *right.values()):
        return
    eps, C = torch.finfo(values.dtype).eps, C.on(CPU)
    fixed = torch.empty(0, dtype=torch.int64, device=CPU) if fixed is None else fixed.cpu()
    numbers = (values, right["fixed_values"], right["d"])
    values, fixed_values, d = (to_double(t.detach().resolve_conj().cpu()) for t in numbers)
    lead = d.shape[:-2] if values.dim() > 1 else ()
    if not lead:  # all right-hand sides are columns for one C
        count = math.prod(d.shape[:-1])
        fixed_values, d = fixed_values.reshape(count, fixed.numel()), d.reshape(count, C.shape[0])
    values = values.expand(*lead, -1)
    for at in itertools.product(*map(range, lead)):
        rows = find_conflicts(C, values[at], fixed, fixed_values[at], d[at], eps)
        if rows:
            conflict = "contradict each other"
            if len(rows) == 1:
                conflict = "involves no free entry of x, and the fixed ones, if any, violate it"
            message = f"{list_constraints(rows)} of C {conflict}: no x satisfies all constraints"
            raise InfeasibleConstraintsError(message, rows=rows) from cause


def find_conflicts(
    C: Structure, values: Tensor, fixed: Tensor, fixed_values: Tensor, d: Tensor, eps: float
) -> tuple[int, ...]:
    """The rows of C that contradict each other, beyond rounding errors.

    All tensors are on the CPU, in double precision; `fixed_values` (k, p) and `d` (k, m) are rows.
    """
    import numpy as np
    from scipy.sparse import csc_matrix

    matrix = csc_matrix((values.numpy(), (C.rows.numpy(), C.cols.numpy())), shape=C.shape)
    is_fixed = torch.zeros(C.shape[1], dtype=torch.bool, device=CPU).index_fill(0, fixed, True)
    of_free = matrix[:, torch.nonzero(~is_fixed).squeeze(-1).numpy()].tocsr()
    rows = np.array(Dependences(of_free, eps).find_rows(), dtype=np.int64)
    if not rows.size:
        return ()
    of_free, of_fixed = of_free[rows], matrix[:, fixed.numpy()].tocsr()[rows]
    right, given = d.mT.numpy()[rows], fixed_values.mT.numpy()
    dependences = Dependences(of_free, eps)
    scale = dependences.scale[:, None]
    rest = scale * (right - of_fixed @ given)
    conflict = dependences.project(rest)
    # The terms of these sums, which have rounding errors: d, and what fixed and free entries give.
    solution = dependences.find_least_solution(rest - conflict)
    terms = scale * (abs(right) + abs(of_fixed) @ abs(given)) + abs(dependences.C) @ abs(solution)
    component = _find_components(of_free)

    def find_largest(numbers: Any) -> Any:
        """The largest of these numbers in the component of each row."""
        largest = np.zeros((component.max() + 1, numbers.shape[1]))
        np.maximum.at(largest, component, numbers)
        return largest[component]

    worst = find_largest(abs(conflict))
    is_wrong = worst > _SUM_ERRORS * eps * find_largest(terms)
    is_wrong &= abs(conflict) > _NEGLIGIBLE * worst
    return tuple(rows[is_wrong.any(1)].tolist())


def _find_components(C: csr_matrix) -> Any:
    """(m,) the number of the connected component of each row; rows of two share no column."""
    from scipy.sparse import bmat
    from scipy.sparse.csgraph import connected_components

    graph = bmat([[None, abs(C)], [abs(C).T, None]])
    return connected_components(graph, directed=False)[1][: C.shape[0]]


def list_constraints(rows: tuple[int, ...]) -> str:
    """Name constraints by their rows."""
    if len(rows) == 1:
        return f"constraint {rows[0]}"
    if len(rows) > _LISTED:
        more = len(rows) - _LISTED
        return f"constraints {', '.join(map(str, rows[:_LISTED]))} and {more} more"
    return f"constraints {', '.join(map(str, rows[:-1]))} and {rows[-1]}"


def describe_dependence(rows: tuple[int, ...], nearly: bool) -> str:
    """Say what is wrong with these rows of C, and what to do."""
    if nearly:
        return (
            f"{list_constraints(rows)} depend on each other so nearly that no digit of the "
            f"solution is correct: leave one out, replace it by its difference from a combination "
            f"of the others, or use a dtype with more digits"
        )
    if len(rows) == 1:
        return f"{list_constraints(rows)} involves no free entry of x: leave it out"
    return (
        f"{list_constraints(rows)} depend on each other on the free entries of x: if they do not "
        f"contradict each other, leave out one at a time until the rest is independent"
    )
