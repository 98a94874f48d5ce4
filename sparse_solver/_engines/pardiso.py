"""oneMKL PARDISO: supernodal Cholesky, LDLᵀ and LU, from the `mkl` wheel, called through ctypes.

One handle holds the analysis of a pattern and up to `_FACTORS_PER_HANDLE` numeric factorisations ("mnum"), which
share it. A slot is given back, and its memory released, when the `PardisoFactor` that it belongs to dies.

Two kinds of analysis: the first looks at the pattern alone and serves all values. Where it leaves pivots so small
that PARDISO perturbs them, `retry` makes one with scaling and weighted matching, which looks at the values too.

Numbers in comments are the manual's, which counts from one: iparm(24) is ``iparm[23]``.
Source: Intel oneMKL Developer Reference for C, "oneMKL PARDISO - Parallel Direct Sparse Solver Interface".
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import sys
import weakref
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_void_p
from ctypes.util import find_library
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .._layout import Layout, layout_of
from .._structure import Structure
from .._sync import ForkSafeLock
from ..errors import EngineError, SingularMatrixError
from ._protocol import DTYPES, Availability, Kind, is_hermitian, not_positive_definite

LIBRARY_VARIABLE = "SPARSE_SOLVER_MKL"  # the path of libmkl_rt, for an MKL that is not the wheel's

# Live factors that one analysis serves, at most. Room for one costs nothing but address space, for its pivots: a
# number a row, of which a handle may reserve this many.
_FACTORS_PER_HANDLE = 4096
_PIVOTS_PER_HANDLE = 2**26

_ANALYSIS, _FACTORIZATION, _SOLVE, _RELEASE_FACTOR, _RELEASE_ALL = 11, 22, 33, 0, -1

_MESSAGES = {
    -1: "input inconsistent",
    -2: "not enough memory",
    -3: "reordering problem",
    -4: "zero pivot",
    -5: "unclassified internal error",
    -6: "reordering failed",
    -7: "diagonal matrix is singular",
    -8: "32-bit integer overflow",
    -9: "not enough memory for out-of-core",
    -10: "error opening out-of-core files",
    -11: "error reading or writing out-of-core files",
    -12: "pardiso_64 called from a 32-bit library",
    -13: "interrupted by the progress function",
    -15: "internal error which can appear for iparm(24)=10 and iparm(13)=1",
}


class _Library:
    """The functions of libmkl_rt that are used here, with their argument types declared."""

    def __init__(self, path: str):
        self.path = path
        runtime = ctypes.CDLL(path)
        self.pardiso = runtime.pardiso_64
        integer = POINTER(c_int64)
        #                     pt        maxfct   mnum     mtype    phase    n        a
        self.pardiso.argtypes = [c_void_p, integer, integer, integer, integer, integer, c_void_p,
                                 # ia       ja        perm      nrhs     iparm     msglvl   b         x         error
                                 c_void_p, c_void_p, c_void_p, integer, c_void_p, integer, c_void_p, c_void_p, integer]  # fmt: skip
        self.pardiso.restype = None
        self.set_threads = runtime.MKL_Set_Num_Threads_Local
        self.set_threads.argtypes, self.set_threads.restype = [c_int], c_int
        version = ctypes.create_string_buffer(200)
        runtime.mkl_get_version_string.argtypes, runtime.mkl_get_version_string.restype = [c_char_p, c_int], None
        runtime.mkl_get_version_string(version, len(version))
        self.version = version.value.decode().strip()
        self._get_diagonal: Callable[..., None] | None = None
        self._looked_for_diagonal = False

    def smallest_pivot(self, pt: ctypes.Array[c_int64], slot: int, n: int, dtype: torch.dtype) -> float | None:
        """The smallest pivot of a Cholesky factorisation relative to its diagonal entry; None if unavailable."""
        if not self._looked_for_diagonal:
            # libmkl_rt exports the function for 32-bit integers only, and a handle of pardiso_64 crashes it. The
            # 64-bit one is in the interface library beside it, which can be loaded once libmkl_rt has loaded the core.
            self._looked_for_diagonal = True
            try:
                get = ctypes.CDLL(self.path.replace("mkl_rt", "mkl_intel_ilp64")).pardiso_getdiag
                get.argtypes = [c_void_p, c_void_p, c_void_p, POINTER(c_int64), POINTER(c_int64)]
                get.restype = None
                self._get_diagonal = get
            except (OSError, AttributeError):
                pass
        if self._get_diagonal is None:
            return None
        # Both in the order of elimination, which is not the caller's.
        error = c_int64(0)
        factored, original = torch.zeros((2, n), dtype=dtype, device="cpu")
        self._get_diagonal(
            ctypes.addressof(pt), factored.data_ptr(), original.data_ptr(), byref(c_int64(slot)), byref(error)
        )
        return float((factored.real / original.real).min()) if error.value == 0 else None


@cache
def _library() -> _Library | str:
    """The loaded library, or why there is none."""
    wanted = os.environ.get(LIBRARY_VARIABLE)
    candidates = [wanted] if wanted else _candidates()
    problems = []
    for path in candidates:
        try:
            return _Library(path)
        except (OSError, AttributeError) as error:
            problems.append(f"{path}: {error}")
    if wanted:
        return f"{LIBRARY_VARIABLE}={wanted} cannot be loaded ({problems[0]})"
    if problems:
        return f"libmkl_rt cannot be loaded ({'; '.join(problems)}); reinstall it: pip install mkl"
    return "libmkl_rt was not found; pip install mkl (x86-64 Linux and Windows), or name it in " + LIBRARY_VARIABLE


def _candidates() -> list[str]:
    found: list[str] = []
    try:
        for file in importlib.metadata.files("mkl") or []:
            if file.name.startswith(("libmkl_rt.so", "mkl_rt.")) and file.name.endswith(
                (".dll",) if os.name == "nt" else ""
            ):
                found.append(str(Path(str(file.locate())).resolve()))
    except importlib.metadata.PackageNotFoundError:
        pass
    folder = Path(sys.prefix, "Library", "bin") if os.name == "nt" else Path(sys.prefix, "lib")
    found += [str(path) for path in sorted(folder.glob("*mkl_rt*"), reverse=True)]
    anywhere = find_library("mkl_rt")
    return list(dict.fromkeys([path for path in found if os.path.exists(path)] + ([anywhere] if anywhere else [])))


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
    """PARDISO's arguments that stay the same from call to call, and the call itself."""

    def __init__(self, library: _Library, matrix_type: int, layout: Layout, n: int, iparm: list[int]):
        self.library, self.matrix_type, self.layout, self.n, self.iparm = library, matrix_type, layout, n, iparm
        self.pt = (c_int64 * 64)()
        self.threads, self.pid = _threads(), os.getpid()
        self.slots = max(4, min(_FACTORS_PER_HANDLE, _PIVOTS_PER_HANDLE // n))

    def call(
        self, phase: int, slot: int = 1, values: Tensor | None = None, rhs: Tensor | None = None, x: Tensor | None = None,
        transpose: bool = False,
    ) -> tuple[int, list[int]]:  # fmt: skip
        """Runs one phase; returns the error code and what iparm holds afterwards."""
        error = c_int64(0)
        iparm = (c_int64 * 64)(*self.iparm)
        iparm[11] = 2 if transpose else 0  # (12): solve with the transpose
        before = self.library.set_threads(self.threads)
        try:
            self.library.pardiso(
                ctypes.addressof(self.pt), byref(c_int64(self.slots)), byref(c_int64(slot)),
                byref(c_int64(self.matrix_type)), byref(c_int64(phase)), byref(c_int64(self.n)),
                None if values is None else values.data_ptr(), self.layout.crow.data_ptr(), self.layout.col.data_ptr(),
                None, byref(c_int64(1 if rhs is None else rhs.shape[0])), ctypes.addressof(iparm), byref(c_int64(0)),
                None if rhs is None else rhs.data_ptr(), None if x is None else x.data_ptr(), byref(error),
            )  # fmt: skip
        finally:
            self.library.set_threads(before)
        return error.value, list(iparm)

    @property
    def is_lost(self) -> bool:
        """Whether this is a handle of the parent process."""
        return self.pid != os.getpid()

    def release(self, phase: int, slot: int = 1) -> None:
        if not self.is_lost:
            self.call(phase, slot)


class _Handle:
    """An analysis, and a slot for each live factor; one thread at a time."""

    def __init__(self, library: _Library, matrix_type: int, layout: Layout, n: int, iparm: list[int]):
        self.layout = layout
        self._native = _Native(library, matrix_type, layout, n, iparm)
        self._lock = ForkSafeLock()
        self._free = list(range(self._native.slots, 0, -1))
        self._dead: list[int] = []
        weakref.finalize(self, self._native.release, _RELEASE_ALL).atexit = False

    @property
    def is_lost(self) -> bool:
        return self._native.is_lost

    def analyze(self, values: Tensor | None) -> int | None:
        """Makes the analysis; returns the predicted entries of the factor."""
        with self._lock:
            code, iparm = self._native.call(_ANALYSIS, values=values)
        if code:
            raise _error(code, "analysis")
        return iparm[17] if iparm[17] > 0 else None

    def factor(self, slot: int, values: Tensor, pivots: bool) -> tuple[int, list[int], float | None]:
        """Factors into the slot; returns the error code, iparm, and the smallest pivot if asked for and to be had."""
        native, smallest = self._native, None
        with self._lock:
            self._release_dead()
            code, iparm = native.call(_FACTORIZATION, slot, values)
            if pivots and not code:  # at once: when another slot has been released, it reads freed memory
                smallest = native.library.smallest_pivot(native.pt, slot, native.n, values.dtype)
        self._release_if_idle()
        return code, iparm, smallest

    def solve(self, slot: int, values: Tensor, rhs: Tensor, transpose: bool) -> Tensor:
        x = torch.empty_like(rhs)
        with self._lock:
            code, _ = self._native.call(_SOLVE, slot, values, rhs, x, transpose)
        self._release_if_idle()
        if code:
            raise _error(code, "substitution")
        return x

    def take(self) -> int | None:
        """A free slot, for a factorisation with the threads of this call; None if there is none."""
        if self._native.is_lost or self._native.threads != _threads():
            return None
        with self._lock:
            self._release_dead()
            return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """Runs whenever and wherever a factor dies, also inside a garbage collection, so that it must not wait for the
        lock, nor enter a handle that this very thread is using: whoever holds the lock releases the slot afterwards."""
        self._dead.append(slot)
        self._release_if_idle()

    def _release_if_idle(self) -> None:
        if self._dead and self._lock.acquire(blocking=False):
            try:
                self._release_dead()
            finally:
                self._lock.release()

    def _release_dead(self) -> None:
        while self._dead:
            slot = self._dead.pop()
            self._native.release(_RELEASE_FACTOR, slot)
            self._free.append(slot)


def _matrix_type(kind: Kind, dtype: torch.dtype) -> int:
    real = {"spd": 2, "symmetric": -2, "hermitian": -2, "general": 11}
    complex_ = {"spd": 4, "symmetric": 6, "hermitian": -4, "general": 13}
    return (complex_ if dtype.is_complex else real)[kind]


def _parameters(kind: Kind, dtype: torch.dtype, matching: bool) -> list[int]:
    single = dtype in (torch.float32, torch.complex64)
    iparm = [0] * 64
    iparm[0] = 1  # (1): these values instead of the defaults
    iparm[1] = 3  # (2): parallel nested dissection
    # (10): pivots below 10^-this times the norm are raised to it. The manual's values for double precision; for
    # single precision they would lie below the rounding error.
    iparm[9] = {("general", False): 13, ("general", True): 6}.get((kind, single), 4 if single else 8)
    iparm[10] = iparm[12] = int(matching)  # (11), (13): scaling and weighted matching
    iparm[17] = -1  # (18): report the entries of the factor
    iparm[20] = 1  # (21): 1-by-1 and 2-by-2 pivots
    # (24): two-level factorisation, without which two right-hand sides cost twenty times one; it excludes matching.
    iparm[23] = 0 if matching else 1
    iparm[27] = int(single)  # (28)
    iparm[34] = 1  # (35): indices count from zero
    iparm[55] = int(kind == "spd")  # (56): keep the pivots for pardiso_getdiag
    return iparm


class PardisoSymbolic:
    """`analysed`: the values to scale and match by; None: an analysis of the pattern alone."""

    def __init__(
        self, library: _Library, layout: Layout, n: int, kind: Kind, dtype: torch.dtype, analysed: Tensor | None = None
    ):
        self._library, self.layout, self._n, self.kind, self._dtype = library, layout, n, kind, dtype
        self._analysed = analysed
        self.nnz: int | None = None
        self._lock = ForkSafeLock(reentrant=True)
        self._handles = [self._analyze()]

    def _analyze(self) -> _Handle:
        parameters = _parameters(self.kind, self._dtype, matching=self._analysed is not None)
        handle = _Handle(self._library, _matrix_type(self.kind, self._dtype), self.layout, self._n, parameters)
        self.nnz = handle.analyze(self._analysed)
        return handle

    def factor_nnz(self, canonical: Tensor) -> int | None:
        return self.nnz

    def take(self) -> tuple[_Handle, int]:
        """A handle for the threads of this call, and a free slot in it."""
        with self._lock:
            for handle in self._handles:
                if (slot := handle.take()) is not None:
                    return handle, slot
            self._handles.append(self._analyze())
            return self.take()

    def _gather(self, canonical: Tensor) -> Tensor:
        return self.layout.gather(canonical, is_hermitian(self.kind, self._dtype))

    def factor(self, canonical: Tensor) -> PardisoFactor:
        return PardisoFactor(self, self._gather(canonical))

    def retry(self, canonical: Tensor) -> PardisoSymbolic | None:
        values = self._gather(canonical)
        if self.kind == "spd" or (self._analysed is not None and torch.equal(values, self._analysed)):
            return None
        return PardisoSymbolic(self._library, self.layout, self._n, self.kind, self._dtype, values)


class PardisoFactor:
    flops: int | None = None  # the two-level method does not count them

    def __init__(self, symbolic: PardisoSymbolic, values: Tensor):
        # PARDISO keeps a pointer to `values` for its iterative refinement.
        self._symbolic, self.values, self.layout = symbolic, values, symbolic.layout
        self.stable = symbolic.kind == "spd"  # LU and LDLᵀ pivot within limits
        self._lock = ForkSafeLock()
        self._place = self._factor()

    def _factor(self) -> tuple[_Handle, int]:
        """Factors into a free slot of a handle for the threads of this call."""
        handle, slot = self._symbolic.take()
        weakref.finalize(self, handle.give_back, slot).atexit = False
        kind = self._symbolic.kind
        code, iparm, self.smallest_pivot = handle.factor(slot, self.values, pivots=kind == "spd")
        if code == -4 and kind == "spd":
            raise not_positive_definite("pardiso", "Cholesky", iparm[29] - 1)  # (30): the equation, counted from one
        if code:
            raise _error(code, "factorisation")
        self.nnz = self._symbolic.nnz
        self.memory_bytes = iparm[16] * 1024 or None  # (17): kilobytes for factorisation and solution
        self.perturbed_pivots = iparm[13]
        return handle, slot

    def solve(self, rhs: Tensor, transpose: bool) -> Tensor:
        if self._place[0].is_lost:
            with self._lock:
                if self._place[0].is_lost:
                    self._place = self._factor()
        handle, slot = self._place
        return handle.solve(slot, self.values, rhs, transpose)


def _error(code: int, phase: str) -> Exception:
    if code in (-4, -7):
        return SingularMatrixError(f"PARDISO met a zero pivot during {phase}: the matrix is singular", engine="pardiso")
    reason = _MESSAGES.get(code, "unknown error")
    return EngineError(f"PARDISO failed during {phase} with error {code} ({reason})", engine="pardiso", code=code)


class Pardiso:
    name = "pardiso"

    def availability(self) -> Availability:
        library = _library()
        return Availability(missing=library) if isinstance(library, str) else Availability(version=library.version)

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return dtype in DTYPES

    def analyze(self, structure: Structure, kind: Kind, dtype: torch.dtype, stored: str | None) -> PardisoSymbolic:
        library = _library()
        assert isinstance(library, _Library)  # nothing is analysed by an engine that is not available
        layout = layout_of(structure, "full" if kind == "general" else "upper", stored)
        return PardisoSymbolic(library, layout, structure.shape[0], kind, dtype)


ENGINE = Pardiso()
