"""Second derivatives in the values that torch's constructors of sparse tensors are given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradgradcheck
from torch.autograd.functional import hessian

import sparse_solver as ss

PLACES = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 2, 0]])
OTHER_ORDER = torch.tensor([3, 1, 0, 5, 4, 2])
BY_ROWS = torch.argsort(3 * PLACES[0] + PLACES[1])
BY_COLUMNS = torch.argsort(3 * PLACES[1] + PLACES[0])
SHAPE = 3, 3


def make_coo(v: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(PLACES[:, OTHER_ORDER], v[OTHER_ORDER], SHAPE)


def make_csr(v: Tensor) -> Tensor:
    rows = torch.tensor([0, 2, 4, 6])
    return torch.sparse_csr_tensor(rows, PLACES[1, BY_ROWS], v[BY_ROWS], SHAPE)


def make_csc(v: Tensor) -> Tensor:
    columns = torch.tensor([0, 3, 5, 6])
    return torch.sparse_csc_tensor(columns, PLACES[0, BY_COLUMNS], v[BY_COLUMNS], SHAPE)


def make_with_duplicates(v: Tensor) -> Tensor:
    return torch.sparse_coo_tensor(PLACES.repeat(1, 2), torch.cat((v, v)) / 2, SHAPE)


MAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": make_coo,
    "csr": make_csr,
    "csc": make_csc,
    "duplicates": make_with_duplicates,
    "coalesced": lambda v: make_coo(v).coalesce(),
    "coalesced duplicates": lambda v: make_with_duplicates(v).coalesce(),
    "converted": lambda v: make_coo(v).to_sparse_csr(),
    "converted back": lambda v: make_csr(v).to_sparse_coo(),
    "cloned": lambda v: make_coo(v).clone(),
    "scaled": lambda v: make_coo(v / 2) * 2,
    "added": lambda v: make_coo(v / 3) + make_coo(2 * v / 3),
    "transposed twice": lambda v: make_coo(v).t().t(),
    "dense": lambda v: make_coo(v).to_dense().to_sparse(),
    "pattern": lambda v: ss.Pattern(*PLACES, SHAPE).tensor(v),
}
VALUES = torch.tensor([4.0, 1, 1, 3, 2, 0.5], dtype=torch.float64)
B = torch.tensor([1.0, -2, 3], dtype=torch.float64)


def loss(A: Tensor) -> Tensor:
    return ss.solve(A, B, assume="general").square().sum()


def expected(v: Tensor) -> Tensor:
    return ss.Pattern(*PLACES, SHAPE).solve(v, B, assume="general").square().sum()


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_hessians(make: Callable[[Tensor], Tensor]) -> None:
    found = hessian(lambda v: loss(make(v)), VALUES, strict=True)
    torch.testing.assert_close(found, hessian(expected, VALUES))


def test_complex_values() -> None:  # which torch differentiates in COO tensors only
    v = (VALUES + 0.3j * VALUES.flip(0)).requires_grad_()
    b = B.to(torch.complex128).requires_grad_()
    assert gradgradcheck(lambda v, b: ss.solve(make_coo(v), b, assume="general"), (v, b))


def test_matrices_of_quadratic_energies() -> None:
    symmetric = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 0, 1, 2]])
    P = ss.Pattern(*symmetric, SHAPE)
    program = ss.QuadraticProgram(P, fixed=torch.tensor([2]))

    def minimum(v: Tensor) -> Tensor:
        Q = torch.sparse_coo_tensor(symmetric, v[[0, 1, 1, 2, 3]], SHAPE)
        return ss.minimize_quadratic(Q, B, fixed=torch.tensor([2])).square().sum()

    def same(v: Tensor) -> Tensor:
        return program.solve(v[[0, 1, 1, 2, 3]], B).square().sum()

    v = torch.tensor([4.0, 1, 3, 2], dtype=torch.float64)
    torch.testing.assert_close(hessian(minimum, v), hessian(same, v))


def test_one_tensor_in_several_solves_gets_one_hook() -> None:
    v = VALUES.clone().requires_grad_()
    A = make_coo(v)
    total = loss(A) + loss(A) * 2
    (gradient,) = torch.autograd.grad(total, v, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), v)
    torch.testing.assert_close(second, 3 * hessian(expected, VALUES).sum(0))
    assert len(A.grad_fn.metadata) == 1


def test_a_tensor_whose_graph_was_released_can_be_solved_with() -> None:
    v = VALUES.clone().requires_grad_()
    A = make_coo(v)
    A.to_dense().sum().backward()
    b = B.clone().requires_grad_()
    ss.solve(A, b, assume="general").sum().backward(inputs=[b])
    assert b.grad is not None
