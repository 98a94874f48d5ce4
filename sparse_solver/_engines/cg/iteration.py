"""Preconditioned conjugate gradients, for several systems side by side.

Each system, a block of the matrix with a right-hand side, is judged by itself, by the normwise
backward error

    η = ‖r‖ / (‖D^-½ A D^-½‖ ‖x‖ + ‖b‖),      r = b − A x,

in the norms of `products`. It is that of the residual that belongs to x, not of the one which the
recurrence computes. Where the recurrence was too optimistic, conjugate gradients start again with
the residual as right-hand side, which is iterative refinement. The corrections are summed by
themselves, so that their rounding errors are small beside those of x.

Sources: M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems",
J. Res. Nat. Bur. Standards 49, 1952. J. L. Rigal, J. Gaches, "On the compatibility of a given
solution with the data of a linear system", J. ACM 14, 1967 (the backward error). A. Greenbaum,
"Estimating the attainable accuracy of recursively computed residual methods", SIAM J. Matrix Anal.
Appl. 18, 1997. Y. Notay, "Flexible conjugate gradients", SIAM J. Sci. Comput. 22, 2000.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .products import SymmetricMatrix

DOUBLE_EPS = torch.finfo(torch.float64).eps

# η of a solution, in ε. Four times more would be that of a direct method; a quarter takes about
# 4 % more iterations, and makes the gradients as accurate as those of a direct method.
TARGET = 0.25
# η that the recurrence has to reach, in ε. In double precision its rounding errors are above the
# target anyway, which a short correction repairs. For single precision data, which are iterated in
# double, it has to reach the target of a correction at once.
_FIRST_TARGET, _CORRECTION_TARGET = 0.5, 0.125
# η with which a solution is accepted if corrections do not improve it, in ε: rounding errors of
# b − A x, which are about √m ε / 2 for rows of m entries.
_STAGNATED, _STAGNATED_PER_ROOT = 1.0, 0.5
# Corrections after which a solution is not expected to become better.
_MOST_CORRECTIONS = 10
# Keeps quotients of zeros finite. Squares of residuals are at least 1e-150 as long as they count.
_TINY = 1e-300
# ‖p‖² of a direction below which its Rayleigh quotient is noise; that of zeros does not exist.
_LEAST_SQUARE = 1e-200
# Iterations between two looks at the residuals: at first, and at most.
_FIRST_STEPS, _MOST_STEPS = 4, 64
# The part of the expected rest after which to look again, since the method accelerates.
_PART_OF_REST = 0.7


# Applies an approximation of A⁻¹ to the rows of (k, n) vectors, in a new tensor.
Precondition = Callable[[Tensor], Tensor]


class Recurrence:
    """The recurrences of conjugate gradients for A e = r, from e = 0.

    precondition : None for the diagonal of A
    e, r : (k, n) the approximation, and its residual as far as the recurrence knows
    rho : (systems, 1) r · z with the preconditioned residual z, which is ‖r‖² for the diagonal
    steps, ratios : the α and β of all iterations so far, if `keep` asks for them
    lowest : (systems, 1) instead of them with a preconditioner, the smallest Rayleigh quotient
        pᵀAp / ‖p‖² of a direction so far, an upper bound of the smallest eigenvalue λ
    """

    def __init__(
        self,
        matrix: SymmetricMatrix,
        r: Tensor,
        keep: bool = False,
        precondition: Precondition | None = None,
    ):
        self.matrix, self._keep, self._precondition = matrix, keep, precondition
        self.r, self.e = r, torch.zeros_like(r)
        self._z = matrix.inverse_diagonal * r if precondition is None else precondition(r)
        self._p, self._q = self._z.clone(), torch.empty_like(r)
        self.rho = matrix.inner(r, self._z)
        self.iterations = 0
        self.steps: list[Tensor] = []
        self.ratios: list[Tensor] = []
        self.lowest = torch.full_like(self.rho, math.inf)

    def find_squares(self) -> Tensor:
        """(systems, 1) ‖r‖²."""
        r, matrix = self.r, self.matrix
        if self._precondition is None:
            return self.rho
        return matrix.inner(r, r * matrix.inverse_diagonal)

    def advance(self, count: int) -> None:
        """Make so many iterations."""
        if self._precondition is not None:
            self._advance_with(self._precondition, count)
            return
        matrix, r, z, p, q = self.matrix, self.r, self._z, self._p, self._q
        # All views are made here, since the operations of an iteration take as long as their calls
        # for vectors of ten thousand numbers.
        multiply, multiplied, to_p, to_q = matrix.product(p, q)
        e_parts, r_parts, z_parts, p_parts, q_parts = map(matrix.split, (self.e, r, z, p, q))
        p_rows, r_rows = p_parts.unsqueeze(1), r_parts.unsqueeze(1)
        q_columns, z_columns = q_parts.unsqueeze(2), z_parts.unsqueeze(2)
        rho = self.rho
        for _ in range(count):
            multiply(multiplied, to_p, out=to_q)
            alpha = rho / torch.bmm(p_rows, q_columns).squeeze_(2).add_(_TINY)
            e_parts.addcmul_(p_parts, alpha)
            r_parts.addcmul_(q_parts, alpha, value=-1)
            torch.mul(matrix.inverse_diagonal, r, out=z)
            following = torch.bmm(r_rows, z_columns).squeeze_(2)
            beta = following / rho.add_(_TINY)
            torch.addcmul(z_parts, p_parts, beta, out=p_parts)
            rho = following
            if self._keep:
                self.steps.append(alpha)
                self.ratios.append(beta)
        self.rho = rho
        self.iterations += count

    def _advance_with(self, precondition: Precondition, count: int) -> None:
        """Make so many iterations with an approximate inverse, symmetric to some digits only.

        With β = −α z · q / ρ, the new direction is conjugate to the last one nevertheless (Notay).
        """
        matrix, r, p, q = self.matrix, self.r, self._p, self._q
        for _ in range(count):
            matrix.multiply(p, q)
            curvature = matrix.inner(p, q)
            if self._keep:
                size = matrix.inner(p, p * matrix.diagonal)
                quotient = torch.where(size > _LEAST_SQUARE, curvature / size, math.inf)
                self.lowest = torch.minimum(self.lowest, quotient)
            alpha = self.rho / curvature.add_(_TINY)
            matrix.split(self.e).addcmul_(matrix.split(p), alpha)
            matrix.split(r).addcmul_(matrix.split(q), alpha, value=-1)
            z = precondition(r)
            beta = matrix.inner(z, q).mul_(-alpha) / self.rho.add_(_TINY)
            torch.addcmul(matrix.split(z), matrix.split(p), beta, out=matrix.split(p))
            self.rho = matrix.inner(r, z)
        self.iterations += count

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.rho = self.rho.view(-1, self.matrix.blocks).index_select(0, rows).view(-1, 1)
        self.r, self.e, self._z, self._p = (
            vectors.index_select(0, rows) for vectors in (self.r, self.e, self._z, self._p)
        )
        self._q = torch.empty_like(self.r)


class Norms(NamedTuple):
    """What residuals of right-hand sides b are compared with.

    matrix_size : (systems, 1) ‖D^-½ A D^-½‖
    b_size : (systems, 1) ‖b‖
    """

    matrix: SymmetricMatrix
    matrix_size: Tensor
    b_size: Tensor

    @staticmethod
    def of(matrix: SymmetricMatrix, norm: Tensor, b: Tensor) -> Norms:
        """The norms for the rows of `b` (k, n), where `norm` (blocks,) is ‖D^-½ A D^-½‖."""
        return Norms(matrix, norm.repeat(b.shape[0]).view(-1, 1), _size(matrix, b))

    def select(self, rows: Tensor) -> Norms:
        """The norms for these rows of b."""
        blocks = self.matrix.blocks
        sizes = (size.view(-1, blocks).index_select(0, rows) for size in self[1:])
        return Norms(self.matrix, *(size.view(-1, 1) for size in sizes))

    def sizes(self, x: Tensor) -> Tensor:
        """(systems, 1) ‖D^-½ A D^-½‖ ‖x‖ + ‖b‖."""
        x_size = self.matrix.inner(x, x * self.matrix.diagonal).sqrt_()
        return torch.addcmul(self.b_size, self.matrix_size, x_size)

    def errors(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(systems, 1) each: η, and ‖r‖ / ‖b‖; zero for a right-hand side of zeros."""
        size = _size(self.matrix, residual)
        return size / (self.sizes(x) + _TINY), size / (self.b_size + _TINY)


