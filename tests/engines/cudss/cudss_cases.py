"""Matrices on the simulated GPU, and solves with them."""

from __future__ import annotations

from typing import Any

import simulated_gpu
import torch
from problems import Problem, grid, laplacian_places, laplacian_values, problem, rhs

import sparse_solver as ss

simulated_gpu.require()

DEVICE = simulated_gpu.DEVICE
SPD = problem("spd", torch.float64).to(DEVICE)
GENERAL = problem("general", torch.float64).to(DEVICE)


def pattern(p: Problem) -> ss.Pattern:
    return ss.Pattern(p.rows, p.cols, p.shape)


def vector(*shape: int) -> torch.Tensor:
    return rhs(*shape, dtype=torch.float64).to(DEVICE)


def check_solution(p: Problem, x: torch.Tensor, factor: float = 1.0) -> None:
    """Check that x solves the system of p, with its values times a factor and `vector` for b."""
    torch.testing.assert_close(factor * (p.dense.cpu() @ x.cpu()), vector(p.n).cpu())


def indefinite(scale: float) -> torch.Tensor:
    """The values of SPD with the diagonal multiplied."""
    return torch.where(SPD.rows == SPD.cols, scale * SPD.values, SPD.values)


def solve_non_blocking(
    p: Problem, values: torch.Tensor, b: torch.Tensor, P: ss.Pattern | None = None, **options: Any
) -> torch.Tensor:
    return (P or pattern(p)).solve(values, b, assume=p.kind, non_blocking=True, **options)


def laplacian(m: int, anchor: float = 1.0) -> tuple[ss.Pattern, torch.Tensor]:
    """The pattern and values of an m-by-m grid; without an anchor it is singular."""
    edges, n = grid(m)
    rows, cols = (index.to(DEVICE) for index in laplacian_places(edges, n))
    weights = torch.ones(edges.shape[1], dtype=torch.float64)
    return ss.Pattern(rows, cols, (n, n)), laplacian_values(weights, n, anchor=anchor).to(DEVICE)


def cycle() -> tuple[ss.Pattern, torch.Tensor]:
    """A permutation matrix, none of whose diagonal entries is stored."""
    indices = torch.stack((torch.arange(9), torch.arange(9).roll(1))).to(DEVICE)
    return ss.Pattern(*indices, (9, 9)), torch.ones(9, dtype=torch.float64).to(DEVICE)
