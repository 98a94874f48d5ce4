"""Batches of small matrices as a few block-diagonal ones, which share the overhead of a call."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .structure import Structure, structure_of

# The largest block-diagonal matrix: large enough to hide the overhead of a call, and small enough
# for its index maps and factors to be small.
_MAX_ROWS, _MAX_ENTRIES = 2**15, 2**19
# A GPU needs this many times as much work to be busy.
_GPU_FACTOR = 64
# A block-diagonal matrix in which a block is in doubt is split into so many parts. Parts without
# doubt need not be split again, and where all blocks are in doubt, little is factored in vain.
_PARTS = 8


def split_batch(
    structure: Structure, count: int, longest: int | None = None
) -> Iterator[tuple[slice, Structure]]:
    """Split a batch of `count` matrices into slices that are factored together.

    Yields each slice with the structure of the block-diagonal matrix of its members; for a slice
    of one that is `structure` itself. The lengths are powers of two, so that batches of all sizes
    share few structures and their analyses. `longest` bounds them, by default the work in one call.
    """
    limits = _limits(structure, structure.shape[0], structure.nnz)
    size, limit = 1, min(count, *limits) if longest is None else longest
    while 2 * size <= limit:
        size *= 2
    start = 0
    while start < count:
        while size > count - start:
            size //= 2
        block = structure if size == 1 else structure.remember(repeat, size)
        yield slice(start, start + size), block
        start += size


def join_matrices(
    structure: Structure, values: Tensor
) -> Iterator[tuple[slice, Structure, Tensor]]:
    """Join the matrices of a batch to block-diagonal ones, which are factored at once.

    The batch has one structure and values (batch, nnz), or values (nnz,) on the structure of a
    batch with different patterns. Yields a slice of the batch, and the structure and the values of
    the block-diagonal matrix of its members.
    """
    if values.dim() == 1:
        values, common = structure.canonical(values), structure.remember(_find_common_block)
        if common is None:
            for batch, part, entries in _split_different(structure):
                yield batch, part, values[entries]
            return
        structure, values = common, values.view(count_matrices(structure), common.nnz)
    for batch, block in split_batch(structure, len(values)):
        yield batch, block, values[batch].reshape(-1)


def split_joined(
    batch: slice, structure: Structure, values: Tensor
) -> Iterator[tuple[slice, Structure, Tensor]]:
    """Split a block-diagonal matrix that `join_matrices` yielded into smaller ones."""
    count = batch.stop - batch.start
    size, (block, copies) = max(1, count // _PARTS), structure.block
    if copies == count:
        for members, part in split_batch(block, count, size):
            chosen = values[members.start * block.nnz : members.stop * block.nnz]
            yield slice(batch.start + members.start, batch.start + members.stop), part, chosen
        return
    n = structure.shape[0] // count
    for start in range(0, count, size):
        stop = min(start + size, count)
        part, entries = structure.remember(_cut, start * n, stop * n)
        yield slice(batch.start + start, batch.start + stop), part, values[entries]


def count_matrices(structure: Structure) -> int:
    """How many matrices the batch has for which this structure was made."""
    assert structure.batch_shape is not None
    return math.prod(structure.batch_shape[:-2])


def batch_places(structure: Structure, rows: Tensor, cols: Tensor) -> tuple[Tensor, ...]:
    """These places in the batch for which this structure was made: the COO indices."""
    assert structure.batch_shape is not None
    *batch, n, _ = structure.batch_shape
    if rows.numel() == 0:  # where n may be zero
        return tuple(rows.new_zeros(0) for _ in structure.batch_shape)
    return *torch.unravel_index(rows // n, batch), rows % n, cols % n


def _find_common_block(structure: Structure) -> Structure | None:
    """The structure of all matrices of the batch, if they have the same one."""
    assert structure.batch_shape is not None
    n, count = structure.batch_shape[-1], count_matrices(structure)
    if count == 0 or structure.canonical_nnz % count:
        return None
    first = n * torch.arange(count, device=structure.device).unsqueeze(1)
    places = structure.canonical_rows, structure.col
    rows, cols = (place.view(count, -1 if place.numel() else 0) - first for place in places)
    if not (bool((rows == rows[0]).all()) and bool((cols == cols[0]).all())):
        return None
    return structure_of(rows[0], cols[0], (n, n))


def _split_different(structure: Structure) -> Iterator[tuple[slice, Structure, slice]]:
    """Slices of a batch, each with the structure of its members and their canonical entries."""
    assert structure.batch_shape is not None
    n, count = structure.batch_shape[-1], count_matrices(structure)
    length = structure.remember(_find_length) if count else 1
    for start in range(0, count, length):
        stop = min(start + length, count)
        if stop - start == count and structure.position is None:
            yield slice(0, count), structure, slice(None)
        else:
            part, entries = structure.remember(_cut, start * n, stop * n)
            yield slice(start, stop), part, entries


def _find_length(structure: Structure) -> int:
    """How many matrices of a batch make a block-diagonal one that is not too large."""
    assert structure.batch_shape is not None
    n = structure.batch_shape[-1]
    largest = int(structure.crow[::n].diff().max()) if n else 0
    return max(1, min(_limits(structure, n, largest)))


def _cut(structure: Structure, start: int, stop: int) -> tuple[Structure, slice]:
    """The diagonal block with these rows, and which canonical entries it has."""
    entries = slice(int(structure.crow[start]), int(structure.crow[stop]))
    rows, cols = structure.canonical_rows[entries] - start, structure.col[entries] - start
    return Structure(rows, cols, (stop - start, stop - start)), entries


def _limits(structure: Structure, rows: int, entries: int) -> tuple[int, int]:
    """How many matrices may be joined because of their rows, and of their entries."""
    factor = 1 if structure.device.type == "cpu" else _GPU_FACTOR
    return factor * _MAX_ROWS // max(1, rows), factor * _MAX_ENTRIES // max(1, entries)


def repeat(structure: Structure, count: int) -> Structure:
    """The structure of the block-diagonal matrix with so many equal blocks."""
    n = structure.shape[0]
    first = n * torch.arange(count, device=structure.device).unsqueeze(1)
    rows, cols = (first + structure.rows).reshape(-1), (first + structure.cols).reshape(-1)
    labels = None if structure.labels is None else structure.labels.repeat(count)
    repeated = Structure(rows, cols, (count * n, count * n), labels)
    repeated.set_block(structure, count)
    return repeated


def join_batch(vectors: Tensor) -> Tensor:
    """Join the right-hand sides (count, k, n) of blocks to those (k, count · n) of the whole."""
    count, k, n = vectors.shape
    # Contiguous even where `reshape` returns a view with other strides.
    return vectors.transpose(0, 1).reshape(k, count * n).contiguous()


def unjoin_batch(vectors: Tensor, count: int) -> Tensor:
    """Invert `join_batch`."""
    return vectors.view(vectors.shape[0], count, vectors.shape[1] // max(1, count)).transpose(0, 1)