def _size(matrix: SymmetricMatrix, residual: Tensor) -> Tensor:
    """(systems, 1) ‖r‖."""
    return matrix.inner(residual, residual * matrix.inverse_diagonal).sqrt_()


class Goal(NamedTuple):
    """The accuracy that is asked for.

    eps : ε of the dtype that solutions are to be as accurate as
    consistency : the largest ‖r‖ / ‖b‖; infinity if a small backward error is enough
    limit : the most iterations
    """

    eps: float
    consistency: float
    limit: int


class Solution(NamedTuple):
    """Approximate solutions x (k, n).

    accepted : whether all systems are solved
    error : the largest backward error η
    iterations : those of the system that took most
    """

    x: Tensor
    accepted: bool
    error: float
    iterations: int


def solve(
    matrix: SymmetricMatrix,
    norm: Tensor,
    b: Tensor,
    goal: Goal,
    precondition: Precondition | None = None,
) -> Solution:
    """Solve A x = b for the rows of `b` (k, n), where `norm` (blocks,) is ‖D^-½ A D^-½‖."""
    refinement = _Refinement(Norms.of(matrix, norm, b), b, goal, precondition)
    while (correction := refinement.begin()) is not None:
        while (count := correction.plan()) > 0:
            correction.advance(count)
        refinement.add(correction)
    return refinement.solution()


