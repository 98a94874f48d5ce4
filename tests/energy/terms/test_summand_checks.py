"""Summands that work in place, draw random numbers, or use what torch.vmap forbids."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparse_solver as ss
from tests.energy.energy_cases import CHUNKS

EDGES = torch.tensor([[0, 1], [1, 2], [2, 3]])
CALLS = ("value", "gradient", "hessian_values")


def double_x(x: Tensor, c: Tensor) -> Tensor:
    x *= 2
    return c * (x[1] - x[0]) ** 2


def double_c(x: Tensor, c: Tensor) -> Tensor:
    c *= 4
    return c * (x[1] - x[0]) ** 2


def set_entries(x: Tensor, c: Tensor) -> Tensor:
    x[0], x[1] = 2 * x[1], 2 * x[0]
    return c * (x[1] - x[0]).square_()


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("summand", [double_x, double_c, set_entries])
def test_summands_may_work_in_place(
    summand: Callable[..., Tensor], dtype: torch.dtype, chunk: int | None
) -> None:
    X, c = torch.arange(4, dtype=dtype) ** 2, torch.tensor([1.0, 2.0, 3.0], dtype=dtype)
    given = X.clone(), c.clone()
    plain = ss.IndexedSum(lambda x, c: 4 * c * (x[1] - x[0]) ** 2, EDGES, per_term=c)
    energy = ss.IndexedSum(summand, EDGES, per_term=c, chunk_size=chunk)
    for call in CALLS:
        expected = getattr(plain, call)(X)
        for requires_grad in (False, True):
            for tensor in (X, c):
                tensor.requires_grad_(requires_grad)
            assert torch.allclose(getattr(energy, call)(X), expected)
            with torch.no_grad():
                assert torch.allclose(getattr(energy, call)(X), expected)
    found = torch.autograd.grad(energy.gradient(X).square().sum(), (X, c))
    expected = torch.autograd.grad(plain.gradient(X).square().sum(), (X, c))
    assert all(map(torch.allclose, found, expected))
    assert torch.equal(X, given[0])
    assert torch.equal(c, given[1])
    gradient = torch.func.grad(energy)(X.detach())
    assert torch.allclose(gradient, plain.gradient(X).detach())


def test_captured_tensors_are_not_changed() -> None:
    s, table = torch.tensor(2.0), torch.ones(3)

    def change_scalar(x: Tensor) -> Tensor:
        s.mul_(2)
        return s * x[0]

    def change_entry(x: Tensor) -> Tensor:
        table[1] = 3.0
        return table[1] * x[0]

    def change_view(x: Tensor) -> Tensor:
        table.view(-1).add_(1)
        return x.sum()

    def write_out(x: Tensor) -> Tensor:
        torch.add(table, 1.0, out=table)
        return x.sum()

    def change_itself(x: Tensor) -> Tensor:
        return table.contiguous().mul_(2).sum() * x[0]

    for summand in (change_scalar, change_entry, change_view, write_out, change_itself):
        for call in CALLS:
            with pytest.raises(ss.TransformError, match="in place"):
                getattr(ss.IndexedSum(summand, EDGES), call)(torch.ones(4))
    assert s == 2
    assert torch.equal(table, torch.ones(3))

    def change_own(x: Tensor) -> Tensor:
        own = torch.zeros(2)
        own.view(-1)[0] += 3
        return own.sum() * x[0]

    def only_read(x: Tensor) -> Tensor:
        first, second, third = table  # iterates
        index = int(table[0]) - 1
        return (first + ~(second < 0) * third) * x[index] + torch.func.grad(torch.sum)(x).sum()

    assert ss.IndexedSum(change_own, EDGES)(torch.ones(4)) == 9
    assert ss.IndexedSum(only_read, EDGES)(torch.ones(4)) == 12


GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("summand", "advice"),
    [
        (lambda x: torch.rand(()) * x[0], "random numbers"),
        (lambda x: (torch.rand_like(x) * x).sum(), "random numbers"),
        (lambda x: torch.nn.functional.dropout(x).sum(), "random numbers"),
        (lambda x: torch.normal(x, 1.0).sum(), "per_term="),
        (lambda x: random.random() * x[0], "per_term="),
        (lambda x: float(GENERATOR.normal()) * x[0], "random numbers"),
        (lambda x: x[0] if x[0] > 0 else x[1], r"torch\.where"),
        (lambda x: x[0] * x[1].item(), r"\.item\(\)"),
        (lambda x: x[0] * float(x[1]), "float"),
        (lambda x: x[0] * x.tolist()[1], "tolist"),
        (lambda x: x[x > 0].sum(), "mask"),
        (lambda x: x[0] * torch.allclose(x[0], x[1]), r"torch\.vmap"),
    ],
)
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_what_cannot_be_mapped_is_refused_with_advice(
    summand: Callable[..., Tensor], advice: str, start: float
) -> None:
    for call in CALLS:
        for requires_grad in (False, True):
            X = torch.full((4,), start, requires_grad=requires_grad)
            with pytest.raises(ss.TransformError, match=advice):
                getattr(ss.IndexedSum(summand, EDGES), call)(X)


def test_errors_of_summands_are_passed_on() -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("no such material")

    with pytest.raises(RuntimeError, match="material"):
        ss.IndexedSum(fail, EDGES)(torch.ones(4))
    # Cholesky fails elsewhere, but not at these terms.
    energy = ss.IndexedSum(lambda x: torch.linalg.cholesky(x.diag()).sum(), EDGES)
    assert energy(torch.ones(4)) == 6
    X = torch.full((4,), 1.0)
    assert ss.IndexedSum(lambda x: torch.log(1.5 - x[0]), EDGES)(X).isfinite()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_terms_of_shape_one_are_numbers(chunk: int | None) -> None:
    X = torch.rand(4, dtype=torch.double, requires_grad=True)
    energy = ss.IndexedSum(lambda x: x[:1] * x[1:] ** 2, EDGES, chunk_size=chunk)
    plain = ss.IndexedSum(lambda x: x[0] * x[1] ** 2, EDGES)
    for call in CALLS:
        assert torch.equal(getattr(energy, call)(X), getattr(plain, call)(X))
    for shape in ((1, 1), (2,), (0,)):
        with pytest.raises(ss.ShapeError, match="one term"):
            ss.IndexedSum(lambda x, shape=shape: x.new_ones(shape), EDGES)(X)


def test_restricted_energies_are_copied_and_pickled() -> None:
    X, fixed = torch.rand(4, 2), torch.tensor([0, 2])
    energy = ss.IndexedSum(torch.linalg.vector_norm, EDGES).restrict(X, fixed=fixed)
    x = energy.select(X)
    H: Any = energy.hessian_values(x)
    for other in (copy.copy(energy), copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        assert torch.equal(other.hessian_values(x), H)
        assert torch.equal(other.gradient(x), energy.gradient(x))
        assert repr(other) == repr(energy)
