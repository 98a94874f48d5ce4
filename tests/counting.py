"""Counts what the engines are asked to do."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest

from sparse_solver._engines import registry as _engines


class Counts(Counter[str]):
    """Calls of "analyze", "factor" and "solve", of all engines together."""


def count(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """From now on, until the test ends."""
    counts = Counts()

    def counted(cls: type, name: str) -> None:
        original = getattr(cls, name)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(self, *args, **kwargs)

        monkeypatch.setattr(cls, name, method)

    for name in _engines.engine_names():
        engine = _engines.engine_named(name)
        counted(type(engine), "analyze")
        for cls in vars(sys.modules[type(engine).__module__]).values():
            if isinstance(cls, type) and cls.__module__ == type(engine).__module__:
                if hasattr(cls, "analyze_values"):  # a Symbolic
                    counted(cls, "factor")
                elif hasattr(cls, "solve") and not cls.__name__.startswith("_"):
                    counted(cls, "solve")
    return counts


def installed(*kinds: str) -> list[str]:
    """The engines that are installed here and take real double matrices of all these kinds, on the CPU."""
    import torch

    return [
        name
        for name in _engines.installed_on(torch.device("cpu"))
        if all(_engines.engine_named(name).supports(kind, torch.float64) for kind in kinds)  # type: ignore[arg-type]
    ]