class _Correction(Recurrence):
    """The recurrences for x + e, until the systems that are pending have the target η.

    whole : (k, n) e, once `plan` has returned zero; rows that are done are put there earlier
    """

    def __init__(
        self,
        norms: Norms,
        r: Tensor,
        x: Tensor | None,
        pending: Tensor,
        goal: Goal,
        target: float,
        precondition: Precondition | None,
    ):
        super().__init__(norms.matrix, r.clone(), precondition=precondition)
        self._norms, self._x, self._pending = norms, x, pending
        self._goal, self._target = goal, target
        self._rows, self.whole = torch.arange(len(r), device=r.device), torch.zeros_like(r)
        self._steps, self._before = 0, math.inf

    def plan(self) -> int:
        """The iterations before the next look; zero at the target, or at the limit."""
        norms, goal = self._norms, self._goal
        stop = self._target * norms.sizes(self.e if self._x is None else self._x)
        # Half of it, since the residual that belongs to x will be a little larger.
        stop = torch.minimum(stop, goal.consistency / 2 * norms.b_size)
        ratio = (self.find_squares() / stop.square_().add_(_TINY)).masked_fill_(~self._pending, 0)
        worst, rest = float(ratio.amax()), goal.limit - self.iterations
        if rest <= 0 or not 1 < worst < math.inf:
            self.whole.index_copy_(0, self._rows, self.e)
            return 0
        if len(self._rows) > 1:
            self._drop(ratio.view(-1, norms.matrix.blocks) > 1)
        before, self._before = self._before, worst
        steps = _plan_steps(self._steps, before, worst) if self._precondition is None else 1
        self._steps = min(steps, rest)
        return self._steps

    def _drop(self, is_left: Tensor) -> None:
        """Go on with the right-hand sides that have systems left, if at least half have none."""
        kept = torch.nonzero(is_left.any(-1)).squeeze(-1)
        if 2 * kept.numel() > len(self._rows):
            return
        self.whole.index_copy_(0, self._rows, self.e)
        self.select(kept)
        self._norms, self._rows = self._norms.select(kept), self._rows[kept]
        self._pending = self._pending.view(is_left.shape)[kept].view(-1, 1)
        self._x = None if self._x is None else self._x[kept]


