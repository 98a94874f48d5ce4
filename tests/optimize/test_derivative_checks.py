"""Implicit derivatives: overwritten constants, and Jacobians that are not the derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparse_solver as ss

DTYPES = [torch.float32, torch.float64]
I = torch.arange(3)
FULL = ss.Pattern(I.repeat_interleave(3), I.repeat(3), (3, 3))
DIAGONAL = ss.Pattern(I, I, (3, 3))


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_minima_notice_overwritten_constants(
    dtype: torch.dtype, create_graph: bool, chunk: int | None
) -> None:
    """At a minimum where all springs are at rest, the gradient is zero whatever they are."""
    scale, power = torch.tensor(1.0, dtype=dtype), torch.full((3,), 2)
    for captured in (scale, power):
        l = torch.ones(3, dtype=dtype, requires_grad=True)
        energy = ss.IndexedSum(
            lambda x, c: scale * c[1] * (x[1] - x[0] - c[0]) ** 2,
            torch.stack((I, I + 1), 1),
            per_term=(l, power),
            chunk_size=chunk,
        )
        x, _ = ss.minimize(energy, torch.zeros(4, dtype=dtype), fixed=torch.tensor([0]))
        kept = torch.autograd.grad(x[-1], l, retain_graph=True)[0]
        assert torch.allclose(kept, torch.ones(3, dtype=dtype))
        captured.mul_(3)
        with pytest.raises(ss.ValueChangedError, match="clone"):
            torch.autograd.grad(x[-1], l, create_graph=create_graph)
        captured.fill_(1)


@pytest.mark.parametrize("create_graph", [False, True])
def test_roots_notice_overwritten_constants(create_graph: bool) -> None:
    for both in (True, False):
        scale = torch.ones(3, dtype=torch.double)
        of_jacobian = scale if both else scale.clone()
        a = torch.tensor([4.0, 1.0, 9.0], dtype=torch.double, requires_grad=True)
        x, _ = ss.find_root(
            lambda x, a, s=scale: s * (x**2 - a),
            lambda x, a, s=of_jacobian: s * 2 * x,
            DIAGONAL,
            torch.ones(3, dtype=torch.double),
            params=(a,),
        )
        scale[1] = 1 + 1e-6
        with pytest.raises(ss.ValueChangedError, match="clone"):
            torch.autograd.grad(x.sum(), a, create_graph=create_graph)


def test_a_jacobian_that_is_overwritten_alone_is_noticed() -> None:
    two, a = torch.tensor(2.0, dtype=torch.double), torch.full((3,), 4.0, dtype=torch.double)
    a.requires_grad_()
    x, _ = ss.find_root(
        lambda x, a: x**2 - a, lambda x, a: two * x, DIAGONAL, torch.ones_like(a), params=(a,)
    )
    two.mul_(2)
    expected = torch.full((3,), 0.25, dtype=torch.double)  # by the factor of the right Jacobian
    assert torch.allclose(torch.autograd.grad(x.sum(), a, retain_graph=True)[0], expected)
    with pytest.raises(ss.ValueChangedError, match="Jacobian"):
        torch.autograd.grad(x.sum(), a, create_graph=True)


def residual(x: Tensor, a: Tensor) -> Tensor:
    return x**2 - a + 1e-3 * x.sum() * torch.tensor([0.0, 1.0, 0.0], dtype=x.dtype)


def jacobian(x: Tensor, a: Tensor) -> Tensor:
    extra = torch.zeros(3, 3, dtype=x.dtype)
    extra[1] = 1e-3
    return (torch.diag(2 * x) + extra).reshape(-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize(("row", "col", "factor"), [(0, 0, 1.15), (1, 1, 0.9), (1, 2, 3.0e2)])
def test_wrong_jacobians_are_refused_where_derivatives_are_wanted(
    row: int, col: int, factor: float, scale: float, dtype: torch.dtype
) -> None:
    units = torch.tensor([1.0, scale, 1.0], dtype=dtype)
    wrong = torch.ones(3, 3, dtype=dtype)
    wrong[row, col] = factor

    def solve(a: Tensor, wrong: Tensor) -> Tensor:
        return ss.find_root(
            lambda x, a: units * residual(x, a),
            lambda x, a: (units[:, None] * wrong * jacobian(x, a).view(3, 3)).reshape(-1),
            FULL,
            torch.ones(3, dtype=dtype),
            params=(a,),
        )[0]

    a = torch.tensor([4.0, 2.0, 3.0], dtype=dtype)
    expected = solve(a, torch.ones_like(wrong))
    assert torch.allclose(solve(a, wrong), expected, rtol=1e-4)  # only the convergence matters
    with torch.no_grad():
        solve(a.requires_grad_(), wrong)
    solve(a, torch.ones_like(wrong)).sum().backward()
    with pytest.raises(ss.DerivativeError, match=f"row {row}, column {col}") as caught:
        solve(a, wrong)
    error, entry = caught.value, jacobian(expected, a).view(3, 3)[row, col] * units[row]
    assert (error.row, error.col) == (row, col)
    assert error.difference == pytest.approx(abs(float(entry) * (factor - 1)), rel=1e-3)


def test_entries_that_the_pattern_lacks_are_found() -> None:
    a = torch.tensor([4.0, 2.0, 3.0], dtype=torch.double, requires_grad=True)
    with pytest.raises(ss.DerivativeError, match="lacks") as caught:
        ss.find_root(
            residual,
            lambda x, a: torch.diagonal(jacobian(x, a).view(3, 3)),
            DIAGONAL,
            torch.ones(3, dtype=torch.double),
            params=(a,),
        )
    assert caught.value.row is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_difference_quotients_are_exact_enough(dtype: torch.dtype) -> None:
    h = torch.finfo(dtype).eps ** 0.5

    def quotients(x: Tensor, a: Tensor) -> Tensor:
        columns = [(residual(x + h * e, a) - residual(x, a)) / h for e in torch.eye(3, dtype=dtype)]
        return torch.stack(columns, 1).reshape(-1)

    a = torch.tensor([4.0, 2.0, 3.0], dtype=dtype, requires_grad=True)
    x, _ = ss.find_root(residual, quotients, FULL, torch.ones(3, dtype=dtype), params=(a,))
    exact, _ = ss.find_root(residual, jacobian, FULL, torch.ones(3, dtype=dtype), params=(a,))
    found, expected = (torch.autograd.grad(y.sum(), a)[0] for y in (x, exact))
    assert torch.allclose(found, expected, rtol=1e-2)


def test_wrong_equations_of_fixed_entries_do_not_matter() -> None:
    a = torch.tensor([4.0, 2.0, 3.0], dtype=torch.double, requires_grad=True)
    wrong = torch.ones(3, 3, dtype=torch.double)
    wrong[0], wrong[:, 0] = 7.0, 5.0
    x, _ = ss.find_root(
        residual,
        lambda x, a: (wrong * jacobian(x, a).view(3, 3)).reshape(-1),
        FULL,
        torch.ones(3, dtype=torch.double),
        params=(a,),
        fixed=torch.tensor([0]),
    )
    x.sum().backward()


def test_a_wrong_hessian_is_refused() -> None:
    class Wrong:
        pattern = DIAGONAL

        def __init__(self, a: Tensor):
            self.a = a

        def value(self, x: Tensor) -> Any:
            return ((x - self.a) ** 4 + (x - self.a) ** 2).sum()

        def gradient(self, x: Tensor) -> Tensor:
            return 4 * (x - self.a) ** 3 + 2 * (x - self.a)

        def hessian_values(self, x: Tensor) -> Tensor:
            return 12 * (x - self.a) ** 2 + 2.5

    a, x0 = torch.arange(3.0, requires_grad=True), torch.zeros(3)
    assert torch.allclose(ss.minimize(Wrong(a.detach()), x0)[0], a, atol=1e-3)
    with pytest.raises(ss.DerivativeError, match=r"Hessian.*2\.5 instead of 2"):
        ss.minimize(Wrong, x0, params=(a,))


@pytest.mark.parametrize("chunk", [None, 1])
def test_derivatives_that_are_not_finite_name_the_term(chunk: int | None) -> None:
    edges = torch.tensor([[0, 1], [1, 2], [2, 3]])
    X = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 1.0]])

    def spring(x: Tensor) -> Tensor:
        return (torch.linalg.vector_norm(x[1] - x[0]) - 0.5) ** 2

    def root(x: Tensor) -> Tensor:
        return ((x[1] - x[0]).square().sum().sqrt() - 0.5) ** 2

    first = ss.IndexedSum(lambda x: x.sum(), edges)
    fixed = torch.tensor([0])
    for summand, name in ((spring, "Hessian"), (root, "gradient")):
        energy = ss.IndexedSum(summand, edges, chunk_size=chunk)
        free = energy.restrict(X, fixed=fixed)
        text = f"{name} of term 1, at the vertices 1, 2, is nan"
        for call in (
            lambda energy=energy: ss.minimize(energy, X, fixed=fixed),
            lambda free=free: ss.minimize(free, free.select(X)),
        ):
            with pytest.raises(ss.NonFiniteError, match=text):
                call()
        with pytest.raises(ss.NonFiniteError, match="term 1 of summand 1, at the vertices 1, 2"):
            ss.minimize(first + energy, X, fixed=fixed)
    with pytest.raises(ss.NonFiniteError, match="value of term 0"):
        ss.minimize(ss.IndexedSum(lambda x: torch.log(x[0] - x[1]).sum(), edges), X)
