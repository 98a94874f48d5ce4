"""Gradients to sparse tensors: whatever comes back, it is one value a place."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from problems import problem, rhs
from torch.autograd import forward_ad

import sparse_solver as ss
from sparse_solver._sparse.torch_tensors import _Assemble, skeleton_of, split_tensor

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


@pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="this torch adds no CSR tensors, for want of MKL"
)
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


@pytest.mark.parametrize("cotangent", ["dense", "coo", "csr", "csr with one pattern"])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
@pytest.mark.parametrize("share", [False, True])
def test_cotangents_of_batches_in_any_layout(
    layout: torch.layout, cotangent: str, share: bool
) -> None:
    """The places of the tensor are looked up in a cotangent with other places."""
    eye, flipped = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64).flip(0)
    dense = torch.stack((eye, eye if share else flipped, eye)).unsqueeze(0)
    skeleton = skeleton_of(dense.to_sparse(layout=layout))
    numbers = 1 + torch.arange(48, dtype=torch.float64).view(1, 3, 4, 4)
    if cotangent == "csr":
        numbers = numbers * torch.stack((eye + flipped, eye + eye.roll(1, 0), eye + flipped))
    elif cotangent == "csr with one pattern":
        numbers = numbers * (eye + eye.roll(1, 0))
    A_bar = numbers
    if cotangent != "dense":
        A_bar = numbers.to_sparse() if cotangent == "coo" else numbers.to_sparse_csr()
    sampled = _Assemble.backward(SimpleNamespace(skeleton=skeleton), A_bar)[0]
    assert sampled.shape == skeleton.values_shape
    torch.testing.assert_close(skeleton.fill(sampled).to_dense(), numbers * dense)


def test_the_values_of_a_batch_with_different_patterns() -> None:
    A = torch.stack((torch.eye(2), torch.eye(2).flip(0))).to_sparse_csr()
    structure, values = split_tensor(A, different_patterns=True)
    assert structure.batch_shape == (2, 2, 2)
    assert structure.rows.tolist() == [0, 1, 2, 3]
    assert structure.cols.tolist() == [0, 1, 3, 2]
    assert values.shape == (4,)
    again, _ = split_tensor(A.to(torch.float64), different_patterns=True)
    assert again is structure
    with pytest.raises(ss.LayoutError, match="has matrices with different patterns"):
        split_tensor(A)


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc], ids=str)
def test_duplicates_in_different_patterns_are_refused(layout: torch.layout) -> None:
    """The gradient would have different numbers of entries a matrix, which no tensor has."""
    pointers, plain = torch.tensor([[0, 2, 3], [0, 2, 3]]), torch.tensor([[0, 0, 1], [0, 1, 1]])
    A = torch.sparse_compressed_tensor(
        pointers, plain, torch.ones(2, 3), (2, 2, 2), layout=layout, check_invariants=False
    )
    with pytest.raises(ss.LayoutError, match="several values at one place"):
        ss.solve(A, torch.ones(2))
