"""Batches of small matrices as a few block-diagonal ones, which share the overhead of a call."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .structure import Structure

# The largest block-diagonal matrix: large enough to hide the overhead of a call, and small enough
# for its index maps and factors to be small.
_MAX_ROWS, _MAX_ENTRIES = 2**15, 2**19
# A GPU needs this many times as much work to be busy.
_GPU_FACTOR = 64


def split_batch(structure: Structure, count: int) -> Iterator[tuple[slice, Structure]]:
    """Split a batch of `count` matrices into slices that are factored together.

    Yields each slice with the structure of the block-diagonal matrix of its members; for a slice
    of one that is `structure` itself. The lengths are powers of two, so that batches of all sizes
    share few structures and their analyses.
    """
    size = 1
    factor = 1 if structure.device.type == "cpu" else _GPU_FACTOR
    by_rows = factor * _MAX_ROWS // max(1, structure.shape[0])
    by_entries = factor * _MAX_ENTRIES // max(1, structure.nnz)
    while 2 * size <= min(count, by_rows, by_entries):
        size *= 2
    start = 0
    while start < count:
        while size > count - start:
            size //= 2
        block = structure if size == 1 else structure.remember(_repeat, size)
        yield slice(start, start + size), block
        start += size


def _repeat(structure: Structure, count: int) -> Structure:
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
    return vectors.view(vectors.shape[0], count, vectors.shape[1] // count).transpose(0, 1)
