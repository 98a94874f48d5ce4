"""Constants that a summand captured, and that are overwritten before the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

import sparse_solver as ss

N = 9
CHAIN = torch.stack((torch.arange(N), torch.arange(1, N + 1)), 1)
CALLS = ("value", "gradient", "hessian_values")
DTYPES = [torch.float32, torch.float64]


def change(s: Any) -> None:
    s["k"] = s["k"] * 3


def multiply(s: Any) -> None:
    s["k"].mul_(3)


@pytest.mark.parametrize("overwrite", [change, multiply])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("at_rest", [False, True])
@pytest.mark.parametrize("power", [2, 4])
def test_overwritten_constants_are_noticed_or_harmless(
    call: str, at_rest: bool, power: int, dtype: torch.dtype, overwrite: Callable[[Any], None]
) -> None:
    """Element gradients add up to zero, and at rest all of them are zero."""
    x = torch.arange(N + 1, dtype=dtype) * (1 if at_rest else 1.5)
    found: list[Tensor | None] = []
    for chunk in (None, 4, 1):
        for is_changed in (False, True):
            s = {"k": torch.tensor(1.0, dtype=dtype)}
            l = torch.ones(N, dtype=dtype, requires_grad=True)
            energy = ss.IndexedSum(
                lambda x, l, s=s: s["k"] * (x[1] - x[0] - l) ** power + l * x[0] ** 3,
                CHAIN,
                per_term=l,
                chunk_size=chunk,
            )
            result = getattr(energy, call)(x)
            loss = (result * torch.arange(result.numel())).sum() if result.dim() else result
            if is_changed:
                overwrite(s)
            with suppress(*[RuntimeError] * is_changed):
                found += torch.autograd.grad(loss, l)
    assert all(torch.allclose(gradient, found[0]) for gradient in found)  # type: ignore[arg-type]  # no None


def test_one_entry_of_a_captured_table_is_enough() -> None:
    table = torch.ones(5, dtype=torch.double)
    x = torch.linspace(0, 3, 1001, dtype=torch.double).square().requires_grad_()
    kinds = torch.zeros(1000, dtype=torch.int64)
    kinds[777] = 4
    edges = torch.stack((torch.arange(1000), torch.arange(1, 1001)), 1)
    energy = ss.IndexedSum(
        lambda x, kind: table[kind] * (x[1] - x[0]) ** 2, edges, per_term=kinds, chunk_size=600
    )
    gradient = energy.gradient(x)
    table[4] = 1 + 1e-6
    with pytest.raises(ss.ValueChangedError, match="clone"):
        gradient.square().sum().backward()


def test_overwritten_integers_are_noticed() -> None:
    powers = torch.full((N,), 2)
    x = torch.rand(N + 1, dtype=torch.double, requires_grad=True)
    energy = ss.IndexedSum(lambda x, p: (x[1] - x[0]) ** p, CHAIN, per_term=powers, chunk_size=4)
    gradient = energy.gradient(x)
    powers.add_(1)
    with pytest.raises(RuntimeError, match=r"in-?place"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_are_no_false_alarms(dtype: torch.dtype) -> None:
    """Cancellation, zeros, NaN and infinity, and unused constants."""
    x = torch.tensor([1e6, 1e6 + 1, 0.0, float("inf"), float("nan"), 0.0], dtype=dtype)
    edges, c = torch.tensor([[0, 1], [1, 0], [2, 5], [3, 2], [4, 4]]), torch.ones(5, dtype=dtype)
    energy = ss.IndexedSum(
        lambda x, c: c[0] * (x[1] - x[0]) ** 2 * x.sum().sin(),
        edges,
        per_term=(c.requires_grad_(), torch.ones(5, dtype=dtype, requires_grad=True)),
        chunk_size=2,
    )
    for call in CALLS:
        getattr(energy, call)(x.requires_grad_()).sum().backward()
    empty = ss.IndexedSum(lambda x: x.sum() * 2, EMPTY, chunk_size=1)
    empty.gradient(torch.ones(3, requires_grad=True)).sum()
    constant = ss.IndexedSum(lambda x, c: c + 0 * x[0], edges, per_term=c, chunk_size=1)
    constant.gradient(x).sum().backward()


EMPTY = torch.empty(0, 2, dtype=torch.int64)


def test_recomputed_results_are_differentiable_again() -> None:
    k = torch.ones((), dtype=torch.double)
    l = torch.ones(N, dtype=torch.double, requires_grad=True)
    x = torch.linspace(0, 3, N + 1, dtype=torch.double).square()
    energy = ss.IndexedSum(lambda x, l: k * (x[1] - x[0] - l) ** 4, CHAIN, per_term=l, chunk_size=4)
    (first,) = torch.autograd.grad(energy.gradient(x)[0], l, create_graph=True)
    assert torch.autograd.grad(first.sum(), l, retain_graph=True)[0].abs().max() > 0
    loss = energy.gradient(x)[0]
    k.mul_(3)
    with pytest.raises(ss.ValueChangedError):
        torch.autograd.grad(loss, l, create_graph=True)


def test_complex_constants() -> None:
    z = torch.ones(N, dtype=torch.complex128, requires_grad=True)
    k = torch.ones((), dtype=torch.double)
    x = torch.arange(N + 1, dtype=torch.double, requires_grad=True)
    results = []
    for chunk in (None, 4):
        energy = ss.IndexedSum(
            lambda x, z: k * (x[1] - x[0] - z.real + 2 * z.imag) ** 2,
            CHAIN,
            per_term=z,
            chunk_size=chunk,
        )
        loss = (energy.gradient(x) * torch.arange(N + 1)).sum()
        results.append(torch.autograd.grad(loss, z, retain_graph=True)[0])
    assert torch.allclose(*results)
    k.mul_(2)
    with pytest.raises(ss.ValueChangedError):
        torch.autograd.grad(loss, z)
