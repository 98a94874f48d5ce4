"""oneMKL's Parallel Direct Sparse Solver for Clusters: PARDISO's phases, with the rows distributed over ranks.

`mkl_rt` does not export it, so that the libraries behind that are loaded one after the other, for each to see those before.
All calls are collective, also the one that releases memory. Python collects garbage when it likes, so that handles of dead
factors are only noted, and released, or used again, by the next factorisation, for those that are dead on all ranks.

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
from ._mpi import MPI

ENGINE = "cluster"
_DIAGONAL = 332  # phase: the substitution with D of LDLᵀ alone
_IDLE = 4  # handles of dead factors that are kept for those to come
_CALLED = "the solver for clusters"
_EXTRA = 'pip install "sparse-solver[mpi]"'


class _Library:
    """The function, and the one that says how many threads it may use."""

    def __init__(self, folder: Path, mpi: Path):
        def load(path: Path) -> ctypes.CDLL:
            # Global, and lazily: they find each other's functions by name, and not all of them are there.
            return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL | os.RTLD_LAZY)

        load(mpi)
        for name in ("libiomp5.so", "libmkl_core.so*", "libmkl_intel_thread.so*"):
            load(_one(folder, name))
        interface = load(_one(folder, "libmkl_intel_lp64.so*"))
        load(
            _one(folder, "libmkl_blacs_intelmpi_lp64.so*")
        )  # for all that have the binary interface of MPICH
        self.solver = interface.cluster_sparse_solver_64
        integer = POINTER(c_int64)
        #                    pt        maxfct   mnum     mtype    phase    n        a
        self.solver.argtypes = [c_void_p, integer, integer, integer, integer, integer, c_void_p,
                                # ia       ja        perm      nrhs     iparm     msglvl   b         x
                                c_void_p, c_void_p, c_void_p, integer, c_void_p, integer, c_void_p, c_void_p,
                                # comm          error
                                POINTER(c_int), integer]  # fmt: skip
        self.solver.restype = None
        self.set_threads = interface.MKL_Set_Num_Threads_Local
        self.set_threads.argtypes, self.set_threads.restype = [c_int], c_int


def _one(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(name), reverse=True)
    if not found:
        raise OSError(f"there is no {name} in {folder}")
    return found[0]


@cache
def _library() -> _Library | str:
    """The loaded library, or why there is none."""
    runtime = mkl_library()
    if isinstance(runtime, str):
        return f"{runtime} ({_EXTRA})"
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return "solving on clusters is for Linux on x86-64"
    paths = [
        line.split(maxsplit=5)[5]
        for line in maps.splitlines()
        if "/libmpi.so" in line or "/libmpich.so" in line
    ]
    if not paths:
        return (
            f"mpi4py uses an MPI whose library is not called libmpi.so; that of MPICH is ({_EXTRA})"
        )
    if "Open MPI" in MPI.Get_library_version():
        # Seen with MKL 2026.2 and Open MPI 5.0.
        return f"oneMKL crashes with communicators of Open MPI that are not MPI.COMM_WORLD; use MPICH ({_EXTRA}) or Intel MPI"
    try:
        return _Library(Path(runtime.path).resolve().parent, Path(paths[0]))
    except (OSError, AttributeError) as error:
        return f"oneMKL's solver for clusters cannot be loaded ({error}); {_EXTRA}"


def check_available() -> None:
    """Raises EngineUnavailableError where the solver cannot be loaded."""
    library = _library()
    if isinstance(library, str):
        raise EngineUnavailableError(
            f"no engine solves on clusters here: {library}", engine=ENGINE, hint=library
        )


def _error(code: int, phase: str) -> Exception:
    return engine_error(code, phase, ENGINE, _CALLED)


class Handle:
    """An analysis, and room for one factorisation. All methods are collective.

    crow, cols : CSR of the rows of this rank, the columns of the whole matrix (of its upper triangle, unless `kind` is general)
    values : those that are factored first; `match`: whether the analysis looks at them, to match rows with columns
    block : of the rows of the solver, one at least on each rank
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
        block, n, dtype = numbering.block, numbering.n, values.dtype
        library = _library()
        assert isinstance(library, _Library)
        self._library, self._group = library, group
        # Those of the analysis for good; see `_engines.mkl.handle`.
        self._threads = torch.get_num_threads()
        self._crow, self._cols, self._rows = crow.contiguous(), cols.contiguous(), len(block)
        self._values = values
        self._given = parameters(kind, dtype, match)
        self._positive = kind == "spd"
        if self._positive:
            # Cholesky does not tell of negative pivots: it goes on with their roots (MKL 2026.2, on several ranks or with
            # complex numbers), or reports a want of memory. LDLᵀ without exchanges takes as long, and shows its pivots.
            kind = "hermitian"
            self._given[9], self._given[20] = 20, 0  # (10): raise no pivots, (21): exchange none
        self._given[39] = 2  # (40): rows of matrix, right-hand sides and solutions are distributed
        self._given[40:42] = (
            block.start,
            block.stop - 1,
        )  # (41), (42): the first and the last of this rank
        self._pt, self.iparm = (c_int64 * 64)(), (c_int64 * 64)()
        self.smallest_pivot = 0.0  # of a positive definite matrix
        self._type, self._n = c_int64(matrix_type(kind, dtype)), c_int64(n)
        self._comm, self._one, self._quiet = c_int(group.solver_comm.py2f()), c_int64(1), c_int64(0)
        code = self._call(ANALYSIS)
        if code:
            self.release()
            raise _error(code, "analysis")
        self.nnz: int | None = self.iparm[17] if self.iparm[17] > 0 else None  # (18)
        self.memory_bytes: int | None = (
            self.iparm[16] * 1024
        )  # (17): kilobytes for factorisation and solution

    def factor(self, values: Tensor) -> bool:
        """Whether no pivot was zero, or, of a positive definite matrix, not positive."""
        self._values = values  # to which a pointer is kept
        code = self._call(FACTORIZATION)
        if code not in (0, ZERO_PIVOT):
            raise _error(code, "factorisation")
        if code == 0 and self._positive:
            self.smallest_pivot = self._find_smallest_pivot()
        return code == 0 and not (
            self._positive and (self.perturbed_pivots or self.smallest_pivot == 0)
        )

    def _find_smallest_pivot(self) -> float:
        """Of LDLᵀ, on all ranks; zero if one is not positive. (The solver counts those of real matrices only.)"""
        reciprocals = self.substitute(self._values.new_ones(1, self._rows), False, _DIAGONAL).real
        smallest = 1 / float(reciprocals.max()) if bool((reciprocals > 0).all()) else 0.0
        return float(self._group.comm.allreduce(smallest, MPI.MIN))

    def substitute(self, rhs: Tensor, transpose: bool, phase: int = SOLVE) -> Tensor:
        """For the rows of contiguous `rhs` (k, n), k ≥ 1."""
        x = torch.empty_like(rhs)
        code = self._call(phase, rhs, x, transpose)
        if code:
            raise _error(code, "substitution")
        return x

    def release(self) -> None:
        self._call(RELEASE_ALL)

    def _call(
        self,
        phase: int,
        rhs: Tensor | None = None,
        x: Tensor | None = None,
        transpose: bool = False,
    ) -> int:
        memmove(self.iparm, (c_int64 * 64)(*self._given), sizeof(self.iparm))
        self.iparm[11] = 2 if transpose else 0  # (12): solve with the transpose
        error = c_int64()
        before = self._library.set_threads(self._threads)
        try:
            self._library.solver(
                addressof(self._pt), self._one, self._one, self._type, byref(c_int64(phase)), self._n,
                _address(self._values), _address(self._crow), _address(self._cols),
                None, byref(c_int64(1 if rhs is None else rhs.shape[0])), addressof(self.iparm), self._quiet,
                _address(rhs), _address(x), self._comm, byref(error),
            )  # fmt: skip
        finally:
            self._library.set_threads(before)
        # Not all ranks need to have noticed.
        codes, perturbed = zip(
            *self._group.comm.allgather((error.value, self.iparm[13])), strict=True
        )
        if phase == FACTORIZATION:
            self.perturbed_pivots = max(perturbed)  # (14)
        return next(filter(None, codes), 0)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class Handles:
    """The handles of a group: which are dead here, and which everywhere."""

    def __init__(self) -> None:
        self._made = 0
        self._live: dict[int, tuple[Hashable, Handle]] = {}
        self._dead: deque[int] = deque()  # appended to wherever a factor dies
        self._idle: list[tuple[Hashable, Handle]] = []  # dead everywhere, the last ones last

    @classmethod
    def of(cls, group: Group) -> Handles:
        handles: Handles = group.memory.setdefault("handles", cls())
        return handles

    def take(self, group: Group, key: Hashable) -> Handle | None:
        """An idle one that was made for the same `key`, which is the same on all ranks. Collective, as is all of this."""
        self.release(group, _IDLE)
        for at, (known, handle) in enumerate(self._idle):
            if known == key:
                del self._idle[at]
                return handle
        return None

    def use(self, key: Hashable, handle: Handle) -> int:
        """A number by which its death is to be noted."""
        self._made += 1
        self._live[self._made] = key, handle
        return self._made

    def bury(self, number: int) -> None:
        """Not collective, takes no locks, and may be called at any time."""
        self._dead.append(number)

    def release(self, group: Group, most: int = 0) -> None:
        """Gives the memory of dead factors back, but for the `most` last ones."""
        self._settle(group)
        while len(self._idle) > most:
            self._idle.pop(0)[1].release()

    def _settle(self, group: Group) -> None:
        known = set(self._dead)  # a copy, made at once: it may grow meanwhile
        everywhere = set.intersection(*group.comm.allgather(known))
        for number in sorted(everywhere):
            self._dead.remove(number)
            self._idle.append(self._live.pop(number))
