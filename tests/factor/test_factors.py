"""The factors of one tensor of values: made once, kept, and compared where that is asked for."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from problems import problem, rhs
from torch import Tensor

import sparse_solver as ss
from sparse_solver._factor.factors import Factors
from sparse_solver._factor.options import Options
from sparse_solver._factor.problem import Problem
from sparse_solver._sparse.structure import Structure
from sparse_solver._sparse.submatrix import remove_rows

P = problem("general", torch.float64)
STRUCTURE = Structure(P.rows, P.cols, P.shape)
B = rhs(2, P.n, dtype=torch.float64)


def expected(dense: Tensor, rows: Tensor) -> Tensor:
    return torch.linalg.solve(dense, rows.mT).mT


def test_values_are_factored_once_whatever_is_written_to_them(counts: Counter[str]) -> None:
    factors, values = Factors(Problem(STRUCTURE, Options(engine="superlu"))), P.values.clone()
    assert factors.parts is None
    assert factors.device == torch.device("cpu")
    factors.prepare(values)
    values.zero_()
    factors.prepare(values)
    for transpose in (False, True):
        x = factors.apply_inverse(values, B, transpose, True)
        torch.testing.assert_close(x, expected(P.dense.mT if transpose else P.dense, B))
    assert counts["factor"] == 1


def test_a_batch_of_values() -> None:
    factors = Factors(Problem(STRUCTURE, Options()))
    values, dense = torch.stack((P.values, 2 * P.values, 3 * P.values)), P.dense.expand(3, -1, -1)
    dense = dense * torch.arange(1, 4, dtype=torch.float64).view(3, 1, 1)
    b = rhs(3, 2, P.n, dtype=torch.float64)
    torch.testing.assert_close(factors.apply_inverse(values, b, False, True), expected(dense, b))
    assert factors.parts is not None
    assert [part.batch for part in factors.parts] == [slice(0, 2), slice(2, 3)]


def test_factors_that_compare_notice_other_values(counts: Counter[str]) -> None:
    single = Factors(Problem(STRUCTURE, Options(engine="superlu")))
    factors = single.batched()
    assert single.batched() is factors
    for scale, factored in ((1, 1), (1, 1), (2, 2), (1, 3)):
        x = factors.apply_inverse(scale * P.values, B, False, True)
        torch.testing.assert_close(x, expected(scale * P.dense, B))
        assert counts["factor"] == factored


def test_rows_that_are_left_out_are_zero_in_the_solution() -> None:
    removed = torch.tensor([2, 9])
    kept = torch.tensor([i for i in range(P.n) if i not in (2, 9)])
    factors = Factors(Problem(STRUCTURE, Options(), remove_rows(STRUCTURE, removed)))
    x = factors.apply_inverse(P.values, B, False, True)
    assert torch.equal(x[:, removed], torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(x[:, kept], expected(P.dense[kept][:, kept], B[:, kept]))


def test_entries_that_an_engine_does_not_see_are_checked() -> None:
    at = int(torch.nonzero((P.rows == 2) & (P.cols != 2))[0])
    values = P.values.clone()
    values[at] = torch.nan
    reduced = remove_rows(STRUCTURE, torch.tensor([2]))
    with pytest.raises(ss.NonFiniteError):
        Factors(Problem(STRUCTURE, Options(), reduced)).prepare(values)
