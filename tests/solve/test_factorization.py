"""Factorizations: derivatives, copies, information, inference mode."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from collections import Counter
from typing import Any

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
        "assume", "assume_reason", "engine", "engine_reason", "method", "method_reason",
        "device", "n", "nnz", "factor_nnz", "factor_flops", "memory_bytes", "perturbed_pivots",
        "analysis_seconds", "factorization_seconds", "iterations", "backward_error", "proof",
    }  # fmt: skip


def test_info_of_a_batch() -> None:
    P2 = ss.Pattern(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (2, 2))
    values = torch.tensor([[2.0, 1.0, 1.0, 2.0], [1.0, 2.0, 2.0, 1.0], [2.0, 1.0, 1.0, 2.0]])
    info = P2.factorize(values).info
    assert info.assume == "mixed"  # the first two are factored together, the third is alone
    assert info.perturbed_pivots == 0
    assert P2.factorize(values[:2]).info.assume == "symmetric"
    assert P2.factorize(values[:1]).info.assume == "spd"


def saved_and_loaded(item: Any) -> Any:
    file = io.BytesIO()
    torch.save(item, file)
    file.seek(0)
    return torch.load(file)  # weights_only=True is the default


def pickled(item: Any) -> Any:
    return pickle.loads(pickle.dumps(item))


OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {},
    "engine": {"engine": "superlu", "assume": "general"},
}


def test_what_is_loaded_is_checked() -> None:
    """`torch.load` calls this function with whatever a file holds."""
    restore, (rows, cols, shape, values, *options) = PATTERN.factorize(P.values).__reduce__()
    restore(rows, cols, shape, values, *options)
    with pytest.raises(ss.IndexRangeError):
        restore(rows + shape[0], cols, shape, values, *options)
    with pytest.raises(ss.ShapeError):
        restore(rows, cols, shape, values[1:], *options)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("duplicate", [pickled, saved_and_loaded])
def test_a_loaded_one_factors_when_it_is_first_used(
    duplicate: Any, options: str, counts: Counter[str]
) -> None:
    values = P.values.clone().requires_grad_()
    F = PATTERN.factorize(values, **OPTIONS[options])
    factored = counts["factor"]
    twin = duplicate(F)
    assert isinstance(twin, ss.Factorization)
    assert (twin.shape, twin.dtype) == (F.shape, F.dtype)
    assert repr(twin) == f"Factorization(shape={F.shape}, dtype=torch.float64)"
    assert counts["factor"] == factored
    b = B.clone().requires_grad_()
    x, expected = twin.solve(b), F.solve(b)
    assert counts["factor"] > factored
    torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-13)  # memory is aligned differently
    torch.testing.assert_close(
        torch.autograd.grad(x.square().sum(), b), torch.autograd.grad(expected.square().sum(), b)
    )
    again = counts["factor"]
    twin.solve(b, adjoint=True)
    assert counts["factor"] == again
    assert repr(twin) == repr(F)


@pytest.mark.parametrize("duplicate", [pickled, saved_and_loaded])
def test_a_loaded_one_has_information_at_once(duplicate: Any) -> None:
    symmetric = problem("symmetric", torch.float64)
    kept = symmetric.rows >= symmetric.cols
    pattern = ss.Pattern(symmetric.rows[kept], symmetric.cols[kept], symmetric.shape)
    F = pattern.factorize(symmetric.values[kept], assume="symmetric", triangle="lower")
    twin = duplicate(F)
    for name in ("assume", "assume_reason", "engine", "device", "n", "nnz", "perturbed_pivots"):
        assert getattr(twin.info, name) == getattr(F.info, name), name
    assert torch.equal(twin.solve(B), F.solve(B))


def test_a_loaded_batch() -> None:
    values = torch.stack((P.values, 2 * P.values))
    F = PATTERN.factorize(values)
    twin = saved_and_loaded(F)
    assert twin.shape == (2, P.n, P.n)
    assert torch.equal(twin.solve(B), F.solve(B))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_share_the_factor(duplicate: Any, counts: Counter[str]) -> None:
    values = P.values.clone().requires_grad_()
    F = PATTERN.factorize(values)
    factored, twin, b = counts["factor"], duplicate(F), B.clone().requires_grad_()
    assert torch.equal(twin.solve(b), F.solve(b))
    assert torch.equal(
        torch.autograd.grad(twin.solve(b).sum(), b)[0], torch.autograd.grad(F.solve(b).sum(), b)[0]
    )
    assert counts["factor"] == factored
    assert repr(twin) == repr(F)
    del F
    torch.testing.assert_close(twin.solve(B), torch.linalg.solve(P.dense, B))


def test_a_deep_copy_has_constant_values() -> None:
    values = P.values.clone().requires_grad_()
    F = PATTERN.factorize(values)
    assert F.solve(B).requires_grad
    assert not copy.deepcopy(F).solve(B).requires_grad
    assert copy.copy(F) is F


@pytest.mark.parametrize("kind", ["spd", "general"])
def test_what_is_made_in_inference_mode_can_be_used_in_training(kind: str) -> None:
    p = problem(kind, torch.float64)
    with torch.inference_mode():
        pattern = ss.Pattern(p.rows, p.cols, p.shape)
        made = p.values * 1
        F = pattern.factorize(made)
        inferred = pattern.solve(made, B)
        torch.testing.assert_close(F.solve(B), inferred)
    assert made.is_inference()
    assert inferred.is_inference()
    b, dense = B.clone().requires_grad_(), p.dense.clone().requires_grad_()
    expected = torch.linalg.solve(dense, b)
    dense_bar, b_bar = torch.autograd.grad(expected.square().sum(), (dense, b))
    x = F.solve(b)
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(torch.autograd.grad(x.square().sum(), b)[0], b_bar)
    torch.testing.assert_close(
        torch.func.grad(lambda b: F.solve(b).square().sum())(b.detach()), b_bar
    )
    values = p.values.clone().requires_grad_()
    loss = pattern.solve(values, b).square().sum()
    values_bar, found_b_bar = torch.autograd.grad(loss, (values, b))
    torch.testing.assert_close(values_bar, dense_bar[p.rows, p.cols])
    torch.testing.assert_close(found_b_bar, b_bar)


def test_values_made_in_inference_mode_are_copied_outside_of_it() -> None:
    with torch.inference_mode():
        values = P.values * 1
    F, b = PATTERN.factorize(values), B.clone().requires_grad_()
    (b_bar,) = torch.autograd.grad(F.solve(b).sum(), b)
    torch.testing.assert_close(b_bar, torch.linalg.solve(P.dense.mT, torch.ones_like(B)))


def test_what_is_printed() -> None:
    F = PATTERN.factorize(P.values, engine="superlu")
    lines = str(F.info).splitlines()
    # Three fields are those of engines that iterate.
    assert len(lines) == len(dataclasses.fields(F.info)) - 3
    iterated = P.dense @ P.dense.mT + torch.eye(P.n, dtype=P.dense.dtype)
    info = ss.factorize(iterated.to_sparse(), engine="cg").info
    assert len(str(info).splitlines()) == len(dataclasses.fields(info))
    assert lines[0].split() == ["assume", "general"]
    assert "factor_flops           not known" in lines
    assert len({line.index(line.split()[1]) for line in lines}) == 1  # a column
    assert repr(F) == (
        "Factorization(shape=(12, 12), dtype=torch.float64, assume='general', engine='superlu')"
    )
    assert "\n" not in repr(F.info)
    batch = torch.stack((P.values, 2 * P.values))
    assert "shape=(2, 12, 12)" in repr(PATTERN.factorize(batch))


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
