"""cuDSS for the simulated GPU: the functions of its C interface, written after its documentation.

They compute with NumPy what the library computes on the device, and check their arguments and the
order of calls as it does. Misuse that no status can report is recorded in `violations`, for example
what would let memory of one stream be used on another, or what is known to give wrong results: a
handle for two dtypes (CUDSS-1019), several right-hand sides for a uniform batch. Pivots are never
exchanged, which is worse than cuDSS.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char, c_int, c_int64, c_size_t, c_void_p, cast
from typing import Any

import numpy as np
import simulated_gpu
from numpy.typing import NDArray
from scipy import linalg
from scipy.optimize import linear_sum_assignment

from sparse_solver._engines.cudss import library as native
from sparse_solver._engines.cudss.library import Config, Data, Phase

Array = NDArray[Any]
OK, NOT_INITIALIZED, ALLOC_FAILED, INVALID_VALUE, NOT_SUPPORTED, EXECUTION_FAILED = range(6)
# The functions of a handle, which belongs to the device that was current when it was made.
OF_HANDLES = ("Create", "Destroy", "SetStream", "DataCreate", "DataDestroy", "DataSet", "DataGet")
OF_HANDLES += ("SetThreadingLayer", "SetDeviceMemHandler", "Execute")
DTYPES = {0: np.float32, 1: np.float64, 4: np.complex64, 5: np.complex128}
DEFAULTS: dict[Config, float] = {
    Config.MATCHING_ALG: 6,
    Config.SOLVE_MODE: 0,
    Config.PIVOT_EPSILON: -1.0,
    Config.HYBRID_MEMORY_MODE: 0,
    Config.HYBRID_DEVICE_MEMORY_LIMIT: -1,
    Config.UBATCH_SIZE: 1,
    Config.DETERMINISTIC_MODE: 0,
}


def array(address: int, count: int, dtype: Any) -> Array:
    """The numbers at an address, not a copy."""
    buffer = (c_char * (count * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(buffer, dtype)


class Csr:
    def __init__(
        self, rows: int, nnz: int, start: int, col: int, values: int, types: tuple[int, ...]
    ):
        offsets, indices, self.value_type, self.mtype, self.view, base = types
        assert (indices, base) == (native.INT32, native.BASE_ZERO)
        self.n, self.nnz, self.values, self.dtype = rows, nnz, values, DTYPES[self.value_type]
        self.start = array(start, rows + 1, np.int32 if offsets == native.INT32 else np.int64)
        self.col = array(col, nnz, np.int32)

    def dense(self, at: int) -> Array:
        """The matrix number `at` of the batch."""
        values = array(self.values, self.nnz * (at + 1), self.dtype)[at * self.nnz :]
        A = np.zeros((self.n, self.n), self.dtype)
        A[np.repeat(np.arange(self.n), np.diff(self.start)), self.col] = values
        if self.mtype == 0:
            return A
        assert self.view == native.VIEW_UPPER
        upper = np.triu(A, 1)
        return A + (upper.conj().T if self.mtype in (2, 4) else upper.T)


class Dense:
    def __init__(self, rows: int, columns: int, values: int, value_type: int):
        self.rows, self.columns, self.values = rows, columns, values
        self.value_type, self.dtype = value_type, DTYPES[value_type]

    def of(self, at: int) -> Array:
        """(columns, rows), the vectors of the system number `at`."""
        size = self.rows * self.columns
        numbers = array(self.values, size * (at + 1), self.dtype)[at * size :]
        return numbers.reshape(self.columns, self.rows)


def solve_triangular(A: Array, b: Array, **which: bool) -> Array:
    solution: Array = linalg.solve_triangular(A, b, check_finite=False, **which)
    return solution


class Factored:
    """P A = L U, where P is that of a matching; `problem` is the INFO of a new factorisation."""

    problem = 0

    def __init__(self, A: Array, mtype: int, epsilon: float, order: Array):
        n, double = A.shape[0], np.result_type(A, np.float64)
        U, L = A[order].astype(double), np.eye(n, dtype=double)
        self.order, self.info, self.perturbed = order, self.problem, 0
        for k in range(n):
            if mtype >= 3 and not U[k, k].real > 0:
                self.info = k + 1
                break
            if abs(U[k, k]) < epsilon:
                self.perturbed += 1
                U[k, k] = epsilon if U[k, k].real >= 0 else -epsilon
            L[k + 1 :, k] = U[k + 1 :, k] / U[k, k]
            U[k + 1 :, k:] -= np.outer(L[k + 1 :, k], U[k, k:])
        self.L, self.U = L, np.triu(U)

    def solve(self, b: Array, transpose: bool) -> Array:
        """For the columns of b."""
        if self.info:
            return np.full_like(b, np.nan)
        if transpose:
            y = solve_triangular(self.U.T, b, lower=True)
            x = np.empty_like(y)
            x[self.order] = solve_triangular(self.L.T, y, unit_diagonal=True)
            return x
        y = solve_triangular(self.L, b[self.order], lower=True, unit_diagonal=True)
        return solve_triangular(self.U, y)


class Cudss:
    """The object `functions` of a `native.Library`; without a simulated GPU, the test is skipped.

    objects : the living objects by their addresses
    phases : the phases so far, each with its number of right-hand sides
    fail : the status of the next call of a function, by its name
    refuse : the status of a phase, given its number among those of its kind
    made_before_failing : [the number of vectors that are described before one cannot be]
    fails_early : whether a pivot that is not positive ends a factorisation with a status
    out_of_memory : the status of a call for which the allocator has no memory
    factored : the values of each factorisation, and its limit to the memory of the device
    matched : the values of each analysis that used them
    """

    def __init__(self, version: tuple[int, int, int] = (1, 0, 0)) -> None:
        simulated_gpu.require()
        self.version = version
        self.objects: dict[int, Any] = {}
        self.phases: list[tuple[Phase, int]] = []
        self.violations: list[str] = []
        self.fail: dict[str, int] = {}
        self.refuse: Callable[[Phase, int], int] = lambda phase, number: OK
        self.made_before_failing: list[int] = []
        self.fails_early, self.out_of_memory = False, ALLOC_FAILED
        self.factored: list[tuple[Array, float]] = []
        self.matched: list[Array] = []
        self._numbers = itertools.count(1000)
        self._inside = threading.Lock()
        for name, arguments in native.SIGNATURES.items():
            setattr(self, "cudss" + name, self._exported(name, arguments))

    def _exported(self, name: str, arguments: tuple[Any, ...]) -> Any:
        method: Callable[..., int] = getattr(self, "_" + name)

        def function(*given: Any) -> int:
            if not self._inside.acquire(blocking=False):
                self.violations.append(f"{name} was called while another call was going on")
                return EXECUTION_FAILED
            try:
                if name in OF_HANDLES and not simulated_gpu.module.is_current():
                    self.violations.append(f"{name} was called for a device that is not current")
                if name in self.fail:
                    return self.fail.pop(name)
                return method(*given)
            except Exception as error:
                self.violations.append(f"{name}: {error!r}")
                return EXECUTION_FAILED
            finally:
                self._inside.release()

        return CFUNCTYPE(c_int, *arguments)(function)

    def live(self, kind: type) -> int:
        """The number of objects of this kind that are not destroyed."""
        return sum(isinstance(one, kind) for one in self.objects.values())

    def _create(self, place: Any, thing: Any) -> int:
        place[0] = next(self._numbers)
        self.objects[place[0]] = thing
        return OK

    def _destroy(self, key: int) -> int:
        return INVALID_VALUE if self.objects.pop(key, None) is None else OK

    def _GetProperty(self, which: int, value: Any) -> int:
        value[0] = self.version[which]
        return OK

    def _Create(self, place: Any) -> int:
        return self._create(place, Handle())

    def _Destroy(self, handle: int) -> int:
        return self._destroy(handle)

    def _SetStream(self, handle: int, stream: int | None) -> int:
        if self.objects[handle].stream not in (None, stream or 0):
            self.violations.append("memory of the handle belongs to another stream")
        self.objects[handle].stream = stream or 0
        return OK

    def _SetThreadingLayer(self, handle: int, name: bytes) -> int:
        self.objects[handle].threading_layer = name
        return OK

    def _SetDeviceMemHandler(self, handle: int, handler: Any) -> int:
        copied = native.DeviceMemHandler.from_buffer_copy(handler[0])
        self.objects[handle].memory = copied
        return OK if copied.name else INVALID_VALUE

    def _ConfigCreate(self, place: Any) -> int:
        return self._create(place, Configuration())

    def _ConfigDestroy(self, config: int) -> int:
        return self._destroy(config)

    def _ConfigSet(self, config: int, which: int, value: int, size: int) -> int:
        kind = native.CONFIG_TYPES[Config(which)]
        if size != ctypes.sizeof(kind):
            return INVALID_VALUE
        self.objects[config][Config(which)] = cast(value, POINTER(kind))[0]
        return OK

    def _DataCreate(self, handle: int, place: Any) -> int:
        if self.objects[handle].stream is None:
            self.violations.append("data are made on a stream that was not chosen")
        return self._create(place, DataObject(self.objects[handle]))

    def _DataDestroy(self, handle: int, data: int) -> int:
        if not simulated_gpu.Module.finished:
            self.violations.append("data are destroyed while the device works with them")
        stream, memory = self.objects[handle].stream, self.objects[handle].memory
        for address, size in self.objects[data].memory:
            if memory.device_free(None, address, size, stream):
                return EXECUTION_FAILED
        return self._destroy(data)

    def _DataSet(self, handle: int, data: int, which: int, value: int, size: int) -> int:
        if not self.objects[data].analysed:
            return NOT_INITIALIZED
        if which != Data.INFO or size != 4:
            return NOT_SUPPORTED
        self.objects[data].info = cast(value, POINTER(c_int))[0]
        return OK

    def _DataGet(
        self, handle: int, data: int, which: int, value: int, size: int, written: Any
    ) -> int:
        simulated_gpu.count_synchronisation()
        kind = native.DATA_TYPES[Data(which)]
        state: DataObject = self.objects[data]
        if not state.analysed:
            return NOT_INITIALIZED
        if not any(one is state.config for one in self.objects.values()):
            self.violations.append("data are read after their configuration was destroyed")
        batch = state.config[Config.UBATCH_SIZE] > 1
        if size != ctypes.sizeof(kind) or (which in (2, 3) and not state.factors):
            return INVALID_VALUE
        place, factors = cast(value, POINTER(c_int)), state.factors
        if which == Data.INFO:
            place[0] = state.info
        elif which == Data.HYBRID_DEVICE_MEMORY_MIN and state.config[Config.HYBRID_MEMORY_MODE]:
            cast(value, POINTER(c_int64))[0] = 4096
        elif batch or not factors:
            return NOT_SUPPORTED
        elif which == Data.LU_NNZ:
            n = factors[0].U.shape[0]
            cast(value, POINTER(c_int64))[0] = n * (n + 1) // 2 if state.mtype else n * n
        elif which == Data.NPIVOTS:
            place[0] = factors[0].perturbed
        elif which == Data.INERTIA and state.mtype in (1, 2):
            pivots = factors[0].U.diagonal().real
            place[0], place[1] = int((pivots > 0).sum()), int((pivots < 0).sum())
        else:
            return NOT_SUPPORTED
        written[0] = size
        return OK

    def _MatrixCreateCsr(
        self,
        place: Any,
        rows: int,
        columns: int,
        nnz: int,
        start: int,
        end: int | None,
        col: int,
        values: int,
        *types: int,
    ) -> int:
        if end is not None or rows != columns:
            return NOT_SUPPORTED
        matrix = Csr(rows, nnz, start, col, values, types)
        inside = [matrix.col[a:b] for a, b in itertools.pairwise(matrix.start)]
        unsorted = any((np.diff(row) <= 0).any() for row in inside)
        if matrix.start[0] or matrix.start[-1] != nnz or unsorted:
            return INVALID_VALUE
        return self._create(place, matrix)

    def _MatrixCreateDn(
        self,
        place: Any,
        rows: int,
        columns: int,
        leading: int,
        values: int,
        value_type: int,
        layout: int,
    ) -> int:
        if layout != native.COLUMN_MAJOR or leading != rows:
            return NOT_SUPPORTED
        if self.made_before_failing:
            self.made_before_failing[0] -= 1
            if self.made_before_failing[0] < 0:
                self.made_before_failing[0] = 0
                return EXECUTION_FAILED
        return self._create(place, Dense(rows, columns, values, value_type))

    def _MatrixSetValues(self, matrix: int, values: int | None) -> int:
        if not values:
            return INVALID_VALUE
        self.objects[matrix].values = values
        return OK

    def _MatrixDestroy(self, matrix: int) -> int:
        return self._destroy(matrix)

    def _Execute(
        self,
        handle: int,
        phase: int,
        config: int,
        data: int,
        matrix: int,
        solution: int,
        right: int,
    ) -> int:
        state, settings = self.objects[data], self.objects[config]
        A, x, b = (self.objects[key] for key in (matrix, solution, right))
        count = settings[Config.UBATCH_SIZE]
        deterministic = settings[Config.DETERMINISTIC_MODE]
        matching, hybrid = settings[Config.MATCHING_ALG], settings[Config.HYBRID_MEMORY_MODE]
        self.phases.append((Phase(phase), b.columns))
        status = self.refuse(Phase(phase), sum(one == phase for one, _ in self.phases))
        if status:
            return status
        if state.handle is not self.objects[handle]:
            self.violations.append("data belong to another handle")
        if not isinstance(A, Csr) or A.n != b.rows or (x.rows, x.columns) != (b.rows, b.columns):
            return INVALID_VALUE
        if not (A.value_type == x.value_type == b.value_type):
            return NOT_SUPPORTED
        if state.handle.value_type not in (None, A.value_type):
            self.violations.append("a handle serves two dtypes")
        state.handle.value_type = A.value_type
        if (count > 1) + bool(deterministic) + bool(hybrid) > 1:
            return NOT_SUPPORTED
        if count > 1 and matching not in (0, 6):
            return NOT_SUPPORTED
        if phase == Phase.ANALYSIS:
            state.analysed = settings.copy()
            state.config, state.mtype, state.order = settings, A.mtype, np.arange(A.n)
            if matching == native.MATCHING_MAX_DIAG_PRODUCT:
                self.matched.append(A.dense(0))
                state.order = _matching(A.dense(0))
            return self._allocate(state, A.nnz * 4)
        if not state.analysed or state.analysed[Config.DETERMINISTIC_MODE] != deterministic:
            return INVALID_VALUE
        if phase == Phase.SOLVE:
            return self._solve(state, settings, x, b)
        return self._factor(Phase(phase), state, settings, A)

    def _factor(self, phase: Phase, state: DataObject, settings: Configuration, A: Csr) -> int:
        if phase == Phase.REFACTORIZATION and not state.factors:
            return INVALID_VALUE
        epsilon, count = settings[Config.PIVOT_EPSILON], int(settings[Config.UBATCH_SIZE])
        if epsilon < 0:
            epsilon = 1e-13 if A.dtype in (np.float64, np.complex128) else 1e-5
        self.factored.append((A.dense(0), settings[Config.HYBRID_DEVICE_MEMORY_LIMIT]))
        matrices = [A.dense(at) for at in range(count)]
        state.factors = [Factored(matrix, A.mtype, epsilon, state.order) for matrix in matrices]
        state.info = state.info or next((one.info for one in state.factors if one.info), 0)
        if self.fails_early and state.info:
            return EXECUTION_FAILED
        if phase == Phase.REFACTORIZATION:
            return OK
        return self._allocate(state, A.n * A.n * np.dtype(A.dtype).itemsize * count)

    def _allocate(self, state: DataObject, size: int) -> int:
        return OK if state.allocate(size) else self.out_of_memory

    def _solve(self, state: Any, settings: dict[Config, float], x: Dense, b: Dense) -> int:
        transpose = settings[Config.SOLVE_MODE] == native.SOLVE_TRANSPOSE
        if not state.factors or (settings[Config.DETERMINISTIC_MODE] and b.columns > 1):
            return NOT_SUPPORTED
        if transpose and state.mtype in (2, 4):
            return NOT_SUPPORTED
        if len(state.factors) > 1 and b.columns > 1:
            self.violations.append("a uniform batch is solved for several right-hand sides")
        for at, factored in enumerate(state.factors):
            x.of(at)[:] = factored.solve(b.of(at).T, transpose and state.mtype == 0).T
        return OK


class Handle:
    stream: int | None = None
    threading_layer: bytes | None = None
    value_type: int | None = None
    memory: native.DeviceMemHandler


class Configuration(dict[Config, float]):
    def __init__(self) -> None:
        super().__init__(DEFAULTS)


class DataObject:
    def __init__(self, handle: Handle):
        self.handle, self.info, self.mtype = handle, 0, 0
        self.analysed: dict[Config, float] = {}
        self.config: Any = Configuration()
        self.memory: list[tuple[int, int]] = []
        self.factors: list[Factored] = []

    def allocate(self, size: int) -> bool:
        place, handle = c_void_p(), self.handle
        address = ctypes.byref(place)
        if handle.memory.device_alloc(None, address, c_size_t(size), handle.stream):
            return False
        assert place.value is not None
        self.memory.append((place.value, size))
        return True


def _matching(A: Array) -> Array:
    """The rows in an order for which the product of the diagonal is largest."""
    with np.errstate(divide="ignore"):
        cost = -np.log(abs(A).astype(float))
    rows, cols = linear_sum_assignment(np.where(np.isfinite(cost), cost, 1e6))
    order = np.empty(A.shape[0], np.int64)
    order[cols] = rows
    return order
