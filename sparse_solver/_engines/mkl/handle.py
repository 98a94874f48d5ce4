"""A handle of PARDISO: an analysis, and the factorisations that share it, in slots ("mnum").

A slot is given back when its factor is released. Numbers in comments are the manual's, which counts
from one: iparm(24) is ``iparm[23]``.

The two-level method arranges its data for the threads of the analysis: a later phase with another
number of threads crashes or, worse, gives wrong numbers without an error (MKL 2026.2). So a handle
keeps the number of threads of its analysis, and another number takes another handle.

The threads of OpenMP do not survive a fork: a child of a process that has solved with several
threads hangs unless it solves with one. It must not touch handles of its parent, to which another
thread may have been writing, so it makes its own.
"""

from __future__ import annotations

import os
import weakref
from ctypes import addressof, byref, c_int64, memmove, sizeof
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._sparse.triangle import Arrangement
from ..._torch.fork_safe_lock import ForkSafeLock
from ..idle_memory import RecentlyUsed
from .library import Library
from .parameters import ANALYSIS, FACTORIZATION, RELEASE_ALL, SOLVE, engine_error

# The most living factors that one handle serves; the careful method reserves memory for the pivots
# of all of them.
_FACTORS_PER_HANDLE, _CAREFUL_FACTORS_PER_HANDLE = 1024, 16
# The memory that the released factors of one handle may keep. A factorisation in such memory is up
# to a fifth faster than one that obtains its own, page by page. For large factors the difference
# vanishes, and their memory is released at once.
_IDLE_BYTES = 256 * 2**20

recently_used = RecentlyUsed(4)  # the handles that may keep idle memory

FORWARD, BACKWARD, _RELEASE_FACTOR = 331, 333, 0  # phases

_forked = False


def most_threads() -> int:
    """The threads that a call may use."""
    return 1 if _forked else torch.get_num_threads()


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class Settings:
    """What all calls of a handle share.

    arrangement, n : the pattern, and its rows
    mtype, iparm : the type of the matrix, and the parameters, as the manual has them
    """

    library: Library
    mtype: int
    arrangement: Arrangement
    n: int
    iparm: list[int]
    threads: int


class _Native:
    """The native call, and its arguments that stay the same; for one thread at a time."""

    def __init__(self, settings: Settings, order: Tensor | None = None):
        iparm, arrangement, n = settings.iparm, settings.arrangement, settings.n
        # The settings own the indices that are pointed to.
        self._shared, self.library, self.n = settings, settings.library, n
        self.threads, self.pid = settings.threads, os.getpid()
        self.slots = _CAREFUL_FACTORS_PER_HANDLE if iparm[55] else _FACTORS_PER_HANDLE
        self.iparm = (c_int64 * 64)()
        self._given = (c_int64 * 64)(*iparm)
        # Made once: for a small system, making them takes as long as the call.
        self._slot, self._phase, self._count, self._error = (c_int64() for _ in range(4))
        self._pt = (c_int64 * 64)()
        counts = c_int64(self.slots), self._slot, c_int64(settings.mtype), self._phase, c_int64(n)
        self._before = (addressof(self._pt), *map(byref, counts))
        given = arrangement.crow, arrangement.col, order
        self._pattern = tuple(None if array is None else array.data_ptr() for array in given)
        self._settings = (byref(self._count), addressof(self.iparm), byref(c_int64(0)))

    def call(
        self,
        phase: int,
        slot: int = 1,
        values: Tensor | None = None,
        rhs: Tensor | None = None,
        x: Tensor | None = None,
        transpose: bool = False,
    ) -> int:
        """Run one phase and return the error code; `iparm` holds what PARDISO reports."""
        memmove(self.iparm, self._given, sizeof(self._given))
        self.iparm[11] = 2 if transpose else 0  # (12): solve with the transpose
        self._phase.value, self._slot.value = phase, slot
        self._count.value = 1 if rhs is None else rhs.shape[0]
        self._error.value = 0
        a, b, solution = (None if t is None else t.data_ptr() for t in (values, rhs, x))
        before = self.library.set_threads(self.threads)
        try:
            error = byref(self._error)
            self.library.pardiso(
                *self._before, a, *self._pattern, *self._settings, b, solution, error
            )
        finally:
            self.library.set_threads(before)
        return self._error.value

    @property
    def is_lost(self) -> bool:
        """Whether this handle belongs to the parent process."""
        return self.pid != os.getpid()

    def release(self, phase: int, slot: int = 1) -> None:
        if not self.is_lost:
            self.call(phase, slot)


