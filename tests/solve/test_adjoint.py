"""Solves with Aᵀ and Aᴴ, and the two derivative rules by their definitions."""

from __future__ import annotations

import pytest
import torch
from problems import COMPLEX, DTYPES, TOLERANCE, kinds_of, problem, rhs
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import sparse_solver as ss
from sparse_solver._solve.adjoint import adjoint, tangent
from sparse_solver._sparse.kernels import Places

CASES = [(kind, dtype) for dtype in DTYPES for kind in kinds_of(dtype)]


def assert_close(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("columns", [None, 2])
@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_adjoint_solves_and_their_gradients(
    kind: str, dtype: torch.dtype, columns: int | None
) -> None:
    p = problem(kind, dtype)
    P, A = ss.Pattern(p.rows, p.cols, p.shape), p.dense.clone().requires_grad_()
    b = rhs(p.n, *([] if columns is None else [columns]), dtype=dtype).requires_grad_()
    x_bar = rhs(*b.shape, dtype=dtype, seed=7)
    expected = torch.linalg.solve(A.mH, b)
    A_bar, b_bar = torch.autograd.grad(expected, (A, b), x_bar)
    values = p.values.clone().requires_grad_()
    coo = torch.sparse_coo_tensor(torch.stack((p.rows, p.cols)), values, p.shape)
    F = P.factorize(values)
    for x in (
        P.solve(values, b, adjoint=True),
        P.solve(values, b, adjoint=True, assume=kind),  # type: ignore[arg-type]
        F.solve(b, adjoint=True),
        ss.solve(coo, b, adjoint=True),
    ):
        assert_close(x, expected)
        found_values_bar, found_b_bar = torch.autograd.grad(x, (values, b), x_bar)
        assert_close(found_values_bar, A_bar[p.rows, p.cols])
        assert_close(found_b_bar, b_bar)


@pytest.mark.parametrize("triangle", ["lower", "upper"])
@pytest.mark.parametrize("kind", ["spd", "symmetric", "hermitian"])
def test_adjoint_solves_with_one_triangle(kind: str, triangle: str) -> None:
    p = problem(kind, torch.complex128)
    kept = p.rows >= p.cols if triangle == "lower" else p.rows <= p.cols
    P, b = ss.Pattern(p.rows[kept], p.cols[kept], p.shape), rhs(p.n, dtype=torch.complex128)
    x = P.solve(p.values[kept], b, assume=kind, triangle=triangle, adjoint=True)  # type: ignore[arg-type]
    assert_close(x, torch.linalg.solve(p.dense.mH, b))


def test_derivatives_of_an_adjoint_solve() -> None:
    p = problem("general", torch.complex128, n=4)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(4, 2, dtype=torch.complex128).requires_grad_()
    values = p.values.clone().requires_grad_()

    def solve(values: Tensor, b: Tensor) -> Tensor:
        return P.solve(values, b, adjoint=True)

    assert gradcheck(solve, (values, b), check_forward_ad=True)
    assert gradgradcheck(solve, (values, b))
    F = P.factorize(p.values)
    assert gradcheck(lambda b: F.solve(b, adjoint=True), (b,), check_forward_ad=True)
    batch, many = torch.stack((p.values, 2 * p.values)), torch.stack((b, -b)).detach()
    dense = torch.stack((p.dense, 2 * p.dense))
    assert_close(P.solve(batch, many, adjoint=True), torch.linalg.solve(dense.mH, many))
    assert_close(torch.func.vmap(solve)(batch, many), torch.linalg.solve(dense.mH, many))


def test_an_adjoint_solve_can_be_compiled() -> None:
    p = problem("general", torch.complex128)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(p.n, dtype=torch.complex128)
    torch._dynamo.reset()
    solve = torch.compile(
        lambda v, b: P.solve(v, b, adjoint=True), fullgraph=True, backend="aot_eager"
    )
    values = p.values.clone().requires_grad_()
    assert_close(solve(values, b), torch.linalg.solve(p.dense.mH, b))
    found = torch.autograd.grad(solve(values, b).abs().square().sum(), values)
    expected = torch.autograd.grad(P.solve(values, b, adjoint=True).abs().square().sum(), values)
    assert_close(found[0], expected[0])
    torch._dynamo.reset()


def test_transpose_and_adjoint_contradict_each_other() -> None:
    p = problem("general", torch.float64)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(p.n, dtype=torch.float64)
    F, A = P.factorize(p.values), P.tensor(p.values)
    for solve in (
        lambda **both: P.solve(p.values, b, **both),
        lambda **both: F.solve(b, **both),
        lambda **both: ss.solve(A, b, **both),
    ):
        with pytest.raises(ss.OptionError, match="transpose=True solves with Aᵀ"):
            solve(transpose=True, adjoint=True)
        with pytest.raises(ss.OptionError, match="adjoint='yes': expected True or False"):
            solve(adjoint="yes")


@pytest.mark.parametrize("dtype", [torch.float64, *COMPLEX], ids=str)
def test_the_rules_are_each_others_adjoints(dtype: torch.dtype) -> None:
    """Re <x̄, dx> = Re <v̄, dv> + Re <b̄, db>, whatever the perturbations."""
    p = problem("general", dtype)
    places, b = Places(p.rows, p.cols), rhs(3, p.n, dtype=dtype)
    x = torch.linalg.solve(p.dense, b.mT).mT
    values_dot, b_dot = rhs(p.values.numel(), dtype=dtype, seed=1), rhs(3, p.n, dtype=dtype, seed=2)
    x_bar = rhs(3, p.n, dtype=dtype, seed=3)

    def apply_inverse(rows: Tensor) -> Tensor:
        return torch.linalg.solve(p.dense, rows.mT).mT

    def apply_transposed(rows: Tensor) -> Tensor:
        return torch.linalg.solve(p.dense.mT, rows.mT).mT

    x_dot = tangent(apply_inverse, values_dot, b_dot, x, places)
    values_bar, b_bar = adjoint(apply_transposed, x_bar, x, places, True)
    assert values_bar is not None
    left = (x_bar.conj() * x_dot).sum().real
    right = (values_bar.conj() * values_dot).sum().real + (b_bar.conj() * b_dot).sum().real
    assert_close(left, right)
    assert adjoint(apply_transposed, x_bar, x, places, False)[0] is None
    assert_close(tangent(apply_inverse, None, b_dot, x, places), apply_inverse(b_dot))
    assert torch.equal(tangent(apply_inverse, None, None, x, places), torch.zeros_like(x))
