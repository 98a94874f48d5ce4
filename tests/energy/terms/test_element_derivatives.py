"""Derivatives of functions whose batched derivatives torch gets wrong."""

from __future__ import annotations

import torch
from torch import Tensor

import sparse_solver as ss


def test_forward_over_reverse_is_not_relied_on() -> None:
    """Under vmap, torch's forward mode of det is wrong; an energy of determinants must not be."""
    torch.manual_seed(1)
    X = torch.randn(40, 3, dtype=torch.double)
    tets = torch.randint(0, 40, (30, 4))

    def volume(x: Tensor) -> Tensor:
        return torch.linalg.det(x[1:] - x[0]) ** 2

    energy = ss.IndexedSum(volume, tets)
    expected = torch.autograd.functional.hessian(lambda X: sum(volume(X[t]) for t in tets), X)
    assert torch.allclose(energy.hessian(X).to_dense(), expected.reshape(120, 120), atol=1e-9)
