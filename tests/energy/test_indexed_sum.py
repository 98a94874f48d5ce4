"""`IndexedSum` against the sum written out, and its derivatives against those of dense torch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from energy_cases import CHUNKS, EDGES, TRIANGLES, Case, area, spring
from torch import Tensor
from torch.func import hessian as dense_hessian

import sparse_solver as ss

NAMES = ["springs", "triangles", "vector", "repeated", "sum", "constant"]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_value_gradient_and_hessian_are_those_of_the_sum(
    name: str, dtype: torch.dtype, chunk: int | None
) -> None:
    case = Case(name, dtype, chunk_size=chunk)
    energy, X = case.make(*case.constants), case.X
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    value = case.plain(X, *case.constants)
    assert torch.allclose(energy(X), value, rtol=tolerance)
    assert torch.equal(energy(X), energy.value(X))
    assert energy(X).dtype == dtype
    gradient = torch.func.grad(lambda X: case.plain(X, *case.constants))(X)
    assert torch.allclose(energy.gradient(X), gradient, rtol=tolerance, atol=tolerance)
    # torch.func.hessian without vmap over terms is right, also for determinants.
    expected = dense_hessian(lambda X: case.plain(X, *case.constants))(X).reshape(
        X.numel(), X.numel()
    )
    H = energy.hessian(X)
    assert H.layout == torch.sparse_csr
    assert H.dtype == dtype
    dense = H.to_dense()
    assert torch.allclose(dense, expected, rtol=10 * tolerance, atol=10 * tolerance)
    assert torch.equal(dense, dense.mT)
    values, pattern = energy.hessian_values(X), energy.pattern
    assert torch.equal(pattern.tensor(values).to_dense(), dense)
    assert len(set(zip(pattern.rows.tolist(), pattern.cols.tolist(), strict=True))) == pattern.nnz


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", NAMES)
def test_all_three_are_differentiable_twice(name: str, chunk: int | None) -> None:
    case = Case(name, chunk_size=chunk)
    inputs = tuple(tensor.clone().requires_grad_() for tensor in (case.X, *case.constants))
    for function in (
        lambda X, *c: case.make(*c)(X),
        lambda X, *c: case.make(*c).gradient(X),
        lambda X, *c: case.make(*c).hessian_values(X),
    ):
        fast = chunk is not None or name == "sum"  # random directions instead of all of them
        torch.autograd.gradcheck(function, inputs, fast_mode=fast)
        if function(*inputs).requires_grad:
            torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_transforms_of_torch_func(chunk: int | None) -> None:
    case = Case("springs", chunk_size=chunk)
    energy = case.make(*case.constants)
    H = energy.hessian(case.X).to_dense()
    assert torch.allclose(torch.func.grad(energy)(case.X), energy.gradient(case.X))
    jacobian = torch.func.jacrev(energy.gradient)(case.X).reshape(H.shape)
    assert torch.allclose(jacobian, H)
    tangent = torch.randn_like(case.X)
    assert torch.allclose(
        torch.func.jvp(energy.gradient, (case.X,), (tangent,))[1].reshape(-1),
        H @ tangent.reshape(-1),
    )
    many = torch.randn(3, *case.X.shape, dtype=torch.double)
    assert torch.allclose(torch.func.vmap(energy)(many), torch.stack([energy(X) for X in many]))
    batched = torch.func.vmap(energy.hessian_values)(many)
    assert torch.allclose(batched, torch.stack([energy.hessian_values(X) for X in many]))


def test_no_grad_and_inference_mode() -> None:
    case = Case("sum")
    energy = case.make(*(c.requires_grad_() for c in case.constants))
    expected = energy.gradient(case.X), energy.hessian_values(case.X)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.allclose(energy.gradient(case.X), expected[0])
            assert torch.allclose(energy.hessian_values(case.X), expected[1])
            assert not energy.gradient(case.X).requires_grad
    fresh = case.make(*case.constants)
    with torch.inference_mode():
        fresh.hessian_values(case.X)
    fresh.hessian_values(case.X).sum().backward()  # what was remembered is no inference tensor


def test_indices_are_copied_and_constants_are_not() -> None:
    indices, c = EDGES.clone(), torch.ones(3)
    energy = ss.IndexedSum(lambda x, c: c * x[0] * x[1], indices, per_term=c)
    X = torch.rand(5)
    before = energy(X)
    indices.zero_()
    assert torch.equal(energy(X), before)
    c.mul_(2)
    assert torch.allclose(energy(X), 2 * before)


def test_scalar_factors_and_divisors_are_not_copied() -> None:
    one, X = Case("triangles").make(), Case("triangles").X
    factor, divisor = (torch.nn.Parameter(torch.tensor(c).double()) for c in (3.0, 7.0))
    energy = -(factor * one) / divisor + one
    assert [id(parameter) for parameter in energy.parameters()] == [id(factor), id(divisor)]
    for _ in range(2):
        expected = 1 - (factor / divisor).item()
        for call in ("value", "gradient", "hessian_values"):
            found = getattr(energy, call)(X)
            assert torch.allclose(found, expected * getattr(one, call)(X))
        with torch.no_grad():  # a step of an optimiser
            factor.mul_(5)
            divisor.add_(1)
    gradient = torch.autograd.grad(energy(X), (factor, divisor))
    assert torch.allclose(gradient[0], -one(X) / divisor)
    assert torch.allclose(gradient[1], factor * one(X) / divisor**2)
    # The quotient by a whole number is as exact as X.
    assert torch.equal((one / torch.tensor(3))(X), one(X) / 3)


# Dynamo's own look at what follows a break of its graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_code_keeps_the_graph() -> None:
    energy, X = Case("triangles").make(), Case("triangles").X.requires_grad_()

    def square(X: Tensor, call: str) -> Tensor:
        result: Tensor = getattr(energy, call)(X).square().sum() + X.sum()
        return result

    for call in ("value", "gradient", "hessian_values"):
        torch._dynamo.reset()
        compiled = torch.compile(square, backend="aot_eager")
        found, expected = (
            torch.autograd.grad(function(X, call), X)[0] for function in (compiled, square)
        )
        assert torch.allclose(found, expected), call
    torch._dynamo.reset()


def test_sums() -> None:
    case = Case("springs")
    one = case.make(*case.constants)
    assert torch.allclose(sum([one, one, one])(case.X), 3 * one(case.X))
    assert torch.allclose((-one - one)(case.X), -2 * one(case.X))
    assert torch.allclose((one * 3 / 2)(case.X), 1.5 * one(case.X))
    assert torch.allclose(
        (2 * (one + 3 * one)).hessian_values(case.X), 8 * one.hessian_values(case.X)
    )
    assert torch.allclose((0 - one)(case.X), (-one - 0)(case.X))
    for wrong in (1.0, "a", torch.ones(2)):
        with pytest.raises(TypeError):
            one + wrong  # type: ignore[operator]
    for wrong_factor in (torch.ones(2), torch.tensor(2)):
        with pytest.raises(ss.ShapeError, match="floating-point scalar"):
            one * wrong_factor
    with pytest.raises(TypeError):
        5 - one
    with pytest.raises(TypeError):
        one * "a"  # type: ignore[operator]
    triangles = ss.IndexedSum(area, TRIANGLES, shape=(8, 2))
    with pytest.raises(ss.ShapeError, match=r"\(8, 2\)"):
        triangles + one


def test_empty_sums() -> None:
    X = torch.randn(3, 2, requires_grad=True)
    for energy in (
        ss.IndexedSum(area, torch.empty(0, 3, dtype=torch.int64)),
        ss.IndexedSum(
            spring,
            torch.empty(0, 2, dtype=torch.int64),
            per_variable=torch.ones(3),
            per_term=(torch.ones(0), torch.ones(0)),
        ),
    ):
        assert energy(X) == 0
        assert torch.equal(torch.autograd.grad(energy(X), X)[0], torch.zeros(3, 2))
        assert torch.equal(energy.gradient(X), torch.zeros(3, 2))
        assert torch.equal(energy.hessian(X).to_dense(), torch.zeros(6, 6))
    nothing = ss.IndexedSum(area, torch.empty(0, 3, dtype=torch.int64))
    assert nothing.hessian(torch.empty(0, 2)).shape == (0, 0)
    case = Case("triangles")
    both = case.make() + ss.IndexedSum(area, torch.empty(0, 3, dtype=torch.int64))
    assert torch.equal(both.hessian(case.X).to_dense(), case.make().hessian(case.X).to_dense())


def test_copies_and_pickles() -> None:
    case = Case("springs")
    energy = case.make(*case.constants)
    H = energy.hessian_values(case.X)
    assert torch.equal(copy.copy(energy).hessian_values(case.X), H)
    assert torch.equal(copy.deepcopy(energy).hessian_values(case.X), H)
    assert torch.equal(pickle.loads(pickle.dumps(energy)).hessian_values(case.X), H)
    assert repr(energy) == "IndexedSum(terms=3, shape=(7, 2))"
    assert repr(ss.IndexedSum(area, TRIANGLES)) == "IndexedSum(terms=4, shape=None)"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_cuda() -> None:
    case = Case("springs")
    expected = case.make(*case.constants)
    k, s, l = (c.cuda() for c in case.constants)
    energy = ss.IndexedSum(spring, EDGES.cuda(), per_variable=k, per_term=(s, l))
    for call in ("value", "gradient", "hessian_values"):
        assert torch.allclose(
            getattr(energy, call)(case.X.cuda()).cpu(), getattr(expected, call)(case.X)
        )
