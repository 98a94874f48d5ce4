"""Loading the kernels when they are first used, since Numba takes a second to be imported."""

from __future__ import annotations

import sys
from types import ModuleType

from ...errors import EngineUnavailableError

INSTALL = 'pip install "sparse-solver[gaussian]"'


def load() -> ModuleType:
    """The module `factor`; raises EngineUnavailableError where Numba is missing."""
    try:
        from . import factor
    except ImportError as error:
        raise EngineUnavailableError(
            f"the supernodal Cholesky factorisation, which log-determinants and selected inverses "
            f"use, needs Numba, which cannot be imported ({error}): {INSTALL}",
            engine="supernodal",
            hint=INSTALL,
        ) from error
    return factor


def is_compiled() -> bool:
    """Whether this process has compiled the factorisation, or loaded it from the cache."""
    module = sys.modules.get(f"{__package__}.elimination")
    return module is not None and bool(module.factor.signatures)
