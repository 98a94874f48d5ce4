"""One matrix: its triangles, its largest entry, its diagonal."""

from __future__ import annotations

import pytest
import torch
from problems import DTYPES, kinds_of, problem
from torch import Tensor

import sparse_solver as ss
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import Structure
from sparse_solver._sparse.triangle import arrangement_of

CASES = [(kind, dtype) for dtype in DTYPES for kind in kinds_of(dtype)]


def matrix_of(dense: Tensor, copies: int = 1) -> Matrix:
    """The matrix in random order, each entry stored as a sum of `copies` values."""
    rows, cols = dense.nonzero().T
    order = torch.randperm(copies * rows.numel())
    values = (dense[rows, cols] / copies).repeat(copies)[order].contiguous()
    rows, cols = (index.repeat(copies)[order] for index in (rows, cols))
    return Matrix(Structure(rows, cols, (dense.shape[0], dense.shape[1])), values)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("hole", [False, True])
@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_triangles_match_where_the_matrix_is_exactly_symmetric(
    kind: str, dtype: torch.dtype, hole: bool, copies: int
) -> None:
    dense = problem(kind, dtype).dense
    dense = (dense + dense.mH) / 2 if kind in ("spd", "hermitian") else dense
    dense[3, 3] = 0 if hole else dense[3, 3]
    for conjugate in (False, True):
        matrix = matrix_of(dense, copies)
        expected = torch.equal(dense, dense.mH if conjugate else dense.mT)
        assert matrix.match_triangles(conjugate) == expected
        upper = arrangement_of(matrix.structure, "upper")
        arranged = matrix.arrange(upper, conjugate)
        torch.testing.assert_close(arranged, dense[upper.rows, upper.col])
        torch.testing.assert_close(matrix.diagonal, dense.diagonal())
        assert matrix.check_finite() == pytest.approx(float(dense.abs().max()))


def test_a_value_that_is_not_finite_is_named() -> None:
    matrix = Matrix(Structure(torch.arange(3), torch.arange(3), (3, 3)), torch.ones(3))
    assert matrix.check_finite() == 1
    matrix = Matrix(matrix.structure, torch.tensor([1.0, torch.nan, 1.0]))
    with pytest.raises(ss.NonFiniteError, match=r"values\[1\] is nan") as caught:
        matrix.check_finite()
    assert (caught.value.argument, caught.value.index) == ("values", 1)
    twice = Structure(torch.zeros(2).long(), torch.zeros(2).long(), (1, 1))
    with pytest.raises(ss.NonFiniteError, match="the sum of some is infinite"):
        Matrix(twice, torch.tensor([3e38, 3e38])).check_finite()


def test_a_matrix_without_entries() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    matrix = Matrix(Structure(nothing, nothing, (2, 2)), torch.zeros(0))
    assert not matrix.match_triangles(False)
    assert matrix.check_finite() == 0
    assert torch.equal(matrix.diagonal, torch.zeros(2))
