"""Singular matrices whose pivots look sound: the null vector is nearly zero at the last unknowns.

The last pivot of such a matrix is a large rounding error, up to 10⁸ ε. One in a hundred of these
matrices has no pivot below 10⁴ ε.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import sparse_solver as ss
from sparse_solver import _testing

COUNT, SEED = 200, 5
MOST_ROWS = 90


def make_product(rng: np.random.Generator, n: int) -> np.ndarray:
    """B Bᵀ with one column less than rows, whose entries are integers."""
    B = rng.integers(-1, 2, (n, n - 1))
    return B @ B.T


def make_laplacian(rng: np.random.Generator, n: int) -> np.ndarray:
    """A Laplacian without anchor, whose integer weights jump."""
    i, j = rng.integers(n, size=(2, 2 * n))
    weights = rng.integers(1, 9, 2 * n) * 10 ** rng.choice([0, 0, 3, 5], 2 * n)
    W = np.zeros((n, n), dtype=np.int64)
    np.add.at(W, (i, j), np.where(i == j, 0, weights))
    W = W + W.T
    return np.diag(W.sum(1)) - W


def singular_matrices() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(SEED)
    for number in range(COUNT):
        make = make_product if number % 2 else make_laplacian
        dense = make(rng, int(rng.integers(4, MOST_ROWS))).astype(float)
        if dense.diagonal().min() > 0:
            yield dense


@pytest.mark.parametrize("engine", [None, *_testing.installed_engines("spd")])
def test_singular_matrices_with_sound_pivots_are_refused(engine: str | None) -> None:
    refused, solved = 0, []
    for dense in singular_matrices():
        b = torch.from_numpy(np.random.default_rng(SEED).standard_normal(len(dense)))
        try:
            x = ss.solve(torch.from_numpy(dense).to_sparse_csr(), b, assume="spd", engine=engine)
        except (ss.SingularMatrixError, ss.NotPositiveDefiniteError, ss.ConvergenceError):
            refused += 1
        else:
            solved.append((dense, x))
    assert not solved
    assert refused > COUNT / 2
