"""Moduli, powers of two, probe vectors."""

from __future__ import annotations

import math

import pytest
import torch
from problems import DTYPES, REAL

import sparse_solver as ss
from sparse_solver._sparse.values import (
    largest_modulus,
    probe_vector,
    raise_non_finite,
    row_moduli,
    scaling_power,
    to_double,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moduli(dtype: torch.dtype) -> None:
    numbers = torch.randn(3, 50, dtype=dtype)
    numbers[1, 7] = -100
    assert largest_modulus(numbers) == pytest.approx(100)
    torch.testing.assert_close(row_moduli(numbers), numbers.abs().amax(-1))
    numbers[2, 3] = math.nan
    assert math.isnan(largest_modulus(numbers))
    assert row_moduli(numbers).isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_scaling_by_powers_of_two_is_exact_and_leaves_moduli_below_one(dtype: torch.dtype) -> None:
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    moduli = torch.tensor([0.0, 1.0, 3.0, 0.3, tiny, huge, 2.0**20], dtype=dtype)
    powers = scaling_power(moduli)
    assert powers[0] == 1
    assert (torch.frexp(powers)[0] == 0.5).all()  # powers of two
    scaled = (powers * moduli)[1:4]
    assert ((scaled >= 0.5) & (scaled < 1)).all()
    assert (powers * moduli).isfinite().all()


def test_the_first_bad_number_is_named() -> None:
    raise_non_finite("b", torch.ones(2, 3))
    with pytest.raises(ss.NonFiniteError, match=r"b\[2\] is inf") as caught:
        raise_non_finite("b", torch.tensor([[0, 0, math.inf], [math.nan, 0, 0]]))
    assert (caught.value.argument, caught.value.index) == ("b", 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probe_vectors(dtype: torch.dtype) -> None:
    probe = probe_vector(1000, dtype, 0.25)
    assert probe.dtype == dtype
    assert probe.shape == (1, 1000)
    assert ((probe.real >= -0.75) & (probe.real <= 1.25)).all()
    assert float(probe.real.mean()) == pytest.approx(0.25, abs=0.05)
    later = probe_vector(400, dtype, 0.25, start=600)
    torch.testing.assert_close(later, probe[:, 600:])


def test_double_precision() -> None:
    assert to_double(torch.ones(1)).dtype == torch.float64
    assert to_double(torch.ones(1, dtype=torch.complex64)).dtype == torch.complex128
