"""Gradients to sparse tensors: whatever comes back, it is one value a place."""

from __future__ import annotations

import pytest
import torch
from problems import problem, rhs
from torch.autograd import forward_ad

import sparse_solver as ss

P = problem("general", torch.float64)
B = rhs(P.n, dtype=torch.float64)


def indices() -> torch.Tensor:
    return torch.stack((P.rows, P.cols))


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_leaf_with_duplicates_gets_the_gradient_of_the_matrix(
    coalesce: bool, copies: int
) -> None:
    A = torch.sparse_coo_tensor(
        indices().repeat(1, copies), P.values.repeat(copies) / copies, P.shape
    )
    A = (A.coalesce() if coalesce else A).requires_grad_()
    ss.solve(A, B).sum().backward()
    dense = P.dense.clone().requires_grad_()
    torch.linalg.solve(dense, B).sum().backward()
    torch.testing.assert_close(A.grad.to_dense(), dense.grad * (P.dense != 0))
    assert A.grad._nnz() == P.values.numel()
    ss.solve(A, B).sum().backward()  # accumulates
    torch.testing.assert_close(A.grad.to_dense(), 2 * dense.grad * (P.dense != 0))


def test_csr_leaves_accumulate() -> None:
    A = P.dense.to_sparse_csr().requires_grad_()
    for _ in range(2):
        ss.solve(A, B).sum().backward()
    dense = P.dense.clone().requires_grad_()
    torch.linalg.solve(dense, B).sum().backward()
    torch.testing.assert_close(A.grad.to_dense(), 2 * dense.grad * (P.dense != 0))


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc], ids=str)
def test_compressed_tensors_with_duplicates(layout: torch.layout) -> None:
    """torch forbids them, but does not look."""
    pointers, plain = torch.tensor([0, 3, 4]), torch.tensor([0, 1, 0, 1])
    values = torch.tensor([1.0, 5.0, 2.0, 4.0], dtype=torch.float64)
    A = torch.sparse_compressed_tensor(
        pointers, plain, values, (2, 2), layout=layout, check_invariants=False
    )
    A.requires_grad_()
    dense = torch.tensor([[3.0, 5.0], [0.0, 4.0]], dtype=torch.float64)
    dense = (dense if layout == torch.sparse_csr else dense.T).clone().requires_grad_()
    b = torch.ones(2, dtype=torch.float64)
    x, expected = ss.solve(A, b), torch.linalg.solve(dense, b)
    torch.testing.assert_close(x, expected)
    (A_bar,) = torch.autograd.grad(x.sum(), A)
    (dense_bar,) = torch.autograd.grad(expected.sum(), dense)
    torch.testing.assert_close(A_bar.to_dense(), dense_bar * (dense != 0))


def test_through_torchs_own_constructors_and_conversions() -> None:
    values = P.values.clone().requires_grad_()
    expected = torch.autograd.grad(
        ss.Pattern(P.rows, P.cols, P.shape).solve(values, B).sum(), values
    )[0]
    order = torch.randperm(P.values.numel())
    for A in (
        torch.sparse_coo_tensor(indices(), values, P.shape),
        torch.sparse_coo_tensor(indices(), values, P.shape).coalesce(),
        torch.sparse_coo_tensor(indices()[:, order], values[order], P.shape),
        torch.sparse_coo_tensor(indices(), values, P.shape).coalesce().to_sparse_csr(),
    ):
        torch.testing.assert_close(torch.autograd.grad(ss.solve(A, B).sum(), values)[0], expected)


def test_forward_mode_through_a_sparse_tensor_is_refused() -> None:
    pattern = ss.Pattern(P.rows, P.cols, P.shape)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(P.values, P.values)
        with pytest.raises(ss.TransformError, match=r"Pattern\.solve"):
            pattern.tensor(dual)


def test_second_derivatives_in_a_sparse_tensor() -> None:
    A = torch.sparse_coo_tensor(indices(), P.values, P.shape).coalesce().requires_grad_()
    (A_bar,) = torch.autograd.grad(ss.solve(A, B).square().sum(), A, create_graph=True)
    weights = rhs(*P.shape, dtype=torch.float64) * (P.dense != 0)
    (second,) = torch.autograd.grad((A_bar.to_dense() * weights).sum(), A)

    dense = P.dense.clone().requires_grad_()
    (dense_bar,) = torch.autograd.grad(
        torch.linalg.solve(dense, B).square().sum(), dense, create_graph=True
    )
    (expected,) = torch.autograd.grad((dense_bar * weights).sum(), dense)
    torch.testing.assert_close(second.to_dense(), expected * (P.dense != 0))


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc])
def test_batched_tensors_without_entries_are_singular(layout: torch.layout) -> None:
    empty = torch.zeros(2, 3, 3).to_sparse(layout=layout)
    with pytest.raises(ss.SingularMatrixError):
        ss.solve(empty, torch.ones(2, 3))
