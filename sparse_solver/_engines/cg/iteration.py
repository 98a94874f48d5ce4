"""Conjugate gradients with the diagonal as preconditioner, for several systems side by side.

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
Appl. 18, 1997.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .products import SymmetricMatrix

# η of a solution, in ε. Four times more would be that of a direct method; a quarter takes about
# 4 % more iterations, and makes the gradients as accurate as those of a direct method.
TARGET = 0.25
# η that the recurrence has to reach, in ε. In double precision its rounding errors are above the
# target anyway, which a short correction repairs. Single precision data are iterated in double.
_FIRST_TARGET, _FIRST_TARGET_OF_SINGLE = 0.5, 0.125
_CORRECTION_TARGET = 0.125
# η with which a solution is accepted if corrections do not improve it: rounding errors of b − A x.
STAGNATED = 1.0
# Corrections after which a solution is not expected to become better.
_MOST_CORRECTIONS = 10
# Keeps quotients of zeros finite. Squares of residuals are at least 1e-150 as long as they count.
_TINY = 1e-300
# Iterations between two looks at the residuals: at first, and at most.
_FIRST_STEPS, _MOST_STEPS = 4, 64
# The part of the expected rest after which to look again, since the method accelerates.
_PART_OF_REST = 0.7


class Recurrence:
    """The recurrences of conjugate gradients for A e = r, from e = 0.

    e, r : (k, n) the approximation, and its residual as far as the recurrence knows
    rho : (systems, 1) ‖r‖²
    steps, ratios : the α and β of all iterations so far, if `keep` asks for them
    """

    def __init__(self, matrix: SymmetricMatrix, r: Tensor, keep: bool = False):
        self._matrix, self._keep = matrix, keep
        self.r, self.e = r, torch.zeros_like(r)
        self._z = matrix.inverse_diagonal * r
        self._p, self._q = self._z.clone(), torch.empty_like(r)
        self.rho = matrix.inner(r, self._z)
        self.iterations = 0
        self.steps: list[Tensor] = []
        self.ratios: list[Tensor] = []

    def advance(self, count: int) -> None:
        """Make so many iterations."""
        matrix, r, z, p, q = self._matrix, self.r, self._z, self._p, self._q
        e_parts, r_parts, z_parts, p_parts, q_parts = map(matrix.split, (self.e, r, z, p, q))
        rho = self.rho
        for _ in range(count):
            matrix.multiply(p, q)
            alpha = rho / matrix.inner(p, q).add_(_TINY)
            e_parts.addcmul_(p_parts, alpha)
            r_parts.addcmul_(q_parts, alpha, value=-1)
            torch.mul(matrix.inverse_diagonal, r, out=z)
            following = matrix.inner(r, z)
            beta = following / rho.add_(_TINY)
            torch.addcmul(z_parts, p_parts, beta, out=p_parts)
            rho = following
            if self._keep:
                self.steps.append(alpha)
                self.ratios.append(beta)
        self.rho = rho
        self.iterations += count

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        systems = self._matrix.blocks
        self.rho = self.rho.view(-1, systems).index_select(0, rows).view(-1, 1)
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


def _residual(matrix: SymmetricMatrix, b: Tensor, x: Tensor) -> Tensor:
    """b − A x."""
    product = matrix.multiply(x, torch.empty_like(x))
    return torch.sub(b, product, out=product)


class Goal(NamedTuple):
    """The accuracy that is asked for.

    eps : ε of the dtype of the matrix
    consistency : the largest ‖r‖ / ‖b‖; infinity if a small backward error is enough
    limit : the most iterations
    """

    eps: float
    consistency: float
    limit: int


class Solution(NamedTuple):
    """Approximate solutions x (k, n).

    accepted : (systems, 1) whether the system is solved
    error : the largest backward error η
    iterations : those of the system that took most
    """

    x: Tensor
    accepted: Tensor
    error: float
    iterations: int


def solve(matrix: SymmetricMatrix, norm: Tensor, b: Tensor, goal: Goal) -> Solution:
    """Solve A x = b for the rows of `b` (k, n), where `norm` (blocks,) is ‖D^-½ A D^-½‖."""
    norms, eps = Norms.of(matrix, norm, b), goal.eps
    is_single = eps > torch.finfo(torch.float64).eps
    first = _FIRST_TARGET_OF_SINGLE if is_single else _FIRST_TARGET
    pending = torch.ones_like(norms.b_size, dtype=torch.bool)
    x, iterations = _iterate(norms, b, None, pending, goal, first * eps)
    residual = _residual(matrix, b, x)
    error, consistency = norms.errors(x, residual)
    for _ in range(_MOST_CORRECTIONS):
        pending = ~((error <= TARGET * eps) & (consistency <= goal.consistency))
        rest = goal._replace(limit=goal.limit - iterations)
        if rest.limit <= 0 or not bool(pending.any()):
            break
        e, more = _iterate(norms, residual, x, pending, rest, _CORRECTION_TARGET * eps)
        iterations += more
        better = x + e
        better_residual = _residual(matrix, b, better)
        better_error, better_consistency = norms.errors(better, better_residual)
        improved = pending & (better_error < error)
        is_worthwhile = bool((pending & (better_error <= error / 2)).any())
        if not bool(improved.any()):
            break
        where = improved.expand(-1, matrix.order).reshape(b.shape)
        x, residual = torch.where(where, better, x), torch.where(where, better_residual, residual)
        error = torch.where(improved, better_error, error)
        consistency = torch.where(improved, better_consistency, consistency)
        if not is_worthwhile:
            break
    accepted = (error <= STAGNATED * eps) & (consistency <= goal.consistency)
    return Solution(x, accepted, float(error.amax()), iterations)


def _iterate(
    norms: Norms, r: Tensor, x: Tensor | None, pending: Tensor, goal: Goal, target: float
) -> tuple[Tensor, int]:
    """e with A e ≈ r (k, n), so that x + e has the target η; and the iterations.

    pending : (systems, 1) which systems that is about; None for x stands for zeros
    """
    blocks = norms.matrix.blocks
    whole, rows = torch.zeros_like(r), torch.arange(r.shape[0], device=r.device)
    recurrence = Recurrence(norms.matrix, r.clone())
    steps, before = 0, math.inf
    while True:
        stop = target * norms.sizes(recurrence.e if x is None else x)
        # Half of it, since the residual that belongs to x will be a little larger.
        stop = torch.minimum(stop, goal.consistency / 2 * norms.b_size)
        ratio = recurrence.rho / stop.square_().add_(_TINY)
        ratio = ratio.masked_fill_(~pending, 0)
        worst = float(ratio.amax())
        rest = goal.limit - recurrence.iterations
        if rest <= 0 or not 1 < worst < math.inf:
            whole.index_copy_(0, rows, recurrence.e)
            return whole, recurrence.iterations
        kept = torch.nonzero((ratio.view(-1, blocks) > 1).any(-1)).squeeze(-1)
        if 2 * kept.numel() <= len(rows):
            whole.index_copy_(0, rows, recurrence.e)
            recurrence.select(kept)
            norms, rows = norms.select(kept), rows[kept]
            pending = pending.view(-1, blocks)[kept].view(-1, 1)
            x = None if x is None else x[kept]
        steps, before = _plan_steps(steps, before, worst), worst
        recurrence.advance(min(steps, rest))


def _plan_steps(steps: int, before: float, now: float) -> int:
    """Iterations before the next look, where the last `steps` took ‖r‖² to `now` times the goal."""
    if steps == 0:
        return _FIRST_STEPS
    most = min(2 * steps, _MOST_STEPS)
    gained = math.log(before / now)
    return max(1, min(most, int(_PART_OF_REST * steps * math.log(now) / gained))) if gained > 0 else most
