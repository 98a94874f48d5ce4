"""Substitution with the factor, front by front, for one or many right-hand sides.

forward    X1 = L11⁻¹ B1,  B2 - L21 X1
backward   X1 = L11⁻ᵀ (B1 - L21ᵀ X2)
"""

from __future__ import annotations

import numpy as np

from .compilation import compile_entry, compile_inner
from .primitives import (
    FIRST,
    NEXT,
    PANEL,
    PLAIN,
    ROWS,
    STOP,
    TRANSPOSED,
    add_atomic,
    address,
    divide_right,
    multiply,
    read_atomic,
    sizes_of,
)


@compile_inner
def _forward_one(panel, rows, x, first, w, m, work):
    for i in range(w, m):
        work[i] = 0.0
    for j in range(w):
        column = panel[j * m : (j + 1) * m]
        factor = x[first + j] / column[j]
        x[first + j] = factor
        for i in range(j + 1, w):
            x[first + i] -= factor * column[i]
        for i in range(w, m):
            work[i] += factor * column[i]
    for i in range(w, m):
        x[rows[i]] -= work[i]


@compile_inner
def _backward_one(panel, rows, x, first, w, m, work):
    for i in range(m):
        work[i] = x[rows[i]]
    for j in range(w - 1, -1, -1):
        column, total = panel[j * m : (j + 1) * m], work[j]
        for i in range(j + 1, m):
            total -= column[i] * work[i]
        work[j] = total / column[j]
        x[first + j] = work[j]


@compile_inner
def _forward(blas, panel, rows, x, first, w, m, k, work):
    r, start, target = m - w, address(panel), address(x) + 8 * k * first
    divide_right(blas, TRANSPOSED, k, w, start, m, target, k)
    below, change = start + 8 * w, address(work)
    multiply(blas, PLAIN, TRANSPOSED, k, r, w, 1.0, target, k, below, m, 0.0, change, k)
    for i in range(r):
        at = np.int64(rows[w + i]) * k
        for c in range(k):
            x[at + c] -= work[i * k + c]


@compile_inner
def _backward(blas, panel, rows, x, first, w, m, k, work):
    r, start, target = m - w, address(panel), address(x) + 8 * k * first
    for i in range(r):
        at = np.int64(rows[w + i]) * k
        for c in range(k):
            work[i * k + c] = x[at + c]
    below, known = start + 8 * w, address(work)
    multiply(blas, PLAIN, PLAIN, k, w, r, -1.0, known, k, below, m, 1.0, target, k)
    divide_right(blas, PLAIN, k, w, start, m, target, k)


@compile_entry
def substitute(tree, panels, x, parts, forward, backward, blas, sync, thread, threads):
    """Apply L⁻¹, L⁻ᵀ or both to the columns of x.

    parts : the columns of x are stored in parts of columns [parts[p], parts[p + 1]), each by rows
    """
    n, count, largest = tree.nodes[-1, FIRST], len(tree.nodes) - 1, 0
    for s in range(count):
        largest = max(largest, tree.nodes[s + 1, ROWS] - tree.nodes[s, ROWS])
    while read_atomic(sync, STOP) == 0:
        part = add_atomic(sync, NEXT, 1)
        if part >= len(parts) - 1:
            break
        k = parts[part + 1] - parts[part]
        own, work = x[n * parts[part] : n * parts[part + 1]], np.empty(k * largest)
        for step in range(2 * count):
            is_forward = step < count
            if (is_forward and not forward) or not (is_forward or backward):
                continue
            s = step if is_forward else 2 * count - 1 - step
            w, m = sizes_of(s, tree)
            panel = panels[tree.nodes[s, PANEL] : tree.nodes[s + 1, PANEL]]
            rows = tree.rows[tree.nodes[s, ROWS] : tree.nodes[s + 1, ROWS]]
            first = tree.nodes[s, FIRST]
            if k == 1:
                if is_forward:
                    _forward_one(panel, rows, own, first, w, m, work)
                else:
                    _backward_one(panel, rows, own, first, w, m, work)
            elif is_forward:
                _forward(blas, panel, rows, own, first, w, m, k, work)
            else:
                _backward(blas, panel, rows, own, first, w, m, k, work)
