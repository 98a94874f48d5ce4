"""What a factor shows about A⁻¹: norms of |A⁻¹| d, the condition of A, and null vectors.

[1] W. W. Hager, "Condition estimates", SIAM J. Sci. Stat. Comput. 5, 1984.
[2] N. J. Higham, "FORTRAN codes for estimating the one-norm of a real or complex matrix, with
applications to condition estimation", ACM Trans. Math. Softw. 14, 1988.
[3] W. Oettli, W. Prager, "Compatibility of approximate solution of linear systems with given
error bounds for coefficients and right-hand sides", Numer. Math. 6, 1964.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..._engines.protocol import Factor
from ..._sparse.values import double_of, is_single, scaling_power, to_double
from .systems import Systems

# Steps of the estimation of a norm; it rarely needs more than two [2].
_ESTIMATION_STEPS = 4
# Steps of a power iteration that finds the units of the unknowns, in so many rounds at most.
_UNIT_STEPS, _MOST_ROUNDS = 3, 3
# Steps of an iteration that finds a null vector of a singular matrix.
_NULL_VECTOR_STEPS = 4
# An estimate that does not grow by more than this has converged.
_ESTIMATE_GROWTH = 1.01


class Conditioning(NamedTuple):
    """How much a matrix enlarges errors.

    units : (1, n) sizes of the unknowns, at most one, in which their errors are compared
    condition : (systems,) max_j (|A⁻¹||A| units)_j / units_j
    """

    units: Tensor
    condition: Tensor


class Inverse:
    """A⁻¹ as a factor represents it.

    small_condition : a condition number that is small enough, whatever the units are
    substitute : applies the factor to double precision vectors (k, n), in double precision
    """

    def __init__(self, systems: Systems, factor: Factor, small_condition: float):
        self._systems, self._dtype = systems, factor.values.dtype
        self._small_condition = small_condition
        self._conditioning: dict[bool, Conditioning] = {}
        self.substitute: Callable[[Tensor, bool], Tensor]
        self.substitute = partial(_substitute_scaled, systems, factor)
        if not is_single(self._dtype):
            self.substitute = factor.substitute

    def find_conditioning(self, transpose: bool) -> Conditioning:
        """The condition number of a matrix in doubt, in units that make it small.

        The sizes of the columns serve for most matrices, and units that bring all entries near one
        for those with scaled unknowns; a power iteration finds others.
        """
        if transpose not in self._conditioning:
            best = self._measure(self._systems.scales(transpose).columns.reciprocal(), transpose)
            if not self._is_small(best):
                found = self._measure(self._systems.balanced_units(transpose), transpose)
                best = found if bool((found.condition < best.condition).all()) else best
            units = self._systems.ones()
            for _ in range(_MOST_ROUNDS):
                if self._is_small(best):
                    break
                for _ in range(_UNIT_STEPS):
                    units = self._iterate_units(units, transpose)
                found = self._measure(units, transpose)
                if bool((best.condition <= found.condition).all()):
                    break
                best = found
            self._conditioning[transpose] = best
        return self._conditioning[transpose]

    def _is_small(self, conditioning: Conditioning) -> bool:
        return bool((conditioning.condition <= self._small_condition).all())

    def _measure(self, units: Tensor, transpose: bool) -> Conditioning:
        """The condition number in these units, of which the largest one becomes one."""
        units = units / self._systems.largest(units)
        weights = self._systems.bound(units, None, transpose)
        condition = self.estimate(weights, transpose, units)
        return Conditioning(units, condition.nan_to_num(torch.inf))

    def _iterate_units(self, units: Tensor, transpose: bool) -> Tensor:
        """|A⁻¹||A| units, nearly, divided by its largest entry.

        The moduli of A⁻¹ v for a few vectors v of signs stand for the sums of moduli.
        """
        systems = self._systems
        weights = systems.bound(units, None, transpose)
        for signs in self._signs():
            moduli = self._apply_weighted(weights, signs, transpose).abs()
            units = torch.maximum(moduli, units)  # |A⁻¹||A| ≥ |A⁻¹A|
        return units / systems.largest(units)

    def _signs(self) -> tuple[Tensor, Tensor, Tensor]:
        """(1, n) scattered signs, and alternating ones."""
        scattered = self._systems.probe().sign()
        alternating = 1 - 2 * (torch.arange(scattered.shape[-1], device=scattered.device) % 2)
        return scattered, scattered.flip(-1), alternating.to(scattered.dtype).unsqueeze(0)

    def find_null_vector(self, v: Tensor, enough: float) -> float:
        """A bound of the relative changes of the entries that make the matrix singular.

        Whatever the factor F is that of, max_i |A v|_i / (|A||v|)_i is one for every v [3]. The
        solution of the probe is large along null vectors, v − F⁻¹ A v maps them to themselves, and
        the rest becomes smaller.
        """
        systems, distance = self._systems, torch.inf
        noise = torch.finfo(systems.dtype).eps ** 0.5
        for _ in range(_NULL_VECTOR_STEPS):
            v = to_double(v) / systems.spread(systems.sizes(v))
            product = systems.products.apply(v, False)
            # Where the null vector is zero, v has rounding errors, beside which A v is not small.
            large = torch.where(v.abs() < noise, 0, v)
            for tried, image in ((v, product), (large, systems.products.apply(large, False))):
                ratio = systems.ratios(image, systems.bound(tried, None, False))
                distance = min(distance, float(ratio.max()))
            if distance <= enough:
                break
            v = v - self.substitute(product, False)
        return distance

    def estimate(self, weights: Tensor, transpose: bool, units: Tensor) -> Tensor:
        """(systems,) lower bounds, mostly tight, of max_j (|A⁻¹| weights)_j / units_j; see [1, 2].

        That is the largest modulus of M v, with M = U⁻¹ A⁻¹ W, over vectors with |v_i| ≤ 1. From
        the row j in which M v is largest, the next v takes the signs, so that row j of M v becomes
        ‖row j of M‖₁, which is no smaller.
        """
        systems = self._systems
        z = self._apply_weighted(weights, torch.ones_like(weights), transpose) / units
        for signs in self._signs():  # large entries may cancel with some, but hardly with all
            other = self._apply_weighted(weights, signs, transpose) / units
            better = systems.spread(systems.sizes(other) > systems.sizes(z))
            z = torch.where(better, other, z)
        largest = systems.sizes(z)
        for _ in range(_ESTIMATION_STEPS):
            row = weights * self.substitute(systems.unit_at_largest(z) / units, not transpose)
            signs = torch.where(row == 0, 1, torch.sgn(row).conj().resolve_conj())
            z = self._apply_weighted(weights, signs, transpose) / units
            size = systems.sizes(z)
            grew = bool((size > _ESTIMATE_GROWTH * largest).any())
            largest = torch.maximum(size, largest)  # NaN stays
            if not grew:
                break
        return largest

    def _apply_weighted(self, weights: Tensor, signs: Tensor, transpose: bool) -> Tensor:
        """A⁻¹ (weights ∘ signs), in the double precision of the dtype of the factor."""
        return self.substitute((weights * signs).to(double_of(self._dtype)), transpose)


def _substitute_scaled(systems: Systems, factor: Factor, rhs: Tensor, transpose: bool) -> Tensor:
    """Apply a factor in single precision to vectors of the size of the matrix.

    Others, or their solutions, might overflow.
    """
    sizes = systems.sizes(rhs) / systems.sizes(systems.scales(False).rows.expand_as(rhs))
    powers = systems.spread(scaling_power(sizes))
    scaled = (rhs * powers).to(factor.values.dtype).contiguous()
    return to_double(factor.substitute(scaled, transpose)) / powers
