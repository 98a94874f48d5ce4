"""The terms of a sum: constants, captured tensors, and the memory of chunks."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from torch import Tensor

import sparse_solver as ss
from tests.energy.energy_cases import CHUNKS, EDGES, Case


@pytest.mark.parametrize("chunk", CHUNKS)
def test_tensors_that_the_summand_captures_are_differentiable(chunk: int | None) -> None:
    k = torch.tensor(2.0, dtype=torch.double, requires_grad=True)
    X = torch.randn(7, 2, dtype=torch.double)
    energy = ss.IndexedSum(lambda x: k**2 * (x[1] - x[0]).square().sum(), EDGES, chunk_size=chunk)
    for result in (energy(X), energy.gradient(X), energy.hessian_values(X)):
        (found,) = torch.autograd.grad(result.sum(), k)
        assert torch.allclose(found, result.sum() * 2 / k, atol=1e-12)


def test_chunks_bound_what_a_graph_keeps() -> None:
    """The graph of many chunks keeps their arguments, not their intermediate results."""
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    def long(x: Tensor, c: Tensor) -> Tensor:
        y = x.sum() * c
        for _ in range(50):
            y = torch.sin(y) * y
        return y

    terms = 1000
    indices, c = torch.randint(0, 50, (terms, 2)), torch.rand(terms, requires_grad=True)
    X = torch.rand(50)
    sizes = {}
    for chunk in (None, 100):
        saved.clear()
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            warnings.catch_warnings(),
        ):
            value = ss.IndexedSum(long, indices, per_term=c, chunk_size=chunk)(X)
        sizes[chunk] = sum(saved)
        del value
        gc.collect()
    assert sizes[100] < sizes[None] / 3


def test_what_is_captured_and_changed_between_forward_and_backward_is_noticed() -> None:
    w = torch.ones((), dtype=torch.double)
    X = torch.rand(7, 2, dtype=torch.double, requires_grad=True)
    energy = ss.IndexedSum(lambda x: w * (x[1] - x[0]).square().sum(), EDGES, chunk_size=1)
    value = energy(X)
    w.mul_(2)
    with pytest.raises(ss.ValueChangedError):
        value.backward()


@pytest.mark.parametrize("chunk", [None, 1])
def test_values_that_are_not_finite_are_passed_on(chunk: int | None) -> None:
    c = torch.ones(3, dtype=torch.double, requires_grad=True)
    X = torch.tensor([float("nan"), 1.0, float("inf"), 1.0, 1.0], dtype=torch.double)
    energy = ss.IndexedSum(lambda x, c: c * x[0] * x[1], EDGES, per_term=c, chunk_size=chunk)
    value = energy(X)
    assert value.isnan()
    (found,) = torch.autograd.grad(value, c)
    assert torch.allclose(
        found, torch.tensor([float("nan"), float("inf"), float("nan")]).double(), equal_nan=True
    )


def test_constants_in_dictionaries_and_integers() -> None:
    X = torch.rand(6, dtype=torch.double)
    constants = {
        "power": torch.tensor([1, 2, 3]),
        "factors": [torch.ones(3, dtype=torch.double) * 2],
    }
    energy = ss.IndexedSum(
        lambda x, c: c["factors"][0] * x[0] ** c["power"], EDGES, per_term=constants
    )
    assert torch.allclose(energy(X), 2 * (X[0] + X[1] ** 2 + X[4] ** 3))
    assert len(energy.parameters()) == 1
    assert torch.allclose(
        energy.with_parameters(torch.ones(3, dtype=torch.double))(X), energy(X) / 2
    )


def test_noncontiguous_variables_and_constants() -> None:
    case = Case("springs")
    X = torch.empty(2, 14, dtype=torch.double).mT[::2]
    X.copy_(case.X)
    constants = [torch.stack((c, c), 1)[:, 0] for c in case.constants]
    assert not X.is_contiguous()
    energy, other = case.make(*case.constants), case.make(*constants)
    assert torch.allclose(energy.gradient(case.X), other.gradient(X))
    assert torch.allclose(energy.hessian_values(case.X), other.hessian_values(X))
