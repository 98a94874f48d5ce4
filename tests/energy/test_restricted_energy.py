"""Energies with fixed variables, against rows and columns of the whole energy."""

from __future__ import annotations

import pytest
import torch
from energy_cases import Case

import sparse_solver as ss


def test_restriction() -> None:
    case = Case("springs")
    energy, X = case.make(*case.constants), case.X.requires_grad_()
    H = energy.hessian(X).to_dense().detach()
    mask = torch.zeros(7, 2, dtype=torch.bool)
    mask[0] = mask[3, 1] = True
    for fixed, kept in (
        (torch.tensor([3, 0]), [2, 3, 4, 5, 8, 9, 10, 11, 12, 13]),
        (torch.tensor([1, 0, 0, 1, 0, 0, 0], dtype=torch.bool), [2, 3, 4, 5, 8, 9, 10, 11, 12, 13]),
        (mask, [2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]),
        (torch.empty(0, dtype=torch.int32), list(range(14))),
    ):
        free = energy.restrict(X, fixed=fixed)
        x = free.select(X).detach()
        assert torch.equal(x, X.detach().reshape(-1)[kept])
        assert torch.equal(free.extend(x), X)
        assert torch.equal(free(x), energy(X))
        assert torch.equal(free.gradient(x), energy.gradient(X).reshape(-1)[kept])
        assert torch.equal(free.hessian(x).to_dense(), H[kept][:, kept])
        assert torch.equal(free.pattern.tensor(free.hessian_values(x)).to_dense(), H[kept][:, kept])
        torch.autograd.gradcheck(lambda x, free=free: free.gradient(x), (x.requires_grad_(),))
        with pytest.raises(ss.ShapeError):
            free(X)
    gradient = torch.autograd.grad(
        energy.restrict(X, fixed=torch.tensor([0])).gradient(X.detach().reshape(-1)[2:]).sum(), X
    )[0]
    assert torch.allclose(gradient.reshape(-1)[:2], H[2:, :2].sum(0))
    assert torch.equal(gradient.reshape(-1)[2:], torch.zeros(12, dtype=torch.double))
