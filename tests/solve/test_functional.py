"""Shapes as in torch.linalg.solve, and the refusal of everything that cannot be solved with."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from problems import DTYPES, problem, rhs
from torch import Tensor

import sparse_solver as ss

P5 = problem("general", torch.float64, n=5)
PATTERN = ss.Pattern(P5.rows, P5.cols, P5.shape)


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
@pytest.mark.parametrize(
    "shape",
    [(5,), (5, 1), (5, 2), (5, 0), (3, 5), (3, 5, 2), (1, 5, 2), (2, 3, 5), (2, 3, 5, 2), (4, 2, 3, 5, 2), (2, 1, 5, 1), (0, 5, 2), (5, 5), (5, 5, 5)],
    ids=str,
)  # fmt: skip
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


def sparse(**changes: Any) -> Tensor:
    A = torch.sparse_coo_tensor(torch.stack((P5.rows, P5.cols)), P5.values, P5.shape)
    return A.to(**changes) if changes else A


B5 = rhs(5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ss.LayoutError, "dense matrix", lambda: ss.solve(P5.dense, B5)),
        (ss.LayoutError, "not a torch tensor", lambda: ss.solve([[1.0]], B5)),
        (ss.LayoutError, "sparse_bsr", lambda: ss.solve(torch.eye(4).to_sparse_bsr((2, 2)), torch.ones(4))),
        (ss.LayoutError, "hybrid", lambda: ss.solve(torch.rand(3, 3, 2).to_sparse(2), torch.ones(3))),
        (ss.LayoutError, "batches are stored as CSR", lambda: ss.solve(torch.rand(2, 3, 3).to_sparse(), torch.ones(3))),
        (ss.LayoutError, "b has layout", lambda: ss.solve(sparse(), B5.to_sparse())),
        (ss.LayoutError, "b has type list", lambda: ss.solve(sparse(), [1.0])),
        (ss.ShapeError, "square", lambda: ss.solve(torch.rand(3, 4).to_sparse(), torch.ones(3))),
        (ss.ShapeError, "square", lambda: ss.Pattern(P5.rows, P5.cols, (5, 6)).solve(P5.values, torch.ones(5).double())),
        (ss.ShapeError, "square", lambda: ss.Pattern(P5.rows, P5.cols, (5, 6)).factorize(P5.values)),
        (ss.ShapeError, "two sizes", lambda: ss.Pattern(P5.rows, P5.cols, (5,))),
        (ss.ShapeError, "b has shape", lambda: ss.solve(sparse(), torch.ones(4, dtype=torch.float64))),
        (ss.ShapeError, "b has shape", lambda: ss.solve(sparse(), torch.ones((), dtype=torch.float64))),
        (ss.ShapeError, "values have shape", lambda: PATTERN.solve(P5.values[:-1], B5)),
        (ss.ShapeError, "broadcast", lambda: PATTERN.solve(batched_values(2), torch.ones(3, 5, 1, dtype=torch.float64))),
        (ss.DtypeError, "float32", lambda: ss.solve(sparse(dtype=torch.float32), B5)),
        (ss.DtypeError, "int64", lambda: ss.solve(sparse(dtype=torch.int64), B5)),
        (ss.DtypeError, "bool", lambda: PATTERN.solve(P5.values.bool(), B5)),
        (ss.DtypeError, "b has dtype torch.int64", lambda: ss.solve(sparse(), B5.long())),
        (ss.DtypeError, "float16", lambda: PATTERN.solve(P5.values.half(), B5.half())),
        (ss.DeviceError, "meta", lambda: ss.solve(sparse(), B5.to("meta"))),
        (ss.DeviceError, "meta", lambda: PATTERN.solve(P5.values.to("meta"), B5)),
        (ss.IndexRangeError, "row index 5", lambda: ss.Pattern(torch.tensor([0, 5]), torch.tensor([0, 1]), (5, 5))),
        (ss.IndexRangeError, "column index -1", lambda: ss.Pattern(torch.tensor([0]), torch.tensor([-1]), (5, 5))),
        (ss.IndexRangeError, "float32", lambda: ss.Pattern(torch.ones(2), torch.ones(2), (5, 5))),
        (ss.IndexRangeError, "shapes", lambda: ss.Pattern(torch.tensor([0]), torch.tensor([0, 1]), (5, 5))),
        (ss.IndexRangeError, "shapes", lambda: ss.Pattern(torch.zeros(1, 1).long(), torch.zeros(1, 1).long(), (5, 5))),
        (ss.IndexRangeError, "pointers", lambda: ss.Pattern.from_csr(torch.tensor([0, 1]), torch.tensor([0]), (2, 2))),
        (ss.IndexRangeError, "rise", lambda: ss.Pattern.from_csr(torch.tensor([0, 2, 1]), torch.tensor([0]), (2, 2))),
        (ss.IndexRangeError, "row index 7", lambda: ss.Pattern.from_csc(torch.tensor([0, 1, 1]), torch.tensor([7]), (2, 2))),
        (ss.ShapeError, "two sizes", lambda: ss.Pattern(P5.rows, P5.cols, 5)),
        (ss.ShapeError, "two sizes", lambda: ss.Pattern(P5.rows, P5.cols, ("5", "5"))),
        (ss.ShapeError, "two sizes", lambda: ss.Pattern(P5.rows, P5.cols, (5.0, 5.0))),
        (ss.ShapeError, "two sizes", lambda: ss.Pattern(P5.rows, P5.cols, (-1, -1))),
        (ss.DeviceError, "indices are on meta", lambda: ss.Pattern(P5.rows.to("meta"), P5.cols.to("meta"), P5.shape)),
        (ss.OptionError, "engine=", lambda: ss.solve(sparse(), B5, engine=["x"])),
        (ss.OptionError, "transpose='no'", lambda: ss.solve(sparse(), B5, transpose="no")),
        (ss.OptionError, "expected one of", lambda: ss.solve(sparse(), B5, assume="cholesky")),
        (ss.OptionError, "engine='umfpack'", lambda: ss.solve(sparse(), B5, engine="umfpack")),
        (ss.OptionError, "'lower', 'upper'", lambda: ss.solve(sparse(), B5, triangle="left")),
        (ss.OptionError, "denies", lambda: ss.solve(sparse(), B5, assume="general", triangle="lower")),
        (ss.OptionError, "conjugate", lambda: ss.solve(sparse(dtype=torch.complex128), B5.to(torch.complex128), triangle="lower")),
        (ss.TriangleError, "not in that triangle", lambda: ss.solve(sparse(), B5, assume="spd", triangle="lower")),
        (ss.NonFiniteError, r"b\[2\] is nan", lambda: ss.solve(sparse(), torch.tensor([0, 0, torch.nan, 0, 0]).double())),
        (ss.NonFiniteError, r"b\[1\] is inf", lambda: ss.solve(sparse(), torch.tensor([0, torch.inf, 0, 0, 0]).double())),
        (ss.NonFiniteError, r"values\[0\] is nan", lambda: PATTERN.solve(P5.values * torch.nan, B5)),
        (ss.NotSymmetricError, "use assume='general'", lambda: ss.solve(sparse(), B5, assume="symmetric")),
        (ss.EngineUnsupportedError, "qdldl", lambda: PATTERN.solve(P5.values, B5, engine="qdldl")),
    ],
)  # fmt: skip
def test_bad_input_raises_a_typed_error_that_says_what_it_was(
    error: type[Exception], words: str, call: Any
) -> None:
    if words == "qdldl" and not ss.engines()["qdldl"].installed:
        error = ss.EngineUnavailableError
    with pytest.raises(error, match=words) as caught:
        call()
    assert isinstance(caught.value, ss.SparseSolverError)


def test_unchecked_tensors_are_checked_here() -> None:
    """torch does not validate the indices of tensors by default; a native library would crash on these."""
    bad = torch.sparse_coo_tensor(
        torch.tensor([[0, 9], [0, 1]]), torch.ones(2), (2, 2), check_invariants=False
    )
    with pytest.raises(ss.IndexRangeError):
        ss.solve(bad, torch.ones(2))
    crow, col = torch.tensor([0, 5, 2]), torch.tensor([0, 1])
    bad = torch.sparse_csr_tensor(crow, col, torch.ones(2), (2, 2), check_invariants=False)
    with pytest.raises(ss.IndexRangeError):
        ss.solve(bad, torch.ones(2))
    negative = torch.sparse_csr_tensor(
        torch.tensor([0, 1, 2]),
        torch.tensor([0, -7]),
        torch.ones(2),
        (2, 2),
        check_invariants=False,
    )
    with pytest.raises(ss.IndexRangeError):
        ss.solve(negative, torch.ones(2))


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


def test_batches_of_csr_matrices() -> None:
    values = batched_values(3)
    A = PATTERN.tensor(values, layout=torch.sparse_csr).requires_grad_()
    b = rhs(3, 5, 2, dtype=torch.float64)
    x = ss.solve(A, b)
    expected = dense(values).requires_grad_()
    torch.testing.assert_close(x, torch.linalg.solve(expected, b))
    (A_bar,) = torch.autograd.grad(x.sum(), A)
    (expected_bar,) = torch.autograd.grad(torch.linalg.solve(expected, b).sum(), expected)
    torch.testing.assert_close(A_bar.values(), expected_bar[:, P5.rows, P5.cols])
    different = torch.stack((torch.eye(2), torch.eye(2).flip(0))).to_sparse_csr()
    with pytest.raises(ss.LayoutError, match="different patterns"):
        ss.solve(different, torch.ones(2, 2))


def test_the_call_of_the_seed() -> None:
    A = sparse().requires_grad_()
    x = ss.SparseSolver.apply(A, B5)
    x.sum().backward()
    torch.testing.assert_close(x, torch.linalg.solve(P5.dense, B5))
    assert A.grad is not None
