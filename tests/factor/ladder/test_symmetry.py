"""Symmetry, as it is found in the values: kinds, reasons, rounding errors."""

from __future__ import annotations

import pytest
import torch
from problems import problem

import sparse_solver as ss
from sparse_solver._factor.ladder.symmetry import (
    ASYMMETRY_LIMIT,
    KindLadder,
    check_lines,
    check_triangle,
    choose_kinds,
    find_asymmetry,
)
from sparse_solver._factor.options import Options
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import Structure
from sparse_solver._testing import installed_engines


def coo(dense: torch.Tensor) -> torch.Tensor:
    return dense.to_sparse()


def matrix(*rows: list[complex], dtype: torch.dtype = torch.float64) -> Matrix:
    dense = torch.tensor(rows, dtype=dtype)
    r, c = torch.ones(dense.shape).nonzero().T
    return Matrix(Structure(r, c, (len(rows), len(rows))), dense[r, c])


def test_auto_tells_what_it_took_the_matrix_for() -> None:
    def became(rows: list[list[complex]], dtype: torch.dtype = torch.float64) -> str:
        info = ss.factorize(coo(torch.tensor(rows, dtype=dtype))).info
        assert info.assume_reason
        return info.assume

    assert became([[2, 1], [1, 2]]) == "spd"
    assert became([[1, 2], [2, 1]]) == "symmetric"  # positive diagonal, but indefinite
    assert became([[-2, 1], [1, 2]]) == "symmetric"
    assert became([[0, 1], [1, 0]]) == "symmetric"
    assert became([[2, 1], [0, 2]]) == "general"
    assert became([[2, 1j], [-1j, 2]], torch.complex128) == "spd"
    assert became([[1, 2j], [-2j, 1]], torch.complex128) == "hermitian"
    assert became([[1 + 1j, 2j], [2j, 1]], torch.complex128) == "symmetric"
    assert became([[1 + 1j, 2j], [-2j, 1]], torch.complex128) == "general"
    A = coo(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    assert "not positive definite" in ss.factorize(A).info.assume_reason
    lower = coo(torch.tensor([[1.0, 0.0], [2.0, 1.0]]))
    assert ss.factorize(lower, triangle="lower").info.assume == "symmetric"


def test_symmetric_up_to_rounding_is_symmetric() -> None:
    g = torch.Generator().manual_seed(0)
    n = 40
    B = torch.randn(n, n, generator=g).double()
    A = B @ B.T + n * torch.eye(n).double()
    A = A * (1 + 1e-15 * torch.randn(n, n, generator=g).double())
    assert not torch.equal(A, A.T)
    assert ss.factorize(coo(A)).info.assume == "spd"
    # ... on the scale of the entries concerned, not of the largest one
    mixed = torch.tensor([[1e20, 0.0, 0.0], [0.0, 1.0, 0.2], [0.0, 0.3, 1.0]]).double()
    assert ss.factorize(coo(mixed)).info.assume == "general"
    with pytest.raises(ss.NotSymmetricError):
        ss.solve(coo(mixed), torch.ones(3).double(), assume="spd")


def test_hermitian_needs_a_real_diagonal() -> None:
    A = torch.tensor([[1 + 1e-3j, 0], [0, 1]], dtype=torch.complex128)
    for options in ({}, {"triangle": "lower"}):
        with pytest.raises(ss.NotSymmetricError):
            ss.solve(coo(A), torch.ones(2, dtype=torch.complex128), assume="hermitian", **options)  # type: ignore[arg-type]


def test_the_worst_violation_is_found_with_its_place() -> None:
    found = find_asymmetry(matrix([1, 2, 3], [2, 1, 4.5], [3, 4, 1]), False)
    assert found is not None
    assert ({found.row, found.col}, found.difference) == ({1, 2}, 0.5)
    eps = torch.finfo(torch.float64).eps
    for excess, accepted in ((ASYMMETRY_LIMIT / 2, True), (2 * ASYMMETRY_LIMIT, False)):
        found = find_asymmetry(matrix([1, 1], [1 + excess * eps, 1]), False)
        assert (found is None) == accepted
    with pytest.raises(ss.NonFiniteError):
        find_asymmetry(matrix([1, torch.nan], [2, 1]), False)


def test_labels_of_a_submatrix_are_those_of_the_caller() -> None:
    rows, cols = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1])
    structure = Structure(rows, cols, (2, 2), labels=torch.tensor([4, 7]))
    found = find_asymmetry(Matrix(structure, torch.ones(3)), False)
    assert found is not None
    assert {found.row, found.col} == {4, 7}


def test_what_is_assumed_is_checked() -> None:
    p = problem("spd", torch.float64)
    negative = -p.dense
    with pytest.raises(ss.NotPositiveDefiniteError, match="assume='spd', but the diagonal"):
        choose_kinds(matrix(*negative.tolist()), Options("spd"))
    with pytest.raises(ss.NotSymmetricError, match="use assume='general'") as caught:
        choose_kinds(matrix([1, 2], [3, 1]), Options("symmetric"))
    assert (caught.value.difference, caught.value.row + caught.value.col) == (1, 1)
    hermitian = matrix([1, 1j], [-1j, 1], dtype=torch.complex128)
    assert choose_kinds(hermitian, Options("hermitian")).kinds == ("hermitian",)
    with pytest.raises(ss.NotSymmetricError):
        choose_kinds(hermitian, Options("symmetric"))
    assert choose_kinds(matrix([1, 2], [3, 1]), Options("general")).kinds == ("general",)


def test_a_kind_that_fails_is_a_reason_for_the_next_one() -> None:
    ladder = KindLadder(("spd", "symmetric"), "symmetric")
    assert list(ladder) == ["spd", "symmetric"]
    error = ss.NotPositiveDefiniteError("bad pivot of spd; try another kind")
    with ladder.attempt("spd"):
        raise error
    with pytest.raises(ss.NotPositiveDefiniteError), ladder.attempt("symmetric"):
        raise error  # there is no other kind
    assert ladder.reason == "symmetric, but bad pivot of spd"
    with pytest.raises(ss.SingularMatrixError), ladder.attempt("spd"):
        raise ss.SingularMatrixError("singular")


def test_entries_outside_of_the_triangle_and_empty_lines() -> None:
    structure = Structure(torch.tensor([0, 1]), torch.tensor([0, 0]), (2, 2))
    check_triangle(structure, None)
    check_triangle(structure, "lower")
    with pytest.raises(ss.TriangleError, match=r"\(1, 0\)") as outside:
        check_triangle(structure, "upper")
    assert (outside.value.row, outside.value.col) == (1, 0)
    check_lines(structure, "lower")
    with pytest.raises(ss.SingularMatrixError, match="column 1") as empty:
        check_lines(structure, None)
    assert empty.value.row is None


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("engine", installed_engines("hermitian"))
def test_an_engine_solves_as_another_kind_what_it_does_not_take_as_positive_definite(
    engine: str, dtype: torch.dtype
) -> None:
    dense = torch.tensor([[2, 1j], [-1j, 3]], dtype=dtype)
    b = torch.tensor([1, 2j], dtype=dtype)
    x = ss.solve(dense.to_sparse(), b, engine=engine)
    torch.testing.assert_close(x, torch.linalg.solve(dense, b))
