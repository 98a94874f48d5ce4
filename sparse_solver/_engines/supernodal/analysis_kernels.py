"""The kernels of the symbolic analysis: elimination tree, column counts, supernodes, their rows.

(T. A. Davis, "Direct methods for sparse linear systems", 2006, chapter 4; C. Ashcraft and
R. Grimes, "The influence of relaxed supernode partitions on the multifrontal method", 1989.)
"""

from __future__ import annotations

import numpy as np

from .compilation import compile_entry, compile_inner

# Two supernodes are merged if the merged one has at most so many columns, and at most such a share
# of zeros in its panel: many narrow panels take longer than a few with some zeros.
_WIDTHS = (4, 16, 48, 1 << 40)
_SHARES = (1.0, 0.8, 0.1, 0.05)


@compile_entry
def find_tree(starts, rows, digest):
    """(n,) the parent of each column, -1 for roots, by the upper triangle in columns."""
    n = len(starts) - 1
    parent, ancestor = np.full(n, -1), np.full(n, -1)
    for j in range(n):
        for e in range(starts[j], starts[j + 1]):
            i = rows[e]
            while i != -1 and i < j:
                following = ancestor[i]
                ancestor[i] = j
                if following == -1:
                    parent[i] = j
                i = following
    return parent


@compile_inner
def _find_children(parent):
    """The children of each node, in order, as pointers and numbers; the roots come last."""
    n = len(parent)
    starts = np.zeros(n + 2, dtype=np.int64)
    for j in range(n):
        starts[(parent[j] if parent[j] >= 0 else n) + 1] += 1
    for j in range(n + 1):
        starts[j + 1] += starts[j]
    place, children = starts.copy(), np.empty(n, dtype=np.int64)
    for j in range(n):
        p = parent[j] if parent[j] >= 0 else n
        children[place[p]] = j
        place[p] += 1
    return starts, children


@compile_entry
def order_tree(parent, digest):
    """(n,) the nodes in postorder."""
    n = len(parent)
    starts, children = _find_children(parent)
    order, stack, following = np.empty(n, np.int64), np.empty(n + 1, np.int64), starts[:-1].copy()
    depth, count = 0, 0
    stack[0] = n
    while depth >= 0:
        j = stack[depth]
        if following[j] < starts[j + 1]:
            depth += 1
            stack[depth] = children[following[j]]
            following[j] += 1
            continue
        depth -= 1
        if j < n:
            order[count] = j
            count += 1
    return order


@compile_entry
def count_columns(starts, rows, parent, digest):
    """(n,) the entries of each column of the factor, the diagonal included."""
    n = len(parent)
    counts, mark = np.ones(n, dtype=np.int64), np.full(n, -1)
    for j in range(n):
        mark[j] = j
        for e in range(starts[j], starts[j + 1]):
            i = rows[e]
            while mark[i] != j:
                mark[i] = j
                counts[i] += 1
                i = parent[i]
    return counts


@compile_inner
def _should_merge(width, rows, entries):
    total = width * (width + 1) // 2 + width * (rows - width)
    share = (total - entries) / total
    for k in range(len(_WIDTHS)):
        if width <= _WIDTHS[k]:
            return share <= _SHARES[k]
    return False


@compile_entry
def merge_supernodes(parent, counts, digest):
    """(n,) a column of the supernode that each column is merged into, for columns in postorder."""
    n = len(parent)
    owner, width, entries, rows = np.arange(n), np.ones_like(counts), counts.copy(), counts.copy()
    for j in range(1, n):
        if parent[j - 1] == j and counts[j - 1] == counts[j] + 1:  # the same rows
            owner[j - 1] = j
            width[j] += width[j - 1]
            entries[j] += entries[j - 1]
            rows[j] = counts[j] + width[j] - 1
    starts, children = _find_children(parent)
    for j in range(n):
        first = j - width[j] + 1
        if owner[j] != j:
            continue
        for k in range(starts[j + 1] - 1, starts[first] - 1, -1):
            c = children[k]
            total = width[c] + width[j], width[c] + rows[j], entries[c] + entries[j]
            if owner[c] == c and _should_merge(total[0], total[1], total[2]):
                owner[c] = j
                width[j], rows[j], entries[j] = total
    for j in range(n - 1, -1, -1):
        owner[j] = owner[owner[j]]
    return owner


