"""The stored entries of a symmetric matrix, and those of its upper triangle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._factor.options import Triangle
from .._sparse.structure import Structure, find_places
from .._sparse.triangle import arrangement_of


@dataclass(frozen=True)
class Entries:
    """The stored entries of a symmetric matrix, and the entries of its upper triangle.

    slot : (nnz,) the entry of the upper triangle that each stored one is, or is the opposite of
    count : the entries of the upper triangle
    on_diagonal : (nnz,) which stored entries are on the diagonal
    upper_on_diagonal : (count,) which entries of the upper triangle are
    """

    slot: Tensor
    count: int
    on_diagonal: Tensor
    upper_on_diagonal: Tensor

    def fold(self, stored: Tensor, weight: float) -> Tensor:
        """Add (..., nnz) numbers at stored entries up, those off the diagonal with this weight."""
        upper = stored.new_zeros((*stored.shape[:-1], self.count))
        return upper.index_add(-1, self.slot, weigh(stored, self.on_diagonal, weight))

    def unfold(self, upper: Tensor) -> Tensor:
        """(..., nnz) the numbers of the stored entries."""
        return upper.index_select(-1, self.slot)


def weigh(numbers: Tensor, on_diagonal: Tensor, weight: float) -> Tensor:
    """Multiply the numbers off the diagonal by this weight."""
    return numbers if weight == 1 else torch.where(on_diagonal, numbers, weight * numbers)


def entries_of(structure: Structure, triangle: Triangle | None) -> Entries:
    """The entries of a structure that holds the whole matrix, or one triangle; found once."""
    return structure.remember(_find_entries, triangle)


def _find_entries(structure: Structure, triangle: Triangle | None) -> Entries:
    rows, cols = structure.rows, structure.cols
    upper = arrangement_of(structure, "upper", triangle)
    wanted = torch.stack((torch.minimum(rows, cols), torch.maximum(rows, cols)))
    slot = find_places(torch.stack((upper.rows, upper.col)), wanted)
    on_diagonal = rows == cols
    return Entries(slot, upper.nnz, on_diagonal, upper.rows == upper.col)


def complete(structure: Structure) -> Structure:
    """The structure with the opposite of every entry, missing ones at the end.

    A matrix may be symmetric though its structure is not: where entries are zero.
    """
    return structure.remember(_find_complete) or structure


def _find_complete(structure: Structure) -> Structure | None:
    """The completed structure; None if nothing is missing."""
    missing = torch.nonzero(structure.transpose_map < 0).squeeze(-1)
    if missing.numel() == 0:
        return None
    more = structure.col[missing], structure.canonical_rows[missing]
    rows, cols = torch.cat((structure.rows, more[0])), torch.cat((structure.cols, more[1]))
    return Structure(rows, cols, structure.shape, structure.labels, structure.batch_shape)


def join_blocks(structure: Structure) -> Structure:
    """The structure of the matrix on whose diagonal the matrices of a batch are."""
    # Copies, since a structure is found again by its indices.
    return Structure(structure.rows.clone(), structure.cols.clone(), structure.shape)


def spread_blocks(structure: Structure, of_blocks: Tensor) -> Tensor:
    """(..., nnz) or (..., 1) at the entries of each diagonal block, its number in (..., blocks)."""
    if of_blocks.shape[-1] == 1:
        return of_blocks
    number = structure.remember(_find_blocks, of_blocks.shape[-1])
    return of_blocks.index_select(-1, number)


def sum_blocks(structure: Structure, stored: Tensor, blocks: int) -> Tensor:
    """(..., blocks) the sums of the numbers (..., nnz) at the entries of each diagonal block."""
    if blocks == 1:
        return stored.sum(-1, keepdim=True)
    number = structure.remember(_find_blocks, blocks)
    return stored.new_zeros((*stored.shape[:-1], blocks)).index_add(-1, number, stored)


def _find_blocks(structure: Structure, count: int) -> Tensor:
    """(nnz,) the diagonal block, of `count` blocks of one size, that each stored entry is in."""
    return structure.rows // max(1, structure.shape[0] // max(1, count))
