from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import simulated_cudss
import simulated_gpu
import torch

import sparse_solver as ss
from sparse_solver._engines import registry as _engines
from sparse_solver._engines.cudss import library as _cudss
from sparse_solver._engines.cudss import workspace as _workspace


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forget_patterns() -> None:
    """Each test analyses its own patterns, whatever ran before it."""
    ss.clear_cache()


@pytest.fixture
def cudss(monkeypatch: pytest.MonkeyPatch) -> Iterator[simulated_cudss.Cudss]:
    """cuDSS on the simulated GPU, instead of whatever is installed here."""
    simulated = simulated_cudss.Cudss()
    library = _cudss.Library(simulated)
    for name in ("cudss", "cudss_hybrid"):
        engine = _engines.engine_named(name)
        monkeypatch.setattr(engine, "device_types", (simulated_gpu.TYPE,))
    monkeypatch.setattr("sparse_solver._engines.cudss.engine.cudss_library", lambda: library)
    monkeypatch.setattr(_workspace, "_handles", weakref.WeakValueDictionary())
    yield simulated
    ss.clear_cache()
    assert simulated.violations == []
