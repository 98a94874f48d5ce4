"""One matrix: values on a structure, and what has to be found out about them before an engine may see them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._layout import Layout, layout_of
from ._structure import Structure
from .errors import NonFiniteError


@dataclass(frozen=True)
class _Triangles:
    """Where the caller's values go in an array that holds the upper triangle by rows, and after it, entry by entry,
    what is opposite to each: then one comparison tells whether a matrix is symmetric, and its first half is what engines
    read.

    `slot` : (nnz,) the place of each value, where places hold several, which are summed, or none; diagonal entries go to
    the first half only. Else `source` : (2 · entries,) the value for each place.
    """

    layout: Layout
    slot: Tensor | None
    source: Tensor | None

    def fill(self, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.source is not None:
            both = values.index_select(0, self.source)
        else:
            assert self.slot is not None
            both = values.new_zeros(2 * self.layout.nnz).scatter_add_(0, self.slot, values)
        upper, lower = both[: self.layout.nnz], both[self.layout.nnz :]
        if self.slot is not None:
            at = self.layout.at_diagonal
            lower.scatter_(0, at, upper.index_select(0, at))
        return upper, lower


def _triangles(structure: Structure) -> _Triangles | None:
    """None where an entry has no opposite."""
    return structure.remember("triangles", lambda: _find_triangles(structure))


def _find_triangles(structure: Structure) -> _Triangles | None:
    opposite = structure.transpose_map
    if bool((opposite < 0).any()):
        return None
    layout = layout_of(structure, "upper")
    source = layout.source
    assert source is not None  # only a full layout may be the identity
    place = torch.nonzero(source >= 0).squeeze(-1)  # the rest are zeros on the diagonal that are not stored
    slot = torch.empty(structure.canonical_nnz, dtype=torch.int64, device=structure.device)
    slot[opposite[source[place]]] = layout.nnz + place
    slot[source[place]] = place  # last: diagonal entries are their own opposites
    if structure.has_duplicates or layout.has_gaps:
        return _Triangles(layout, slot if structure.position is None else slot[structure.position], None)
    both = torch.cat((source, opposite[source]))
    return _Triangles(layout, None, both if structure.entry_of is None else structure.entry_of[both])


class Matrix:
    """The matrix with the plain, contiguous `values` (nnz,) in the caller's order."""

    def __init__(self, structure: Structure, values: Tensor):
        self.structure, self.values, self.dtype = structure, values, values.dtype
        self._canonical: Tensor | None = None
        self._halves: tuple[Tensor, Tensor] | None = None
        self._mirrored = False
        self._largest: float | None = None

    @property
    def canonical(self) -> Tensor:
        """(canonical_nnz,) the values in canonical order, duplicates summed."""
        if self._canonical is None:
            self._canonical = self.structure.canonical(self.values)
        return self._canonical

    def is_mirrored(self, conjugate: bool) -> bool:
        """Whether both triangles are stored, and are each other's transpose (or conjugate transpose) to the last bit.

        Most symmetric matrices are. False does not say that this one is not symmetric up to rounding errors.
        """
        triangles = _triangles(self.structure) if self.values.numel() else None
        if triangles is None:
            return False
        if self._halves is None:
            self._halves = triangles.fill(self.values)
        upper, lower = self._halves
        opposite = lower.conj().resolve_conj() if conjugate and lower.is_complex() else lower
        self._mirrored = torch.equal(upper, opposite)
        return self._mirrored

    @property
    def largest(self) -> float:
        """The largest modulus of an entry; raises NonFiniteError if one is NaN or infinite."""
        if self._largest is None:
            self._largest = self._find_largest()
        return self._largest

    def _find_largest(self) -> float:
        if self.values.numel() == 0:
            return 0.0
        entries = self._halves[0] if self._halves is not None and self._mirrored else self.canonical
        largest = largest_modulus(entries)
        if largest < float("inf"):
            return largest
        raise_non_finite("values", self.values)
        raise NonFiniteError(
            "values are too large: the modulus or the sum of some is infinite", argument="values", index=None
        )

    @property
    def diagonal(self) -> Tensor:
        """(n,) the diagonal; zero where it is not stored."""
        triangles = _triangles(self.structure) if self._mirrored else None
        if triangles is not None and self._halves is not None:
            return self._halves[0].index_select(0, triangles.layout.at_diagonal)
        return self.structure.diagonal_of(self.canonical)

    def arranged(self, layout: Layout, hermitian: bool) -> Tensor:
        """The values as an engine wants them. Never an alias of the caller's values, and to be read only."""
        triangles = _triangles(self.structure) if self._mirrored else None
        if triangles is not None and self._halves is not None and layout is triangles.layout:
            return self._halves[0]
        return layout.gather(self.canonical, hermitian)


def raise_non_finite(argument: str, tensor: Tensor) -> None:
    """Raises NonFiniteError for the first entry that is NaN or infinite, if there is one."""
    bad = torch.nonzero(~torch.isfinite(tensor))
    if bad.numel():
        place = tuple(bad[0].tolist())
        # A right-hand side may have been folded out of a batch: what its caller knows is the row.
        raise NonFiniteError(f"{argument}[{place[-1]}] is {tensor[place].item()}", argument=argument, index=place[-1])


def largest_modulus(numbers: Tensor) -> float:
    """The largest modulus of some numbers, one at least; NaN if one of them is."""
    if numbers.is_complex():
        return float(torch.linalg.vector_norm(numbers, float("inf")))
    low, high = torch.aminmax(numbers)  # many times faster than a norm
    if low.device.type != "cpu":  # ask a GPU once
        return float(torch.maximum(-low, high))
    return max(-low.item(), high.item())


def power_of_two(sizes: Tensor) -> Tensor:
    """Those nearest below the reciprocals of `sizes`; one where a size is not positive."""
    integers, mantissa, bias = (torch.int32, 23, 127) if sizes.dtype == torch.float32 else (torch.int64, 52, 1023)
    exponents = torch.frexp(sizes)[1].clamp(1 - bias, bias - 1)
    # Put together from their bits: powers of two as functions are inexact on some devices.
    powers = ((bias - exponents.to(integers)) << mantissa).view(sizes.dtype)
    return torch.where(sizes > 0, powers, 1.0)
