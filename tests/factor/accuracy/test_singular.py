"""Structurally singular patterns, against SciPy's structural rank."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import structural_rank

import sparse_solver as ss
from sparse_solver._factor.accuracy.singular import explain_structure
from sparse_solver._sparse.structure import Structure


def explain(A: sp.coo_matrix) -> str | None:
    rows, cols = (torch.from_numpy(at.astype(np.int64)) for at in (A.row, A.col))
    return explain_structure(Structure(rows, cols, A.shape), None)


def test_exactly_the_singular_patterns_are_explained() -> None:
    rng = np.random.default_rng(0)
    singular = 0
    for _ in range(400):
        n = int(rng.integers(1, 15))
        A = sp.random(n, n, density=rng.uniform(0.05, 0.5), random_state=rng, format="coo")
        assert (explain(A) is not None) == (structural_rank(A) < n)
        singular += structural_rank(A) < n
    assert 50 < singular < 350


def test_the_rows_that_share_too_few_columns_are_named() -> None:
    A = np.eye(6)
    A[[1, 3, 4]] = 0
    A[1, [0, 2]] = A[3, [2]] = A[4, [0]] = 1.0
    message = explain(sp.coo_matrix(A))
    assert message is not None
    assert "have entries in" in message
    with pytest.raises(ss.SingularMatrixError, match="structurally singular"):
        ss.solve(torch.from_numpy(A).to_sparse(), torch.ones(6).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_rounding_errors_do_not_hide_a_structure(dtype: torch.dtype) -> None:
    """Elimination may leave a rounding error where every exact pivot would be zero."""
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        A = rng.standard_normal((9, 9)) * (rng.random((9, 9)) < 0.5) * 10.0 ** rng.uniform(0, 15)
        A[[2, 5, 7], :] = 0
        A[[2, 5, 7, 2, 5], [1, 1, 4, 4, 4]] = rng.standard_normal(5) * 10.0 ** rng.uniform(0, 15, 5)
        dense = torch.from_numpy(A).to(dtype)
        if not (dense != 0).any(0).all() or not (dense != 0).any(1).all():
            continue
        refused += 1
        with pytest.raises(ss.SingularMatrixError, match="structurally singular"):
            ss.solve(dense.to_sparse(), torch.ones(9, dtype=dtype))
    assert refused > 20
