from __future__ import annotations

from collections.abc import Iterator

import pytest
from gpu_cases import HAS_GPU

import sparse_solver as ss


@pytest.fixture(autouse=True)
def _engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """cuDSS on the GPU, or its simulation where there is none; no error may stay behind."""
    if not HAS_GPU:
        request.getfixturevalue("cudss")
    yield
    ss.synchronize()
