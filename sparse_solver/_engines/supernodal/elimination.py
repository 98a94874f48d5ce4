"""The Cholesky factorisation of a sparse matrix, front by front.

    F11 = L11 L11ᵀ,  L21 = F21 L11⁻ᵀ,  update F22 - L21 L21ᵀ

(J. W. H. Liu, "The multifrontal method for sparse matrix solution: theory and practice", 1992.)
"""

from __future__ import annotations

import numpy as np

from .compilation import compile_entry, compile_inner
from .primitives import (
    BLOCK,
    FAILED,
    FIRST,
    LOWER,
    NEXT,
    PANEL,
    PLAIN,
    POTRF,
    SMALL_FRONT,
    STOP,
    SYRK,
    TRANSPOSED,
    UPDATE,
    ZERO,
    add_atomic,
    add_children,
    add_entries,
    address,
    call,
    divide_right,
    multiply,
    read_atomic,
    sizes_of,
    wait,
)


@compile_inner
def _eliminate_by_loops(panel, update, w, m):
    """Return one more than the column whose pivot is not positive, or 0."""
    r = m - w
    for j in range(w):
        column = panel[j * m : (j + 1) * m]
        pivot = column[j]
        if not (pivot > 0.0 and pivot < np.inf):
            return j + 1
        column[j] = np.sqrt(pivot)
        scale = 1.0 / column[j]
        for i in range(j + 1, m):
            column[i] *= scale
        for k in range(j + 1, w):
            factor, target = column[k], panel[k * m : (k + 1) * m]
            for i in range(k, m):
                target[i] -= factor * column[i]
    for k in range(r):
        target = update[k * r : (k + 1) * r]
        for i in range(k, r):
            target[i] = 0.0
        for j in range(w):
            column = panel[j * m + w : (j + 1) * m]
            factor = column[k]
            for i in range(k, r):
                target[i] -= factor * column[i]
    return 0


@compile_inner
def _factor_block(blas, panel, low, high, m, info):
    """Factor a block on the diagonal; return as `_eliminate_by_loops` does."""
    start = address(panel) + 8 * (low * m + low)
    info[0] = 0
    order = np.int32(high - low)
    call(blas[POTRF], blas[0], (LOWER, order, start, np.int32(m), address(info)))
    for j in range(low, high if info[0] == 0 else low + info[0]):
        if not (panel[j * m + j] > 0.0 and panel[j * m + j] < np.inf):
            return j + 1
    return low + info[0] if info[0] > 0 else 0


@compile_inner
def _eliminate(s, tree, panels, updates, values, blas, info):
    """Assemble and eliminate one front; return as `_eliminate_by_loops` does."""
    w, m = sizes_of(s, tree)
    r = m - w
    panel = panels[tree.nodes[s, PANEL] : tree.nodes[s + 1, PANEL]]
    update = updates[tree.nodes[s, UPDATE] : tree.nodes[s, UPDATE] + r * r]
    for i in range(w * m):
        panel[i] = 0.0
    add_entries(s, tree, panels, values)
    add_children(s, tree, panels, updates, ZERO, w)
    if m <= SMALL_FRONT:
        failed = _eliminate_by_loops(panel, update, w, m)
    else:
        failed = _factor_block(blas, panel, ZERO, w, m, info)
        if failed == 0 and r > 0:
            start = address(panel)
            below = start + 8 * w
            divide_right(blas, TRANSPOSED, r, w, start, m, below, m)
            i, j, q = np.int32(r), np.int32(w), np.int32(m)
            target = address(update)
            call(blas[SYRK], blas[0], (LOWER, PLAIN, i, j, -1.0, below, q, 0.0, target, i))
    if failed == 0:
        add_children(s, tree, panels, updates, w, m)
    return failed


@compile_inner
def _eliminate_together(s, tree, panels, updates, values, blas, info, sync, team, phase):
    """Assemble and eliminate one front with all threads, block by block; return the next wait."""
    thread, threads = team
    w, m = sizes_of(s, tree)
    r = m - w
    panel = panels[tree.nodes[s, PANEL] : tree.nodes[s + 1, PANEL]]
    start, target = address(panel), address(updates) + 8 * tree.nodes[s, UPDATE]
    for low in range(BLOCK * thread, w, BLOCK * threads):
        high = min(w, low + BLOCK)
        for i in range(low * m, high * m):
            panel[i] = 0.0
        add_children(s, tree, panels, updates, low, high)
    phase = wait(sync, threads, phase, blas)
    for low in range(0, w, BLOCK):
        high = min(w, low + BLOCK)
        if thread == 0:
            if low == 0:
                add_entries(s, tree, panels, values)
            failed = _factor_block(blas, panel, low, high, m, info)
            if failed > 0:
                add_atomic(sync, FAILED, tree.nodes[s, FIRST] + failed)
        phase = wait(sync, threads, phase, blas)
        if read_atomic(sync, FAILED) != 0 or read_atomic(sync, STOP) != 0:
            return phase
        diagonal = start + 8 * (low * m + low)
        for row in range(high + BLOCK * thread, m, BLOCK * threads):
            rows = min(m - row, BLOCK)
            divide_right(
                blas, TRANSPOSED, rows, high - low, diagonal, m, start + 8 * (low * m + row), m
            )
        phase = wait(sync, threads, phase, blas)
        for column in range(high + BLOCK * thread, w, BLOCK * threads):
            left = start + 8 * (low * m + column)
            count, inner = min(w - column, BLOCK), high - low
            place = start + 8 * (column * m + column)
            sizes = m - column, count, inner
            multiply(blas, PLAIN, TRANSPOSED, *sizes, -1.0, left, m, left, m, 1.0, place, m)
        phase = wait(sync, threads, phase, blas)
    for column in range(BLOCK * thread, r, BLOCK * threads):
        left, count = start + 8 * (w + column), min(r - column, BLOCK)
        place = target + 8 * (column * r + column)
        multiply(
            blas, PLAIN, TRANSPOSED, r - column, count, w, -1.0, left, m, left, m, 0.0, place, r
        )
        add_children(s, tree, panels, updates, w + column, w + column + count)
    return wait(sync, threads, phase, blas)


@compile_entry
def factor(tree, panels, updates, values, blas, failures, sync, thread, threads):
    """Factor the matrix; `failures` (t,) receives what `_eliminate` returns for each task."""
    info = np.zeros(1, dtype=np.int64)
    while read_atomic(sync, STOP) == 0:
        task = add_atomic(sync, NEXT, 1)
        if task >= len(tree.tasks):
            break
        for s in range(tree.tasks[task, 0], tree.tasks[task, 1]):
            failed = _eliminate(s, tree, panels, updates, values, blas, info)
            if failed > 0:
                failures[task] = tree.nodes[s, FIRST] + failed
                break
            if read_atomic(sync, STOP) != 0:
                break
    phase = wait(sync, threads, ZERO, blas)
    for task in range(len(failures)):
        if failures[task] > 0:
            return
    for s in tree.top:
        if read_atomic(sync, STOP) != 0 or read_atomic(sync, FAILED) != 0:
            return
        phase = _eliminate_together(
            s, tree, panels, updates, values, blas, info, sync, (thread, threads), phase
        )
