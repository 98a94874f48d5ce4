"""One matrix: values on a structure, and what an engine needs to know about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NonFiniteError
from .structure import Structure
from .triangle import Arrangement, arrangement_of
from .values import largest_modulus, raise_non_finite


@dataclass(frozen=True)
class _Halves:
    """Where the caller's values go in an array of two halves.

    The first half is the upper triangle by rows, and the second half has the opposite of each of
    its entries: one comparison of the halves tells whether a matrix is symmetric, and the first
    half is what engines read.

    slot : (nnz,) the place of each value, where places hold several values, which are summed, or
        none; diagonal entries go to the first half only. None if `source` serves.
    source : (2 · entries,) the value for each place
    """

    arrangement: Arrangement
    slot: Tensor | None
    source: Tensor | None

    def fill(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The upper triangle, and the opposite entries."""
        nnz = self.arrangement.nnz
        if self.source is not None:
            both = values.index_select(0, self.source)
            return both[:nnz], both[nnz:]
        assert self.slot is not None
        both = values.new_zeros(2 * nnz).scatter_add_(0, self.slot, values)
        at = self.arrangement.at_diagonal
        both[nnz:].scatter_(0, at, both[:nnz].index_select(0, at))
        return both[:nnz], both[nnz:]


def _find_halves(structure: Structure) -> _Halves | None:
    """None where an entry has no opposite."""
    opposite = structure.transpose_map
    if bool((opposite < 0).any()):
        return None
    arrangement = arrangement_of(structure, "upper")
    source = arrangement.source
    assert source is not None  # only a full arrangement may be the identity
    place = torch.nonzero(source >= 0).squeeze(-1)  # the rest are diagonal zeros, not stored
    slot = torch.empty(structure.canonical_nnz, dtype=torch.int64, device=structure.device)
    slot[opposite[source[place]]] = arrangement.nnz + place
    slot[source[place]] = place  # last: diagonal entries are their own opposites
    if structure.has_duplicates or arrangement.has_gaps:
        slot = slot if structure.position is None else slot[structure.position]
        return _Halves(arrangement, slot, None)
    both = torch.cat((source, opposite[source]))
    both = both if structure.entry_of is None else structure.entry_of[both]
    return _Halves(arrangement, None, both)


class Matrix:
    """The matrix with the plain, contiguous `values` (nnz,) in the caller's order."""

    def __init__(self, structure: Structure, values: Tensor):
        self.structure, self.values, self.dtype = structure, values, values.dtype
        self._canonical: Tensor | None = None
        self._halves: tuple[Tensor, Tensor] | None = None
        # The upper triangle, once `match_triangles` has found that the lower one agrees with it.
        self._upper: Tensor | None = None
        self._diagonal: Tensor | None = None
        self._largest: float | None = None

    @property
    def canonical(self) -> Tensor:
        """(canonical_nnz,) the values in canonical order, duplicates summed."""
        if self._canonical is None:
            self._canonical = self.structure.canonical(self.values)
        return self._canonical

    def match_triangles(self, conjugate: bool) -> bool:
        """Compare both triangles, and keep the upper one if the lower is its exact transpose.

        Then the methods below read the upper triangle only, which saves a pass over the values.
        False does not mean that the matrix is not symmetric up to rounding errors. With
        `conjugate`, the lower triangle is compared with the conjugate transpose.
        """
        halves = self.structure.remember(_find_halves) if self.values.numel() else None
        if halves is None:
            return False
        if self._halves is None:
            self._halves = halves.fill(self.values)
        upper, lower = self._halves
        opposite = lower.conj().resolve_conj() if conjugate and lower.is_complex() else lower
        self._upper = upper if torch.equal(upper, opposite) else None
        return self._upper is not None

    def check_finite(self) -> float:
        """Raise NonFiniteError if an entry is NaN or infinite; return the largest modulus."""
        if self._largest is None:
            entries = self.canonical if self._upper is None else self._upper
            largest = largest_modulus(entries) if entries.numel() else 0.0
            if not largest < float("inf"):
                raise_non_finite("values", self.values)
                raise NonFiniteError(
                    "values are too large: the modulus or the sum of some is infinite",
                    argument="values",
                    index=None,
                )
            self._largest = largest
        return self._largest

    @property
    def diagonal(self) -> Tensor:
        """(n,) the diagonal; zero where it is not stored."""
        if self._diagonal is None:
            if self._upper is None:
                self._diagonal = self.structure.diagonal_of(self.canonical)
            else:
                at = arrangement_of(self.structure, "upper").at_diagonal
                self._diagonal = self._upper.index_select(0, at)
        return self._diagonal

    def arrange(self, arrangement: Arrangement, hermitian: bool) -> Tensor:
        """The values as an engine wants them: to be read only, never an alias of the caller's."""
        if self._upper is not None and arrangement is arrangement_of(self.structure, "upper"):
            return self._upper
        return arrangement.gather(self.canonical, hermitian)
