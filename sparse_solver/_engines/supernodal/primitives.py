"""What the kernels share: calls of BLAS and LAPACK, work for several threads, fronts.

A front is a dense symmetric matrix of m rows: the w columns of a supernode, which are eliminated,
and r = m - w rows below. The columns are a panel (m, w), the rest is an update (r, r) that is
passed to the parent, or comes from it; both are stored by columns, and of an update from a child
only the lower triangle is used. `places` are the rows of an update in the front of the parent.

Kernels hold no global lock of Python. Several threads may work together: they take the tasks, which
are disjoint subtrees, from a shared counter, and then share the blocks of each front above. The
blocks do not depend on the number of threads, and so neither do the results.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .compilation import compile_inner

# A front of at most so many rows is eliminated by simple loops; for larger ones a call of BLAS is
# faster.
SMALL_FRONT = 24
# Columns of a block that one thread takes in a front that several threads share.
BLOCK = 128
# The same where the work for a column is less.
STRIP = 32
# What each place of the array `sync`, which threads share, holds: the next task, arrivals at
# barriers, whether to stop early, one more than the first column whose pivot is not positive.
NEXT, ARRIVED, STOP, FAILED, SYNC_SIZE = 0, 8, 16, 24, 32
# A zero, and the only thread of one, that Numba does not take for constants, for which it would
# compile functions once more.
ZERO = np.int64(0)
ALONE = (np.int64(0), np.int64(1))
# A thread that waits gives way to others after so many looks.
_LOOKS = 2000
GEMM, TRSM, SYRK, SYR2K, POTRF, POTRI, YIELD = range(1, 8)  # places in the tuple `blas`
LOWER, PLAIN, RIGHT, TRANSPOSED = (np.uint8(ord(letter)) for letter in "LNRT")


# The columns of `Tree.nodes`: the first column of a supernode; where its rows begin in `rows` and
# `places`; where its panel and its update begin; where its children begin in `children`; and where
# its entries begin in `entries`.
FIRST, ROWS, PANEL, UPDATE, CHILDREN, ENTRIES = range(6)


class Tree(NamedTuple):
    """The supernodes in the order of elimination, children before their parents.

    nodes : (s + 1, 6) integers for each supernode, see above; its data end where the next one's
        begin
    rows : the rows of the fronts, of which its own columns come first
    places : the places of these rows in the front of the parent; not set for its own columns
    children : the children of the supernodes
    entries : (2, nnz) the entries of the matrix, and their places in the panels
    tasks : (t, 2) the first supernode of each task, and the one after the last
    top : the supernodes above all tasks
    """

    nodes: Any
    rows: Any
    places: Any
    children: Any
    entries: Any
    tasks: Any
    top: Any


@intrinsic
def call(typing: Any, address: Any, width: Any, arguments: Any) -> Any:
    """Call a Fortran routine: int64 are addresses, other numbers are passed by reference.

    An int32 is widened to the type of `width`, which is that of the integers of the library.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        given = []
        for kind, value in zip(arguments, cgutils.unpack_tuple(builder, values[2]), strict=True):
            if kind == types.int64:
                given.append(builder.inttoptr(value, pointer))
                continue
            if kind == types.int32 and width == types.int64:
                value = builder.sext(value, ir.IntType(64))
            given.append(builder.bitcast(cgutils.alloca_once_value(builder, value), pointer))
        routine = ir.FunctionType(ir.VoidType(), [pointer] * len(given)).as_pointer()
        builder.call(builder.inttoptr(values[0], routine), given)
        return context.get_dummy_value()

    return types.void(types.int64, width, arguments), generate


@intrinsic
def add_atomic(typing: Any, array: Any, index: Any, amount: Any) -> Any:
    """Add to an element that other threads may change, and return what it was."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(array)(context, builder, values[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [values[1]]), values[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), generate


@intrinsic
def read_atomic(typing: Any, array: Any, index: Any) -> Any:
    """Read an element that other threads may change."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(array)(context, builder, values[0]).data
        return builder.load_atomic(builder.gep(data, [values[1]]), "seq_cst", 8)

    return types.int64(array, types.int64), generate


