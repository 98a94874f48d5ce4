"""The derivative of half solves: reverse mode through the Cholesky factorisation, front by front.

It differentiates φ = Σ gᵀ L⁻¹ h, a sum over pairs of vectors, in the entries of the matrix: with
a = L⁻ᵀ g and c = L⁻¹ h, the cotangent of L is -tril(Σ a cᵀ). The vectors come in the order of the
elimination. From the roots on, where S are the cotangents of the rows below, from the parent, all
of a symmetric matrix:

    K = -(½ a2 c1ᵀ + S L21) L11⁻¹
    Q = ½ (b - g1) c1ᵀ + ½ c1 bᵀ + L21ᵀ S L21,  b = L21ᵀ a2
    R21 = K,  R11 = L11⁻ᵀ Q L11⁻¹

where only the lower triangle of Q counts, and is mirrored. The children receive R and S. These are
the usual formulas for blocks, in which L11ᵀ a1 = g1 - b, and in which L11⁻¹ and L11 cancel. (I.
Murray, "Differentiation of the Cholesky decomposition", 2016, section 3.2.)
"""

from __future__ import annotations

import numpy as np

from .compilation import compile_entry, compile_inner
from .inversion import pass_to_children, take_entries
from .primitives import (
    ALONE,
    FIRST,
    NEXT,
    PANEL,
    PLAIN,
    ROWS,
    STOP,
    TRANSPOSED,
    UPDATE,
    ZERO,
    add_atomic,
    address,
    divide_right,
    mirror,
    multiply,
    read_atomic,
    sizes_of,
    wait,
)


@compile_inner
def _transpose(numbers, w, m):
    for j in range(w):
        for i in range(j + 1, w):
            kept = numbers[i * m + j]
            numbers[i * m + j] = numbers[j * m + i]
            numbers[j * m + i] = kept


@compile_inner
def _reverse(s, tree, panels, vectors, k, below, work, updates, blas):
    """The cotangents R (m, w) of one front, into `below`."""
    white, half, other = vectors
    w, m = sizes_of(s, tree)
    r, first = m - w, tree.nodes[s, FIRST]
    rows = tree.rows[tree.nodes[s, ROWS] : tree.nodes[s + 1, ROWS]]
    a = address(panels) + 8 * tree.nodes[s, PANEL]
    f, c = address(below), address(other) + 8 * k * first
    b = address(work)  # L21ᵀ a2 (k, w), then a2 (k, r)
    if r > 0:
        l, n, v = a + 8 * w, f + 8 * w, b + 8 * k * w
        for i in range(r):
            at = np.int64(rows[w + i]) * k
            for q in range(k):
                work[k * (w + i) + q] = half[at + q]
        multiply(blas, PLAIN, PLAIN, k, w, r, 1.0, v, k, l, m, 0.0, b, k)
        u = address(updates) + 8 * tree.nodes[s, UPDATE]
        multiply(blas, PLAIN, PLAIN, r, w, r, -1.0, u, r, l, m, 0.0, n, m)
        multiply(blas, TRANSPOSED, PLAIN, w, w, r, -1.0, l, m, n, m, 0.0, f, m)
        multiply(blas, TRANSPOSED, PLAIN, w, w, k, 0.5, c, k, b, k, 1.0, f, m)
        multiply(blas, TRANSPOSED, PLAIN, r, w, k, -0.5, v, k, c, k, 1.0, n, m)
        divide_right(blas, PLAIN, r, w, a, m, n, m)
    else:
        for i in range(k * w):
            work[i] = 0.0
        for i in range(m * w):
            below[i] = 0.0
    for i in range(k * w):
        work[i] -= white[k * first + i]
    multiply(blas, TRANSPOSED, PLAIN, w, w, k, 0.5, b, k, c, k, 1.0, f, m)
    mirror(below, w, m)
    divide_right(blas, PLAIN, w, w, a, m, f, m)
    _transpose(below, w, m)
    divide_right(blas, PLAIN, w, w, a, m, f, m)


@compile_inner
def _finish(s, tree, panels, vectors, k, below, work, updates, result, blas):
    """The cotangents of one front, and what its children need of them."""
    _reverse(s, tree, panels, vectors, k, below, work, updates, blas)
    take_entries(s, tree, below, result)
    pass_to_children(s, tree, below, updates, ALONE)


@compile_entry
def reverse_cholesky(tree, panels, vectors, k, updates, size, result, blas, sync, thread, threads):
    """The derivatives of φ at the entries, those off the diagonal for one of two places each.

    vectors : g, a and c, each n rows of k numbers
    size : the numbers in the largest front

    One thread takes the fronts above the tasks.
    """
    largest = ZERO
    for s in range(len(tree.nodes) - 1):
        largest = max(largest, sizes_of(s, tree)[1])
    below, work = np.empty(size), np.empty(k * largest)
    if thread == 0:
        for index in range(len(tree.top) - 1, -1, -1):
            if read_atomic(sync, STOP) != 0:
                break
            _finish(tree.top[index], tree, panels, vectors, k, below, work, updates, result, blas)
    wait(sync, threads, ZERO, blas)
    while read_atomic(sync, STOP) == 0:
        task = add_atomic(sync, NEXT, 1)
        if task >= len(tree.tasks):
            break
        for s in range(tree.tasks[task, 1] - 1, tree.tasks[task, 0] - 1, -1):
            _finish(s, tree, panels, vectors, k, below, work, updates, result, blas)
            if read_atomic(sync, STOP) != 0:
                break
