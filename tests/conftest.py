from __future__ import annotations

import pytest
import torch

import sparse_solver as ss


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forget_patterns() -> None:
    """Each test analyses its own patterns, whatever ran before it."""
    ss.clear_cache()
