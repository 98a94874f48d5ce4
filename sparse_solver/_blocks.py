"""Batches of small matrices as few block-diagonal ones, so that what a call costs is paid once for many matrices."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ._structure import Structure

# Of a block-diagonal matrix, at most: enough for what a call costs not to matter, and no more than maps and factors are
# small for.
_ROWS, _ENTRIES = 2**15, 2**19
_PROCESSORS = 64  # times as much is what it takes for a GPU to have something to do


def blocks_of(structure: Structure, count: int) -> Iterator[tuple[slice, Structure]]:
    """How to take a batch of `count` matrices apart: slices of it, and the structure of the matrix that has those of a
    slice on its diagonal; for a slice of one, `structure` itself.

    Slices have the length of powers of two: then batches of all sizes share few structures, and their analyses.
    """
    size = 1
    room = 1 if structure.device.type == "cpu" else _PROCESSORS
    largest = min(count, room * _ROWS // max(1, structure.shape[0]), room * _ENTRIES // max(1, structure.nnz))
    while 2 * size <= largest:
        size *= 2
    start = 0
    while start < count:
        while size > count - start:
            size //= 2
        yield slice(start, start + size), _repeated(structure, size)
        start += size


def _repeated(structure: Structure, count: int) -> Structure:
    def build() -> Structure:
        n = structure.shape[0]
        first = n * torch.arange(count, device=structure.device).unsqueeze(1)
        rows, cols = (first + structure.rows).reshape(-1), (first + structure.cols).reshape(-1)
        labels = None if structure.labels is None else structure.labels.repeat(count)
        repeated = Structure(rows, cols, (count * n, count * n), labels)
        repeated.is_of(structure, count)
        return repeated

    return structure if count == 1 else structure.remember(("repeated", count), build)


def joined(vectors: Tensor) -> Tensor:
    """The rows (k, count · n) of right-hand sides for a block-diagonal matrix from those (count, k, n) for its blocks."""
    count, k, n = vectors.shape
    return vectors.transpose(0, 1).reshape(k, count * n)


def parted(vectors: Tensor, count: int) -> Tensor:
    """The inverse of `joined`."""
    return vectors.view(vectors.shape[0], count, vectors.shape[1] // count).transpose(0, 1)
