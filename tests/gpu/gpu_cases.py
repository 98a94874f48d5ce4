"""Matrices on the GPU, and on the simulated one where there is no GPU."""

from __future__ import annotations

import pytest
import simulated_gpu
import torch
from problems import Problem, grid, laplacian_places, laplacian_values, problem, rhs
from torch import Tensor

import sparse_solver as ss

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", torch.cuda.current_device()) if HAS_GPU else simulated_gpu.DEVICE
gpu = torch.get_device_module(DEVICE)

# What the simulation cannot show, or cannot run.
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="torch finds no GPU")

if not HAS_GPU:
    simulated_gpu.require()


def on_gpu(kind: str, dtype: torch.dtype = torch.float64, n: int = 12) -> Problem:
    """A small matrix of this kind, on the GPU."""
    return problem(kind, dtype, n).to(DEVICE)


def pattern(p: Problem) -> ss.Pattern:
    return ss.Pattern(p.rows, p.cols, p.shape)


def vector(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 100) -> Tensor:
    return rhs(*shape, dtype=dtype, seed=seed).to(DEVICE)


def laplacian(m: int, anchor: float = 1.0) -> tuple[ss.Pattern, Tensor]:
    """The Laplacian of an m-by-m grid plus `anchor` at the first node; the values are on the GPU.

    The pattern serves both devices.
    """
    edges, n = grid(m)
    weights = torch.ones(edges.shape[1], dtype=torch.float64)
    values = laplacian_values(weights, n, anchor=anchor)
    return ss.Pattern(*laplacian_places(edges, n), (n, n)), values.to(DEVICE)


def check_close(actual: Tensor, expected: Tensor, digits: float = 1e-9) -> None:
    """Compare numbers of the GPU with those of the CPU, relative to the largest one."""
    expected = expected.detach().cpu()
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual.detach().cpu(), expected, rtol=digits, atol=digits * largest)
