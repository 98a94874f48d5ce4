"""How solutions are judged: one set of rules for all kinds of matrices, dtypes and engines.

Sizes are measured row by row, since matrices may have rows and columns of very different size. s_i
is the largest modulus in row i, c_j the size of column j once rows and columns are equilibrated, ε
that of the dtype of the matrix. Residuals r = b − A x are formed in double precision at least.

**Accurate** is a solution whose componentwise backward error ω = max_i |r_i| / (|A||x| + |b|)_i is
a few ε: it solves a system whose entries differ by ω from the given ones, relatively and one by one
[1, 2]. Rows whose denominator may be rounding errors get a larger one [3]. Refinement goes on as
long as it halves ω.

**Clean** is a factor without perturbed pivots that leaves a residual row by row small before any
refinement. Only a clean factor stands for A⁻¹ below. Where it does, a solution whose ω stagnates is
accurate nevertheless if the residual adds no more to the forward error than the rounding of A and b
to ε does: ‖|A⁻¹||r|‖ ≤ 4 ε ‖|A⁻¹|(|A||x| + |b|)‖. Such norms are estimated [4, 5].

**Doubt** about a factorisation arises where scattered right-hand sides of the size of the rows have
solutions so large that half of the digits may be lost. Without doubt, accurate solutions are good.

**Singular to working precision** is a matrix in doubt whose probe has no correct digit: the bound
ε ‖|A⁻¹|(|A||x| + |b| + |r|/ε)‖ / ‖x‖ of its forward error exceeds one, in the norm max_j c_j|x_j|.
If ε ‖|A⁻¹||A|e‖ is small (a condition number that R. D. Skeel introduced [1]), all solutions are
good; else every one has to pass the same bound as the probe.

[1] R. D. Skeel, "Iterative refinement implies numerical stability for Gaussian elimination", Math.
Comp. 35, 1980.
[2] W. Oettli, W. Prager, "Compatibility of approximate solution of linear equations with given
error bounds for coefficients and right-hand sides", Numer. Math. 6, 1964.
[3] M. Arioli, J. W. Demmel, I. S. Duff, "Solving sparse linear systems with sparse backward error",
SIAM J. Matrix Anal. Appl. 10, 1989.
[4] W. W. Hager, "Condition estimates", SIAM J. Sci. Stat. Comput. 5, 1984.
[5] N. J. Higham, "FORTRAN codes for estimating the one-norm of a real or complex matrix, with
applications to condition estimation", ACM Trans. Math. Softw. 14, 1988; "Accuracy and Stability of
Numerical Algorithms", 2nd ed., chapters 7, 12 and 15.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from .._engines.protocol import Factor
from .._sparse.values import scaling_power, to_double
from .equations import Equations

# ω of an accurate solution, in ε. 64 instead of 4 accepted a wrong solution on a test bed.
ACCURATE = 4.0
# The same after one step of refinement, where no other one can follow.
ACCURATE_ONCE_REFINED = 64.0
# There, ‖r‖ / ‖b‖ is to be at most ε to this power.
CONSISTENT_POWER = 0.25
# Denominators below this many n ε, relative to their rows, may be rounding errors [3].
TINY_DENOMINATOR = 1000.0
# The residual of a clean factor before refinement, in ε, relative to ‖a_i‖₁ ‖x‖ + |b|_i.
CLEAN = 1e4
# ε ‖|A⁻¹||A|e‖ below which all solutions are good: two digits are left where it is estimated right.
SMALL_ERROR = 1e-2
# The bound of the forward error from which on no digit is correct.
NO_DIGIT = 1.0
# Steps of the estimation of a norm; it rarely needs more than two [5].
_ESTIMATION_STEPS = 4
# Steps of a power iteration that finds the units of the unknowns, in so many rounds at most.
_UNIT_STEPS, _MOST_ROUNDS = 3, 4
# An estimate that does not grow by more than this has converged.
_ESTIMATE_GROWTH = 1.01


@cache
def growth_in_doubt(dtype: torch.dtype) -> float:
    """The growth of the probe with which half of the digits may be lost."""
    return float(torch.finfo(dtype).eps ** -0.5)


class Verdict(Enum):
    """What the probe shows about a factorisation."""

    SOUND = "no doubt about the matrix, or a condition number that is small enough"
    DOUBTFUL = "each solution has to be judged by itself"
    SINGULAR = "singular to working precision"
    UNUSABLE = "the factor is too inaccurate to judge the matrix"


class Outcome(Enum):
    """What is known about solutions."""

    GOOD = "all of them are accurate"
    INACCURATE = "another factor may give better ones"
    NO_DIGIT = "the matrix does not determine a digit of the largest entries of one"


class Solution(NamedTuple):
    """Solutions x (k, n) of k right-hand sides, and their errors.

    residual, bound : (k, n) b − A x and |A||x| + |b|
    error : (systems,) the componentwise backward error ω
    enlarged : whether ω is that of larger denominators, where they may be rounding errors [3]
    """

    x: Tensor
    residual: Tensor
    bound: Tensor
    error: Tensor
    enlarged: bool


class Conditioning(NamedTuple):
    """How much a matrix enlarges errors.

    units : (1, n) sizes of the unknowns, at most one, in which their errors are compared
    condition : (systems,) max_j (|A⁻¹||A| units)_j / units_j
    """

    units: Tensor
    condition: Tensor


class Judge:
    """The rules above for one factor of the matrix of `equations`.

    sound : whether the pivots alone show that all solutions are good
    is_last : whether no better factor can follow
    verdict : what the probe shows
    clean : whether the factor may stand for A⁻¹
    in_doubt : whether solutions of the probe were so large that half of the digits may be lost
    distance : relative changes of the entries by so much make a singular matrix so
    """

    def __init__(
        self, equations: Equations, factor: Factor, sound: bool = False, is_last: bool = False
    ):
        self._equations, self.factor, self._dtype = equations, factor, factor.values.dtype
        self._eps = torch.finfo(equations.dtype).eps
        self._conditioning: dict[bool, Conditioning] = {}
        self.sound, self._is_last = sound, is_last
        self.clean, self.in_doubt, self.distance = False, False, 0.0
        self.verdict = Verdict.SOUND
        # Applies the factor to double precision vectors (k, n), in double precision.
        self.substitute: Callable[[Tensor, bool], Tensor]
        self.substitute = partial(_substitute_scaled, equations, factor)
        if torch.finfo(self._dtype).eps == torch.finfo(torch.float64).eps:
            self.substitute = factor.substitute

    @property
    def is_usable(self) -> bool:
        """Whether the factor gave an accurate solution of the probe."""
        return self.verdict in (Verdict.SOUND, Verdict.DOUBTFUL)

    @property
    def is_beyond_doubt(self) -> bool:
        """Whether nothing at all suggests that a pivot or a solution might be inaccurate."""
        return self.verdict is Verdict.SOUND and not (self.in_doubt or self.is_perturbed)

    @property
    def is_perturbed(self) -> bool:
        """Whether the engine enlarged pivots, so that the factor is that of another matrix."""
        return bool(self.factor.perturbed_pivots)

    def examine(self) -> Verdict:
        """Solve for the probe, and find the verdict that its solution suggests."""
        equations = self._equations
        if self.sound:
            return self.verdict
        if not equations.has_scales():  # a row or a column of zeros
            self.in_doubt, self.verdict = True, Verdict.SINGULAR
            return self.verdict
        rhs = (equations.probe() * equations.scales(False).rows).to(equations.dtype)
        first = self._evaluate(self.factor.substitute(rhs.to(self._dtype), False), rhs, False)
        self.verdict = Verdict.UNUSABLE
        if equations.all_finite(first.x):
            self.clean = not self.is_perturbed and self._is_small(first, rhs)
            self.verdict = self._conclude(self._refine(first, rhs, False), rhs)
        return self.verdict

    def _conclude(self, solution: Solution, rhs: Tensor) -> Verdict:
        """The verdict that the refined solution of the probe suggests."""
        equations, scales = self._equations, self._equations.scales(False)
        is_accurate = bool(self._accepts(solution, False).all())
        growth = equations.sizes(solution.bound / scales.rows)
        growth = growth / equations.sizes(rhs / scales.rows) * equations.column_spread(scales)
        if bool((growth <= growth_in_doubt(equations.dtype)).all()):
            return Verdict.SOUND if is_accurate else Verdict.UNUSABLE
        self.in_doubt = True
        if not self.clean or equations.blocks > 1:  # blocks are better judged one by one
            return Verdict.UNUSABLE
        units, condition = self._find_conditioning(False)
        bounds = self._forward_errors(solution, False, units).maximum(self._eps * condition)
        if not bool((bounds < torch.inf).all()):
            return Verdict.UNUSABLE
        if not bool((bounds <= NO_DIGIT).all()):
            self.distance = self._eps / float(bounds.max())
            return Verdict.SINGULAR
        if not is_accurate:
            return Verdict.UNUSABLE
        small = bool((bounds <= SMALL_ERROR).all())
        return Verdict.SOUND if small else Verdict.DOUBTFUL

    def solve(self, rhs: Tensor, transpose: bool) -> tuple[Tensor, Outcome]:
        """Solutions (k, n), and what is known about them; they are finite if they are good."""
        equations = self._equations
        x = self.factor.substitute(rhs.to(self._dtype), transpose)
        if self.sound:
            return x, Outcome.GOOD if equations.all_finite(x) else Outcome.INACCURATE
        solution = self._refine(self._evaluate(x, rhs, transpose), rhs, transpose)
        x = solution.x.to(equations.dtype)
        if not (equations.all_finite(x) and bool(self._accepts(solution, transpose).all())):
            return x, Outcome.INACCURATE
        if self.in_doubt and not self._has_digits(solution, transpose):
            return x, Outcome.NO_DIGIT
        return x, Outcome.GOOD

    def solve_non_blocking(self, rhs: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
        """Solutions after one step of refinement, and (systems,) whether each may be returned.

        Nothing here synchronises the host, so that neither doubt nor another factor can follow. A
        singular matrix leaves residuals that are not small beside b, however large the solution.
        """
        equations = self._equations
        x = to_double(self.factor.substitute(rhs, transpose))
        x = x + self.substitute(equations.residual(x, rhs, transpose), transpose)
        residual = equations.residual(x, rhs, transpose)
        bound = self._enlarge_tiny(equations.bound(x, rhs, transpose), x, rhs, transpose)
        sizes, left, x_sizes = (equations.sizes(vectors) for vectors in (rhs, residual, x))
        backward = equations.ratios(residual, bound) <= ACCURATE_ONCE_REFINED * self._eps
        consistent = left <= self._eps**CONSISTENT_POWER * sizes
        return x.to(equations.dtype), backward & consistent & (x_sizes < torch.inf)

    def _has_digits(self, solution: Solution, transpose: bool) -> bool:
        """Whether the largest entries of all solutions have correct digits."""
        equations, (units, condition) = self._equations, self._find_conditioning(transpose)
        # |A⁻¹||A||x| ≤ condition · units · max_j |x_j| / units_j
        growth = equations.largest(units) * equations.sizes(solution.x / units)
        bounds = self._eps * condition * growth / equations.sizes(solution.x)
        if solution.enlarged or not bool((bounds <= SMALL_ERROR).all()):
            bounds = self._forward_errors(solution, transpose, equations.ones())
        return bool((bounds <= NO_DIGIT).all())

    def _find_conditioning(self, transpose: bool) -> Conditioning:
        """The condition number of a matrix in doubt, in the units that make it small."""
        if transpose not in self._conditioning:
            equations = self._equations
            best = Conditioning(equations.ones(), equations.ones()[0, :1] * torch.inf)
            units = best.units
            for _ in range(_MOST_ROUNDS):
                for _ in range(_UNIT_STEPS):
                    units = self._iterate_units(units, transpose)
                weights = equations.bound(units, None, transpose)
                found = Conditioning(units, self.estimate(weights, transpose, units))
                helped = bool((found.condition < best.condition / 2).all())
                best = found if helped else best
                if not helped or bool((self._eps * found.condition <= SMALL_ERROR).all()):
                    break
            self._conditioning[transpose] = best
        return self._conditioning[transpose]

    def _iterate_units(self, units: Tensor, transpose: bool) -> Tensor:
        """|A⁻¹||A| units, nearly, divided by its largest entry.

        The moduli of A⁻¹ v for two vectors v of scattered signs stand for the sums of moduli.
        """
        equations = self._equations
        weights, signs = equations.bound(units, None, transpose), equations.probe().sign()
        first = self._apply_weighted(weights, signs, transpose).abs()
        second = self._apply_weighted(weights, signs.flip(-1), transpose).abs()
        units = torch.hypot(first, second).maximum(units)  # |A⁻¹||A| ≥ |A⁻¹A|
        return units / equations.largest(units)

    def _evaluate(self, x: Tensor, rhs: Tensor, transpose: bool) -> Solution:
        """The errors of these solutions."""
        equations = self._equations
        residual = equations.residual(x, rhs, transpose)
        bound = equations.bound(x, rhs, transpose)
        error = equations.ratios(residual, bound)
        if bool((error <= ACCURATE * self._eps).all()):
            return Solution(x, residual, bound, error, False)
        enlarged = self._enlarge_tiny(bound, x, rhs, transpose)
        return Solution(x, residual, bound, equations.ratios(residual, enlarged), True)

    def _enlarge_tiny(self, bound: Tensor, x: Tensor, rhs: Tensor, transpose: bool) -> Tensor:
        """|A||x| + |b|, with a larger denominator where it may be rounding errors; see [3]."""
        equations = self._equations
        largest = equations.spread(equations.sizes(x))
        scales, sums = equations.scales(transpose), equations.row_sums(transpose)
        limit = TINY_DENOMINATOR * equations.order * self._eps
        tiny = bound <= limit * (scales.rows * largest + rhs.abs())
        # Products underflow with an absolute error that ε does not measure.
        underflow = equations.order * torch.finfo(torch.float64).tiny
        return torch.where(tiny, bound - rhs.abs() + sums * largest, bound) + underflow

    def _is_small(self, solution: Solution, rhs: Tensor) -> bool:
        """Whether the residuals are those of a clean factor."""
        equations, limit = self._equations, CLEAN * self._eps
        if bool((equations.ratios(solution.residual, solution.bound) <= limit).all()):
            return True
        largest = equations.spread(equations.sizes(solution.x))
        bound = equations.row_sums(False) * largest + rhs.abs()
        return bool((equations.ratios(solution.residual, bound) <= limit).all())

    def _refine(self, solution: Solution, rhs: Tensor, transpose: bool) -> Solution:
        """Refine while that halves the error of a system that is not accurate yet."""
        equations = self._equations
        while True:
            pending = ~(solution.error <= ACCURATE * self._eps)
            if not bool(pending.any()):
                return solution
            x = to_double(solution.x) + self.substitute(solution.residual, transpose)
            better = self._evaluate(x, rhs, transpose)
            improved = better.error < solution.error
            halved = pending & improved & (better.error <= solution.error / 2)
            if bool(improved.all()):
                solution = better
            elif bool(improved.any()):
                where = equations.spread(improved)
                solution = Solution(
                    torch.where(where, better.x, to_double(solution.x)),
                    torch.where(where, better.residual, solution.residual),
                    torch.where(where, better.bound, solution.bound),
                    torch.where(improved, better.error, solution.error),
                    better.enlarged or solution.enlarged,
                )
            if not bool(halved.any()):
                return solution

    def _accepts(self, solution: Solution, transpose: bool) -> Tensor:
        """(systems,) whether each solution is accurate, or as accurate as the data allow."""
        accurate = solution.error <= ACCURATE * self._eps
        if bool(accurate.all()) or not self.clean:
            return accurate
        ones = self._equations.ones()
        of_residual = self.estimate(solution.residual.abs(), transpose, ones)
        of_data = self.estimate(solution.bound, transpose, ones)
        accurate = accurate | (of_residual <= ACCURATE * self._eps * of_data)
        if self._is_last:  # an error that is known to be small is better than no solution
            accurate |= self._forward_errors(solution, transpose, ones) <= SMALL_ERROR
        return accurate

    def _forward_errors(self, solution: Solution, transpose: bool, units: Tensor) -> Tensor:
        """(systems,) the bound of the error, relative to the largest |x_j| / units_j."""
        weights = self._eps * solution.bound + solution.residual.abs()
        size = self._equations.sizes(solution.x / units)
        return self.estimate(weights, transpose, units) / size

    def estimate(self, weights: Tensor, transpose: bool, units: Tensor) -> Tensor:
        """(systems,) lower bounds, mostly tight, of max_j (|A⁻¹| weights)_j / units_j; see [4, 5].

        That is the largest modulus of M v, with M = U⁻¹ A⁻¹ W, over vectors with |v_i| ≤ 1. From
        the row j in which M v is largest, the next v takes the signs, so that row j of M v becomes
        ‖row j of M‖₁, which is no smaller.
        """
        equations = self._equations
        z = self._apply_weighted(weights, torch.ones_like(weights), transpose) / units
        other = self._apply_weighted(weights, equations.probe().sign(), transpose) / units
        z = torch.where(equations.spread(equations.sizes(other) > equations.sizes(z)), other, z)
        largest = equations.sizes(z)
        for _ in range(_ESTIMATION_STEPS):
            row = weights * self.substitute(equations.unit_at_largest(z) / units, not transpose)
            signs = torch.where(row == 0, 1, torch.sgn(row).conj().resolve_conj())
            z = self._apply_weighted(weights, signs, transpose) / units
            size = equations.sizes(z)
            grew = bool((size > _ESTIMATE_GROWTH * largest).any())
            largest = torch.maximum(size, largest)  # NaN stays
            if not grew:
                break
        return largest

    def _apply_weighted(self, weights: Tensor, signs: Tensor, transpose: bool) -> Tensor:
        """A⁻¹ (weights ∘ signs), in the double precision of the dtype of the factor."""
        dtype = torch.complex128 if self._dtype.is_complex else torch.float64
        return self.substitute((weights * signs).to(dtype), transpose)


def _substitute_scaled(
    equations: Equations, factor: Factor, rhs: Tensor, transpose: bool
) -> Tensor:
    """Apply a factor in single precision to vectors of the size of the matrix.

    Others, or their solutions, might overflow.
    """
    sizes = equations.sizes(rhs) / equations.sizes(equations.scales(False).rows.expand_as(rhs))
    powers = equations.spread(scaling_power(sizes))
    scaled = (rhs * powers).to(factor.values.dtype).contiguous()
    return to_double(factor.substitute(scaled, transpose)) / powers
