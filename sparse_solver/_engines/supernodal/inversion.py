"""The selected inverse: the entries of A⁻¹ at the places of the factor, from the last front on.

    Y = L21 L11⁻¹,  Z21 = -Z22 Y,  Z11 = (L11 L11ᵀ)⁻¹ - Z21ᵀ Y

(K. Takahashi, J. Fagan and M.-S. Chen, "Formation of a sparse bus impedance matrix and its
application to short circuit study", 1973.)
"""

from __future__ import annotations

import numpy as np

from .compilation import compile_entry, compile_inner
from .primitives import (
    ALONE,
    BLOCK,
    CHILDREN,
    ENTRIES,
    LOWER,
    NEXT,
    PANEL,
    PLAIN,
    POTRI,
    ROWS,
    SMALL_FRONT,
    STOP,
    STRIP,
    TRANSPOSED,
    UPDATE,
    ZERO,
    add_atomic,
    address,
    call,
    divide_right,
    mirror,
    multiply,
    read_atomic,
    sizes_of,
    wait,
)


@compile_inner
def _invert_by_loops(panel, inverse, work, update, w, m):
    """The columns (m, w) of the inverse, column by column from the last on."""
    r = m - w
    for j in range(w - 1, -1, -1):
        column, z = panel[j * m : (j + 1) * m], inverse[j * m : (j + 1) * m]
        scale = 1.0 / column[j]
        for i in range(j + 1, m):
            work[i] = column[i] * scale
            z[i] = 0.0
        for k in range(j + 1, w):
            factor, total, other = work[k], 0.0, inverse[k * m : (k + 1) * m]
            for i in range(j + 1, m):
                z[i] -= factor * other[i]
            for i in range(w, m):
                total += work[i] * other[i]
            z[k] -= total
        for k in range(r):
            factor, other = work[w + k], update[k * r : (k + 1) * r]
            for i in range(r):
                z[w + i] -= factor * other[i]
        total = scale * scale
        for i in range(j + 1, m):
            total -= work[i] * z[i]
        z[j] = total
        for i in range(j + 1, w):
            inverse[i * m + j] = z[i]


@compile_inner
def _invert_block(blas, panel, inverse, low, high, m, info):
    """(L Lᵀ)⁻¹ for a block L on the diagonal, both triangles."""
    for j in range(low, high):
        for i in range(j, high):
            inverse[j * m + i] = panel[j * m + i]
    start, order = address(inverse) + 8 * (low * m + low), np.int32(high - low)
    call(blas[POTRI], blas[0], (LOWER, order, start, np.int32(m), address(info)))
    mirror(inverse[low * (m + 1) :], high - low, m)


@compile_inner
def _invert_rows(blas, z, u, y, low, high, w, m, team):
    """Z_RB = -Z_RR Y for the rows R below a block B, by what is known of Z_RR."""
    thread, threads = team
    r, width, below, inside = m - w, high - low, m - high, w - high
    for row in range(BLOCK * thread, inside, BLOCK * threads):
        rows, place = min(inside - row, BLOCK), z + 8 * (low * m + high + row)
        square, lower = z + 8 * (high * m + high + row), z + 8 * ((high + row) * m + w)
        multiply(blas, PLAIN, PLAIN, rows, width, inside, -1.0, square, m, y, below, 0.0, place, m)
        rest = y + 8 * inside
        multiply(
            blas, TRANSPOSED, PLAIN, rows, width, r, -1.0, lower, m, rest, below, 1.0, place, m
        )
    for row in range(BLOCK * thread, r, BLOCK * threads):
        rows, place = min(r - row, BLOCK), z + 8 * (low * m + w + row)
        lower, rest = z + 8 * (high * m + w + row), y + 8 * inside
        multiply(blas, PLAIN, PLAIN, rows, width, inside, -1.0, lower, m, y, below, 0.0, place, m)
        multiply(
            blas, PLAIN, PLAIN, rows, width, r, -1.0, u + 8 * row, r, rest, below, 1.0, place, m
        )


