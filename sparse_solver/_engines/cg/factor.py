"""A matrix to solve with by conjugate gradients, once it is proved not to be singular."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..._sparse.triangle import Arrangement
from ..._sparse.values import is_finite, row_powers, to_double
from ...errors import ConvergenceError
from ..protocol import ApproximateInverse
from .iteration import DOUBLE_EPS, TARGET, Goal, Precondition, Solution, solve
from .nonsingularity import Proof, find_proof
from .products import SymmetricMatrix

# The most iterations for n unknowns: without rounding errors n are enough. Where so many would take
# longer than a direct method in any case, it is a multiple of √n, as on grids in two dimensions.
_FEW, _PER_UNKNOWN = 200, 30
_MANY, _PER_ROOT = 10_000, 40
# ‖r‖ / ‖b‖ where the proof is weak, so that each solution is judged once more.
_LEAST_CONSISTENCY = 1.0


def most_iterations(n: int) -> int:
    """The most iterations for systems of n unknowns."""
    return min(_FEW + _PER_UNKNOWN * n, _MANY + _PER_ROOT * math.isqrt(n))


class Prepared(NamedTuple):
    """A matrix to iterate with.

    arrangement, values : the entries in the dtype of the caller
    matrix : the same in double precision
    row_sums : (n,) Σ_j |a_ij| / a_ii
    """

    arrangement: Arrangement
    values: Tensor
    matrix: SymmetricMatrix
    row_sums: Tensor


class CgFactor:
    """A matrix that was proved to be positive definite, to solve with by iterating.

    limit : the most iterations for the proof, and for each solve; None for those that make sense
    budget : the most iterations for the proof and for all right-hand sides of all solves together,
        after which ConvergenceError is raised
    inverse : the preconditioner; None for the diagonal
    is_regular : whether the matrix is far from a singular one in double precision
    """

    perturbed_pivots: int | None = None

    def __init__(
        self,
        prepared: Prepared,
        limit: int | None = None,
        budget: float = math.inf,
        inverse: ApproximateInverse | None = None,
    ):
        self.arrangement, self.values, matrix, row_sums = prepared
        self._matrix, self._norm, self._inverse = matrix, _norms(matrix, row_sums), inverse
        self._precondition = None if inverse is None else _precondition(matrix, inverse)
        eps = torch.finfo(self.values.dtype).eps
        limit = int(min(limit or most_iterations(matrix.order), budget))
        if inverse is not None and inverse.proof is not None:
            found: Proof | None = Proof(inverse.proof, None)
        else:
            # What is not positive definite itself would hide negative eigenvalues of the matrix.
            is_safe = inverse is not None and inverse.is_definite
            by = self._precondition if is_safe else None
            found = find_proof(matrix, self._norm, row_sums, limit, by)
        if found is None:
            raise ConvergenceError(
                f"conjugate gradients did not show within {limit} iterations that the matrix "
                f"is not singular: it is too ill-conditioned for them; use an engine that factors, "
                f"or engine=None",
                iterations=limit,
                residual=None,
            )
        self.proof = str(found)
        self._budget = budget - found.iterations
        self.sound, self.is_regular = found.is_strong(eps), found.is_strong(DOUBLE_EPS)
        self.negative_eigenvalues: int | None = 0 if self.sound else None
        if self.sound:
            self._goal = Goal(eps, math.sqrt(eps), limit)
        else:  # what doubtful solutions are judged by has to be more accurate than they are
            self._goal = Goal(DOUBLE_EPS, _LEAST_CONSISTENCY, limit)
        self._latest: Solution | None = None

    @property
    def nnz(self) -> int | None:
        return None if self._inverse is None else self._inverse.nnz

    @property
    def flops(self) -> int | None:
        return None if self._inverse is None else self._inverse.flops

    @property
    def memory_bytes(self) -> int | None:
        matrix, values = self._matrix, self.values
        own = values.nbytes + 2 * matrix.diagonal.nbytes
        if self._inverse is not None:
            if self._inverse.memory_bytes is None:
                return None
            own += self._inverse.memory_bytes
        return own if matrix.values is values else own + matrix.values.nbytes

    @property
    def iterations(self) -> int | None:
        """The iterations of the latest solve."""
        return None if self._latest is None else self._latest.iterations

    @property
    def backward_error(self) -> float | None:
        """The largest backward error of the latest solve."""
        return None if self._latest is None else self._latest.error

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        if not is_finite(rhs):  # its solution is not finite, either; the other ones are wanted
            finite = torch.isfinite(rhs).all(-1, keepdim=True)
            x = self.substitute(torch.where(finite, rhs, 0), transpose)
            return torch.where(finite, x, math.nan)
        matrix, b = self._matrix, to_double(rhs)
        scale, units = row_powers(matrix.split(b)), matrix.units
        b = (matrix.split(b) * scale).view_as(b)
        if units is not None:
            b = b * units
            again = row_powers(matrix.split(b))
            b = (matrix.split(b) * again).view_as(b)
        goal = self._affordable_goal(len(b))
        solution = solve(matrix, self._norm, b, goal, self._precondition)
        self._budget -= len(b) * solution.iterations
        self._latest = solution._replace(x=b.new_empty(0))
        if not solution.accepted:
            raise _not_converged(solution, goal)
        x = solution.x
        if units is not None:
            x = (matrix.split(x) / again).view_as(b) * units
        return (matrix.split(x) / scale).view_as(b).to(rhs.dtype)

    def _affordable_goal(self, count: int) -> Goal:
        """The goal for so many right-hand sides, with as many iterations as are left for each."""
        affordable = self._budget / count
        if affordable < 1:
            message = "all iterations that were granted to conjugate gradients are used up"
            raise ConvergenceError(message, iterations=0, residual=None)
        return self._goal._replace(limit=int(min(self._goal.limit, affordable)))


def _precondition(matrix: SymmetricMatrix, inverse: ApproximateInverse) -> Precondition:
    """The approximate inverse of the scaled matrix."""
    units = matrix.units
    if units is None:
        return inverse.apply
    return lambda r: inverse.apply(r / units).div_(units)


def _norms(matrix: SymmetricMatrix, row_sums: Tensor) -> Tensor:
    """(blocks,) bounds of the norm of D^-½ A D^-½: the row sums of that, or those of D⁻¹ A."""
    norm = matrix.split(row_sums).amax(-1)
    if float(norm.amax()) <= 2:  # diagonally dominant, so that there is no much better bound
        return norm
    roots = matrix.inverse_diagonal.sqrt()
    return torch.minimum(norm, matrix.split(matrix.row_sums(roots) * roots).amax(-1))


def _not_converged(solution: Solution, goal: Goal) -> ConvergenceError:
    """The error for a right-hand side whose solution is not accurate."""
    return ConvergenceError(
        f"conjugate gradients ended after {solution.iterations} iterations with a backward error "
        f"of {solution.error:.1e}, where {TARGET * goal.eps:.1e} is needed: the matrix is too "
        f"ill-conditioned for them; use an engine that factors, or engine=None",
        iterations=solution.iterations,
        residual=solution.error,
    )
