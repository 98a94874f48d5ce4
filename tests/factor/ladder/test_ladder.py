"""Factoring a matrix: the kinds in turn, the second analysis, blocks that are in doubt."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from problems import problem, rhs
from torch import Tensor

import sparse_solver as ss
from sparse_solver._factor.accuracy.checked_factor import BlockInDoubt, EmptyFactor
from sparse_solver._factor.ladder.ladder import factor_matrix
from sparse_solver._factor.options import Options
from sparse_solver._sparse.block_diagonal import split_batch
from sparse_solver._sparse.structure import Structure
from sparse_solver._testing import installed_engines
from tests.contract.matrix_kinds import KINDS, make_matrix


def structure_and_values(kind: str) -> tuple[Structure, Tensor]:
    p = problem(kind, torch.float64)
    return Structure(p.rows, p.cols, p.shape), p.values


def two_by_two() -> Structure:
    rows, cols = torch.ones(2, 2).nonzero().T
    return Structure(rows, cols, (2, 2))


def test_the_record_tells_how_a_factor_came_about() -> None:
    structure, values = structure_and_values("symmetric")
    record = factor_matrix(structure, values, Options()).record
    assert record.kind == "symmetric"
    assert record.kind_reason == "symmetric with a diagonal that is not positive"
    assert record.engine in ss.engines()
    assert record.analysis_seconds > 0
    assert record.factorization_seconds > 0
    asked = factor_matrix(structure, values, Options(engine="superlu", assume="general")).record
    assert (asked.kind, asked.kind_reason) == ("general", "asked for")
    assert (asked.engine, asked.engine_reason) == ("superlu", "asked for")


def test_cholesky_is_tried_first_and_its_failure_is_a_reason(counts: Counter[str]) -> None:
    values = torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.float64)
    record = factor_matrix(two_by_two(), values, Options()).record
    assert record.kind == "symmetric"
    assert "but the matrix is not positive definite" in record.kind_reason
    assert counts["factor"] >= 2
    with pytest.raises(ss.NotPositiveDefiniteError):
        factor_matrix(two_by_two(), values, Options(assume="spd"))


def test_matrices_without_rows_and_without_values() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    factor = factor_matrix(Structure(nothing, nothing, (0, 0)), torch.zeros(0), Options())
    assert isinstance(factor, EmptyFactor)
    assert factor.apply_inverse(torch.zeros(2, 0), False, True).shape == (2, 0)
    with pytest.raises(ss.SingularMatrixError, match="all its values are zero"):
        factor_matrix(two_by_two(), torch.zeros(4), Options())


@pytest.mark.parametrize("engine", installed_engines("general"))
def test_a_singular_block_leaves_all_of_them_in_doubt(engine: str) -> None:
    options = Options(assume="general", engine=engine)
    ((_, block),) = split_batch(two_by_two(), 2)
    values = torch.tensor([2.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0, 3.0], dtype=torch.float64)
    assert factor_matrix(block, values, options, 2).record.engine == engine
    values[-1] = 1  # the second block is singular
    with pytest.raises((BlockInDoubt, ss.SingularMatrixError)):
        factor_matrix(block, values, options, 2)


@pytest.mark.skipif(
    "pardiso" not in installed_engines(), reason="about PARDISO's second kind of analysis"
)
def test_a_better_analysis_is_made_once_and_kept(counts: Counter[str]) -> None:
    n = 61  # every pivot that the first ordering takes from this is tiny
    i = torch.arange(n)
    rows, cols = torch.cat((i, i, (i + 1) % n)), torch.cat((i, (i + 1) % n, i))
    values = torch.cat((torch.full((n,), 1e-14), torch.ones(2 * n))).double()
    values[n] = 3.0
    P = ss.Pattern(rows, cols, (n, n))
    dense = P.tensor(values).to_dense()
    for k in range(4):
        b = rhs(n, dtype=torch.float64, seed=k)
        x = P.solve(values * (k + 1), b, assume="general", engine="pardiso")
        torch.testing.assert_close(x, torch.linalg.solve(dense * (k + 1), b), rtol=1e-8, atol=1e-8)
    assert counts["factor"] == 5  # twice for the first values, then once


@pytest.mark.parametrize(("n", "seed"), [(749, 358446357), (984, 925614661)])
@pytest.mark.parametrize("engine", installed_engines("general"))
def test_unknowns_and_equations_in_units_of_very_different_size(
    n: int, seed: int, engine: str
) -> None:
    """Largest entries of rows and columns do not show such units; all entries together do."""
    A, _ = make_matrix(KINDS["scaled_rows_and_columns"], n, seed, "complex128")
    P, values = ss.Pattern.from_scipy(A), torch.from_numpy(A.data)
    x = P.solve(values, torch.ones(len(A.indptr) - 1, dtype=values.dtype), engine=engine)
    product, moduli = A @ x.numpy(), abs(A) @ abs(x.numpy())
    assert float((abs(product - 1) / (moduli + 1)).max()) < 1e-11
