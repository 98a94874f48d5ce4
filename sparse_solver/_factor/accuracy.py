"""Whether the solutions that a factor gives are accurate: residuals, refinement, singular matrices.

Everything is measured entry by entry: the backward error of x is the smallest ω such that
(A + E) x = b + f holds for some |E| ≤ ω|A|, |f| ≤ ω|b|, and that is
max_i |b − A x|_i / (|A||x| + |b|)_i. Unlike norms it does not depend on the scales of rows and
columns. (W. Oettli and W. Prager, Numer. Math. 6, 1964; N. J. Higham, "Accuracy and Stability of
Numerical Algorithms", 2nd ed., sections 7.2 and 12.2.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from .._engines.protocol import Factor, Kind
from .._sparse.matvec import Products
from .._sparse.structure import Structure
from .._sparse.values import largest_modulus, probe_vector, raise_non_finite, row_moduli
from ..errors import EngineError, NonFiniteError, SingularMatrixError

_REFINEMENT_STEPS = 3
_INVERSE_ITERATIONS = 8
# The mean of the probe vector: not zero, since the vectors that singular matrices annihilate are
# often constant.
_PROBE_MEAN = 0.25


class Tolerances:
    """The limits by which solutions are judged, for a dtype with rounding errors ε."""

    def __init__(self, eps: float):
        self.eps = eps
        # The backward error of a stable method, with a margin.
        self.stable = 64 * eps
        # The backward error of the probe up to which a factor is good enough.
        self.probe = 1e3 * eps
        # The componentwise backward error up to which a solution needs no normwise check.
        self.componentwise = 1e4 * eps
        # A stable method leaves ‖r‖ ≈ ε‖A‖‖x‖: up to this multiple of ‖b‖ it is not formed.
        self.expected_residual = eps**0.4
        # ‖r‖/‖b‖ of a stable method from which on the matrix may be singular: half the digits.
        self.residual = eps**0.5
        # The same for solutions that are not refined until they are good.
        self.non_blocking_residual = eps**0.25
        # The growth of the probe below which a matrix is far from singular.
        self.growth = eps**-0.6
        # The distance to a singular matrix that perturbed pivots can make of zero: 400 ε was seen.
        self.perturbed_distance = eps**0.75
        # Below this fraction of the largest one, an entry of a null vector may be noise.
        self.noise = eps**0.5


@cache
def tolerances_of(dtype: torch.dtype) -> Tolerances:
    """The limits for a dtype."""
    return Tolerances(torch.finfo(dtype).eps)


@dataclass
class Record:
    """How a factorisation came about.

    kind, kind_reason : what the matrix was taken for, and why
    engine, engine_reason : the engine, and why
    """

    kind: Kind
    kind_reason: str
    engine: str = "none"
    engine_reason: str = "nothing to factor"
    analysis_seconds: float = 0.0
    factorization_seconds: float = 0.0


class InverseOperator(Protocol):
    """The inverse of a matrix, applied by a factor that is checked in some way."""

    record: Record
    factor: Any

    def apply_inverse(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """Apply A⁻¹ or A⁻ᵀ to the rows of `rhs`; see `CheckedFactor.apply_inverse`."""


class EmptyFactor:
    """The factorisation of a matrix without rows."""

    factor: Factor | None = None

    def __init__(self, record: Record):
        self.record = record

    def apply_inverse(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        return torch.empty_like(rhs)


class CheckedFactor:
    """A factor, and the checks on its solutions.

    factor : of the matrix that `products` multiplies with
    structure : of the matrix
    largest : the largest modulus of an entry
    blocks : the number of equal blocks on the diagonal, each a system of its own
    """

    _advice = "try another engine="
    _start = 0  # the number of the first row, where other processes have the rows before it

    def __init__(
        self,
        record: Record,
        structure: Structure,
        factor: Factor,
        products: Products,
        largest: float,
        blocks: int,
    ):
        self.record, self.factor = record, factor
        self._structure, self._n = structure, structure.shape[0]
        self._products, self._largest, self._blocks = products, largest, blocks
        self._dtype = factor.values.dtype
        self._tolerances = tolerances_of(self._dtype)
        self._singular: str | None = None  # what `refuse_singular` found: "" or a message
        self._growth: float | None = None  # what `is_accurate` found

    def apply_inverse(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """Apply A⁻¹ or A⁻ᵀ to the rows of the contiguous `rhs` (k, n), in a new tensor.

        Rows that hold NaN or infinity raise NonFiniteError if `strict`, else they give NaN: a loss
        that overflowed must reach a gradient scaler as what it is.
        """
        if self._is_empty(rhs):
            return torch.empty_like(rhs)
        size = self._largest_of(rhs)
        if not size < math.inf:
            return self._apply_to_finite(rhs, transpose, strict)
        x = self.factor.substitute(rhs, transpose)
        x_size = self._largest_of(x)
        if not x_size < math.inf:
            self.refuse_singular()
            if not strict:
                return x
            message = f"the solution is too large for {self._dtype}"
            raise NonFiniteError(message, argument="x", index=None)
        if self.factor.stable:
            self._check_stable(x, rhs, x_size, size, transpose)
            return x
        return self._refine_and_check(x, rhs, transpose)

    def _check_stable(
        self, x: Tensor, rhs: Tensor, x_size: float, size: float, transpose: bool
    ) -> None:
        """Raise SingularMatrixError if a solution of a backward stable method shows that.

        Such a method leaves a residual of ε‖A‖‖x‖, which is small beside ‖b‖ unless A is nearly
        singular; only then the residual is formed.
        """
        expected, limit = self._tolerances.eps * self._largest, self._tolerances.expected_residual
        if rhs.shape[0] * self._blocks == 1 and expected * x_size <= limit * size:
            return  # the common case, without further tensors
        sizes = self._sizes(rhs)
        if bool((expected * self._sizes(x) <= limit * sizes).all()):
            return
        residual = self._sizes(rhs - self._products.apply(x, transpose))
        if not bool((residual <= self._tolerances.residual * sizes).all()):
            self.refuse_singular()

    def _refine_and_check(self, x: Tensor, rhs: Tensor, transpose: bool) -> Tensor:
        """The refined solution of a method that may be unstable; raise if it is not accurate."""
        tolerances = self._tolerances
        x, error = self._refine(x, rhs, transpose, tolerances.stable)
        if error <= tolerances.componentwise:
            return x
        # Componentwise is too strict where x has zeros; then a normwise small residual is enough.
        residual = self._sizes(rhs - self._products.apply(x, transpose))
        bound = self._scales(rhs.shape[0]) * self._sizes(x) + self._sizes(rhs)
        if bool((residual > tolerances.stable * bound).any()):
            self.refuse_singular()
            engine, kind = self.record.engine, self.record.kind
            raise EngineError(
                f"{engine} could not factor this {kind} matrix accurately (backward error "
                f"{error:.0e}); {self._advice}, or scale the rows and columns of the matrix",
                engine=engine,
                code=None,
            )
        return x

    def _apply_to_finite(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """The same as `apply_inverse`, where some right-hand sides are not finite."""
        each = rhs.view(rhs.shape[0] * self._blocks, self._n // self._blocks)
        if strict:
            raise_non_finite("b", each)
            message = "b is too large: the modulus of an entry is infinite"
            raise NonFiniteError(message, argument="b", index=None)
        finite = torch.isfinite(self._sizes(rhs)).unsqueeze(-1)
        x = self.apply_inverse(torch.where(finite, each, 0).view(rhs.shape), transpose, strict)
        return torch.where(finite, x.view(each.shape), math.nan).view(rhs.shape)

    def apply_inverse_non_blocking(self, rhs: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
        """Apply A⁻¹ or A⁻ᵀ without synchronising the host.

        Returns the solutions after one step of refinement, and (k · blocks,) whether each is
        accurate. A singular matrix leaves residuals that are not small beside the right-hand side,
        however large the solution.
        """
        products, tolerances = self._products, self._tolerances
        x = self.factor.substitute(rhs, transpose)
        x = x + self.factor.substitute(rhs - products.apply(x, transpose), transpose)
        residual = rhs - products.apply(x, transpose)
        error = self._ratios(residual, products.apply_modulus(x, transpose) + rhs.abs())
        sizes, left, x_sizes = (self._sizes(vectors) for vectors in (rhs, residual, x))
        bound = self._scales(rhs.shape[0]) * x_sizes + sizes
        backward = (error <= tolerances.componentwise) | (left <= tolerances.stable * bound)
        consistent = left <= tolerances.non_blocking_residual * sizes
        return x, backward & consistent & (x_sizes < math.inf)

    def is_accurate(self) -> bool:
        """Whether the factor solves a system with a probe vector to a small backward error."""
        rhs = self._probe()
        x = self.factor.substitute(rhs, False)
        self._growth = self._largest_of(x) * self._largest
        if not self._growth < math.inf:
            return False
        enough = self._tolerances.probe
        return self._refine(x, rhs, False, enough)[1] <= enough

    def is_beyond_doubt(self) -> bool:
        """Whether nothing suggests that the matrix, or a block of it, is singular or inaccurate.

        Measured on the whole matrix, which is stricter than on any block.
        """
        if self.factor.stable:
            return not self.factor.doubtful
        accurate = self.is_accurate()
        return accurate and not self.factor.perturbed_pivots and self._is_far_from_singular()

    def _is_far_from_singular(self) -> bool:
        """Whether the probe vector hardly grew; asked after `is_accurate`."""
        return self._growth is not None and self._growth < self._tolerances.growth

    def refuse_singular(self) -> None:
        """Raise SingularMatrixError if the matrix is singular to working precision."""
        if self._singular is None:
            distance, tolerances = self._distance_to_singularity(), self._tolerances
            perturbed = tolerances.perturbed_distance if self.factor.perturbed_pivots else 0.0
            is_regular = distance > max(tolerances.stable, perturbed)
            self._singular = "" if is_regular else self._describe_singular(distance)
        if self._singular:
            raise SingularMatrixError(self._singular, engine=self.record.engine, row=None)

    def _distance_to_singularity(self) -> float:
        """An upper bound of the smallest ω with (A + E) v = 0, v ≠ 0, |E| ≤ ω|A|; tight if tiny.

        Each v gives a bound, its backward error as a solution of A v = 0. Inverse iteration leads
        to a vector that A nearly annihilates, but only as nearly as the factor F is that of A:
        perturbed pivots distort it. Then v − F⁻¹ A v leads further: it maps null vectors of A to
        themselves, and shrinks the rest.

        A null vector that belongs to a part of A that nothing else depends on is zero elsewhere,
        where inverse iteration leaves noise, whose relative residual is not small. So v is also
        tried without its small entries: small themselves, or beside the columns that they multiply.
        """
        if not self.factor.perturbed_pivots and self._is_far_from_singular():
            return 1.0
        device = self.factor.values.device
        best = torch.full((self._blocks,), math.inf, dtype=torch.float64, device=device)
        v, columns = self._probe(), self._products.column_moduli()
        Av = v
        for step in range(_INVERSE_ITERATIONS):
            shift = v if step < 2 else Av
            update = self.factor.substitute(shift, False)
            v = update if step < 2 else v - update
            size = self._sizes(v)
            if not bool(((size > 0) & (size < math.inf)).all()):
                return 0.0 if step < 2 else float(best.min())
            v = (v.view(self._blocks, -1) / size.unsqueeze(1)).view_as(v)
            Av = self._products.apply(v, False)
            distance = self._ratios(Av, self._products.apply_modulus(v, False))
            for moduli in (v.abs(), v.abs() * columns):
                limit = self._tolerances.noise * self._sizes(moduli).unsqueeze(1)
                small = moduli.view(self._blocks, -1) < limit
                large = v.masked_fill(small.view_as(v), 0)
                residual, bound = (
                    self._products.apply(large, False),
                    self._products.apply_modulus(large, False),
                )
                distance = torch.minimum(distance, self._ratios(residual, bound))
            stagnates = step > 2 and not bool((distance < best / 2).any())
            best = torch.minimum(best, distance)
            if stagnates:
                break
        return float(best.min())

    def _refine(
        self, x: Tensor, rhs: Tensor, transpose: bool, enough: float
    ) -> tuple[Tensor, float]:
        """`x` and its backward error, after as many steps of iterative refinement as help.

        None is made if the backward error is at most `enough`.
        """
        best, error = x, math.inf
        for step in range(_REFINEMENT_STEPS + 1):
            residual = rhs - self._products.apply(x, transpose)
            bound = self._products.apply_modulus(x, transpose) + rhs.abs()
            found = float(self._ratios(residual, bound).max())
            helped = found < error / 2
            if found < error:
                best, error = x, found
            if not helped or error <= enough or step == _REFINEMENT_STEPS:
                break
            x = x + self.factor.substitute(residual, transpose)
        return best, error

    def _probe(self) -> Tensor:
        device = self.factor.values.device
        return probe_vector(self._n, self._dtype, _PROBE_MEAN, device, self._start)

    def _is_empty(self, rhs: Tensor) -> bool:
        return rhs.numel() == 0

    def _largest_of(self, vectors: Tensor) -> float:
        return largest_modulus(vectors)

    def _sizes(self, vectors: Tensor) -> Tensor:
        """(k · blocks,) the largest modulus in the part of each system."""
        return row_moduli(vectors.reshape(-1, self._n // self._blocks))

    def _scales(self, k: int) -> Tensor:
        """(k · blocks,) the largest entry of the matrix of each system."""
        return row_moduli(self.factor.values.view(self._blocks, -1)).repeat(k)

    def _ratios(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """(k · blocks,) max_i |numerator_i| / denominator_i of each system.

        0 / 0 counts as 0, and overflow as infinity.
        """
        ratio = (numerator.abs() / denominator).reshape(-1, self._n // self._blocks)
        largest = ratio.amax(-1).double()
        # Without asking a GPU, which would take longer.
        if largest.device.type != "cpu" or bool(largest.isnan().any()):
            ratio = ratio.masked_fill(denominator.view_as(ratio) == 0, 0)
            largest = ratio.nan_to_num(nan=math.inf, posinf=math.inf).amax(-1).double()
        return largest

    def _describe_singular(self, distance: float) -> str:
        rank = self._structural_rank()
        if rank is not None and rank < self._n:
            pattern = f"its pattern has rank {rank} of {self._n}, whatever the values"
            return f"the matrix is structurally singular: {pattern}"
        return (
            f"the matrix is singular to working precision: a relative change of its entries by "
            f"{distance:.0e} makes it singular (a graph or mesh Laplacian needs an anchor: a fixed "
            f"vertex, or a multiple of the identity or of the mass matrix added)"
        )

    def _structural_rank(self) -> int | None:
        from scipy.sparse import csr_matrix
        from scipy.sparse.csgraph import structural_rank

        arrangement = self.factor.arrangement
        if arrangement.coverage != "full":
            return None
        ones = torch.ones(arrangement.nnz, dtype=torch.int8, device="cpu").numpy()
        indices = arrangement.col.cpu().numpy(), arrangement.crow.cpu().numpy()
        return int(structural_rank(csr_matrix((ones, *indices), shape=(self._n, self._n))))
