"""The call of the library that this one grew from."""

from __future__ import annotations

from torch import Tensor

from ._functional import solve


class SparseSolver:
    """``SparseSolver.apply(A, b)`` is ``solve(A, b)``.

    >>> import torch, sparse_solver
    >>> sparse_solver.SparseSolver.apply(torch.eye(2).to_sparse(), torch.ones(2))
    tensor([1., 1.])
    """

    @staticmethod
    def apply(A: Tensor, b: Tensor) -> Tensor:
        """x = A⁻¹ b; see `solve`."""
        return solve(A, b)
