from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("n", [10, 40])
def test_minimal_agrees_with_dense_torch(n: int) -> None:
    assert load("minimal").check_against_dense(n) < 1e-12


def test_minimal_learns() -> None:
    losses, milliseconds = load("minimal").learn(n=2000, steps=20)
    assert losses[-1] < losses[0] / 4
    assert len(milliseconds) == 20
