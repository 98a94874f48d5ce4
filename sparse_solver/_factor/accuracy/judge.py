"""How solutions are judged: one set of rules for all kinds of matrices, dtypes and engines.

Sizes are measured row by row, since matrices may have rows and columns of very different size: s_i
is the largest modulus in row i. ε is that of the dtype of the matrix. Residuals r = b − A x are
formed in double precision at least.

**Accurate** is a solution whose componentwise backward error ω = max_i |r_i| / (|A||x| + |b|)_i is
a few ε: it solves a system whose entries differ by ω from the given ones, relatively and one by one
[1, 2]. Rows whose denominator may be rounding errors get a larger one [3]. Refinement goes on as
long as it halves ω.

**Clean** is a factor without perturbed pivots that leaves a residual row by row small before any
refinement. Only a clean factor stands for A⁻¹ below. Where it does, a solution whose ω stagnates is
accurate nevertheless if the residual adds no more to the forward error than the rounding of A and b
to ε does: ‖|A⁻¹||r|‖ ≤ 4 ε ‖|A⁻¹|(|A||x| + |b|)‖. `inverse_estimates` estimates such norms.

**Doubt** about a matrix arises where the probe, a scattered right-hand side of the size of the
rows, has a solution so large that half of the digits may be lost. Without doubt, accurate solutions
are good. A solution of the probe with ω up to 64 ε shows that without being refined.

**Singular to working precision** is a matrix in doubt if the number ε ρ(|A⁻¹||A|), which no scaling
of rows and columns changes [5], or the bound ε ‖|A⁻¹|(|A||x| + |b| + |r|/ε)‖ / ‖x‖ of the forward
error of the probe exceeds one. The spectral radius ρ is approached by max_j (|A⁻¹||A|u)_j / u_j,
with positive units u of the unknowns from `inverse_estimates`; the norm is max_j |x_j| / u_j. A
matrix is also singular if the factor is not clean, but leads to a vector v with |A v| ≤ 4 ε |A||v|:
then A v = 0 holds for a matrix whose entries differ by 4 ε.

**Good** is an accurate solution of a system in doubt if the largest of its entries have correct
digits, by the same bound in the largest norm.

[1] R. D. Skeel, "Iterative refinement implies numerical stability for Gaussian elimination", Math.
Comp. 35, 1980.
[2] W. Oettli, W. Prager, "Compatibility of approximate solution of linear systems with given
error bounds for coefficients and right-hand sides", Numer. Math. 6, 1964.
[3] M. Arioli, J. W. Demmel, I. S. Duff, "Solving sparse linear systems with sparse backward error",
SIAM J. Matrix Anal. Appl. 10, 1989.
[4] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., chapters 7, 12 and 15.
[5] F. L. Bauer, "Optimally scaled matrices", Numer. Math. 5, 1963; S. M. Rump, "Ill-conditioned
matrices are componentwise near to singularity", SIAM Review 41, 1999.
"""

from __future__ import annotations

from enum import Enum
from functools import cache, cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..._engines.protocol import Factor
from ..._sparse.values import is_single, to_double
from ...errors import ConvergenceError
from .inverse_estimates import Inverse
from .systems import Systems

