"""Graph Laplacians, and PARDISO's factors of them."""

from __future__ import annotations

from typing import Any

import torch
from problems import grid, laplacian_places, laplacian_values

import sparse_solver as ss
from sparse_solver._testing import engine_factors

DOUBLE = torch.float64


def grid_pattern(m: int) -> tuple[ss.Pattern, int, int]:
    """The pattern of an m-by-m grid, its nodes and its edges."""
    edges, n = grid(m)
    return ss.Pattern(*laplacian_places(edges, n), (n, n)), n, edges.shape[1]


def random_values(n: int, edges: int, anchor: float = 1.0, least: float = 0.0) -> torch.Tensor:
    """Values for `grid_pattern`, with weights between `least` and `least` + 1."""
    return laplacian_values(least + torch.rand(edges, dtype=DOUBLE), n, anchor)


def engine_factor(F: ss.Factorization) -> Any:
    """The PardisoFactor in a Factorization."""
    return engine_factors(F)[0]
