"""Loading the kernels when they are first used, since Numba takes a second to be imported."""

from __future__ import annotations

from types import ModuleType

from ...errors import EngineUnavailableError

_INSTALL = "pip install sparse-solver[gaussian]"


def load() -> ModuleType:
    """The module `factor`; raises EngineUnavailableError where Numba is missing."""
    try:
        from . import factor
    except ImportError as error:
        raise EngineUnavailableError(
            f"the supernodal Cholesky factorisation, which log-determinants and selected inverses "
            f"use, needs Numba, which cannot be imported ({error}): {_INSTALL}",
            engine="supernodal",
            hint=_INSTALL,
        ) from error
    return factor