def _plan_steps(steps: int, before: float, now: float) -> int:
    """Iterations before the next look, where the last `steps` took ‖r‖² to `now` times the goal."""
    if steps == 0:
        return _FIRST_STEPS
    most, gained = min(2 * steps, _MOST_STEPS), math.log(before / now)
    rest = steps * math.log(now) / gained if gained > 0 else math.inf
    return max(1, int(min(most, _PART_OF_REST * rest)))


class _Refinement:
    """Solutions that are corrected until they are accurate, or do not become better."""

    def __init__(self, norms: Norms, b: Tensor, goal: Goal, precondition: Precondition | None):
        self._norms, self._b, self._goal, self._precondition = norms, b, goal, precondition
        self._iterations, self._corrections, self._is_worthwhile = 0, 0, True
        self._x: Tensor | None = None
        self._residual = b
        self._error, self._consistency = (torch.full_like(norms.b_size, math.inf) for _ in "xr")

    def begin(self) -> _Correction | None:
        """The next correction; None if there is none to make."""
        goal, is_first = self._goal, self._x is None
        limit = goal.limit - self._iterations
        pending = self._find_pending()
        if not is_first:
            is_over = limit <= 0 or self._corrections > _MOST_CORRECTIONS
            if is_over or not (self._is_worthwhile and bool(pending.any())):
                return None
        is_double = goal.eps == DOUBLE_EPS
        target = _FIRST_TARGET if is_first and is_double else _CORRECTION_TARGET
        given = self._residual, self._x, pending, goal._replace(limit=limit)
        self._corrections += 1
        return _Correction(self._norms, *given, target * goal.eps, self._precondition)

    def _find_pending(self) -> Tensor:
        """(systems, 1) which systems are not accurate yet."""
        is_inaccurate = self._error > TARGET * self._goal.eps
        return is_inaccurate | (self._consistency > self._goal.consistency)

    def add(self, correction: _Correction) -> None:
        """Add it to the solutions that become better by that."""
        matrix, x = self._norms.matrix, self._x
        self._iterations += correction.iterations
        better = correction.whole if x is None else x + correction.whole
        residual = torch.empty_like(better)
        # What `SymmetricMatrix.multiply` does, one frame nearer to the native call.
        multiply, *multiplied, to_residual = matrix.product(better, residual)
        multiply(*multiplied, out=to_residual)
        torch.sub(self._b, residual, out=residual)
        error, consistency = self._norms.errors(better, residual)
        if x is None:
            self._x, self._residual = better, residual
            self._error, self._consistency = error, consistency
            return
        improved = self._find_pending() & (error < self._error)
        self._is_worthwhile = bool((improved & (error <= self._error / 2)).any())
        where = improved.expand(-1, matrix.order).reshape(x.shape)
        self._x = torch.where(where, better, x)
        self._residual = torch.where(where, residual, self._residual)
        self._error = torch.where(improved, error, self._error)
        self._consistency = torch.where(improved, consistency, self._consistency)

    def solution(self) -> Solution:
        """What was found."""
        assert self._x is not None
        rounding = _STAGNATED_PER_ROOT * math.sqrt(self._norms.matrix.longest_row)
        accurate = self._error <= max(_STAGNATED, rounding) * self._goal.eps
        accepted = bool((accurate & (self._consistency <= self._goal.consistency)).all())
        return Solution(self._x, accepted, float(self._error.amax()), self._iterations)