# ω of an accurate solution, in ε. 64 instead of 4 accepted a wrong solution on a test bed.
ACCURATE = 4.0
# The same for the probe, which is not refined unless there is doubt: it only shows how large
# solutions are, and each of those that are returned is judged by itself.
NEARLY_ACCURATE = 64.0
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
# The same for a solution that is not accurate, but the best that there is.
LAST_ERROR = 0.1
# The bound of the forward error from which on no digit is correct.
NO_DIGIT = 1.0


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
    error : (systems,) the componentwise backward error ω, with larger denominators where they may
        be rounding errors [3]
    strict_error : the same without larger denominators
    """

    x: Tensor
    residual: Tensor
    bound: Tensor
    error: Tensor
    strict_error: Tensor


class Judge:
    """The rules above for one factor of the matrix of `systems`.

    sound : whether the pivots alone show that all solutions are good
    is_last : whether no better factor can follow
    verdict : what the probe shows
    clean : whether the factor may stand for A⁻¹
    in_doubt : whether solutions of the probe were so large that half of the digits may be lost
    distance : relative changes of the entries by so much make a singular matrix so
    failure : the error with which an engine that iterates gave up on the probe
    """

    def __init__(
        self, systems: Systems, factor: Factor, sound: bool = False, is_last: bool = False
    ):
        self._systems, self.factor, self._dtype = systems, factor, factor.values.dtype
        self._eps = torch.finfo(systems.dtype).eps
        self.sound, self._is_last = sound, is_last
        self.clean, self.in_doubt, self.distance = False, False, 0.0
        self.verdict = Verdict.SOUND
        self.failure: ConvergenceError | None = None

    @cached_property
    def inverse(self) -> Inverse:
        """What the factor shows about A⁻¹."""
        return Inverse(self._systems, self.factor, SMALL_ERROR / self._eps)

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

    @property
    def _is_coarse(self) -> bool:
        """Whether a factor in double precision can follow, which would show more.

        In single precision, pivots that are rounding errors may look like small ones.
        """
        return is_single(self._dtype) and not self._is_last

    def examine(self) -> Verdict:
        """Solve for the probe, and find the verdict that its solution suggests."""
        systems = self._systems
        if self.sound:
            return self.verdict
        if not systems.has_scales():  # a row or a column of zeros
            self.in_doubt, self.verdict = True, Verdict.SINGULAR
            return self.verdict
        rhs = (systems.probe() * systems.scales(False).rows).to(systems.dtype)
        self.verdict = Verdict.UNUSABLE
        try:
            first = self._evaluate(self.factor.substitute(rhs.to(self._dtype), False), rhs, False)
            if systems.all_finite(first.x):
                self.clean = not self.is_perturbed and self._is_small(first, rhs)
                is_nearly_accurate = (first.strict_error <= NEARLY_ACCURATE * self._eps).all()
                if bool(is_nearly_accurate) and not self._grows(first, rhs):
                    self.verdict = Verdict.SOUND
                else:
                    self.verdict = self._conclude(self._refine(first, rhs, False), rhs)
        except ConvergenceError as error:
            self.failure = error.with_traceback(None)  # which holds frames, hence factors
        return self.verdict

    def _grows(self, solution: Solution, rhs: Tensor) -> bool:
        """Whether the solution of the probe is so large that half of the digits may be lost."""
        systems, scales = self._systems, self._systems.scales(False)
        growth = systems.sizes(solution.bound / scales.rows)
        growth = growth / systems.sizes(rhs / scales.rows) * systems.column_spread(scales)
        return not bool((growth <= growth_in_doubt(systems.dtype)).all())

    def _conclude(self, solution: Solution, rhs: Tensor) -> Verdict:
        """The verdict that the refined solution of the probe suggests."""
        systems, self.in_doubt = self._systems, self._grows(solution, rhs)
        if not self.in_doubt:
            is_accurate = bool(self._accepts(solution, False).all())
            return Verdict.SOUND if is_accurate else Verdict.UNUSABLE
        if systems.blocks > 1:  # blocks are better judged one by one
            return Verdict.UNUSABLE
        if not self.clean:
            self.distance = self.inverse.find_null_vector(solution.x, ACCURATE * self._eps)
            is_singular = self.distance <= ACCURATE * self._eps
            return Verdict.SINGULAR if is_singular else Verdict.UNUSABLE
        solution = self._refine(solution, rhs, False)  # more strictly now
        is_accurate = bool(self._accepts(solution, False).all())
        units, condition = self.inverse.find_conditioning(False)
        bounds = self._forward_errors(solution, False, units).maximum(self._eps * condition)
        if not bool((bounds < torch.inf).all()):
            return Verdict.UNUSABLE
        if not (is_accurate or self._is_last):  # then the residual may make the bound large
            return Verdict.UNUSABLE
        if not (is_accurate and bool((bounds <= NO_DIGIT).all())):
            self.distance = self._eps / float(bounds.max())
            return Verdict.SINGULAR
        if bool((bounds <= SMALL_ERROR).all()):
            return Verdict.SOUND
        if self._is_coarse:
            return Verdict.UNUSABLE
        # A pivot that is a rounding error of several ε makes bounds too small.
        self.distance = self.inverse.find_null_vector(solution.x, ACCURATE * self._eps)
        is_singular = self.distance <= ACCURATE * self._eps
        return Verdict.SINGULAR if is_singular else Verdict.DOUBTFUL

    def solve(self, rhs: Tensor, transpose: bool) -> tuple[Tensor, Outcome]:
        """Solutions (k, n), and what is known about them; they are finite if they are good."""
        systems = self._systems
        x = self.factor.substitute(rhs.to(self._dtype), transpose)
        if self.sound:
            x = x.to(systems.dtype)
            return x, Outcome.GOOD if systems.all_finite(x) else Outcome.INACCURATE
        solution = self._refine(self._evaluate(x, rhs, transpose), rhs, transpose)
        x = solution.x.to(systems.dtype)
        # Where |A||x| overflows, nothing is known; in single precision, only x itself can.
        finite = x if is_single(systems.dtype) else solution.bound
        if not (systems.all_finite(finite) and bool(self._accepts(solution, transpose).all())):
            return x, Outcome.INACCURATE
        if not self.in_doubt or self._has_digits(solution, transpose):
            return x, Outcome.GOOD
        return x, Outcome.INACCURATE if self._is_coarse else Outcome.NO_DIGIT

    def solve_non_blocking(self, rhs: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
        """Solutions after one step of refinement, and (systems,) whether each may be returned.

        Nothing here synchronises the host, so that neither doubt nor another factor can follow. A
        singular matrix leaves residuals that are not small beside b, however large the solution.
        """
        systems = self._systems
        x = to_double(self.factor.substitute(rhs, transpose))
        x = x + self.inverse.substitute(systems.residual(x, rhs, transpose), transpose)
        residual = systems.residual(x, rhs, transpose)
        bound = self._enlarge_tiny(systems.bound(x, rhs, transpose), x, rhs, transpose)
        sizes, left, x_sizes = (systems.sizes(vectors) for vectors in (rhs, residual, x))
        backward = systems.ratios(residual, bound) <= ACCURATE_ONCE_REFINED * self._eps
        consistent = left <= self._eps**CONSISTENT_POWER * sizes
        return x.to(systems.dtype), backward & consistent & (x_sizes < torch.inf)

    def _has_digits(self, solution: Solution, transpose: bool) -> bool:
        """Whether the largest entries of all solutions have correct digits."""
        systems, (units, condition) = self._systems, self.inverse.find_conditioning(transpose)
        # |A⁻¹||A||x| ≤ condition · units · max_j |x_j| / units_j
        growth = systems.largest(units) * systems.sizes(solution.x / units)
        errors, sizes = self._eps * condition * growth, systems.sizes(solution.x)
        is_strict = bool((solution.strict_error <= ACCURATE * self._eps).all())
        if is_strict and bool((errors <= SMALL_ERROR * sizes).all()):
            return True
        bounds = self._forward_errors(solution, transpose, systems.ones())
        return bool((bounds <= NO_DIGIT).all())

    def _evaluate(self, x: Tensor, rhs: Tensor, transpose: bool) -> Solution:
        """The errors of these solutions."""
        systems = self._systems
        residual = systems.residual(x, rhs, transpose)
        bound = systems.bound(x, rhs, transpose)
        error = systems.ratios(residual, bound)
        if bool((error <= ACCURATE * self._eps).all()):
            return Solution(x, residual, bound, error, error)
        enlarged = self._enlarge_tiny(bound, x, rhs, transpose)
        return Solution(x, residual, bound, systems.ratios(residual, enlarged), error)

    def _enlarge_tiny(self, bound: Tensor, x: Tensor, rhs: Tensor, transpose: bool) -> Tensor:
        """|A||x| + |b|, with a larger denominator where it may be rounding errors; see [3]."""
        systems = self._systems
        largest = systems.spread(systems.sizes(x))
        scales, sums = systems.scales(transpose), systems.row_sums(transpose)
        limit = TINY_DENOMINATOR * systems.order * self._eps
        tiny = bound <= limit * (scales.rows * largest + rhs.abs())
        # Products underflow with an absolute error that ε does not measure.
        underflow = systems.order * torch.finfo(torch.float64).tiny
        return torch.where(tiny, bound - rhs.abs() + sums * largest, bound) + underflow

    def _is_small(self, solution: Solution, rhs: Tensor) -> bool:
        """Whether the residuals are those of a clean factor."""
        systems, limit = self._systems, CLEAN * self._eps
        if bool((systems.ratios(solution.residual, solution.bound) <= limit).all()):
            return True
        largest = systems.spread(systems.sizes(solution.x))
        bound = systems.row_sums(False) * largest + rhs.abs()
        return bool((systems.ratios(solution.residual, bound) <= limit).all())

    def _error_that_counts(self, solution: Solution, transpose: bool) -> Tensor:
        """ω; in doubt without larger denominators, since their rows may matter most.

        The probe shows doubt about A. About Aᵀ, unknowns of very different size do, too.
        """
        is_strict = self.in_doubt or (transpose and self._is_transpose_uneven(solution))
        return solution.strict_error if is_strict else solution.error

    def _is_transpose_uneven(self, solution: Solution) -> bool:
        """Whether the columns of Aᵀ are of very different size, if that matters."""
        if solution.error is solution.strict_error:
            return False
        systems = self._systems
        spread = systems.column_spread(systems.scales(True))
        return not bool(spread <= growth_in_doubt(systems.dtype))

    def _refine(self, solution: Solution, rhs: Tensor, transpose: bool) -> Solution:
        """Refine while that halves the error of a system that is not accurate yet."""
        systems, error_of = self._systems, partial(self._error_that_counts, transpose=transpose)
        while True:
            pending = ~(error_of(solution) <= ACCURATE * self._eps)
            if not bool(pending.any()):
                return solution
            x = to_double(solution.x) + self.inverse.substitute(solution.residual, transpose)
            better = self._evaluate(x, rhs, transpose)
            improved = error_of(better) < error_of(solution)
            halved = pending & improved & (error_of(better) <= error_of(solution) / 2)
            if bool(improved.all()):
                solution = better
            elif bool(improved.any()):
                where = systems.spread(improved)
                solution = Solution(
                    torch.where(where, better.x, to_double(solution.x)),
                    torch.where(where, better.residual, solution.residual),
                    torch.where(where, better.bound, solution.bound),
                    torch.where(improved, better.error, solution.error),
                    torch.where(improved, better.strict_error, solution.strict_error),
                )
            if not bool(halved.any()):
                return solution

    def _accepts(self, solution: Solution, transpose: bool) -> Tensor:
        """(systems,) whether each solution is accurate, or as accurate as the data allow."""
        accurate = self._error_that_counts(solution, transpose) <= ACCURATE * self._eps
        if bool(accurate.all()) or not self.clean:
            return accurate
        ones = self._systems.ones()
        of_residual = self.inverse.estimate(solution.residual.abs(), transpose, ones)
        of_data = self.inverse.estimate(solution.bound, transpose, ones)
        accurate = accurate | (of_residual <= ACCURATE * self._eps * of_data)
        if self._is_last:  # an error that is known to be small is better than no solution
            accurate |= self._forward_errors(solution, transpose, ones) <= LAST_ERROR
        return accurate

    def _forward_errors(self, solution: Solution, transpose: bool, units: Tensor) -> Tensor:
        """(systems,) the bound of the error, relative to the largest |x_j| / units_j."""
        weights = self._eps * solution.bound + solution.residual.abs()
        size = self._systems.sizes(solution.x / units)
        error = self.inverse.estimate(weights, transpose, units)
        return torch.where(error == 0, 0, error / size)  # also where the solution is zero
