"""BLAS and LAPACK of SciPy, by address, and the number of threads that they use.

OpenBLAS with two threads takes a hundred times longer for small matrices than with one, and several
threads of Python that each call it with threads wait for each other. While kernels run, OpenBLAS
therefore has one thread. That number belongs to the whole process: other threads that call SciPy
meanwhile get correct results, by one thread. PyTorch has its own BLAS.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from ..._torch.fork_safe_lock import ForkSafeLock
from .compilation import digest

_ROUTINES = {
    "cython_blas": ("dgemm", "dtrsm", "dsyrk", "dsyr2k"),
    "cython_lapack": ("dpotrf", "dpotri"),
}


@cache
def blas_table() -> tuple[Any, ...]:
    """A zero of the type of BLAS's integers, the addresses of the routines, and the digest."""
    import scipy.linalg.cython_blas
    import scipy.linalg.cython_lapack

    modules = {name: getattr(scipy.linalg, name) for name in _ROUTINES}
    found = [_find(modules[name], routine) for name in _ROUTINES for routine in _ROUTINES[name]]
    width = np.int32(0) if all(is_short for _, is_short in found) else np.int64(0)
    return width, *(address for address, _ in found), _find_yield(), digest()


def _find(module: Any, routine: str) -> tuple[int, bool]:
    """The address of a routine, and whether its integers have 32 bits."""
    capsule = module.__pyx_capi__[routine]
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature = name(capsule)
    return int(pointer(capsule, signature)), b" int *" in signature


def _find_yield() -> int:
    """The address of a function by which a thread gives way to others; 0 if there is none."""
    try:
        if sys.platform == "win32":
            give_way = ctypes.WinDLL("kernel32").SwitchToThread
        else:
            give_way = ctypes.CDLL(None).sched_yield
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(give_way, ctypes.c_void_p).value or 0


@cache
def _thread_functions() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """The functions of OpenBLAS that get and set its number of threads; None for another BLAS."""
    import scipy.linalg.cython_blas

    library = ctypes.CDLL(scipy.linalg.cython_blas.__file__)
    for prefix in ("scipy_openblas", "openblas"):
        for suffix in ("", "64_"):
            get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
            set_to = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
            if get is not None and set_to is not None:
                return get, set_to
    return None


class _Users:
    """How many calls have set the number of threads to one, and what it was before."""

    def __init__(self) -> None:
        self.lock = ForkSafeLock()
        self.count, self.before = 0, 1

    def change(self, by: int) -> None:
        functions = _thread_functions()
        if functions is None:
            return
        get, set_to = functions
        with self.lock:
            if self.count == 0:
                self.before = get()
            self.count += by
            if self.count in (0, by):
                set_to(1 if self.count else self.before)

    def forget(self) -> None:
        """In a forked child, restore what threads of the parent have changed."""
        if self.count:
            self.change(-self.count)


_users = _Users()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_users.forget)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let OpenBLAS use one thread in each call."""
    _users.change(1)
    try:
        yield
    finally:
        _users.change(-1)
