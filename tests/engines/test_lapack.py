"""Dense factors by LAPACK."""

from __future__ import annotations

import pytest
import torch
from problems import DTYPES, problem

import sparse_solver as ss
from sparse_solver import _testing
from sparse_solver._sparse.values import to_double


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["spd", "symmetric", "hermitian", "general"])
def test_the_factor_keeps_the_matrix_and_reports_its_size(dtype: torch.dtype, kind: str) -> None:
    p = problem(kind, dtype)
    P = ss.Pattern(p.rows, p.cols, p.shape)
    F = P.factorize(p.values, assume=p.kind, engine="lapack")  # type: ignore[arg-type] # a plain string
    factor = _testing.engine_factors(F)[0]
    dense = torch.zeros(p.shape, dtype=dtype)
    dense[factor.arrangement.rows, factor.arrangement.col] = factor.values
    torch.testing.assert_close(dense, p.dense)
    size = p.n * (p.n + 1) // 2 if p.kind == "spd" else p.n**2
    assert (factor.nnz, factor.sound) == (size, p.kind == "spd")
    assert F.info.memory_bytes == 2 * p.n**2 * to_double(p.values).element_size()
    flops = p.n**3 // 3 if p.kind == "spd" else 2 * p.n**3 // 3
    assert F.info.factor_flops == flops


def test_matrices_that_are_too_large_are_refused() -> None:
    n = 2**14 + 1
    P = ss.Pattern(torch.arange(n), torch.arange(n), (n, n))
    with pytest.raises(ss.EngineUnsupportedError, match="16385"):
        P.solve(torch.ones(n), torch.ones(n), engine="lapack")


def test_the_row_that_is_not_positive_definite() -> None:
    A = torch.eye(4, dtype=torch.float64)
    A[1, 2] = A[2, 1] = 2.0
    with pytest.raises(ss.NotPositiveDefiniteError) as caught:
        ss.solve(A.to_sparse(), torch.ones(4).double(), assume="spd", engine="lapack")
    assert caught.value.row == 2


def test_general_matrices_are_factored_by_lapack_while_they_are_small() -> None:
    for n, engine in ((2, "lapack"), (128, "lapack"), (129, None)):
        i = torch.arange(n)
        P = ss.Pattern(torch.cat((i, i[1:])), torch.cat((i, i[:-1])), (n, n))
        info = P.factorize(torch.ones(2 * n - 1), assume="general").info
        assert (info.engine == "lapack") == (engine == "lapack")
