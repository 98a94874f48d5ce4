"""Indefinite Hessians are changed, and saddle points are left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparse_solver as ss
from tests.optimize.sample_energies import (
    FIXED,
    REST,
    Quartic,
    constants,
    is_minimum,
    spring,
    structure,
)


def test_indefinite_hessians_are_projected_and_the_report_says_so() -> None:
    torch.manual_seed(0)
    energy = structure(*constants())
    x0 = REST * 0.1  # compressed springs
    for project in (True, "absolute", False):
        X, report = ss.minimize(energy, x0, fixed=FIXED, project=project)
        assert is_minimum(energy, X, FIXED)
        assert report.fallbacks > 0
        matrices = {iteration.matrix for iteration in report.iterations}
        assert ("projected" in matrices) == bool(project)
        assert project or "shifted" in matrices
        assert ("projected" if project else "shifted by") in str(report)
        assert "converged after" in str(report)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("project", [True, "absolute", False])
def test_saddles_and_maxima_are_left(project: Any, scale: float) -> None:
    lengths = torch.full((2,), 2.0, dtype=torch.double)
    chain = scale * ss.IndexedSum(
        spring,
        torch.tensor([[0, 1], [1, 2]]),
        per_term=(torch.ones(2, dtype=torch.double), lengths),
    )
    straight = torch.tensor(
        [[0.0, 0], [1, 0], [2, 0]], dtype=torch.double
    )  # compressed: it buckles, to either side
    for offset in (0.0, 1e-14, 1e-3):
        x0 = straight.clone()
        x0[1, 1] = offset
        X, report = ss.minimize(chain, x0, fixed=torch.tensor([0, 2]), project=project)
        assert torch.allclose(X[1].abs(), torch.tensor([1.0, 3**0.5], dtype=torch.double))
        assert report.fallbacks > 0
        assert report.unique
        assert offset > 0 or "curvature" in str(report)
    hill = ss.IndexedSum(lambda x: scale * (x[0] ** 2 - 1) ** 2, torch.arange(3).unsqueeze(-1))
    x, _ = ss.minimize(hill, torch.zeros(3, dtype=torch.double), project=project)
    assert torch.allclose(x.abs(), torch.ones(3, dtype=torch.double))


def test_saddles_that_cannot_be_left_are_no_minima() -> None:
    hill = ss.IndexedSum(lambda x: (x[0] ** 2 - 1) ** 2, torch.arange(3).unsqueeze(-1))
    x0 = torch.zeros(3, dtype=torch.double)
    with pytest.raises(ss.ConvergenceError, match="indefinite") as caught:
        ss.minimize(hill, x0, largest_step=lambda x, d: 1e-12)
    assert torch.equal(caught.value.x, x0)
    assert not caught.value.report.converged


def test_a_pattern_without_a_diagonal_can_be_shifted() -> None:
    class Product(
        Quartic
    ):  # x y + (x² − 1)² + (y² − 1)² with a pattern that has no place for (y, y)
        def __init__(self) -> None:
            self.pattern = ss.Pattern(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), (2, 2))

        def value(self, x: Tensor) -> Any:
            return x[0] ** 2 / 2 + 0.5 * x[0] * x[1] - x[0]

        def gradient(self, x: Tensor) -> Tensor:
            return torch.stack((x[0] + 0.5 * x[1] - 1, 0.5 * x[0]))

        def hessian_values(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.5, 0.5], dtype=x.dtype)

    with pytest.raises(ss.ConvergenceError):  # a saddle everywhere: no minimum
        ss.minimize(Product(), torch.ones(2, dtype=torch.double), max_iterations=20)
    x, _ = ss.minimize(Product(), torch.ones(2, dtype=torch.double), fixed=torch.tensor([1]))
    assert torch.allclose(x, torch.tensor([0.5, 1.0], dtype=torch.double))


def test_the_limit_of_iterations_holds_at_saddles() -> None:
    hill = ss.IndexedSum(lambda x: (x[0] ** 2 - 1) ** 2, torch.arange(3).unsqueeze(-1))
    x0 = torch.zeros(3, dtype=torch.double)
    for limit in (0, 1):
        with pytest.raises(ss.ConvergenceError, match=f"max_iterations={limit}") as caught:
            ss.minimize(hill, x0, max_iterations=limit)
        assert caught.value.report.steps == limit
