"""Positive definite matrices of many graphs, and their dense counterparts."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

import sparse_solver as ss


def laplacian(rows: np.ndarray, cols: np.ndarray, n: int, seed: int = 0) -> sp.csr_matrix:
    """A matrix with these edges, scattered weights, and a diagonal that dominates a little."""
    weights = 0.5 + np.random.default_rng(seed).random(len(rows))
    off = sp.coo_matrix((weights, (rows, cols)), shape=(n, n)).tocsr()
    off = off + off.T
    return (sp.diags(np.asarray(off.sum(1)).ravel() + 0.1) - off).tocsr()


def chain(n: int) -> sp.csr_matrix:
    return laplacian(np.arange(n - 1), np.arange(1, n), n)


def star(n: int) -> sp.csr_matrix:
    return laplacian(np.zeros(n - 1, dtype=int), np.arange(1, n), n)


def comb(teeth: int, length: int) -> sp.csr_matrix:
    """A chain of nodes, from each of which another chain hangs."""
    n, nodes = teeth * length, np.arange(teeth * length)
    along = nodes[nodes % length != length - 1]
    spine = length * np.arange(teeth - 1)
    rows, cols = np.concatenate((along, spine)), np.concatenate((along + 1, spine + length))
    return laplacian(rows, cols, n)


def random_graph(n: int, edges: int) -> sp.csr_matrix:
    rng = np.random.default_rng(1)
    rows, cols = rng.integers(0, n, edges), rng.integers(0, n, edges)
    different = rows != cols
    return laplacian(rows[different], cols[different], n)


def grid(*sizes: int) -> sp.csr_matrix:
    numbers = np.arange(np.prod(sizes)).reshape(sizes)
    along = [np.moveaxis(numbers, k, 0) for k in range(len(sizes))]
    rows = np.concatenate([line[:-1].ravel() for line in along])
    cols = np.concatenate([line[1:].ravel() for line in along])
    return laplacian(rows, cols, numbers.size)


def arrow(n: int, width: int) -> sp.csr_matrix:
    """A diagonal matrix bordered by dense columns."""
    rows = np.repeat(np.arange(n - width, n), n)
    cols = np.tile(np.arange(n), width)
    above = cols < rows
    return laplacian(rows[above], cols[above], n)


def dense_block(n: int) -> sp.csr_matrix:
    rows, cols = np.triu_indices(n, 1)
    return laplacian(rows, cols, n)


def badly_scaled(n: int) -> sp.csr_matrix:
    scale = sp.diags(10.0 ** np.random.default_rng(2).uniform(-6, 6, n * n))
    return (scale @ grid(n, n) @ scale).tocsr()


CASES = {
    "chain": lambda: chain(300),
    "star": lambda: star(200),
    "comb": lambda: comb(20, 15),
    "random graph": lambda: random_graph(300, 900),
    "dense block": lambda: dense_block(200),
    "grid": lambda: grid(25, 24),
    "cube": lambda: grid(9, 10, 8),
    "arrow": lambda: arrow(250, 5),
    "two parts": lambda: sp.block_diag((grid(6, 6), chain(20), sp.identity(3))).tocsr(),
    "badly scaled": lambda: badly_scaled(15),
    "one row": lambda: sp.csr_matrix([[3.0]]),
    "diagonal": lambda: sp.diags(np.arange(1.0, 40)).tocsr(),
    # Enough operations for several tasks, and fronts with several blocks of columns.
    "large cube": lambda: grid(13, 13, 13),
}


def pattern_of(A: sp.csr_matrix) -> tuple[ss.Pattern, Tensor]:
    C = A.tocoo()
    rows, cols = torch.from_numpy(C.row), torch.from_numpy(C.col)
    return ss.Pattern(rows, cols, A.shape), torch.from_numpy(C.data)


def half(P: ss.Pattern, triangle: str) -> tuple[ss.Pattern, Tensor]:
    """The pattern of one triangle, and which entries it has."""
    keep = P.rows >= P.cols if triangle == "lower" else P.rows <= P.cols
    return ss.Pattern(P.rows[keep], P.cols[keep], P.shape), keep


def dense_of(P: ss.Pattern, values: Tensor) -> Tensor:
    """The whole matrix, of which P has one triangle."""
    A = values.new_zeros(*P.shape).index_put((P.rows, P.cols), values, accumulate=True)
    return A + A.mT - torch.diag(A.diagonal())
