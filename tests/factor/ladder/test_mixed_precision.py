"""Factors in single precision: solutions in double precision, and what follows where they fail."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from problems import independent, kinds_of, laplacian, laplacian_values, problem, rhs
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import sparse_solver as ss

F64, C128 = torch.float64, torch.complex128
MIXED: dict[str, Any] = {"precision": "mixed"}


def accurate(x: Tensor, dense: Tensor, b: Tensor) -> bool:
    """Whether the forward error is that of dense torch, within a factor of a hundred."""
    truth = torch.linalg.solve(dense, b)
    limit = 100 * torch.finfo(torch.float64).eps * float(torch.linalg.cond(dense))
    return float((x - truth).norm()) <= limit * float(truth.norm())


@pytest.mark.parametrize("dtype", [F64, C128])
@pytest.mark.parametrize("kind", ["spd", "symmetric", "hermitian", "general"])
def test_all_kinds(kind: str, dtype: torch.dtype) -> None:
    if kind not in kinds_of(dtype):
        pytest.skip("real matrices are symmetric")
    p = problem(kind, dtype, 200)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(200, 3, dtype=dtype)
    for _ in range(3):  # the later factors must not be those of the first values
        p.values.mul_(1.5)
        dense = P.tensor(p.values).to_dense()
        F = P.factorize(p.values, **MIXED)
        assert "single precision" in F.info.method
        assert accurate(F.solve(b), dense, b)
        assert accurate(F.solve(b, adjoint=True), dense.mH, b)
        assert accurate(F.solve(b, transpose=True), dense.mT, b)
        assert accurate(P.solve(p.values, b, **MIXED), dense, b)


@pytest.mark.parametrize("power", [-200, -45, 45, 200])
@pytest.mark.parametrize("kind", ["spd", "general"])
def test_numbers_that_single_precision_does_not_have(kind: str, power: int) -> None:
    p = problem(kind, F64, 60)
    values, b = p.values * 10.0**power, rhs(60, dtype=F64)
    P = ss.Pattern(p.rows, p.cols, p.shape)
    for size in (1e-100, 1.0, 1e100):
        x = P.solve(values, size * b, **MIXED)
        assert accurate(x * 10.0**power / size, p.dense, b)


def test_entries_of_very_different_size_are_factored_in_double_precision() -> None:
    p = problem("spd", F64, 40)
    scale = 10.0 ** torch.linspace(-25, 25, 40, dtype=F64)
    F = ss.Pattern(p.rows, p.cols, p.shape).factorize(
        p.values * scale[p.rows] * scale[p.cols], **MIXED
    )
    b = rhs(40, dtype=F64)
    assert accurate(F.solve(scale * b) * scale, p.dense, b)
    assert "single" not in F.info.method


@pytest.mark.parametrize("shift", [1e-2, 1e-5, 1e-8, 1e-11])
@pytest.mark.parametrize("assume", ["spd", "symmetric", "general"])
def test_ill_conditioned_matrices(shift: float, assume: Any) -> None:
    P, edges, n = laplacian(12)
    values = laplacian_values(torch.rand(edges.shape[1], dtype=F64) + 0.5, n, shift)
    b = rhs(n, 2, dtype=F64)
    F = P.factorize(values, assume=assume, **MIXED)
    assert accurate(F.solve(b), P.tensor(values).to_dense(), b)


def test_definite_in_double_precision_only() -> None:
    A = torch.tensor([[1.0, 1 - 1e-9], [1 - 1e-9, 1.0]], dtype=F64)
    b = torch.tensor([1.0, 2.0], dtype=F64)
    F = ss.factorize(A.to_sparse(), assume="spd", **MIXED)
    assert accurate(F.solve(b), A, b)
    assert "single" not in F.info.method
    assert F.info.assume == "spd"


def test_a_pattern_that_fails_is_not_tried_at_every_step() -> None:
    A = torch.tensor([[1.0, 1 - 1e-9], [1 - 1e-9, 1.0]], dtype=F64)
    P, values = ss.Pattern.from_tensor(A.to_sparse()), A.flatten()
    b = torch.tensor([1.0, 2.0], dtype=F64)
    for k in range(1, 40):
        x = P.solve(k * values, b, assume="spd", **MIXED)
        assert accurate(k * x, A, b)
        full = P.solve(k * values, b, assume="spd")  # which must not be changed by the other way
        assert accurate(k * full, A, b)


@pytest.mark.parametrize("assume", ["auto", "spd", "symmetric", "general"])
def test_singular_matrices_are_refused(assume: Any) -> None:
    P, edges, n = laplacian(6)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=F64), n, 0.0)
    with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError)):
        P.factorize(values, assume=assume, **MIXED).solve(torch.ones(n, dtype=F64))


def test_duplicates_are_summed_in_double_precision() -> None:
    rows = torch.tensor([0, 0, 0, 1, 1, 0])
    cols = torch.tensor([0, 0, 0, 1, 0, 1])
    P = ss.Pattern(rows, cols, (2, 2))
    values = torch.tensor([1e12, -1e12, 2.0, 2.0, 1.0, 1.0], dtype=F64)
    b = torch.tensor([3.0, 3.0], dtype=F64)
    torch.testing.assert_close(P.solve(values, b, **MIXED), torch.ones(2, dtype=F64))


@pytest.mark.parametrize("kind", ["spd", "general"])
def test_derivatives_of_both_orders(kind: str) -> None:
    p = problem(kind, F64, 5)
    P = ss.Pattern(p.rows, p.cols, p.shape)
    free = independent(kind, p.values, p.rows, p.cols)
    values, b = p.values.requires_grad_(), rhs(5, 2, dtype=F64).requires_grad_()

    def solve(values: Tensor, b: Tensor) -> Tensor:
        return P.solve(free(values), b, assume=kind, **MIXED)  # type: ignore[arg-type] # a kind

    assert gradcheck(solve, (values, b), check_forward_ad=True)
    assert gradgradcheck(solve, (values, b))


def test_batches_transforms_and_compiled_graphs() -> None:
    p = problem("spd", F64, 20)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(20, dtype=F64)
    values = torch.stack((p.values, 3 * p.values, 1e50 * p.values))
    expected = torch.stack([torch.linalg.solve(P.tensor(v).to_dense(), b) for v in values])
    torch.testing.assert_close(P.solve(values, b, **MIXED), expected)
    by_map = torch.func.vmap(lambda v: P.solve(v, b, **MIXED))(values)
    torch.testing.assert_close(by_map, expected)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def solve(v: Tensor) -> Tensor:
        return P.solve(v, b, **MIXED)

    given = p.values.clone().requires_grad_()
    solve(given).sum().backward()
    plain = p.values.clone().requires_grad_()
    P.solve(plain, b).sum().backward()
    torch.testing.assert_close(given.grad, plain.grad)


def test_values_that_are_overwritten() -> None:
    p = problem("general", F64, 30)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(30, dtype=F64)
    F = P.factorize(p.values, **MIXED)
    p.values.zero_()
    assert accurate(F.solve(b), p.dense, b)


def test_copies_keep_the_precision() -> None:
    p = problem("spd", F64, 30)
    F = ss.Pattern(p.rows, p.cols, p.shape).factorize(p.values, **MIXED)
    again = pickle.loads(pickle.dumps(F))
    b = rhs(30, dtype=F64)
    torch.testing.assert_close(again.solve(b), F.solve(b))
    assert again.info.method == F.info.method


@pytest.mark.parametrize(
    ("options", "dtype", "message"),
    [
        ({"precision": "single"}, F64, "expected 'full' or 'mixed'"),
        ({"precision": "mixed"}, torch.float32, "has dtype torch.float32"),
        ({"precision": "mixed"}, torch.complex64, "has dtype torch.complex64"),
        ({"precision": "mixed", "engine": "cg"}, F64, "iterates"),
        ({"precision": "mixed", "non_blocking": True, "assume": "spd"}, F64, "non_blocking"),
    ],
)
def test_options_that_contradict_each_other(
    options: dict[str, Any], dtype: torch.dtype, message: str
) -> None:
    A, b = torch.eye(3, dtype=dtype).to_sparse(), torch.ones(3, dtype=dtype)
    with pytest.raises(ss.OptionError, match=message):
        ss.solve(A, b, **options)
    with pytest.raises(ss.OptionError, match=message):
        ss.factorize(A, **options)
