"""Derivatives of minima by the implicit function theorem, and what would make them wrong."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sample_energies import (
    EDGES,
    FIXED,
    NODES,
    REST,
    N,
    Quartic,
    constants,
    spring,
    structure,
    tether,
)
from torch import Tensor

import sparse_solver as ss
from sparse_solver._factor.lifetime import count_alive


def solve_for(fixed: bool = True) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    def solution(
        stiffness: Tensor, length: Tensor, rest: Tensor, weight: Tensor, x0: Tensor
    ) -> Tensor:
        energy = structure(stiffness, length, rest, weight)
        return ss.minimize(energy, x0, fixed=FIXED if fixed else None)[0]

    return solution, (*constants(), REST + 0.1)


def test_derivatives_agree_with_finite_differences() -> None:
    solution, inputs = solve_for()
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)

    def of_fixed(*inputs: Tensor) -> Tensor:
        *constants, x0 = inputs
        # Free entries of x0 decide which minimum is found, so that they must not vary.
        held = torch.zeros_like(REST).index_copy(0, FIXED, x0[FIXED])
        return solution(*constants, held + (REST + 0.1).index_fill(0, FIXED, 0.0))

    torch.autograd.gradcheck(of_fixed, inputs, fast_mode=True)
    torch.autograd.gradgradcheck(of_fixed, inputs, fast_mode=True)


def test_free_entries_of_the_start_have_no_influence() -> None:
    solution, inputs = solve_for()
    x0 = inputs[-1].requires_grad_()
    solution(*inputs[:-1], x0).sum().backward()
    assert x0.grad is not None
    free = torch.ones(2 * N, dtype=torch.bool)
    free[FIXED] = False
    assert torch.equal(x0.grad[free], torch.zeros(2 * N - 2, 2, dtype=torch.double))
    assert x0.grad[FIXED].abs().min() > 1e-3
    nothing_fixed = solve_for(fixed=False)[0](*inputs[:-1], x0)
    assert not nothing_fixed.requires_grad


def test_derivatives_agree_with_unrolling() -> None:
    """Newton steps in dense, differentiable torch have the derivatives of their limit."""
    k, l, rest, weight = (c.requires_grad_() for c in constants())
    solution, _ = solve_for(fixed=False)
    X = solution(k, l, rest, weight, REST)
    loss = (X * torch.arange(X.numel()).reshape(X.shape)).sum()
    found = torch.autograd.grad(loss, (k, l, rest, weight), create_graph=True)

    def energy(X: Tensor) -> Tensor:
        stretch = (X[EDGES[:, 1]] - X[EDGES[:, 0]]).norm(dim=1) - l
        return (
            weight * (k / 2 * stretch**2).sum()
            + (0.3 * (X - rest) ** 2).sum()
            + 0.1 * X.prod(1).sin().sum()
        )

    Y = X.detach()
    for _ in range(3):  # each unrolled step makes one more order of derivatives right
        Y = Y.requires_grad_() if not Y.requires_grad else Y
        (g,) = torch.autograd.grad(energy(Y), Y, create_graph=True)
        rows = [
            torch.autograd.grad(entry, Y, create_graph=True)[0].reshape(-1)
            for entry in g.reshape(-1)
        ]
        Y = Y - torch.linalg.solve(torch.stack(rows), g.reshape(-1)).reshape(Y.shape)
    unrolled = (Y * torch.arange(X.numel()).reshape(X.shape)).sum()
    expected = torch.autograd.grad(unrolled, (k, l, rest, weight), create_graph=True)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-9)
    second = torch.autograd.grad(sum(a.square().sum() for a in found), (k, l, rest, weight))
    for a, b in zip(
        second,
        torch.autograd.grad(sum(a.square().sum() for a in expected), (k, l, rest, weight)),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


def test_third_derivatives() -> None:
    s = torch.tensor([2.0, 3.0], dtype=torch.double, requires_grad=True)
    energy = ss.IndexedSum(
        lambda x, s: s * x[0] ** 4 / 4 - x[0], torch.tensor([[0], [1]]), per_term=s
    )
    x, _ = ss.minimize(energy, torch.ones(2, dtype=torch.double))
    for order in range(1, 4):  # x = s^(−1/3)
        (x,) = torch.autograd.grad(x.sum(), s, create_graph=True)
        power = -1 / 3 - order
        factor = math.prod(-1 / 3 - i for i in range(order))
        assert torch.allclose(x, factor * s**power)


def test_constants_that_depend_on_each_other_are_counted_once() -> None:
    def solution(k: Tensor) -> Tensor:
        l = k.square() / 2 + 1  # from k; and k twice
        energy = (
            ss.IndexedSum(spring, EDGES, per_term=(k, l))
            + ss.IndexedSum(tether, NODES, per_variable=REST) * k[0]
        )
        energy = energy + ss.IndexedSum(lambda x, k: k * x.square().sum(), EDGES, per_term=k)
        return ss.minimize(energy, REST, fixed=FIXED)[0]

    k = constants()[0].requires_grad_()
    torch.autograd.gradcheck(solution, (k,))
    torch.autograd.gradgradcheck(solution, (k,), fast_mode=True)


def test_two_solutions_before_a_backward() -> None:
    k, l, rest, _ = constants()
    gradients = []
    for together in (False, True):
        k = k.detach().requires_grad_()
        first, _ = ss.minimize(structure(k, l, rest), REST, fixed=FIXED)
        if not together:
            gradients.append(torch.autograd.grad(first.square().sum(), k)[0])
        second, _ = ss.minimize(structure(2 * k, l, rest), REST, fixed=FIXED)
        if together:
            gradients.append(torch.autograd.grad(first.square().sum(), k)[0])
        torch.autograd.grad(second.sum(), k)
    assert torch.equal(*gradients)


def test_constants_that_are_overwritten_are_noticed() -> None:
    k, l, rest, _ = constants()
    k.requires_grad_()
    X, _ = ss.minimize(structure(k, l, rest), REST, fixed=FIXED)
    with torch.no_grad():
        k.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        X.sum().backward()


def test_the_result_does_not_alias_the_start() -> None:
    energy = structure(*constants())
    x0, _ = ss.minimize(energy, REST, fixed=FIXED)
    x0 = x0.clone()
    X, _ = ss.minimize(energy, x0, fixed=FIXED)
    before = X.clone()
    x0.zero_()
    assert torch.equal(X, before)


def test_the_factor_is_released_with_the_graph() -> None:
    k, l, rest, _ = constants()
    gc.collect()
    before = count_alive()
    X, _ = ss.minimize(structure(k.requires_grad_(), l, rest), REST, fixed=FIXED)
    gc.collect()
    assert count_alive() == before + 1
    X.sum().backward()  # frees the buffers, though X lives
    gc.collect()
    assert count_alive() == before
    assert X.requires_grad


def test_without_gradients_nothing_is_recorded() -> None:
    k, l, rest, _ = constants()
    with torch.no_grad():
        X, _ = ss.minimize(structure(k.requires_grad_(), l, rest), REST, fixed=FIXED)
    assert not X.requires_grad
    with torch.inference_mode():
        Y, _ = ss.minimize(structure(k, l, rest), REST, fixed=FIXED)
    assert torch.allclose(X, Y)
    Z, _ = ss.minimize(structure(k.detach(), l, rest), REST, fixed=FIXED)
    assert not Z.requires_grad


def test_captured_tensors_are_not_forgotten() -> None:
    k = torch.tensor(2.0, dtype=torch.double, requires_grad=True)
    target = torch.randn(3, dtype=torch.double)

    def make(k: Tensor) -> ss.IndexedSum:
        return ss.IndexedSum(
            lambda x, t: (x[0] - k * t[0]) ** 2, torch.arange(3).unsqueeze(-1), per_variable=target
        )

    with pytest.raises(ss.OptionError, match="not among its parameters"):
        ss.minimize(make(k), target)
    x, _ = ss.minimize(make, target, params=(k,))
    assert torch.allclose(x, k * target)
    assert torch.allclose(torch.autograd.grad(x.sum(), k)[0], target.sum())


def test_other_ways_to_a_parameter_are_noticed() -> None:
    k = torch.tensor([1.0, 3.0], dtype=torch.double, requires_grad=True)
    twice, x0, two = 2 * k, torch.ones(2, dtype=torch.double), torch.arange(2).unsqueeze(-1)

    def parabola(x: Tensor, c: Tensor) -> Tensor:
        return c * x[0] ** 2 / 2 - x[0]

    with pytest.raises(ss.OptionError, match="not among"):  # listed, and captured
        ss.minimize(ss.IndexedSum(lambda x, c: parabola(x, c) * k[0], two, per_term=k), x0)
    with pytest.raises(ss.OptionError, match="not among"):  # what was made from it outside
        ss.minimize(lambda k: ss.IndexedSum(parabola, two, per_term=k * twice), x0, params=(k,))
    with pytest.raises(ss.OptionError, match="not among"):  # passed, and not used
        ss.minimize(lambda _: ss.IndexedSum(parabola, two, per_term=k), x0, params=(k,))
    hidden = ss.IndexedSum(parabola, two, per_term=k)

    class Hidden(Quartic):  # only its gradient shows what it depends on
        pattern = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))

        def __init__(self) -> None:
            pass

        def value(self, x: Tensor) -> Any:
            return hidden.value(x).detach()

        def gradient(self, x: Tensor) -> Tensor:
            return k * x - 1

        def hessian_values(self, x: Tensor) -> Tensor:
            return k.detach()

    with pytest.raises(ss.OptionError, match="not among"):
        ss.minimize(Hidden(), x0)


def test_what_is_captured_and_changed_is_noticed() -> None:
    k = torch.ones(3, dtype=torch.double, requires_grad=True)
    captured = torch.ones((), dtype=torch.double)
    power = torch.full((3,), 2)
    for changed in (captured, power):
        energy = ss.IndexedSum(
            lambda x, c: c[0] * x[0] ** c[1] * captured - x[0],
            torch.arange(3).unsqueeze(-1),
            per_term=(k, power),
        )
        x, _ = ss.minimize(energy, torch.ones(3, dtype=torch.double))
        changed.add_(1)
        with pytest.raises(ss.ValueChangedError, match="in place"):
            x.sum().backward()
        changed.sub_(1)


class OwnLeaf(Quartic):
    """Its gradient is that of a tensor of its own, which nothing leads to."""

    def gradient(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            own = x.detach().requires_grad_()
            return torch.autograd.grad(self.value(own), own, create_graph=True)[0]


def test_gradients_that_are_not_differentiable_are_noticed() -> None:
    s, b, x0 = torch.rand(4).double() + 1, torch.rand(4).double(), torch.ones(4, dtype=torch.double)
    expected, _ = ss.minimize(Quartic(s, b), x0)
    energy = OwnLeaf(s, b)
    x, _ = ss.minimize(energy, x0)  # where no derivatives are wanted, that does not matter
    assert torch.allclose(x, expected)
    with pytest.raises(ss.OptionError, match="differentiable in its argument"):
        ss.minimize(energy, x0.clone().requires_grad_(), fixed=torch.tensor([0]))
    with pytest.raises(ss.OptionError, match="differentiable in its argument"):
        ss.minimize(OwnLeaf, x0, params=(s.requires_grad_(), b))


def test_parameters_of_other_dtypes() -> None:
    power = torch.full((3,), 2)
    k = torch.ones(3, dtype=torch.double, requires_grad=True)
    z = torch.ones(3, dtype=torch.complex128, requires_grad=True)

    def make(power: Tensor, k: Tensor) -> ss.IndexedSum:
        return ss.IndexedSum(
            lambda x, c: c[1] * x[0] ** c[0] - x[0],
            torch.arange(3).unsqueeze(-1),
            per_term=(power, k),
        )

    x, _ = ss.minimize(make, torch.ones(3, dtype=torch.double), params=(power, k))
    assert torch.allclose(torch.autograd.grad(x.sum(), k)[0], torch.full((3,), -0.5).double())
    energy = ss.IndexedSum(
        lambda x, z: (x[0] - z.real - z.imag) ** 2, torch.arange(3).unsqueeze(-1), per_term=z
    )
    x, _ = ss.minimize(energy, torch.zeros(3, dtype=torch.double))
    assert torch.allclose(
        torch.autograd.grad(x.sum(), z)[0], torch.full((3,), 1 + 1j, dtype=torch.complex128)
    )


def test_gradients_that_are_not_finite_are_passed_on() -> None:
    k = constants()[0].requires_grad_()
    X, _ = ss.minimize(structure(k, *constants()[1:3]), REST, fixed=FIXED)
    X.backward(torch.full_like(X, float("nan")))
    assert k.grad is not None
    between_fixed = (torch.tensor([0, N]) == EDGES).all(1)
    assert torch.equal(k.grad.isnan(), ~between_fixed)


def test_a_chain_of_solutions() -> None:
    """A solution that is a constant of the next, as in time stepping."""

    def last(k: Tensor) -> Tensor:
        X = before = REST
        for _ in range(3):
            energy = ss.IndexedSum(spring, EDGES, per_term=(k, constants()[1])) + ss.IndexedSum(
                tether, NODES, per_variable=2 * X - before
            )
            before, X = X, ss.minimize(energy, REST, fixed=FIXED)[0]
        return X

    k = constants()[0].requires_grad_()
    torch.autograd.gradcheck(last, (k,), fast_mode=True)
    torch.autograd.gradgradcheck(last, (k,), fast_mode=True)
