"""Energies that the tests of Newton's method minimise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sparse_solver as ss

N = 6
EDGES = torch.tensor([[i, i + 1] for i in range(2 * N - 1)] + [[i, i + N] for i in range(N)])
NODES = torch.arange(2 * N).unsqueeze(-1)
FIXED = torch.tensor([0, N])
REST = torch.stack((torch.arange(N).repeat(2), torch.arange(2).repeat_interleave(N)), 1).double()


def spring(x: Tensor, c: tuple[Tensor, Tensor]) -> Tensor:
    stiffness, length = c
    return stiffness / 2 * ((x[1] - x[0]).norm() - length) ** 2


def tether(
    x: Tensor, rest: Tensor
) -> Tensor:  # keeps the rest of a structure that is not rigid in place
    return 0.3 * (x - rest).square().sum() + 0.1 * (x[0, 0] * x[0, 1]).sin()


def structure(
    stiffness: Tensor, length: Tensor, rest: Tensor, weight: Tensor | float = 1.0
) -> ss.IndexedSum:
    return weight * ss.IndexedSum(spring, EDGES, per_term=(stiffness, length)) + ss.IndexedSum(
        tether, NODES, per_variable=rest
    )


def constants(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    edges = len(EDGES)
    stiffness, length = torch.rand(edges) + 1, torch.rand(edges) / 4 + 1
    return (
        stiffness.to(dtype),
        length.to(dtype),
        REST.to(dtype, copy=True),
        torch.tensor(1.5, dtype=dtype),
    )


class Quartic:
    """Σ_i (s_i/4 x_i⁴ + c/2 (x_i − x_{i+1})² − b_i x_i), written by hand.

    Its pattern is out of order and has duplicates.
    """

    def __init__(self, s: Tensor, b: Tensor, c: float = 1.0):
        self.s, self.b, self.c = s, b, c
        n = s.numel()
        i, j = torch.arange(n), torch.arange(n - 1)
        rows, cols = torch.cat((j + 1, i, j, j, j + 1)), torch.cat((j, i, j + 1, j, j + 1))
        self.pattern = ss.Pattern(rows, cols, (n, n))

    def value(self, x: Tensor) -> Any:
        return (self.s / 4 * x**4 - self.b * x).sum() + self.c / 2 * x.diff().square().sum()

    def gradient(self, x: Tensor) -> Tensor:
        d = self.c * x.diff()
        zero = x.new_zeros(1)
        return self.s * x**3 - self.b - torch.cat((d, zero)) + torch.cat((zero, d))

    def hessian_values(self, x: Tensor) -> Tensor:
        off = torch.full_like(x[1:], self.c)
        return torch.cat((-off, 3 * self.s * x**2, -off, off, off))


class Parametric(Quartic):
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.s, self.b)

    def with_parameters(self, s: Tensor, b: Tensor) -> Parametric:
        return Parametric(s, b, self.c)


def scalar(f: Callable[[Tensor], Tensor]) -> ss.IndexedSum:
    """Σ f over the entries of a vector."""
    return ss.IndexedSum(lambda x: f(x[0]), torch.arange(1).unsqueeze(-1))


def pair(f: Callable[[Tensor, Tensor], Tensor]) -> ss.IndexedSum:
    return ss.IndexedSum(lambda x: f(x[0], x[1]), torch.tensor([[0, 1]]))


def is_minimum(
    energy: Any, X: Tensor, fixed: Tensor | None = None, tolerance: float = 1e-9
) -> bool:
    free = torch.ones(X.shape, dtype=torch.bool)
    if fixed is not None:
        free[fixed] = False
    free = free.reshape(-1)
    H = energy.pattern.tensor(energy.hessian_values(X)).to_dense()[free][:, free]
    g = energy.gradient(X).reshape(-1)[free]
    return bool(g.abs().max() < tolerance) and float(torch.linalg.eigvalsh(H)[0]) > 0
