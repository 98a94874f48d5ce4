"""Shapes and strides as in torch.linalg.solve."""

from __future__ import annotations

import itertools

import pytest
import torch
from problems import DTYPES, RHS_SHAPES, problem, rhs
from torch import Tensor

import sparse_solver as ss

P5 = problem("general", torch.float64, n=5)
PATTERN = ss.Pattern(P5.rows, P5.cols, P5.shape)
B5 = rhs(5, dtype=torch.float64)


def batched_values(*batch: int) -> Tensor:
    scale = 1 + torch.arange(1, 1 + int(torch.tensor(batch).prod()), dtype=torch.float64).reshape(
        batch
    )
    return scale.unsqueeze(-1) * P5.values


def dense(values: Tensor) -> Tensor:
    A = torch.zeros(*values.shape[:-1], 5, 5, dtype=values.dtype)
    A[..., P5.rows, P5.cols] = values
    return A


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (2, 1), (0,), (5,)], ids=str)
@pytest.mark.parametrize("shape", RHS_SHAPES, ids=str)
def test_shapes_follow_torch_linalg_solve_to_the_letter(
    batch: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    values, b = batched_values(*batch), rhs(*shape, dtype=torch.float64)
    try:
        expected = torch.linalg.solve(dense(values), b)
    except RuntimeError:
        with pytest.raises(ss.ShapeError):
            PATTERN.solve(values, b)
        return
    actual = PATTERN.solve(values, b)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("batch", [(), (3,), (2, 1)], ids=str)
@pytest.mark.parametrize("shape", [(5,), (5, 2), (3, 5, 2), (2, 3, 5, 2)], ids=str)
def test_gradients_through_broadcast_batches(
    batch: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    values, b = (
        batched_values(*batch).requires_grad_(),
        rhs(*shape, dtype=torch.float64).requires_grad_(),
    )
    expected = torch.linalg.solve(dense(values), b)
    x_bar = rhs(*expected.shape, dtype=torch.float64, seed=5)
    expected_grads = torch.autograd.grad(expected, (values, b), x_bar)
    grads = torch.autograd.grad(PATTERN.solve(values, b), (values, b), x_bar)
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_and_one_by_one(dtype: torch.dtype) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    P = ss.Pattern(nothing, nothing, (0, 0))
    values = torch.zeros(0, dtype=dtype, requires_grad=True)
    for shape in ((0,), (0, 3), (2, 0, 3)):
        b = torch.zeros(shape, dtype=dtype, requires_grad=True)
        x = P.solve(values, b)
        assert x.shape == b.shape
        x.abs().sum().backward()
        assert values.grad is not None
        assert b.grad is not None
    F = P.factorize(values)
    assert F.info.n == 0
    assert F.solve(torch.zeros(0, dtype=dtype)).shape == (0,)

    zero = torch.zeros(1, dtype=torch.int64)
    one = torch.tensor([4.0], dtype=dtype, requires_grad=True)
    x = ss.Pattern(zero, zero, (1, 1)).solve(one, torch.tensor([2.0], dtype=dtype))
    x.real.sum().backward()
    torch.testing.assert_close(x.detach(), torch.tensor([0.5], dtype=dtype))
    torch.testing.assert_close(one.grad, torch.tensor([-0.125], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_views_of_every_sort(dtype: torch.dtype) -> None:
    p = problem("general", dtype, n=6)
    P = ss.Pattern(p.rows, p.cols, p.shape)
    nnz = p.values.numel()

    def views(t: Tensor) -> dict[str, Tensor]:
        wide = torch.empty(*t.shape, 2, dtype=dtype)
        wide[..., 0] = t
        found = {
            "strided": wide[..., 0],
            "negated": torch._neg_view(-t),
            "offset": torch.cat((t[:1], t))[1:],
            "flipped": t.flip(0).flip(0),
        }
        if dtype.is_complex:
            found["conjugate"] = t.conj().resolve_conj().conj()
            found["conjugate, negated"] = torch._neg_view((-t).conj().resolve_conj().conj())
        return found

    b = rhs(p.n, dtype=dtype)
    expected = torch.linalg.solve(p.dense, b)
    for (name, values), (b_name, b_view) in itertools.product(
        views(p.values).items(), views(b).items()
    ):
        for transpose in (False, True):
            x = P.solve(values, b_view, transpose=transpose)
            wanted = torch.linalg.solve(p.dense.mT, b) if transpose else expected
            torch.testing.assert_close(x, wanted, msg=f"{name} values, {b_name} b")
    columns = b.unsqueeze(1).expand(p.n, 3)
    torch.testing.assert_close(P.solve(p.values, columns), torch.linalg.solve(p.dense, columns))
    torch.testing.assert_close(P.solve(p.values.expand(2, nnz), b), expected.expand(2, p.n))
    batch_last = rhs(3, p.n, dtype=dtype).mT  # (n, 3), the other way around in memory
    torch.testing.assert_close(
        P.solve(p.values, batch_last), torch.linalg.solve(p.dense, batch_last)
    )


def test_a_nan_gradient_passes_through_as_nan() -> None:
    """A gradient scaler must see an overflow as what it is; only the row it is in is lost."""
    values = P5.values.clone().requires_grad_()
    b = rhs(5, 2, dtype=torch.float64).requires_grad_()
    x_bar = torch.ones(5, 2, dtype=torch.float64)
    x_bar[3, 1] = torch.inf
    PATTERN.solve(values, b).backward(x_bar)
    assert b.grad is not None
    assert values.grad is not None
    assert b.grad[:, 0].isfinite().all()
    assert b.grad[:, 1].isnan().all()
    assert values.grad.isnan().all()


def test_int32_indices_and_the_order_of_entries() -> None:
    order = torch.randperm(P5.values.numel())
    P = ss.Pattern(P5.rows[order].int(), P5.cols[order].int(), P5.shape)
    x = P.solve(P5.values[order], B5)
    torch.testing.assert_close(x, torch.linalg.solve(P5.dense, B5))
    torch.testing.assert_close(
        P.solve(P5.values[order], B5, transpose=True), torch.linalg.solve(P5.dense.mT, B5)
    )
