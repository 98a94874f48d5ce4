"""The engines by name, and the errors for those that cannot be used."""

from __future__ import annotations

import pytest
import torch

import sparse_solver as ss
from sparse_solver._engines import registry
from sparse_solver._engines.protocol import Availability, is_doubtful

CPU = torch.device("cpu")


def test_every_engine_has_the_name_it_is_listed_by() -> None:
    for name in registry.engine_names():
        assert registry.engine_named(name).name == name
    assert tuple(ss.engines()) == registry.engine_names()


def test_an_unknown_name_lists_the_engines() -> None:
    with pytest.raises(ss.OptionError, match=r"engine='mumps'.*'superlu'"):
        registry.engine_named("mumps")


def test_an_engine_refuses_what_it_cannot_factor() -> None:
    meta = torch.device("meta")
    with pytest.raises(ss.EngineUnsupportedError, match="solves on cpu, and the matrix is on meta"):
        registry.check_engine("superlu", meta, "spd", torch.float64)
    if registry.available_engines()["qdldl"].installed:
        with pytest.raises(ss.EngineUnsupportedError, match=r"a general matrix.*'lapack' can"):
            registry.check_engine("qdldl", CPU, "general", torch.float64)
    assert registry.solves_on(CPU, None)
    assert not registry.solves_on(meta, None)
    assert registry.why_missing(meta) == "no engine is made for meta"


def test_availability_in_words() -> None:
    assert str(Availability(version="1.2")) == "1.2"
    assert str(Availability(missing="pip install it")) == "not available: pip install it"
    assert str(Availability()) == "unknown version"
    assert Availability().installed


# The largest rounding errors that were seen as the smallest pivot of a singular matrix.
@pytest.mark.parametrize(("dtype", "seen"), [(torch.float32, 2.5e-3), (torch.float64, 1.1e-8)])
def test_small_pivots_are_doubtful(dtype: torch.dtype, seen: float) -> None:
    assert is_doubtful(torch.finfo(dtype).eps, dtype)
    assert is_doubtful(seen, dtype)
    assert not is_doubtful(10 * seen, dtype)
    assert is_doubtful(float("nan"), dtype)
