"""Counts of engine calls, under the keys "analyze", "factor" and "solve"; see `_testing`."""

from __future__ import annotations

from collections import Counter

import pytest

from sparse_solver import _testing
from sparse_solver._testing import installed_engines as installed

__all__ = ["count", "installed"]


def count(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count from now on, until the test ends."""
    counts: Counter[str] = Counter()
    for cls, name, key in list(_testing.engine_methods()):
        key = "solve" if key == "substitute" else key
        monkeypatch.setattr(cls, name, _testing.counted(getattr(cls, name), key, counts))
    return counts