@compile_inner
def wait(sync, threads, phase, blas):
    """Wait until all threads are here, or one has to stop; return the number of the next wait."""
    if threads > 1:
        add_atomic(sync, ARRIVED, 1)
        looks = 0
        while read_atomic(sync, ARRIVED) < threads * (phase + 1):
            if read_atomic(sync, STOP) != 0:
                break
            looks += 1
            if looks % _LOOKS == 0 and blas[YIELD] != 0:
                call(blas[YIELD], blas[0], ())
    return phase + 1


@compile_inner
def address(array):
    """Where an array begins; Numba's own number is unsigned, and sums with it would be floats."""
    return np.int64(array.ctypes.data)


@compile_inner
def multiply(blas, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C ← α op(A) op(B) + β C for the matrices at these addresses."""
    if m > 0 and n > 0:
        i, j, l = np.int32(m), np.int32(n), np.int32(k)
        p, q, o = np.int32(lda), np.int32(ldb), np.int32(ldc)
        call(blas[GEMM], blas[0], (ta, tb, i, j, l, alpha, a, p, b, q, beta, c, o))


@compile_inner
def divide_right(blas, transpose, m, n, triangle, ldt, b, ldb):
    """B ← B L⁻¹ or B L⁻ᵀ for (m, n) numbers and a lower triangle L."""
    if m > 0 and n > 0:
        i, j, p, q = np.int32(m), np.int32(n), np.int32(ldt), np.int32(ldb)
        call(blas[TRSM], blas[0], (RIGHT, LOWER, transpose, PLAIN, i, j, 1.0, triangle, p, b, q))


@compile_inner
def mirror(numbers, w, m):
    """Copy the lower triangle of w columns of m numbers to the upper one."""
    for j in range(w):
        for i in range(j + 1, w):
            numbers[i * m + j] = numbers[j * m + i]


@compile_inner
def sizes_of(s, tree):
    """The columns w of a supernode, and the rows m of its front."""
    w = tree.nodes[s + 1, FIRST] - tree.nodes[s, FIRST]
    return w, tree.nodes[s + 1, ROWS] - tree.nodes[s, ROWS]


@compile_inner
def find_first(places, low):
    """The first of the increasing places that is not below `low`."""
    start, end = 0, len(places)
    while start < end:
        middle = (start + end) // 2
        if places[middle] < low:
            start = middle + 1
        else:
            end = middle
    return start


@compile_inner
def add_children(s, tree, panels, updates, low, high):
    """Add the updates of the children to the columns [low, high) of a front."""
    w, m = sizes_of(s, tree)
    r = m - w
    panel = panels[tree.nodes[s, PANEL] : tree.nodes[s + 1, PANEL]]
    update = updates[tree.nodes[s, UPDATE] : tree.nodes[s, UPDATE] + r * r]
    for k in range(tree.nodes[s, CHILDREN], tree.nodes[s + 1, CHILDREN]):
        c = tree.children[k]
        wc, mc = sizes_of(c, tree)
        rc = mc - wc
        places = tree.places[tree.nodes[c, ROWS] + wc : tree.nodes[c + 1, ROWS]]
        child = updates[tree.nodes[c, UPDATE] : tree.nodes[c, UPDATE] + rc * rc]
        for j in range(find_first(places, low), rc):
            column = np.int64(places[j])
            if column >= high:
                break
            source = child[j * rc : (j + 1) * rc]
            if column < w:
                target, shift = panel[column * m : (column + 1) * m], 0
            else:
                target, shift = update[(column - w) * r : (column - w + 1) * r], w
            if places[rc - 1] - column == rc - 1 - j:
                start = column - shift - j
                for i in range(j, rc):
                    target[start + i] += source[i]
            else:
                for i in range(j, rc):
                    target[places[i] - shift] += source[i]


@compile_inner
def add_entries(s, tree, panels, values):
    """Add the entries of the matrix that are in one front to its panel."""
    for e in range(tree.nodes[s, ENTRIES], tree.nodes[s + 1, ENTRIES]):
        panels[tree.entries[1, e]] += values[tree.entries[0, e]]
