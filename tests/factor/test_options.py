"""Options: which exist, which contradict each other, and what they mean for a dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import COMPLEX, DTYPES, REAL

import sparse_solver as ss
from sparse_solver._factor.options import Options


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options_that_exist(dtype: torch.dtype) -> None:
    Options().check(dtype)
    for assume in ("spd", "symmetric", "hermitian"):
        for triangle in (None, "lower", "upper"):
            Options(assume, triangle).check(dtype)  # type: ignore[arg-type]
    for engine in ss.engines():
        Options("general", None, engine, True).check(dtype)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"assume": "lu"}, "expected one of 'auto', 'spd'"),
        ({"triangle": "left"}, "'lower', 'upper' or None"),
        ({"engine": "umfpack"}, "there is no such engine; the engines are 'pardiso'"),
        ({"engine": ["pardiso"]}, "no such engine"),
        ({"assume": "spd", "non_blocking": 1}, "non_blocking=1: expected True or False"),
        ({"non_blocking": True}, "pass assume='spd'"),
        ({"assume": "general", "triangle": "lower"}, "half of a symmetric matrix"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_options_that_are_refused(options: dict[str, Any], words: str, dtype: torch.dtype) -> None:
    with pytest.raises(ss.OptionError, match=words):
        Options(**options).check(dtype)


def test_one_triangle_of_a_complex_matrix_does_not_tell_its_kind() -> None:
    Options(triangle="lower").check(torch.float64)
    with pytest.raises(ss.OptionError, match="conjugate transpose"):
        Options(triangle="lower").check(torch.complex128)


def test_what_they_mean() -> None:
    for dtype in REAL:
        assert Options("hermitian").kind(dtype) == "symmetric"
        assert Options("spd", "lower").mirror(dtype) == "symmetric"
    for dtype in COMPLEX:
        assert Options("hermitian").kind(dtype) == "hermitian"
        assert Options("spd", "lower").mirror(dtype) == "hermitian"
        assert Options("symmetric", "upper").mirror(dtype) == "symmetric"
        assert Options("spd").mirror(dtype) is None
