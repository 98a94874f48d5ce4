"""Both triangles of a matrix side by side, so that one comparison tells whether it is symmetric.

The upper triangle, in an engine's order, is followed by the opposite of each of its entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .structure import Structure
from .triangle import arrangement_of
from .values import new_numbers, select_numbers


@dataclass(frozen=True)
class BothTriangles:
    """Where the caller's values go in an array of both triangles.

    nnz : the entries of one triangle
    at_diagonal : (n,) the places of the diagonal entries in a triangle
    slot : (nnz of the caller,) the place of each value, where places hold several values, which are
        summed, or none; diagonal entries go to the upper triangle only. None if `source` serves.
    source : (2 nnz,) the value for each place
    """

    nnz: int
    at_diagonal: Tensor
    slot: Tensor | None
    source: Tensor | None

    def fill(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The upper triangle, and the opposite entries."""
        nnz = self.nnz
        if self.source is not None:
            both = select_numbers(values, self.source)
            return both[:nnz], both[nnz:]
        assert self.slot is not None
        both = new_numbers(values, 2 * nnz).zero_().scatter_add_(0, self.slot, values)
        upper, lower = both[:nnz], both[nnz:]
        lower.scatter_(0, self.at_diagonal, upper.index_select(0, self.at_diagonal))
        return upper, lower

    def reorder(self, order: Tensor, at_diagonal: Tensor) -> BothTriangles:
        """The triangles in which entry k is entry ``order[k]`` of these."""
        if self.source is not None:
            source = torch.cat([part[order] for part in self.source.split(self.nnz)])
            return BothTriangles(self.nnz, at_diagonal, None, source)
        assert self.slot is not None
        place = torch.empty(2, self.nnz, dtype=torch.int64, device=order.device)
        place[:, order] = torch.arange(2 * self.nnz, device=order.device).view(2, -1)
        return BothTriangles(self.nnz, at_diagonal, place.view(-1)[self.slot], None)


def agree(upper: Tensor, lower: Tensor, conjugate: bool) -> bool:
    """Whether each entry of the lower triangle is the opposite one, or its conjugate.

    Entries that are not numbers do not agree.
    """
    opposite = lower.conj().resolve_conj() if conjugate and lower.is_complex() else lower
    return torch.equal(upper, opposite)


def both_triangles_of(structure: Structure) -> BothTriangles | None:
    """The triangles of a square structure, by rows; None where an entry has no opposite."""
    return structure.remember(_find_triangles)


def _find_triangles(structure: Structure) -> BothTriangles | None:
    opposite = structure.transpose_map
    if bool((opposite < 0).any()):
        return None
    arrangement = arrangement_of(structure, "upper")
    nnz, at_diagonal, source = arrangement.nnz, arrangement.at_diagonal, arrangement.source
    assert source is not None  # only a full arrangement may be the identity
    place = torch.nonzero(source >= 0).squeeze(-1)  # the rest are diagonal zeros, not stored
    slot = torch.empty(structure.canonical_nnz, dtype=torch.int64, device=structure.device)
    slot[opposite[source[place]]] = nnz + place
    slot[source[place]] = place  # last: diagonal entries are their own opposites
    if structure.has_duplicates or arrangement.has_gaps:
        slot = slot if structure.position is None else slot[structure.position]
        return BothTriangles(nnz, at_diagonal, slot, None)
    both = torch.cat((source, opposite[source]))
    both = both if structure.entry_of is None else structure.entry_of[both]
    return BothTriangles(nnz, at_diagonal, None, both)