def find_order(settings: Settings) -> Tensor:
    """(n,) the row at each step of the elimination, with iparm(5) set to report it."""
    order = torch.empty(settings.n, dtype=torch.int64)
    native = _Native(settings, order)
    code = native.call(ANALYSIS)
    native.release(RELEASE_ALL)
    if code:
        raise engine_error(code, "analysis")
    return order


class Handle:
    """An analysis, and a slot for each living factor; used by one thread at a time."""

    def __init__(self, settings: Settings):
        self._native = _Native(settings)
        self.is_improved = settings.iparm[23] == 10  # (24): the improved two-level factorisation
        self._lock = ForkSafeLock()
        self._free = list(range(self._native.slots, 0, -1))
        self._idle: list[int] = []  # slots of released factors that still have their memory
        self._max_idle = 0
        weakref.finalize(self, self._native.release, RELEASE_ALL).atexit = False

    @property
    def is_lost(self) -> bool:
        """Whether this handle belongs to the parent process."""
        return self._native.is_lost

    @property
    def threads(self) -> int:
        """The threads of all its calls."""
        return self._native.threads

    def analyze(self, values: Tensor | None) -> int | None:
        """Make the analysis; return the predicted number of entries of the factor."""
        with self._lock:
            code = self._native.call(ANALYSIS, values=values)
        if code:
            raise engine_error(code, "analysis")
        entries = self._native.iparm[17]
        self._entries = max(entries, self._native.n)
        return entries if entries > 0 else None

    def factor(self, slot: int, values: Tensor) -> tuple[int, list[int]]:
        """Factor into the slot; return the error code and iparm."""
        with self._lock:
            code = self._native.call(FACTORIZATION, slot, values)
            iparm = list(self._native.iparm)
            if code:
                self._native.release(_RELEASE_FACTOR, slot)
            else:  # an estimate, since the two-level method does not report its memory
                self._max_idle = _IDLE_BYTES // (self._entries * values.element_size())
        self._trim_if_unlocked()
        recently_used.use(self)
        return code, iparm

    def substitute(
        self, slot: int, values: Tensor, rhs: Tensor, transpose: bool, phase: int = SOLVE
    ) -> Tensor:
        """Substitute with the factor in the slot, for the rows of `rhs`."""
        assert rhs.dtype == values.dtype  # else PARDISO would write beyond the arrays
        x = torch.empty_like(rhs)
        with self._lock:
            code = self._native.call(phase, slot, values, rhs, x, transpose)
        self._trim_if_unlocked()
        if code:
            raise engine_error(code, "substitution")
        return x

    def take(self, threads: int) -> int | None:
        """A slot for a factorisation with so many threads; None if there is none."""
        if self._native.is_lost or self._native.threads != threads:
            return None
        with self._lock:
            return self._idle.pop() if self._idle else self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """Give back the slot of a released factor.

        A garbage collection may release a factor while this very thread holds the lock. So this
        method does not wait for the lock, whose holder trims the slots after releasing it.
        """
        self._idle.append(slot)
        self._trim_if_unlocked()

    def release_idle(self) -> None:
        """Release the memory of released factors, and keep none until the next factorisation."""
        self._max_idle = 0
        self._trim_if_unlocked()

    def _trim_if_unlocked(self) -> None:
        while len(self._idle) > self._max_idle and self._lock.acquire(blocking=False):
            try:
                while len(self._idle) > self._max_idle:
                    slot = self._idle.pop()
                    self._native.release(_RELEASE_FACTOR, slot)
                    self._free.append(slot)
            finally:
                self._lock.release()
