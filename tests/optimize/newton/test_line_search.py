"""The line search stays where the energy is defined, and within the limits of the caller."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import sparse_solver as ss


def barrier(x: Tensor) -> Tensor:
    return -torch.log(x[0]) - torch.log(1 - x[0]) + 3 * x[0]


def test_steps_stay_where_the_energy_is_defined() -> None:
    energy = ss.IndexedSum(barrier, torch.arange(3).unsqueeze(-1))
    x0 = torch.tensor([1e-3, 0.5, 1 - 1e-3], dtype=torch.double)
    x, _ = ss.minimize(energy, x0)
    assert torch.allclose(x, x[0].expand(3))
    assert energy.gradient(x).abs().max() < 1e-9
    with pytest.raises(ss.NonFiniteError, match="x0"):
        ss.minimize(energy, x0 - 0.1)


def test_the_largest_step_is_a_limit() -> None:
    energy = ss.IndexedSum(lambda x: (x[0] - 3) ** 2, torch.arange(2).unsqueeze(-1))
    seen = []

    def half_a_unit(x: Tensor, d: Tensor) -> Tensor:
        assert x.shape == d.shape == (2,)
        seen.append(x)
        return 0.5 / d.abs().max()

    x, report = ss.minimize(energy, torch.zeros(2, dtype=torch.double), largest_step=half_a_unit)
    assert torch.allclose(x, torch.full((2,), 3.0, dtype=torch.double))
    assert len(seen) >= 6
    assert report.iterations[0].step == pytest.approx(0.5 / 3)
    with pytest.raises(ss.ConvergenceError, match="allows no step"):
        ss.minimize(energy, torch.zeros(2, dtype=torch.double), largest_step=lambda x, d: 0.0)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ss.OptionError, match="largest_step"):
            ss.minimize(
                energy,
                torch.zeros(2, dtype=torch.double),
                largest_step=lambda x, d, wrong=wrong: wrong,
            )


def test_callers_get_copies() -> None:
    def spoil(x: Tensor, d: Any) -> float:
        x.mul_(3)
        if isinstance(d, Tensor):
            d.zero_()
        return 1.0

    energy = ss.IndexedSum(lambda x: (x[0] - 1) ** 2, torch.arange(2).unsqueeze(-1))
    x, _ = ss.minimize(
        energy, torch.zeros(2, dtype=torch.double), callback=spoil, largest_step=spoil
    )
    assert torch.equal(x, torch.ones(2, dtype=torch.double))
