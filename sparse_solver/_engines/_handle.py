"""A handle of PARDISO: an analysis, and the numeric factorisations that share it, in slots ("mnum").

A slot goes back when the factor that it belongs to dies. Numbers in comments are the manual's, which counts from one:
iparm(24) is ``iparm[23]``.
"""

from __future__ import annotations

import os
import weakref
from ctypes import addressof, byref, c_int64, memmove, sizeof

import torch
from torch import Tensor

from .._layout import Layout
from .._sync import ForkSafeLock
from ._idle import RecentlyUsed
from ._mkl import Library
from ._settings import ANALYSIS, FACTORIZATION, RELEASE_ALL, SOLVE, engine_error

# Live factors that one analysis serves, at most; the careful method reserves room for the pivots of them all.
_FACTORS_PER_HANDLE, _CAREFUL_FACTORS_PER_HANDLE = 1024, 16
# What the dead factors of one handle may hold. A factorisation in their memory is up to a fifth faster than one that
# has to ask for its own, page by page; for large factors it makes no difference, and they are released at once.
_IDLE_BYTES = 256 * 2**20

recently_used = RecentlyUsed(4)  # handles that may have idle memory

FORWARD, _RELEASE_FACTOR = 331, 0  # phases

# PARDISO follows torch.set_num_threads. Two things force the hand:
# The two-level method lays out its data for the threads of the analysis. Any later phase with another number of
# threads crashes or, worse, gives wrong numbers without an error (seen with MKL 2026.2), so that a handle keeps to the
# threads of its analysis, and another number of threads takes another handle.
# A child of a process that has solved with several threads hangs inside the OpenMP runtime, whose threads did not
# survive the fork, unless it solves with one; and handles from before the fork, which another thread of the parent
# may have been writing to, are not touched in the child: it makes its own.
_forked = False


def _threads() -> int:
    return 1 if _forked else torch.get_num_threads()


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _Native:
    """PARDISO's arguments that stay the same from call to call, and the call itself; one thread at a time."""

    def __init__(self, library: Library, matrix_type: int, layout: Layout, n: int, iparm: list[int]):
        self.library, self.layout, self.n = library, layout, n  # the layout owns the indices that are pointed to
        self.threads, self.pid = _threads(), os.getpid()
        self.slots = _CAREFUL_FACTORS_PER_HANDLE if iparm[55] else _FACTORS_PER_HANDLE
        self.iparm = (c_int64 * 64)()
        self._given = (c_int64 * 64)(*iparm)
        # Made once: on small systems they would take as long as the call.
        self._slot, self._phase, self._count, self._error = c_int64(), c_int64(), c_int64(), c_int64()
        self._pt = (c_int64 * 64)()
        self._before = (addressof(self._pt), *map(byref, (c_int64(self.slots), self._slot, c_int64(matrix_type))))
        self._between = (byref(self._phase), byref(c_int64(n)))
        self._pattern = (layout.crow.data_ptr(), layout.col.data_ptr(), None)
        self._settings = (byref(self._count), addressof(self.iparm), byref(c_int64(0)))

    def call(
        self, phase: int, slot: int = 1, values: Tensor | None = None, rhs: Tensor | None = None, x: Tensor | None = None,
        transpose: bool = False,
    ) -> int:  # fmt: skip
        """Runs one phase and returns the error code; `iparm` holds what PARDISO reports."""
        memmove(self.iparm, self._given, sizeof(self._given))
        self.iparm[11] = 2 if transpose else 0  # (12): solve with the transpose
        self._phase.value, self._slot.value = phase, slot
        self._count.value = 1 if rhs is None else rhs.shape[0]
        self._error.value = 0
        before = self.library.set_threads(self.threads)
        try:
            self.library.pardiso(
                *self._before, *self._between, None if values is None else values.data_ptr(), *self._pattern,
                *self._settings, None if rhs is None else rhs.data_ptr(), None if x is None else x.data_ptr(),
                byref(self._error),
            )  # fmt: skip
        finally:
            self.library.set_threads(before)
        return self._error.value

    @property
    def is_lost(self) -> bool:
        """Whether this is a handle of the parent process."""
        return self.pid != os.getpid()

    def release(self, phase: int, slot: int = 1) -> None:
        if not self.is_lost:
            self.call(phase, slot)


class Handle:
    """An analysis, and a slot for each live factor; one thread at a time."""

    def __init__(self, library: Library, matrix_type: int, layout: Layout, n: int, iparm: list[int]):
        self._native = _Native(library, matrix_type, layout, n, iparm)
        self._lock = ForkSafeLock()
        self._free = list(range(self._native.slots, 0, -1))
        self._idle: list[int] = []  # slots of dead factors that still have their memory
        self._idle_at_most = 0
        weakref.finalize(self, self._native.release, RELEASE_ALL).atexit = False

    @property
    def is_lost(self) -> bool:
        return self._native.is_lost

    def analyze(self, values: Tensor | None) -> int | None:
        """Makes the analysis; returns the predicted entries of the factor."""
        with self._lock:
            code = self._native.call(ANALYSIS, values=values)
        if code:
            raise engine_error(code, "analysis")
        entries = self._native.iparm[17]
        self._entries = max(entries, self._native.n)
        return entries if entries > 0 else None

    def factor(self, slot: int, values: Tensor) -> tuple[int, list[int]]:
        """Factors into the slot; returns the error code and iparm."""
        with self._lock:
            code = self._native.call(FACTORIZATION, slot, values)
            iparm = list(self._native.iparm)
            if code:
                self._native.release(_RELEASE_FACTOR, slot)
            else:  # about; the two-level method does not tell how much memory it takes
                self._idle_at_most = _IDLE_BYTES // (self._entries * values.element_size())
        self._trim_if_unlocked()
        recently_used.use(self)
        return code, iparm

    def solve(self, slot: int, values: Tensor, rhs: Tensor, transpose: bool, phase: int = SOLVE) -> Tensor:
        x = torch.empty_like(rhs)
        with self._lock:
            code = self._native.call(phase, slot, values, rhs, x, transpose)
        self._trim_if_unlocked()
        if code:
            raise engine_error(code, "substitution")
        return x

    def take(self) -> int | None:
        """A slot, for a factorisation with the threads of this call; None if there is none."""
        if self._native.is_lost or self._native.threads != _threads():
            return None
        with self._lock:
            return self._idle.pop() if self._idle else self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """Runs whenever and wherever a factor dies, also inside a garbage collection, so that it must not wait for the
        lock, nor enter a handle that this very thread is using: whoever holds the lock releases the slot afterwards."""
        self._idle.append(slot)
        self._trim_if_unlocked()

    def release_idle(self) -> None:
        """Gives the memory of dead factors back, until the next factorisation."""
        self._idle_at_most = 0
        self._trim_if_unlocked()

    def _trim_if_unlocked(self) -> None:
        while len(self._idle) > self._idle_at_most and self._lock.acquire(blocking=False):
            try:
                while len(self._idle) > self._idle_at_most:
                    slot = self._idle.pop()
                    self._native.release(_RELEASE_FACTOR, slot)
                    self._free.append(slot)
            finally:
                self._lock.release()
