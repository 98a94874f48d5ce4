"""Compiling the kernels by Numba, and finding what was compiled before.

Numba keeps compiled functions in a folder beside the source, or, where that cannot be written to,
in one of the user (or the one that NUMBA_CACHE_DIR names). It notices changes of the file that a
function is in, but not of the files whose functions are called there. So only the functions that
Python calls are kept, each of which includes what it calls, and the type of an argument has the
digest of all files in its name: a function is found again only if no file has changed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numba.core import event

# The order of sums may change, so that they are vectorised; NaN and infinity keep their meaning.
# C functions that call the kernels are not needed, and would be compiled.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc"},
    "no_cfunc_wrapper": True,
}
_decorate: Any = njit  # whose types do not know all options


def compile_inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled functions call."""
    return _decorate(no_cpython_wrapper=True, **_OPTIONS)(function)


def compile_entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, and keep it for later processes if that is possible.

    One of its arguments has the type of `digest`.
    """
    try:
        return _decorate(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # there is no folder that can be written to
        return _decorate(**_OPTIONS)(function)


@cache
def digest() -> Any:
    """An empty array, whose type differs wherever a file of this folder differs."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    content = b"".join(file.read_bytes() for file in files)
    return np.empty(0, dtype=[(f"digest_{hashlib.sha256(content).hexdigest()[:16]}", "i1")])


class _Announcement(event.Listener):
    """One line on stderr when Numba begins to compile for this package."""

    def on_start(self, started: Any) -> None:
        function = started.data["dispatcher"].py_func
        if function.__module__.startswith(__name__.rpartition(".")[0]) and self in _waiting:
            _waiting.clear()
            print(
                "sparse_solver: Numba compiles the supernodal Cholesky factorisation, which takes "
                "some twenty seconds; later processes use what is compiled now",
                file=sys.stderr,
                flush=True,
            )

    def on_end(self, ended: Any) -> None:
        """Only the beginning is told."""


_waiting = [_Announcement()]
event.register("numba:compile", _waiting[0])