@compile_inner
def _sort_rows(row_at, rows, n):
    """Sort the rows of each front, by listing the fronts of each row."""
    starts = np.zeros(n + 2, dtype=np.int64)
    for i in rows:
        starts[i + 2] += 1
    for i in range(n + 1):
        starts[i + 1] += starts[i]
    fronts, place = np.empty_like(rows), row_at.copy()
    for s in range(len(row_at) - 1):
        for e in range(row_at[s], row_at[s + 1]):
            fronts[starts[rows[e] + 1]] = s
            starts[rows[e] + 1] += 1
    for i in range(n):
        for e in range(starts[i], starts[i + 1]):
            rows[place[fronts[e]]] = i
            place[fronts[e]] += 1
    return rows


@compile_entry
def find_rows(first, row_at, child_starts, children, starts, below, digest):
    """The rows of each front, and their places in the front of the parent.

    starts, below : the lower triangle in columns
    """
    n = len(starts) - 1
    rows = np.empty(row_at[-1], dtype=np.int32)
    places, mark = np.zeros_like(rows), np.full(n, -1, dtype=np.int64)
    for s in range(len(first) - 1):
        count, end = row_at[s], first[s + 1]
        for j in range(first[s], end):
            rows[count] = j
            mark[j] = s
            count += 1
        for e in range(starts[first[s]], starts[end]):
            if mark[below[e]] != s:
                mark[below[e]] = s
                rows[count] = below[e]
                count += 1
        for k in range(child_starts[s], child_starts[s + 1]):
            c = children[k]
            for e in range(row_at[c] + first[c + 1] - first[c], row_at[c + 1]):
                if mark[rows[e]] != s:
                    mark[rows[e]] = s
                    rows[count] = rows[e]
                    count += 1
    rows = _sort_rows(row_at, rows, n)
    place = mark
    for s in range(len(first) - 1):
        for e in range(row_at[s], row_at[s + 1]):
            place[rows[e]] = e - row_at[s]
        for k in range(child_starts[s], child_starts[s + 1]):
            c = children[k]
            for e in range(row_at[c] + first[c + 1] - first[c], row_at[c + 1]):
                places[e] = place[rows[e]]
    return rows, places


@compile_entry
def place_entries(first, row_at, rows, panel_at, starts, below, digest):
    """Where the entries of the lower triangle are in the panels."""
    at = np.empty(len(below), dtype=np.int64)
    place = np.empty(len(starts) - 1, dtype=np.int64)
    for s in range(len(first) - 1):
        m = row_at[s + 1] - row_at[s]
        for k in range(m):
            place[rows[row_at[s] + k]] = k
        for j in range(first[s], first[s + 1]):
            for e in range(starts[j], starts[j + 1]):
                at[e] = panel_at[s] + (j - first[s]) * m + place[below[e]]
    return at


@compile_entry
def place_updates(below, parent, child_starts, children, group, groups, digest):
    """Where the updates, of `below` rows each, are in memory, and how much they need.

    The fronts of each group, which follow each other, have two stacks of updates: one for the
    fronts at even depths of the tree, and one for the others. So a front finds the updates of its
    children on top of one stack, and puts its own onto the other.
    """
    count = len(below)
    depth, at = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    for s in range(count - 1, -1, -1):
        depth[s] = depth[parent[s]] + 1 if parent[s] >= 0 else 0
    height, peak = np.zeros((groups, 2), dtype=np.int64), np.zeros((groups, 2), dtype=np.int64)
    for s in range(count):
        g, stack = group[s], depth[s] & 1
        at[s] = height[g, stack]
        height[g, stack] += below[s] ** 2
        peak[g, stack] = max(peak[g, stack], height[g, stack])
        for k in range(child_starts[s], child_starts[s + 1]):
            if group[children[k]] == g:
                height[g, 1 - stack] -= below[children[k]] ** 2
    total = 0
    for g in range(groups):
        for stack in range(2):
            total, peak[g, stack] = total + peak[g, stack], total
    for s in range(count):
        at[s] += peak[group[s], depth[s] & 1]
    return at, total
