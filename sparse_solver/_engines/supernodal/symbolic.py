"""The symbolic analysis of a pattern: order of elimination, supernodes, tasks, places in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..._sparse.structure import Structure
from ..._sparse.triangle import Arrangement, arrangement_of
from ..ordering import order_rows
from . import analysis_kernels as kernels
from .compilation import digest
from .primitives import BLOCK, Tree

_Array = NDArray[np.int64]

# Fronts that take fewer operations than this part of all are left to one thread, with all fronts
# below them. More parts are shared more evenly, and leave more to the fronts above them, which
# threads share block by block.
_PARTS = 24
# Below so many operations, threads take longer to start than to work.
_FEW_FLOPS = 5e6


@dataclass(frozen=True)
class Symbolic:
    """The analysis of a symmetric pattern.

    arrangement : the upper triangle, in whose order the values are
    order : (n,) the row at each step of the elimination
    tree : the supernodes
    pivots_at : (n,) where the diagonal of the factor is in the panels
    factor_nnz : the entries of the factor, with the zeros that merged supernodes have
    panel_size, update_size : the numbers in the panels, and in the updates
    top_sizes, task_sizes : the numbers in the columns of the largest front and in a block of
        them, above the tasks and in the tasks
    flops : the operations of a factorisation
    """

    arrangement: Arrangement
    order: _Array
    tree: Tree
    pivots_at: _Array
    factor_nnz: int
    panel_size: int
    update_size: int
    top_sizes: tuple[int, int]
    task_sizes: tuple[int, int]
    flops: float

    @property
    def n(self) -> int:
        """The rows of the matrix."""
        return len(self.order)

    @property
    def may_share(self) -> bool:
        """Whether several threads are faster than one."""
        return len(self.tree.tasks) + len(self.tree.top) > 1


def analyze(structure: Structure, triangle: str | None) -> Symbolic:
    """The analysis of a matrix of which all entries are stored, or one triangle; made once."""
    return structure.remember(_analyze, triangle)


def _analyze(structure: Structure, triangle: str | None) -> Symbolic:
    arrangement, key = arrangement_of(structure, "upper", triangle), digest()
    places = arrangement.rows.numpy(), arrangement.col.numpy()
    found, _ = order_rows(structure, triangle)
    order, width, counts, parent = _find_supernodes(found.numpy(), *places)
    starts, source, below = _sort_entries(order, *places)
    first, row_at, panel_at = _pointers(width), _pointers(counts), _pointers(width * counts)
    child_starts, children = _children_of(parent)
    rows, in_parent = kernels.find_rows(first, row_at, child_starts, children, starts, below, key)
    entry_to = kernels.place_entries(first, row_at, rows, panel_at, starts, below, key)
    flops = _count_flops(width, counts)
    tasks, top = _split_tasks(flops, parent)
    group = np.full(len(width), len(tasks))
    for number, (low, high) in enumerate(tasks):
        group[low:high] = number
    update_at, update_size = kernels.place_updates(
        counts - width, parent, child_starts, children, group, len(tasks) + 1, key
    )
    nodes = first, row_at, panel_at, np.append(update_at, 0), child_starts, starts[first]
    entries = np.stack((source, entry_to))
    in_tasks = group < len(tasks)
    return Symbolic(
        arrangement,
        order,
        Tree(np.stack(nodes, axis=1), rows, in_parent, children, entries, tasks, top),
        _find_pivots(width, counts, panel_at),
        factor_nnz=int((width * counts - width * (width - 1) // 2).sum()),
        panel_size=int(panel_at[-1]),
        update_size=int(update_size),
        top_sizes=_find_largest(width[~in_tasks], counts[~in_tasks]),
        task_sizes=_find_largest(width[in_tasks], counts[in_tasks]),
        flops=float(flops.sum()),
    )


def _find_supernodes(
    order: _Array, rows: _Array, cols: _Array
) -> tuple[_Array, _Array, _Array, _Array]:
    """The order, the columns and rows of the fronts, and the parent of each, -1 for roots."""
    n, key = len(order), digest()
    high, low = _relabel(order, rows, cols)
    by_column = np.argsort(high, kind="stable")
    starts = _pointers(np.bincount(high, minlength=n))
    upper = low[by_column]
    parent = kernels.find_tree(starts, upper, key)
    counts = kernels.count_columns(starts, upper, parent, key)
    post = kernels.order_tree(parent, key)
    parent, counts = _renumber(parent, post), counts[post]
    owner = kernels.merge_supernodes(parent, counts, key)
    last, number, width = np.unique(owner, return_inverse=True, return_counts=True)
    above = np.where(parent[last] >= 0, number[parent[last]], -1)
    nodes = kernels.order_tree(above, key)
    rank = np.empty_like(nodes)
    rank[nodes] = np.arange(len(nodes))
    merged = np.argsort(rank[number], kind="stable")
    width = width[nodes]
    return order[post][merged], width, width + counts[last[nodes]] - 1, _renumber(above, nodes)


def _relabel(order: _Array, rows: _Array, cols: _Array) -> tuple[_Array, _Array]:
    """The later and the earlier step of the elimination of each entry's row and column."""
    step = np.empty_like(order)
    step[order] = np.arange(len(order))
    i, j = step[rows], step[cols]
    return np.maximum(i, j), np.minimum(i, j)


