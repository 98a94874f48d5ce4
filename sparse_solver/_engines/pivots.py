"""The pivots of a factorisation, and the determinants of the diagonal blocks that they belong to.

Elimination step k takes the pivot p_k in row r_k and column c_k of A. With the permutation σ that
takes r_k to c_k, det A = sgn σ · Π p_k. Where A is block-diagonal, each pivot joins a row and a
column of the same block, so that the same holds for each block by itself. Pivots are kept as phases
and logarithms, since their product overflows for matrices of moderate size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Pivots:
    """The pivots of a factorisation in the order of the elimination.

    phases : (n,) pivots divided by their moduli, real or complex
    logarithms : (n,) of the moduli
    rows, cols : (n,) where they stand in the matrix
    """

    phases: Array
    logarithms: Array
    rows: Array
    cols: Array


def read_pivots(numbers: Array, rows: Array, cols: Array) -> Pivots:
    """The pivots that are these real or complex numbers, none of which is zero."""
    is_complex = np.iscomplexobj(numbers)
    largest = np.abs(numbers.real)
    if is_complex:
        largest = np.maximum(largest, np.abs(numbers.imag))
    # Moduli may overflow or lose digits where the numbers are at the ends of their range.
    exponents = np.frexp(largest)[1]
    scaled = np.ldexp(numbers.real, -exponents).astype(np.float64)
    if is_complex:
        scaled = scaled + 1j * np.ldexp(numbers.imag, -exponents)
    moduli = np.abs(scaled)
    logarithms = np.log(moduli) + exponents * np.log(2)
    return Pivots(scaled / moduli, logarithms, np.asarray(rows), np.asarray(cols))


def find_determinants(pivots: Pivots, blocks: int) -> tuple[Array, Array]:
    """The phases and the logarithms of the moduli of the determinants of equal diagonal blocks."""
    order = np.argsort(pivots.rows)
    phases = pivots.phases[order].reshape(blocks, -1).prod(1)
    # The moduli of products of many phases are one up to their rounding errors.
    phases = phases / np.abs(phases) * _signs(pivots, blocks)
    return phases, pivots.logarithms[order].reshape(blocks, -1).sum(1)


def _signs(pivots: Pivots, blocks: int) -> Array:
    """(blocks,) 1 or -1, the signs of the permutations from rows to columns."""
    n = len(pivots.rows)
    if np.array_equal(pivots.rows, pivots.cols):
        return np.ones(blocks)
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    goes_to = np.empty(n, dtype=np.int64)
    goes_to[pivots.rows] = pivots.cols
    graph = csr_matrix((np.ones(n, dtype=np.int8), goes_to, np.arange(n + 1)), shape=(n, n))
    _, cycle = connected_components(graph, directed=False)
    first = np.unique(cycle, return_index=True)[1]
    size = n // blocks
    cycles = np.bincount(first // size, minlength=blocks)
    return np.where((size - cycles) % 2, -1.0, 1.0)
