"""Compiling the kernels by Numba, and finding what was compiled before.

Numba keeps compiled functions in a folder beside the source, or, where that cannot be written to,
in one of the user (or the one that NUMBA_CACHE_DIR names). It notices changes of the file that a
function is in, but not of the files whose functions are called there. So only the functions that
Python calls are kept, each of which includes what it calls, and the type of an argument has the
digest of all files in its name: a function is found again only if no file has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

# The order of sums may change, so that they are vectorised; NaN and infinity keep their meaning.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc"}}


def compile_inner(function: Callable[..., Any]) -> Any:
    """Compile a function that only compiled functions call."""
    return njit(**_OPTIONS)(function)


def compile_entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, and keep it for later processes if that is possible.

    One of its arguments has the type of `digest`.
    """
    try:
        return njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # there is no folder that can be written to
        return njit(**_OPTIONS)(function)


def digest() -> Any:
    """An empty array, whose type differs wherever a file of this folder differs."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    content = b"".join(file.read_bytes() for file in files)
    return np.empty(0, dtype=[(f"digest_{hashlib.sha256(content).hexdigest()[:16]}", "i1")])
