from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from problems import problem, rhs

import sparse_solver as ss

P = problem("general", torch.float64)
PATTERN = ss.Pattern(P.rows, P.cols, P.shape)
B = rhs(P.n, dtype=torch.float64)


def test_it_is_differentiable_like_a_solve() -> None:
    values, b = P.values.clone().requires_grad_(), B.clone().requires_grad_()
    F = PATTERN.factorize(values)
    mine = F.solve(b).square().sum() + F.solve(b.sin(), transpose=True).sum()
    theirs = (
        PATTERN.solve(values, b).square().sum()
        + PATTERN.solve(values, b.sin(), transpose=True).sum()
    )
    torch.testing.assert_close(
        torch.autograd.grad(mine, (values, b)), torch.autograd.grad(theirs, (values, b))
    )


def test_it_keeps_the_matrix_as_it_was() -> None:
    values = P.values.clone()
    F = PATTERN.factorize(values)
    values.fill_(7.0)
    torch.testing.assert_close(F.solve(B), torch.linalg.solve(P.dense, B))


def test_transforms_around_a_factorization() -> None:
    F = PATTERN.factorize(P.values)
    inverse = torch.linalg.inv(P.dense)
    torch.testing.assert_close(torch.func.jacrev(F.solve)(B), inverse)
    torch.testing.assert_close(torch.func.jacfwd(F.solve)(B), inverse)
    many = rhs(4, P.n, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(F.solve)(many), many @ inverse.T)

    def inside(values: torch.Tensor) -> torch.Tensor:
        F = PATTERN.factorize(values)
        return F.solve(B).square().sum() + F.solve(B, transpose=True).sum()

    def outside(values: torch.Tensor) -> torch.Tensor:
        return (
            PATTERN.solve(values, B).square().sum() + PATTERN.solve(values, B, transpose=True).sum()
        )

    torch.testing.assert_close(
        torch.func.grad(inside)(P.values), torch.func.grad(outside)(P.values)
    )
    torch.testing.assert_close(
        torch.func.hessian(inside)(P.values), torch.func.hessian(outside)(P.values)
    )
    batch = torch.stack((P.values, 2 * P.values))
    torch.testing.assert_close(
        torch.func.vmap(inside)(batch), torch.stack([outside(values) for values in batch])
    )
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(inside))(batch),
        torch.stack([torch.func.grad(outside)(v) for v in batch]),
    )
    with pytest.raises(ss.TransformError, match="one of many"):
        torch.func.vmap(lambda values: PATTERN.factorize(values).info)(batch)


def test_info_is_frozen_and_complete() -> None:
    info = ss.factorize(P.dense.to_sparse()).info
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.n = 3  # type: ignore[misc]
    assert {field.name for field in dataclasses.fields(info)} == {
        "assume", "assume_reason", "engine", "engine_reason", "device", "n", "nnz", "factor_nnz",
        "factor_flops", "memory_bytes", "perturbed_pivots", "analysis_seconds",
        "factorization_seconds",
    }  # fmt: skip


def test_info_of_a_batch() -> None:
    P2 = ss.Pattern(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (2, 2))
    values = torch.tensor([[2.0, 1.0, 1.0, 2.0], [1.0, 2.0, 2.0, 1.0], [2.0, 1.0, 1.0, 2.0]])
    info = P2.factorize(values).info
    assert info.assume == "mixed"  # the first two are factored together, the third is alone
    assert info.perturbed_pivots == 0
    assert P2.factorize(values[:2]).info.assume == "symmetric"
    assert P2.factorize(values[:1]).info.assume == "spd"


def test_it_refuses_to_be_copied() -> None:
    F = PATTERN.factorize(P.values)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="native library"):
            duplicate(F)  # type: ignore[operator]


def test_bad_input() -> None:
    with pytest.raises(ss.DtypeError):
        PATTERN.factorize(P.values.long())
    with pytest.raises(ss.ShapeError):
        PATTERN.factorize(P.values[1:])
    with pytest.raises(ss.OptionError):
        PATTERN.factorize(P.values, assume="lu")  # type: ignore[arg-type]
    F = PATTERN.factorize(P.values)
    with pytest.raises(ss.ShapeError):
        F.solve(B[1:])
    with pytest.raises(ss.DtypeError):
        F.solve(B.float())