def _renumber(parent: _Array, order: _Array) -> _Array:
    """The parents of nodes that are put in this order."""
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    parent = parent[order]
    return np.where(parent >= 0, rank[parent], -1)


def _sort_entries(order: _Array, rows: _Array, cols: _Array) -> tuple[_Array, _Array, _Array]:
    """The lower triangle in columns: where they begin, its entries, and their rows."""
    high, low = _relabel(order, rows, cols)
    source = np.argsort(low, kind="stable")
    return _pointers(np.bincount(low, minlength=len(order))), source, high[source]


def _pointers(counts: _Array) -> _Array:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _children_of(parent: _Array) -> tuple[_Array, _Array]:
    """The children of all nodes, in order, and where those of each begin."""
    is_child = parent >= 0
    children = np.flatnonzero(is_child)
    children = children[np.argsort(parent[children], kind="stable")]
    return _pointers(np.bincount(parent[is_child], minlength=len(parent))), children


def _count_flops(width: _Array, counts: _Array) -> NDArray[np.float64]:
    """The operations Σ c² of each front, with c the entries of a column."""
    w, r = width.astype(np.float64), (counts - width).astype(np.float64)
    total: NDArray[np.float64] = w * r * r + r * w * (w + 1) + w * (w + 1) * (2 * w + 1) / 6
    return total


def _split_tasks(flops: NDArray[np.float64], parent: _Array) -> tuple[_Array, _Array]:
    """The ranges of supernodes that one thread takes, the largest first, and the rest."""
    count, total = len(flops), float(flops.sum())
    if total < _FEW_FLOPS:
        return np.array([[0, count]]), np.empty(0, dtype=np.int64)
    below, size, limit = flops.copy(), np.ones(count, dtype=np.int64), total / _PARTS
    for s in np.flatnonzero(parent >= 0):  # children come before their parents
        below[parent[s]] += below[s]
        size[parent[s]] += size[s]
    is_large = below > limit
    is_root = ~is_large & ((parent < 0) | is_large[parent])
    ranges: list[tuple[int, int]] = []
    sums: list[float] = []
    for s in np.flatnonzero(is_root):
        low, high = int(s - size[s] + 1), int(s + 1)
        if ranges and ranges[-1][1] == low and sums[-1] + below[s] <= limit:
            ranges[-1] = ranges[-1][0], high
            sums[-1] += below[s]
        else:
            ranges.append((low, high))
            sums.append(below[s])
    tasks = np.array(ranges, dtype=np.int64).reshape(-1, 2)
    return tasks[np.argsort(-np.array(sums), kind="stable")], np.flatnonzero(is_large)


def _find_pivots(width: _Array, counts: _Array, panel_at: _Array) -> _Array:
    """Where the diagonal of the factor is in the panels."""
    starts, n = _pointers(width), int(width.sum())
    column = np.arange(n) - np.repeat(starts[:-1], width)
    pivots: _Array = np.repeat(panel_at[:-1], width) + column * (np.repeat(counts, width) + 1)
    return pivots


def _find_largest(width: _Array, counts: _Array) -> tuple[int, int]:
    """The numbers in the columns of the largest front, and in a block of them."""
    blocks = np.minimum(width, BLOCK) * counts
    return int((width * counts).max(initial=0)), int(blocks.max(initial=0))
