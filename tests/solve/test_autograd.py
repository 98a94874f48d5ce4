"""Transforms of transforms; single ones are in the contract of the engines."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from problems import independent, problem, rhs
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import sparse_solver as ss
from sparse_solver._factor.options import Options
from sparse_solver._factor.problem import Problem
from sparse_solver._solve.shapes import solve_values
from sparse_solver._sparse.submatrix import remove_rows

P = problem("general", torch.float64, n=6)
PATTERN = ss.Pattern(P.rows, P.cols, P.shape)
VALUES = torch.stack([P.values * (k + 1) for k in range(3)])
B = rhs(4, P.n, dtype=torch.float64)


def sparse(values: Tensor, b: Tensor) -> Tensor:
    return PATTERN.solve(values, b).square().sum()


def dense(values: Tensor, b: Tensor) -> Tensor:
    A = torch.zeros(P.shape, dtype=torch.float64).index_put((P.rows, P.cols), values)
    return torch.linalg.solve(A, b).square().sum()


def table(function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return torch.stack([torch.stack([function(values, b) for b in B]) for values in VALUES])


@pytest.mark.parametrize("argument", [0, 1])
def test_vmap_of_vmap(argument: int) -> None:
    for transform in (torch.func.grad, torch.func.hessian):
        mine, theirs = transform(sparse, argument), transform(dense, argument)
        inner_b = torch.func.vmap(torch.func.vmap(mine, (None, 0)), (0, None))(VALUES, B)
        inner_values = torch.func.vmap(torch.func.vmap(mine, (0, None)), (None, 0))(VALUES, B)
        torch.testing.assert_close(inner_b, table(theirs))
        torch.testing.assert_close(inner_values.transpose(0, 1), table(theirs))


def test_vmap_of_vmap_over_the_values() -> None:
    grid = torch.stack((VALUES, 2 * VALUES))
    mine = torch.func.vmap(torch.func.vmap(torch.func.grad(sparse), (0, None)), (0, None))(
        grid, B[0]
    )
    theirs = torch.stack(
        [torch.stack([torch.func.grad(dense)(v, B[0]) for v in row]) for row in grid]
    )
    torch.testing.assert_close(mine, theirs)


def test_derivatives_around_vmap() -> None:
    scales = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def total(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda values: torch.func.vmap(lambda scale: loss(values * scale, B[0]))(
            scales
        ).sum()

    def looped(values: Tensor) -> Tensor:
        return torch.stack([dense(values * scale, B[0]) for scale in scales]).sum()

    torch.testing.assert_close(
        torch.func.grad(total(sparse))(P.values), torch.func.grad(looped)(P.values)
    )
    torch.testing.assert_close(
        torch.func.hessian(total(sparse))(P.values), torch.func.hessian(looped)(P.values)
    )


def test_a_pullback_that_outlives_its_transform() -> None:
    _, pullback = torch.func.vjp(
        lambda values: torch.func.vmap(PATTERN.solve)(values, B[:3]), VALUES
    )
    x_bars = rhs(5, 3, P.n, dtype=torch.float64)
    leaf = VALUES.clone().requires_grad_()
    x = PATTERN.solve(leaf, B[:3])
    expected = torch.stack(
        [torch.autograd.grad(x, leaf, x_bar, retain_graph=True)[0] for x_bar in x_bars]
    )
    torch.testing.assert_close(torch.func.vmap(pullback)(x_bars)[0], expected)


def along(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda t: loss(P.values * (1 + t[0]), B[0] + t[1])


def test_third_derivatives() -> None:
    rev, fwd, zero = torch.func.jacrev, torch.func.jacfwd, torch.zeros(2, dtype=torch.float64)
    expected = rev(rev(rev(along(dense))))(zero)
    for outer, middle, inner in (
        (rev, rev, rev),
        (fwd, rev, rev),
        (rev, fwd, rev),
        (rev, rev, fwd),
    ):
        torch.testing.assert_close(outer(middle(inner(along(sparse))))(zero), expected)


def test_nested_forward_mode_raises_instead_of_dropping_tangents() -> None:
    fwd, rev, zero = torch.func.jacfwd, torch.func.jacrev, torch.zeros(2, dtype=torch.float64)
    for function in (
        fwd(fwd(along(sparse))),
        fwd(fwd(rev(along(sparse)))),
        fwd(rev(fwd(along(sparse)))),
    ):
        with pytest.raises(ss.TransformError, match="nested forward mode"):
            function(zero)


def test_vectorised_jacobians_of_torch_autograd() -> None:
    """They go by torch's first vmap, which does not know the rule of a Function."""
    expected = torch.func.jacrev(PATTERN.solve)(P.values, B[0])
    for strategy in ("reverse-mode", "forward-mode"):
        found = torch.autograd.functional.jacobian(
            lambda values: PATTERN.solve(values, B[0]), P.values, vectorize=True, strategy=strategy
        )
        torch.testing.assert_close(found, expected)
    hessian = torch.autograd.functional.hessian(
        lambda values: sparse(values, B[0]), P.values, vectorize=True
    )
    torch.testing.assert_close(hessian, torch.func.hessian(dense)(P.values, B[0]))


def test_tracing_without_dynamo_raises() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    with pytest.raises(RuntimeError):
        make_fx(lambda values: PATTERN.solve(values, B[0]))(P.values)
    with pytest.raises(RuntimeError, match="linearize"):
        torch.func.linearize(lambda b: PATTERN.solve(P.values, b), B[0])


def test_autocast_leaves_the_precision_alone() -> None:
    values = P.values.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = PATTERN.solve(values, B[0])
        x.sum().backward()
    assert x.dtype == torch.float64
    torch.testing.assert_close(
        values.grad, torch.func.grad(lambda v: PATTERN.solve(v, B[0]).sum())(P.values)
    )


@pytest.mark.parametrize("kind", ["spd", "general"])
def test_rows_that_are_left_out(kind: str) -> None:
    # E (Eᵀ A E)⁻¹ Eᵀ b, which the minimisations are made of; the derivatives are those of a solve.
    p = problem(kind, torch.float64)
    structure = ss.Pattern(p.rows, p.cols, p.shape)._structure
    reduced = Problem(structure, Options(), remove_rows(structure, torch.tensor([2, 9])))
    keep = torch.tensor([i for i in range(p.n) if i not in (2, 9)])
    b, free = rhs(p.n, 2, dtype=torch.float64), independent(kind, p.values, p.rows, p.cols)

    def mine(values: Tensor, b: Tensor, transpose: bool) -> Tensor:
        return solve_values(reduced, free(values), b, transpose=transpose)

    def dense(values: Tensor, b: Tensor, transpose: bool) -> Tensor:
        A = torch.zeros(p.shape, dtype=b.dtype).index_put((p.rows, p.cols), free(values))
        A = A.mT if transpose else A
        return torch.zeros_like(b).index_copy(
            0, keep, torch.linalg.solve(A[keep][:, keep], b[keep])
        )

    for transpose in (False, True):
        torch.testing.assert_close(mine(p.values, b, transpose), dense(p.values, b, transpose))
        inputs = (p.values.clone().requires_grad_(), b.clone().requires_grad_())
        results = [
            torch.autograd.grad(f(*inputs, transpose).sin().sum(), inputs) for f in (mine, dense)
        ]
        torch.testing.assert_close(*results)
        assert gradcheck(
            lambda v, b, t=transpose: mine(v, b, t), inputs, check_forward_ad=True, fast_mode=True
        )
        assert gradgradcheck(lambda v, b, t=transpose: mine(v, b, t), inputs, fast_mode=True)