@compile_inner
def _invert_together(s, tree, panels, inverse, work, updates, blas, info, sync, team, phase):
    """The columns (m, w) of the inverse, block by block; return the number of the next wait."""
    thread, threads = team
    w, m = sizes_of(s, tree)
    panel = panels[tree.nodes[s, PANEL] : tree.nodes[s + 1, PANEL]]
    a, z, y = address(panel), address(inverse), address(work)
    u = address(updates) + 8 * tree.nodes[s, UPDATE]
    for low in range((w - 1) // BLOCK * BLOCK, -1, -BLOCK):
        high = min(w, low + BLOCK)
        width, below = high - low, m - high
        for row in range(BLOCK * thread, below, BLOCK * threads):
            rows, at = min(below - row, BLOCK), low * m + high + row
            for j in range(width):
                for i in range(rows):
                    work[j * below + row + i] = panel[at + j * m + i]
            divide_right(blas, PLAIN, rows, width, a + 8 * low * (m + 1), m, y + 8 * row, below)
        if thread == 0:
            _invert_block(blas, panel, inverse, low, high, m, info)
        phase = wait(sync, threads, phase, blas)
        _invert_rows(blas, z, u, y, low, high, w, m, team)
        phase = wait(sync, threads, phase, blas)
        for i in range(high + thread, w, threads):
            for j in range(low, high):
                inverse[i * m + j] = inverse[j * m + i]
        for column in range(STRIP * thread, width, STRIP * threads):
            count, place = min(width - column, STRIP), z + 8 * ((low + column) * m + low)
            left, right = z + 8 * (low * m + high), y + 8 * column * below
            multiply(
                blas,
                TRANSPOSED,
                PLAIN,
                width,
                count,
                below,
                -1.0,
                left,
                m,
                right,
                below,
                1.0,
                place,
                m,
            )
        phase = wait(sync, threads, phase, blas)
    return phase


@compile_inner
def invert_front(s, tree, panels, inverse, work, updates, blas, info):
    """The columns (m, w) of the inverse for one front, by one thread."""
    w, m = sizes_of(s, tree)
    if m <= SMALL_FRONT:
        at, size = tree.nodes[s, UPDATE], (m - w) ** 2
        panel = panels[tree.nodes[s, PANEL] : tree.nodes[s + 1, PANEL]]
        _invert_by_loops(panel, inverse, work, updates[at : at + size], w, m)
    else:
        sync = np.zeros(1, dtype=np.int64)  # not used by a single thread
        _invert_together(s, tree, panels, inverse, work, updates, blas, info, sync, ALONE, ZERO)


@compile_inner
def pass_to_children(s, tree, inverse, updates, team):
    """Give each child the entries of the inverse at the rows of its update, both triangles."""
    thread, threads = team
    w, m = sizes_of(s, tree)
    r = m - w
    update = updates[tree.nodes[s, UPDATE] : tree.nodes[s, UPDATE] + r * r]
    for k in range(tree.nodes[s, CHILDREN], tree.nodes[s + 1, CHILDREN]):
        c = tree.children[k]
        wc, mc = sizes_of(c, tree)
        rc = mc - wc
        places = tree.places[tree.nodes[c + 1, ROWS] - rc : tree.nodes[c + 1, ROWS]]
        child = updates[tree.nodes[c, UPDATE] : tree.nodes[c, UPDATE] + rc * rc]
        for low in range(STRIP * thread, rc, STRIP * threads):
            high = min(rc, low + STRIP)
            for j in range(low, high):
                column, target = np.int64(places[j]), child[j * rc : (j + 1) * rc]
                if column < w:
                    source, shift = inverse[column * m : (column + 1) * m], 0
                else:
                    source, shift = update[(column - w) * r : (column - w + 1) * r], w
                if places[rc - 1] - column == rc - 1 - j:
                    start = column - shift - j
                    for i in range(j, rc):
                        target[i] = source[start + i]
                else:
                    for i in range(j, rc):
                        target[i] = source[places[i] - shift]
            for i in range(low, rc):
                for j in range(low, min(i, high)):
                    child[i * rc + j] = child[j * rc + i]


@compile_inner
def take_entries(s, tree, inverse, result):
    """Copy the entries of the matrix that are in one front to the result."""
    for e in range(tree.nodes[s, ENTRIES], tree.nodes[s + 1, ENTRIES]):
        result[tree.entries[0, e]] = inverse[tree.entries[1, e] - tree.nodes[s, PANEL]]


@compile_entry
def invert(tree, panels, updates, shared, sizes, result, blas, sync, thread, threads):
    """The entries of the inverse at the places of the matrix.

    shared : memory for the columns of a front above the tasks, and for a block of them
    sizes : the numbers that the same memory for the fronts of a task has
    """
    info, phase, team = np.zeros(1, dtype=np.int64), ZERO, (thread, threads)
    inverse, work = shared
    for k in range(len(tree.top) - 1, -1, -1):
        s = tree.top[k]
        if read_atomic(sync, STOP) != 0:
            return
        phase = _invert_together(
            s, tree, panels, inverse, work, updates, blas, info, sync, team, phase
        )
        if thread == 0:
            take_entries(s, tree, inverse, result)
        pass_to_children(s, tree, inverse, updates, team)
        phase = wait(sync, threads, phase, blas)
    inverse, work = np.empty(sizes[0]), np.empty(sizes[1])
    while read_atomic(sync, STOP) == 0:
        task = add_atomic(sync, NEXT, 1)
        if task >= len(tree.tasks):
            break
        for s in range(tree.tasks[task, 1] - 1, tree.tasks[task, 0] - 1, -1):
            invert_front(s, tree, panels, inverse, work, updates, blas, info)
            take_entries(s, tree, inverse, result)
            pass_to_children(s, tree, inverse, updates, ALONE)
            if read_atomic(sync, STOP) != 0:
                break
