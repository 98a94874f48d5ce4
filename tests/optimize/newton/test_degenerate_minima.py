"""Minima at which the Hessian is singular: found, reported as not unique, without derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sparse_solver as ss
from tests.optimize.sample_energies import pair, scalar

DTYPES = [torch.float32, torch.float64]


def powell(x: Tensor) -> Tensor:
    quartic = (x[1] - 2 * x[2]) ** 4 + 10 * (x[0] - x[3]) ** 4
    return (x[0] + 10 * x[1]) ** 2 + 5 * (x[2] - x[3]) ** 2 + quartic


def chain(f: Callable[[Tensor], Tensor], n: int = 12) -> ss.IndexedSum:
    i = torch.arange(n - 1)
    springs = ss.IndexedSum(lambda x: (x[1] - x[0]) ** 2, torch.stack((i, i + 1), 1))
    return springs + ss.IndexedSum(lambda x: f(x[0]), torch.arange(n).unsqueeze(-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("energy", "x0", "minimum", "tolerance"),
    [
        (ss.IndexedSum(powell, torch.arange(4)[None]), [3.0, -1.0, 0.0, 1.0], 0.0, 3e-3),
        (ss.IndexedSum(powell, torch.arange(4)[None]), [0.3, 0.1, 0.2, 0.1], 0.0, 3e-3),
        (scalar(lambda x: x**20), [1.0], 0.0, 1e-2),
        (scalar(lambda x: (x - 3) ** 20 + 1), [5.0], 3.0, 0.5),
        (scalar(lambda x: x**100), [1.2], 0.0, 0.5),
        (pair(lambda x, y: (x + y) ** 2 + y**4), [1.0, 1.0], 0.0, 3e-3),
        (chain(lambda x: x**4), torch.linspace(1, 2, 12).tolist(), 0.0, 3e-3),
        (chain(lambda x: 0 * x), [0.0, 1.0] * 6, 0.5, 1e-5),  # on one side as on the other
        (scalar(lambda x: torch.relu(1 - x) ** 2), [-5.0], 1.0, 1e-5),  # constant beyond 1
        (scalar(lambda x: torch.relu(1 - x) ** 3), [0.0], 1.0, 1e-3),
        (scalar(lambda x: 0 * x), [1.0], 1.0, 0.0),
    ],
)
def test_singular_minima_are_found(
    energy: ss.IndexedSum, x0: list[float], minimum: float, tolerance: float, dtype: torch.dtype
) -> None:
    x, report = ss.minimize(energy, torch.tensor(x0, dtype=dtype))
    assert report.converged
    assert report.unique is False
    assert "singular" in report.reason
    assert float((x - minimum).abs().max()) <= tolerance


@pytest.mark.parametrize("f", [lambda x: x**20, lambda x: x**30])
def test_derivatives_of_singular_minima_are_refused(f: Any) -> None:
    k = torch.ones(1, dtype=torch.double, requires_grad=True)
    energy = ss.IndexedSum(lambda x, k: k * f(x[0] - k), torch.tensor([[0]]), per_term=k)
    x, report = ss.minimize(energy, torch.full((1,), 3.0, dtype=torch.double))
    assert report.unique is False
    with pytest.raises(ss.SingularMatrixError, match="not unique"):
        x.sum().backward()


def test_the_limit_is_not_extrapolated_beyond_a_largest_step() -> None:
    lengths = []

    def largest_step(x: Tensor, d: Tensor) -> float:
        lengths.append(float(d.abs()))
        return 1.0

    x0 = torch.ones(1, dtype=torch.double)
    options: dict[str, Any] = {"largest_step": largest_step, "max_iterations": 100}
    with pytest.raises(ss.ConvergenceError) as caught:
        ss.minimize(scalar(lambda x: x**20), x0, **options)
    assert all(step.step <= 1 for step in caught.value.report.iterations)


def test_a_regular_minimum_after_a_slow_approach_is_unique() -> None:
    # Along the tail of the exponential, steps do not shrink; the parabola ends it.
    energy = scalar(lambda x: torch.exp(-x) + 1e-30 * (x - 100) ** 2)
    x, report = ss.minimize(energy, torch.zeros(1, dtype=torch.double))
    assert report.unique
    assert energy.gradient(x).abs() < 1e-38
