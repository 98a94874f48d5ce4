"""oneMKL's Parallel Direct Sparse Solver for Clusters: PARDISO's phases, with distributed rows.

`mkl_rt` does not export it, so the libraries behind `mkl_rt` are loaded one after the other. All
calls are collective, including the one that releases memory, while the garbage collectors of the
ranks run at different times. So the handle of a dead factor is only noted, and is released or used
again by a later factorisation, when the factor is dead on all ranks.

Numbers in comments are the manual's, which counts from one: iparm(24) is ``iparm[23]``.
Source: Intel oneMKL Developer Reference for C, "cluster_sparse_solver" and its "iparm Parameter".
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Hashable
from ctypes import POINTER, addressof, byref, c_int, c_int64, c_void_p, memmove, sizeof
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .._engines.mkl.library import library as mkl_library
from .._engines.mkl.parameters import (
    ANALYSIS,
    FACTORIZATION,
    RELEASE_ALL,
    SOLVE,
    ZERO_PIVOT,
    engine_error,
    matrix_type,
    parameters,
)
from .._engines.protocol import Kind
from ..errors import EngineUnavailableError
from ._collective import Group
from ._halo_exchange import Numbering
from ._mpi import INSTALL, MPI

ENGINE = "cluster"
_DIAGONAL = 332  # the phase that substitutes with D of LDLᵀ alone
# Handles of dead factors that are kept for new factorisations: a few alternating patterns.
_MAX_IDLE = 4


class _Library:
    """The solver, and the function that sets its number of threads."""

    def __init__(self, folder: Path, mpi: Path):
        def load(path: Path) -> ctypes.CDLL:
            # Globally and lazily: the libraries find each other's functions by name, and some of
            # these functions are missing.
            return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL | os.RTLD_LAZY)

        load(mpi)
        for name in ("libiomp5.so", "libmkl_core.so*", "libmkl_intel_thread.so*"):
            load(_find_newest(folder, name))
        interface = load(_find_newest(folder, "libmkl_intel_lp64.so*"))
        # For every MPI with the binary interface of MPICH.
        load(_find_newest(folder, "libmkl_blacs_intelmpi_lp64.so*"))
        self.solver = interface.cluster_sparse_solver_64
        pointer, integer = c_void_p, POINTER(c_int64)
        self.solver.argtypes = [
            *(pointer, integer, integer, integer, integer, integer),  # pt maxfct mnum mtype phase n
            *(pointer, pointer, pointer, pointer),  # a ia ja perm
            *(integer, pointer, integer),  # nrhs iparm msglvl
            *(pointer, pointer, POINTER(c_int), integer),  # b x comm error
        ]
        self.solver.restype = None
        self.set_threads = interface.MKL_Set_Num_Threads_Local
        self.set_threads.argtypes, self.set_threads.restype = [c_int], c_int


def _find_newest(folder: Path, name: str) -> Path:
    """The library of the newest version."""
    found = sorted(folder.glob(name), reverse=True)
    if not found:
        raise OSError(f"there is no {name} in {folder}")
    return found[0]


@cache
def _library() -> _Library | str:
    """The loaded library, or the reason why there is none."""
    runtime = mkl_library()
    if isinstance(runtime, str):
        return f"{runtime} ({INSTALL})"
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return "solving on clusters requires Linux on x86-64"
    names = "/libmpi.so", "/libmpich.so"
    paths = [line.split(maxsplit=5)[5] for line in maps if any(name in line for name in names)]
    if not paths:
        return f"mpi4py uses an MPI without libmpi.so; MPICH has one ({INSTALL})"
    if "Open MPI" in MPI.Get_library_version():
        # Seen with MKL 2026.2 and Open MPI 5.0.
        what = "oneMKL crashes with communicators of Open MPI other than MPI.COMM_WORLD"
        return f"{what}; use MPICH ({INSTALL}) or Intel MPI"
    try:
        return _Library(Path(runtime.path).resolve().parent, Path(paths[0]))
    except (OSError, AttributeError) as error:
        return f"oneMKL's solver for clusters cannot be loaded ({error}); {INSTALL}"


def check_available() -> None:
    """Raise EngineUnavailableError if the solver cannot be loaded."""
    library = _library()
    if isinstance(library, str):
        message = f"no engine solves on clusters here: {library}"
        raise EngineUnavailableError(message, engine=ENGINE, hint=library)


class Handle:
    """An analysis, and memory for one factorisation; all methods are collective.

    crow, cols : CSR of the rows of this rank in the solver's numbering: the whole matrix if `kind`
        is "general", else its upper triangle
    values : the values that are factored first
    match : whether the analysis uses them, to match rows with columns
    """

    def __init__(
        self,
        group: Group,
        numbering: Numbering,
        kind: Kind,
        crow: Tensor,
        cols: Tensor,
        values: Tensor,
        match: bool,
    ):
        library, dtype, block = _library(), values.dtype, numbering.block
        assert isinstance(library, _Library)
        self._library, self._group = library, group
        # The handle keeps to the threads of its analysis; see `_engines.mkl.handle`.
        self._threads = torch.get_num_threads()
        self._crow, self._cols, self._values = crow.contiguous(), cols.contiguous(), values
        self._rows = len(block)
        self._given = parameters(kind, dtype, match)
        self._positive = kind == "spd"
        if self._positive:
            # Cholesky does not report negative pivots: it goes on with their roots (MKL 2026.2, on
            # several ranks or with complex numbers), or reports a lack of memory. LDLᵀ without
            # exchanges takes as long, and its pivots can be read.
            kind = "hermitian"
            self._given[9], self._given[20] = 20, 0  # (10): enlarge no pivots, (21): 1-by-1 only
        self._given[39] = 2  # (40): matrix, right-hand sides and solutions have distributed rows
        self._given[40:42] = block.start, block.stop - 1  # (41), (42): the first and last row
        self._pt, self.iparm = (c_int64 * 64)(), (c_int64 * 64)()
        self.smallest_pivot = 0.0  # of a positive definite matrix
        self._type, self._n = c_int64(matrix_type(kind, dtype)), c_int64(numbering.n)
        self._comm, self._one, self._quiet = c_int(group.solver_comm.py2f()), c_int64(1), c_int64(0)
        code = self._call(ANALYSIS)
        if code:
            self.release()
            raise _error(code, "analysis")
        self.nnz: int | None = self.iparm[17] if self.iparm[17] > 0 else None  # (18)
        # (17): kilobytes for factorisation and solution.
        self.memory_bytes: int | None = self.iparm[16] * 1024

    def factor(self, values: Tensor) -> bool:
        """Factor; return whether all pivots are nonzero, or positive if the matrix has to be."""
        self._values = values  # the solver keeps a pointer to them
        code = self._call(FACTORIZATION)
        if code not in (0, ZERO_PIVOT):
            raise _error(code, "factorisation")
        if code or not self._positive:
            return code == 0
        self.smallest_pivot = self._find_smallest_pivot()
        return self.smallest_pivot > 0 and not self.perturbed_pivots

    def _find_smallest_pivot(self) -> float:
        """The smallest entry of D in LDLᵀ on all ranks; zero if one is not positive.

        The solver counts negative pivots of real matrices only.
        """
        reciprocals = self.substitute(self._values.new_ones(1, self._rows), False, _DIAGONAL).real
        smallest = 1 / float(reciprocals.max()) if bool((reciprocals > 0).all()) else 0.0
        return float(self._group.comm.allreduce(smallest, MPI.MIN))

    def substitute(self, rhs: Tensor, transpose: bool, phase: int = SOLVE) -> Tensor:
        """Substitute for the rows of the contiguous `rhs` (k, n), k ≥ 1, in a new tensor."""
        x = torch.empty_like(rhs)
        code = self._call(phase, rhs, x, transpose)
        if code:
            raise _error(code, "substitution")
        return x

    def release(self) -> None:
        """Release the memory of the analysis and the factor."""
        self._call(RELEASE_ALL)

    def _call(
        self,
        phase: int,
        rhs: Tensor | None = None,
        x: Tensor | None = None,
        transpose: bool = False,
    ) -> int:
        """Run one phase; return the error code of the first rank that has one."""
        memmove(self.iparm, (c_int64 * 64)(*self._given), sizeof(self.iparm))
        self.iparm[11] = 2 if transpose else 0  # (12): solve with the transpose
        count, error = c_int64(1 if rhs is None else rhs.shape[0]), c_int64()
        kind = self._one, self._one, self._type, byref(c_int64(phase)), self._n
        matrix = *map(_address, (self._values, self._crow, self._cols)), None
        settings = byref(count), addressof(self.iparm), self._quiet
        vectors = _address(rhs), _address(x)
        before = self._library.set_threads(self._threads)
        try:
            self._library.solver(
                addressof(self._pt), *kind, *matrix, *settings, *vectors, self._comm, byref(error)
            )
        finally:
            self._library.set_threads(before)
        # The solver may report an error on some ranks only.
        reports = self._group.comm.allgather((error.value, self.iparm[13]))
        if phase == FACTORIZATION:
            self.perturbed_pivots = max(perturbed for _, perturbed in reports)  # (14)
        return next((code for code, _ in reports if code), 0)


def _error(code: int, phase: str) -> Exception:
    return engine_error(code, phase, ENGINE, "the solver for clusters")


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Handles:
    """The handles of a group, and which of their factors are dead.

    All methods but `register` and `note_dead` are collective.
    """

    def __init__(self) -> None:
        self._made = 0
        self._live: dict[int, tuple[Hashable, Handle]] = {}
        self._dead: deque[int] = deque()  # the numbers of factors that are dead on this rank
        self._idle: list[tuple[Hashable, Handle]] = []  # of factors dead on all ranks, oldest first

    @classmethod
    def of(cls, group: Group) -> Handles:
        """The handles of a group."""
        handles: Handles = group.memory.setdefault("handles", cls())
        return handles

    def take(self, group: Group, key: Hashable) -> Handle | None:
        """An idle handle that was made for an equal `key`, which is the same on all ranks."""
        self.release(group, _MAX_IDLE)
        for at, (known, handle) in enumerate(self._idle):
            if known == key:
                del self._idle[at]
                return handle
        return None

    def register(self, key: Hashable, handle: Handle) -> int:
        """Note that a factor uses the handle; return the number for `note_dead`."""
        self._made += 1
        self._live[self._made] = key, handle
        return self._made

    def note_dead(self, number: int) -> None:
        """Note that a factor died on this rank; takes no locks and may be called at any time."""
        self._dead.append(number)

    def release(self, group: Group, keep: int = 0) -> None:
        """Release the handles of factors that are dead on all ranks, except the last `keep`."""
        dead = set(self._dead)  # a copy, since the garbage collector may add to it meanwhile
        for number in sorted(set.intersection(*group.comm.allgather(dead))):
            self._dead.remove(number)
            self._idle.append(self._live.pop(number))
        while len(self._idle) > keep:
            self._idle.pop(0)[1].release()
