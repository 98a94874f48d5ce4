"""What has no minimum, or no unique one, and matrices that are not what they should be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from counting import count
from problems import DTYPES, TOLERANCE, grid, laplacian_places, laplacian_values, rhs
from quadratic_cases import DOUBLE, FIXED, Case, N, dense_minimum, energy, triangle_of
from torch import Tensor

import sparse_solver as ss


def indefinite(dtype: torch.dtype) -> Tensor:
    """Positive definite but for the direction e_0 − e_1."""
    Q = energy(dtype)
    e = torch.zeros(N, dtype=dtype)
    e[0], e[1] = 1, -1
    return Q - 50 * torch.outer(e, e)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("triangle", [None, "lower"])
def test_Q_need_be_positive_definite_on_the_null_space_only(
    dtype: torch.dtype, triangle: str | None
) -> None:
    Q, b = indefinite(dtype), rhs(N, dtype=dtype)
    C = torch.zeros(1, N, dtype=dtype)
    C[0, 0], C[0, 1] = 1, -1
    d = torch.ones(1, dtype=dtype)
    stored = triangle_of(Q, triangle).to_sparse()
    x = ss.minimize_quadratic(stored, b, C=C.to_sparse(), d=d, triangle=triangle)
    expected = dense_minimum(Q, b, FIXED[:0], b[:0], C, d)[0]
    tolerance = 10 * TOLERANCE[dtype]
    torch.testing.assert_close(x, expected, rtol=tolerance, atol=tolerance)
    C[0, 1] = 1  # now it is not
    with pytest.raises(ss.NotPositiveDefiniteError, match="on the null space of the constraints"):
        ss.minimize_quadratic(stored, b, C=C.to_sparse(), d=d, triangle=triangle)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_Q_without_constraints_must_be_positive_definite(dtype: torch.dtype) -> None:
    Q, b = torch.eye(N, dtype=dtype), rhs(N, dtype=dtype)
    Q[5, 5] = -1
    with pytest.raises(ss.NotPositiveDefiniteError, match="row 5") as caught:
        ss.minimize_quadratic(Q.to_sparse(), b, fixed=torch.tensor([1, 3]), fixed_values=b[:2])
    assert caught.value.row == 5
    Q[5, 5], Q[5, 6], Q[6, 5] = 1, 2, 2
    with pytest.raises(ss.NotPositiveDefiniteError, match="Q is not positive definite"):
        ss.minimize_quadratic(Q.to_sparse(), b, fixed=torch.tensor([1, 3]), fixed_values=b[:2])
    assert ss.minimize_quadratic(
        Q.to_sparse(), b, fixed=torch.tensor([5]), fixed_values=b[:1]
    ).shape == (N,)


def test_the_row_is_the_callers_also_for_batches_and_in_compiled_code() -> None:
    torch._dynamo.reset()
    i = torch.arange(N)
    program = ss.QuadraticProgram(ss.Pattern(i, i, (N, N)), fixed=torch.tensor([0, 3]))
    values = torch.ones(3, N)
    values[1, 7] = -1
    solve: Callable[..., Tensor] = program.solve
    for call in (solve, torch.compile(solve, fullgraph=True, backend="aot_eager")):
        with pytest.raises(ss.NotPositiveDefiniteError, match="row 7") as caught:
            call(values, torch.ones(N))
        assert caught.value.row == 7
    torch._dynamo.reset()


def test_a_laplacian_wants_an_anchor() -> None:
    edges, n = grid(12)
    rows, cols = laplacian_places(edges, n)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n, anchor=0.0)
    Q = ss.Pattern(rows, cols, (n, n))
    b = torch.ones(n, dtype=torch.float64)
    with pytest.raises(ss.SingularMatrixError, match="fixed="):
        ss.QuadraticProgram(Q).solve(values, b)
    assert ss.QuadraticProgram(Q, fixed=torch.tensor([5])).solve(values, b).isfinite().all()
    # A constraint that does not hold what is free either: the difference of two entries.
    difference = ss.Pattern(torch.tensor([0, 0]), torch.tensor([3, 4]), (1, n))
    program = ss.QuadraticProgram(Q, C=difference)
    with pytest.raises(ss.SingularMatrixError, match="on the null space") as caught:
        program.solve(values, b, C_values=torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert not isinstance(caught.value, ss.RedundantConstraintsError)


def test_batches_are_judged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in DOUBLE:
        case = Case(dtype)
        b, y, d = case.right()
        scales = torch.linspace(1, 2, 64, dtype=torch.float64).unsqueeze(1)
        expected = case.minimize(scales * case.Q_values, b, y, case.C_values, d)
        counts = count(monkeypatch)
        x = case.minimize(1.5 * scales * case.Q_values, b, y, case.C_values, d)
        assert counts["factor"] <= 4
        torch.testing.assert_close(x[0], case.minimize(1.5 * case.Q_values, b, y, case.C_values, d))
        wrong = scales * case.Q_values
        wrong[7] *= -1
        with pytest.raises(ss.NotPositiveDefiniteError):
            case.minimize(wrong, b, y, case.C_values, d)
        assert expected.shape == (64, N)


@pytest.mark.parametrize("scale", [1.0, 3e-7])
def test_entries_that_cancel_but_for_rounding_errors_are_symmetric(scale: float) -> None:
    Q = scale * torch.tensor([[2, 1e-17, -1], [2e-17, 2, -1], [-1, -1, 2]], dtype=torch.float64)
    rows, cols = Q.nonzero().T
    program = ss.QuadraticProgram(ss.Pattern(rows, cols, (3, 3)), fixed=torch.tensor([0]))
    expected = torch.linalg.solve(Q[1:, 1:], torch.ones(2, dtype=torch.float64))
    x = program.solve(Q[rows, cols], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(x[1:], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("triangle", [None, "lower"])
def test_energies_that_are_hermitian_but_for_rounding_errors(
    dtype: torch.dtype, triangle: str | None
) -> None:
    B = rhs(20, 6, dtype=dtype, seed=1)
    Q = B.mH @ torch.diag(torch.arange(1, 21).to(dtype) / 7) @ B
    Q = Q + 1j * 20 * torch.finfo(dtype).eps * torch.diag(torch.diag(Q)) if dtype.is_complex else Q
    ones, C = torch.ones(6, dtype=dtype), torch.ones(1, 6, dtype=dtype)
    x = ss.minimize_quadratic(
        triangle_of(Q, triangle).to_sparse(), ones, C=C.to_sparse(), d=ones[:1], triangle=triangle
    )
    expected = dense_minimum(Q, ones, FIXED[:0], ones[:0], C, ones[:1])[0]
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


def test_an_energy_without_entries() -> None:
    nothing = torch.zeros(6, 6, dtype=torch.float64).to_sparse()
    C = rhs(3, 6, dtype=torch.float64).to_sparse()
    with pytest.raises(ss.SingularMatrixError):
        ss.minimize_quadratic(nothing, C=C)
    square = rhs(6, 6, dtype=torch.float64)  # x is what the constraints say
    x = ss.minimize_quadratic(nothing, C=square.to_sparse(), d=square @ torch.arange(6.0).double())
    torch.testing.assert_close(x, torch.arange(6.0).double())


def test_what_is_remembered_about_a_pattern_depends_on_the_triangle() -> None:
    Q = ss.Pattern(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), (2, 2))
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.QuadraticProgram(Q).solve(torch.tensor([1.0, 0.0, -1.0]))
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.QuadraticProgram(Q, triangle="lower").solve(torch.tensor([1.0, 2.0, 1.0]))


def test_asymmetric_energies_are_refused_wherever_they_are() -> None:
    for row, col in (
        (0, 1),
        (int(FIXED[0]), 0),
        (0, int(FIXED[0])),
        (int(FIXED[0]), int(FIXED[1])),
    ):
        Q = energy(torch.float64) + 0.1
        Q[row, col] += 1
        with pytest.raises(ss.NotSymmetricError, match="Q is not symmetric") as caught:
            ss.minimize_quadratic(Q.to_sparse(), fixed=FIXED)
        assert {caught.value.row, caught.value.col} == {row, col}


def test_what_is_not_finite_is_named_in_transforms_too() -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    nan = torch.tensor(float("nan"), dtype=torch.float64)

    def solve(**changed: Tensor) -> Tensor:
        arguments = {"Q_values": case.Q_values, "b": b, "y": y, "C_values": case.C_values, "d": d}
        return case.minimize(*(arguments | changed).values()).sum()

    for name, tensor, index in (("b", b, 3), ("d", d, 1)):
        tensor = torch.where(torch.arange(tensor.numel()) == index, nan, tensor)
        for transform in (torch.func.grad, torch.func.jacfwd):
            with pytest.raises(ss.NonFiniteError, match=rf"{name}\[{index}\]") as caught:
                transform(lambda t, name=name: solve(**{name: t}))(tensor)
            assert (caught.value.argument, caught.value.index) == (name, index)
    with pytest.raises(ss.NonFiniteError, match="Q_values"):
        torch.func.grad(lambda v: solve(Q_values=v))(case.Q_values * nan)
    with pytest.raises(ss.NonFiniteError, match="fixed entries"):
        torch.func.grad(lambda y: solve(y=y))(y * nan)


def test_values_that_are_not_finite_beside_empty_rows() -> None:
    i, at = torch.arange(3), torch.tensor([0])
    program = ss.QuadraticProgram(ss.Pattern(i, i, (4, 4)), C=ss.Pattern(at, at, (1, 4)))
    with pytest.raises(ss.NonFiniteError, match=r"C_values\[0\]"):
        program.solve(torch.ones(3), C_values=torch.tensor([float("nan")]))


def test_an_empty_row_is_named_as_the_caller_does() -> None:
    i = torch.tensor([0, 1, 2, 4])
    program = ss.QuadraticProgram(ss.Pattern(i, i, (5, 5)), fixed=torch.tensor([0, 1]))
    with pytest.raises(ss.SingularMatrixError, match="row 3") as caught:
        program.solve(torch.ones(4))
    assert caught.value.row == 3


def test_compiled_code_notices_what_is_wrong() -> None:
    torch._dynamo.reset()
    case = Case(torch.float64)
    b, y, d = case.right()
    solve = torch.compile(case.minimize, fullgraph=True, backend="aot_eager")
    with pytest.raises(ss.NotPositiveDefiniteError, match="null space"):
        solve(-case.Q_values, b, y, case.C_values, d)
    with pytest.raises(ss.RedundantConstraintsError):
        solve(case.Q_values, b, y, 0 * case.C_values, d)
    lopsided = case.Q_values + (case.rows == FIXED[0]) * (case.rows != case.cols)
    with pytest.raises(ss.NotSymmetricError):
        solve(lopsided, b, y, case.C_values, d)
    torch._dynamo.reset()
