from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import simulated_cudss
import simulated_gpu
import torch

import sparse_solver as ss
from sparse_solver import _testing
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
def counts() -> Iterator[Counter[str]]:
    """Calls of "analyze", "factor" and "substitute" since the test began or cleared them."""
    with _testing.count_calls() as calls:
        yield calls


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Run a script in a new process, which finds the same modules; return what it prints."""

    def run(script: str, *arguments: str, flags: tuple[str, ...] = (), **variables: str) -> str:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
        command = [sys.executable, *flags, "-c", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, f"exit status {done.returncode}:\n{done.stderr[-3000:]}"
        return done.stdout

    return run


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
