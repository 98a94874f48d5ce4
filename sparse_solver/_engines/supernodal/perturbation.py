"""The derivative of the selected inverse: the entries of -Z V Z for a symmetric V on the pattern.

The map from V to these entries is its own adjoint, so that it serves forward and reverse mode.
V is added up from the leaves to the roots, where H = -Yᵀ = -L11⁻ᵀ L21ᵀ:

    W12 = V12 + ½ V11 H,  the parent receives V22 + Hᵀ W12 + W12ᵀ H

and the result comes down from the roots, where M = (L11 L11ᵀ)⁻¹, Z is the selected inverse, and S
are the entries of the result at the rows below, from the parent:

    K = H S,  N = M (V11 Z12 + 2 W12 Z22)
    R12 = K - ½ N,  R11 = -M V11 M - sym(N Hᵀ) + K Hᵀ

This is reverse mode by hand, for a function of the entries that are eliminated front by front; it
stays in the memory of the factor.
"""

from __future__ import annotations

import numpy as np

from .compilation import compile_entry, compile_inner
from .inversion import invert_front, pass_to_children, take_entries
from .primitives import (
    ALONE,
    LOWER,
    NEXT,
    PANEL,
    PLAIN,
    POTRI,
    STOP,
    SYR2K,
    TRANSPOSED,
    UPDATE,
    ZERO,
    add_atomic,
    add_children,
    add_entries,
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
def _divide_panel(blas, panel, y, w, m):
    """Y = L21 L11⁻¹, in (m - w) w numbers."""
    r = m - w
    for j in range(w):
        for i in range(r):
            y[j * r + i] = panel[j * m + w + i]
    divide_right(blas, PLAIN, r, w, address(panel), m, address(y), r)


@compile_inner
def _invert_square(blas, panel, square, w, m, info):
    """M = (L11 L11ᵀ)⁻¹, both triangles, in w² numbers."""
    for j in range(w):
        for i in range(j, w):
            square[j * w + i] = panel[j * m + i]
    order = np.int32(w)
    call(blas[POTRI], blas[0], (LOWER, order, address(square), order, address(info)))
    mirror(square, w, w)


@compile_inner
def _gather(s, tree, panels, cotangents, sums, values, scratch, blas):
    """Sum V, or W12 below its own columns, for one front, and what its parent receives."""
    w, m = sizes_of(s, tree)
    r = m - w
    panel = panels[tree.nodes[s, PANEL] : tree.nodes[s + 1, PANEL]]
    own = cotangents[tree.nodes[s, PANEL] : tree.nodes[s + 1, PANEL]]
    for i in range(w * m):
        own[i] = 0.0
    add_entries(s, tree, cotangents, values)
    add_children(s, tree, cotangents, sums, ZERO, w)
    mirror(own, w, m)
    if r > 0:
        _divide_panel(blas, panel, scratch, w, m)
        y, v = address(scratch), address(own)
        multiply(blas, PLAIN, PLAIN, r, w, w, -0.5, y, r, v, m, 1.0, v + 8 * w, m)
        i, j, p = np.int32(r), np.int32(w), np.int32(m)
        target = address(sums) + 8 * tree.nodes[s, UPDATE]
        given = LOWER, PLAIN, i, j, -1.0, y, i, v + 8 * w, p, 0.0, target, i
        call(blas[SYR2K], blas[0], given)
        add_children(s, tree, cotangents, sums, w, m)


@compile_inner
def _spread(s, tree, panels, inverse, own, below, scratch, updates, sums, blas, info):
    """The result R (m, w) for one front into `below`, where `own` has V11 and W12ᵀ."""
    w, m = sizes_of(s, tree)
    r = m - w
    panel = panels[tree.nodes[s, PANEL] : tree.nodes[s + 1, PANEL]]
    # Numba frees an array after its last use, and does not know that an address is one: whatever
    # an address leads to belongs to the caller.
    lines, products = scratch[2 * w * w :], scratch[w * (w + m) :]
    _invert_square(blas, panel, scratch, w, m, info)
    a, v, f = address(scratch), address(own), address(below)
    c = a + 8 * w * w
    multiply(blas, PLAIN, PLAIN, w, w, w, 1.0, a, w, v, m, 0.0, c, w)
    multiply(blas, PLAIN, PLAIN, w, w, w, -1.0, c, w, a, w, 0.0, f, m)
    if r > 0:
        _divide_panel(blas, panel, lines, w, m)
        y, h = address(lines), address(products)
        n, u = h + 8 * r * w, 8 * tree.nodes[s, UPDATE]
        z, w12, k = address(inverse) + 8 * w, v + 8 * w, f + 8 * w
        multiply(blas, PLAIN, PLAIN, r, w, w, 1.0, z, m, v, m, 0.0, h, r)
        multiply(blas, PLAIN, PLAIN, r, w, r, 2.0, address(updates) + u, r, w12, m, 1.0, h, r)
        multiply(blas, PLAIN, PLAIN, r, w, w, 1.0, h, r, a, w, 0.0, n, r)
        multiply(blas, PLAIN, PLAIN, r, w, r, -1.0, address(sums) + u, r, y, r, 0.0, k, m)
        for j in range(w):
            for i in range(r):
                number, other = products[(w + j) * r + i], below[j * m + w + i]
                products[j * r + i] = number - other
                below[j * m + w + i] = other - 0.5 * number
        multiply(blas, TRANSPOSED, PLAIN, w, w, r, 1.0, h, r, y, r, 1.0, f, m)
    for j in range(w):
        for i in range(j + 1, w):
            mean = 0.5 * (below[j * m + i] + below[i * m + j])
            below[j * m + i] = mean
            below[i * m + j] = mean


@compile_inner
def _finish(s, tree, panels, cotangents, updates, sums, memory, result, blas, info):
    """The result for one front, and what its children need of it and of the inverse."""
    inverse, work, below, scratch = memory
    invert_front(s, tree, panels, inverse, work, updates, blas, info)
    own = cotangents[tree.nodes[s, PANEL] : tree.nodes[s + 1, PANEL]]
    _spread(s, tree, panels, inverse, own, below, scratch, updates, sums, blas, info)
    take_entries(s, tree, below, result)
    pass_to_children(s, tree, inverse, updates, ALONE)
    pass_to_children(s, tree, below, sums, ALONE)


@compile_entry
def gather_cotangents(tree, panels, cotangents, sums, values, size, blas, sync, thread, threads):
    """The way up; `size` are the numbers in a front. One thread takes those above the tasks."""
    scratch = np.empty(size)
    while read_atomic(sync, STOP) == 0:
        task = add_atomic(sync, NEXT, 1)
        if task >= len(tree.tasks):
            break
        for s in range(tree.tasks[task, 0], tree.tasks[task, 1]):
            _gather(s, tree, panels, cotangents, sums, values, scratch, blas)
    wait(sync, threads, ZERO, blas)
    if thread == 0:
        for s in tree.top:
            _gather(s, tree, panels, cotangents, sums, values, scratch, blas)


@compile_entry
def spread_cotangents(
    tree, panels, cotangents, updates, sums, sizes, result, blas, sync, thread, threads
):
    """The way down; `sizes` are the numbers in a front, and in a block of its columns."""
    info, front, block = np.zeros(1, dtype=np.int64), sizes[0], sizes[1]
    memory = np.empty(front), np.empty(block), np.empty(front), np.empty(3 * front)
    if thread == 0:
        for k in range(len(tree.top) - 1, -1, -1):
            s = tree.top[k]
            _finish(s, tree, panels, cotangents, updates, sums, memory, result, blas, info)
    wait(sync, threads, ZERO, blas)
    while read_atomic(sync, STOP) == 0:
        task = add_atomic(sync, NEXT, 1)
        if task >= len(tree.tasks):
            break
        for s in range(tree.tasks[task, 1] - 1, tree.tasks[task, 0] - 1, -1):
            _finish(s, tree, panels, cotangents, updates, sums, memory, result, blas, info)
