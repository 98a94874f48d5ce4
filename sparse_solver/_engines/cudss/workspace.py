"""Plans of how to factor a pattern, and their workspaces on the device.

A workspace holds one analysis and one factorisation, which cuDSS calls "data". It returns to its
plan when its factor is released, and serves the next factorisation, which then needs no analysis.
A workspace keeps the handle, hence the stream, with which it was made, because its memory belongs
to that stream.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from ctypes import byref, c_int, c_size_t, c_void_p, sizeof
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..._sparse.triangle import Arrangement
from ..._torch.modes import outside_transforms, record_current_stream, synchronize_stream
from ...errors import EngineError, EngineUnsupportedError
from ..idle_memory import RecentlyUsed
from . import library as native
from .handle import Handle, discard, exclusive
from .library import Config, Data, Library, Phase, error_of

T = TypeVar("T")

# The part of the free device memory that a factor in hybrid memory may take. The rest is for
# right-hand sides and solutions.
_HYBRID_SHARE = 0.8

recently_used = RecentlyUsed(4)  # the plans that may keep an idle workspace

# The handles that workspaces hold. Streams come and go, and their addresses are reused.
_handles: weakref.WeakValueDictionary[tuple[int, torch.device, torch.dtype, int], Handle] = (
    weakref.WeakValueDictionary()
)


def retry_with_memory(work: Callable[[], T]) -> T:
    """The result of `work`, called again after releasing idle memory if there was too little."""
    try:
        return work()
    except (EngineError, torch.OutOfMemoryError) as error:
        if isinstance(error, EngineError) and not error.out_of_memory:
            raise
    recently_used.release()  # only now, since the traceback of the error keeps memory
    return work()


class Plan:
    """How matrices of one pattern are factored.

    arrangement : of one matrix, `count` of which are factored at once
    configuration : the settings that differ from those of cuDSS
    match : the values by which rows are matched with columns; None for no matching
    """

    def __init__(
        self,
        library: Library,
        arrangement: Arrangement,
        count: int,
        matrix_type: str,
        dtype: torch.dtype,
        configuration: dict[Config, float],
        match: Tensor | None = None,
    ):
        self.library, self.device = library, arrangement.col.device
        self.gpu = torch.get_device_module(self.device)
        self.arrangement, self.count, self.dtype, self.match = arrangement, count, dtype, match
        self.is_hybrid = Config.HYBRID_MEMORY_MODE in configuration
        # Whether cuDSS takes one right-hand side at a time.
        self.separately = count > 1 or Config.DETERMINISTIC_MODE in configuration
        self.n = arrangement.crow.numel() - 1
        wide = arrangement.nnz >= 2**31
        self.col = arrangement.col.to(torch.int32)
        self.crow = arrangement.crow if wide else arrangement.crow.to(torch.int32)
        view = native.VIEW_FULL if arrangement.coverage == "full" else native.VIEW_UPPER
        index_types = (native.INT64 if wide else native.INT32, native.INT32)
        types = (*index_types, native.VALUE_TYPES[dtype], native.MATRIX_TYPES[matrix_type])
        self.description = (*types, view, native.BASE_ZERO)
        self._idle: list[Workspace] = []
        synchronize_stream(self.device)  # other streams will read the indices
        with exclusive():
            self.config = library.create("ConfigCreate")
            given = self.config, self._idle, library, os.getpid()
            weakref.finalize(self, _discard_plan, *given).atexit = False
            if count > 1:
                library.configure(self.config, Config.UBATCH_SIZE, count)
            for name, value in configuration.items():
                library.configure(self.config, name, value)

    def take_workspace(self) -> Workspace:
        """An idle workspace, or a new one with an analysis."""
        recently_used.use(self)
        with exclusive():
            return self._take_idle() or Workspace(self)

    def give_back(self, workspace: Workspace) -> None:
        """Keep the workspace of a released factor, or discard it; takes no lock, see `discard`."""
        if self._idle:
            discard(workspace.destroy, workspace.process)
            return
        self._idle.append(workspace)
        if self not in recently_used:  # which would not release it later
            self.release_idle()

    def release_idle(self) -> None:
        while workspace := self._take_idle():
            discard(workspace.destroy, workspace.process)

    def find_handle(self) -> Handle:
        """The handle of the current stream; called under the lock."""
        stream = self.gpu.current_stream(self.device)
        key = id(self.library), self.device, self.dtype, stream.cuda_stream
        handle = _handles.get(key)
        if handle is None:
            handle = _handles[key] = Handle(self.library, self.gpu, self.device, stream)
        return handle

    def _take_idle(self) -> Workspace | None:
        try:
            return self._idle.pop()
        except IndexError:  # another thread may have been faster
            return None


def _discard_plan(config: c_void_p, idle: list[Workspace], library: Library, process: int) -> None:
    def destroy() -> None:
        for workspace in idle:
            workspace.destroy()
        library.try_call("ConfigDestroy", config)

    discard(destroy, process)


class Workspace:
    """An analysis, and memory for one factorisation; made under the lock.

    is_factored : whether the last factorisation succeeded, which is for the caller to set, because
        only reading INFO shows it
    """

    def __init__(self, plan: Plan):
        self._gpu, self._device, self.process = plan.gpu, plan.device, os.getpid()
        self._width, self._n, self._dtype = plan.count * plan.n, plan.n, plan.dtype
        self._library, self._config = plan.library, plan.config
        self._indices = plan.crow, plan.col  # cuDSS may read them as long as this object lives
        self._separately = plan.separately
        self._values: Tensor | None = None
        self._vectors: tuple[c_void_p, ...] = ()
        self._was_tried = self.is_factored = False
        self._bytes, self._limit = [0], 0
        self._data, self._matrix = c_void_p(), c_void_p()
        with self._gpu.device(self._device), outside_transforms():
            self._handle = plan.find_handle()
            self._library.call("DataCreate", self._handle.pointer, byref(self._data))
            try:
                self._analyze(plan)
            except BaseException:
                self.destroy()
                raise

    def _analyze(self, plan: Plan) -> None:
        values, nnz = plan.match, plan.arrangement.nnz
        if values is None:  # an analysis without matching does not read them
            values = torch.ones(plan.count * nnz, dtype=self._dtype, device=self._device)
        record_current_stream(*self._indices, values)
        starts, columns = plan.crow.data_ptr(), plan.col.data_ptr()
        arrays = starts, None, columns, values.data_ptr()
        sizes = self._n, self._n, nnz
        self._matrix = self._library.create("MatrixCreateCsr", *sizes, *arrays, *plan.description)
        self._execute(Phase.ANALYSIS, *self._placeholders())
        self._values = values
        if plan.is_hybrid:
            self._limit = self._find_hybrid_limit()

    def _placeholders(self) -> tuple[Tensor, Tensor]:
        """The vectors for phases that take some without using them."""
        vector = torch.empty((1, self._width), dtype=self._dtype, device=self._device)
        return vector, vector

    def _find_hybrid_limit(self) -> int:
        """The bytes of device memory for a factor that may also use the memory of the host."""
        gpu, device = self._gpu, self._device
        cached = gpu.memory_reserved(device) - gpu.memory_allocated(device)
        free = gpu.mem_get_info(device)[0] + cached
        least: int = self._read(Data.HYBRID_DEVICE_MEMORY_MIN).value
        return max(least, int(_HYBRID_SHARE * free))

    @property
    def memory_bytes(self) -> int:
        return self._bytes[0]

    def factor(self, values: Tensor) -> None:
        """Factor the matrix with these values, which are kept because cuDSS may read them later."""
        library = self._library
        with exclusive(), self._gpu.device(self._device):
            library.call("MatrixSetValues", self._matrix, values.data_ptr())
            values.record_stream(self._handle.stream)
            self._values = values
            if self._limit:
                library.configure(self._config, Config.HYBRID_DEVICE_MEMORY_LIMIT, self._limit)
            if self._was_tried:  # an error of that factorisation would stay
                none = c_int(0)
                data = self._handle.pointer, self._data
                library.call("DataSet", *data, Data.INFO, byref(none), sizeof(none))
            phase = Phase.REFACTORIZATION if self.is_factored else Phase.FACTORIZATION
            self._was_tried, self.is_factored = True, False
            self._execute(phase, *self._placeholders())

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        """Apply the inverse, or its transpose, to the rows of `rhs` (k, n · count)."""
        x = torch.empty_like(rhs)
        mode = native.SOLVE_TRANSPOSE if transpose else native.SOLVE_NORMAL
        with exclusive(), self._gpu.device(self._device):
            self._library.configure(self._config, Config.SOLVE_MODE, mode)
            step = 1 if self._separately else rhs.shape[0]
            for x_rows, b_rows in zip(x.split(step), rhs.split(step), strict=True):
                self._execute(Phase.SOLVE, x_rows, b_rows)
        return x

    def read(self, what: Data) -> Any:
        """Read what cuDSS reports about the analysis or the factorisation; waits for the device."""
        with exclusive(), self._gpu.device(self._device):
            return self._read(what)

    def _read(self, what: Data) -> Any:
        value, written = native.DATA_TYPES[what](), c_size_t()
        place = byref(value), sizeof(value), byref(written)
        self._library.call("DataGet", self._handle.pointer, self._data, what, *place)
        return value

    def _execute(self, phase: Phase, x: Tensor, b: Tensor) -> None:
        """Submit a phase between the work of the current stream so far and its later work."""
        current = self._gpu.current_stream(self._device)
        stream, memory = self._handle.stream, self._handle.memory
        if self._gpu.is_current_stream_capturing():
            raise EngineUnsupportedError(
                "cuDSS does not solve in a CUDA graph, since a replay might write to memory that "
                "its factor has returned meanwhile; solve outside of the capture",
                engine="cudss",
            )
        for vector in self._vectors:
            self._library.try_call("MatrixDestroy", vector)
        self._vectors = ()
        for vectors in (x, b):  # each is kept at once, since the next may fail
            self._vectors += (self._describe(vectors),)
        if current != stream:
            stream.wait_stream(current)
        memory.counter, memory.problem, memory.ran_out = self._bytes, "", False
        arguments = self._config, self._data, self._matrix, *self._vectors
        try:
            status = self._library.try_call("Execute", self._handle.pointer, phase, *arguments)
        finally:
            memory.counter = None
        if current != stream:
            current.wait_stream(stream)
        if status:
            called = f"Execute, {phase.name.lower()},"
            raise error_of(status, called, memory.problem, memory.ran_out)

    def _describe(self, vectors: Tensor) -> c_void_p:
        """The n-by-k matrix whose columns are the rows of contiguous `vectors`; for one system."""
        sizes = self._n, vectors.shape[0], self._n
        types = native.VALUE_TYPES[self._dtype], native.COLUMN_MAJOR
        return self._library.create("MatrixCreateDn", *sizes, vectors.data_ptr(), *types)

    def destroy(self) -> None:
        """Release everything, when the device has finished its work with it; under the lock.

        cuDSS was reported to fail where its data are destroyed while the device uses them.
        """
        with self._gpu.device(self._device):
            with suppress(Exception):  # of a device that is gone
                finished = self._gpu.Event()
                finished.record(self._handle.stream)
                finished.synchronize()
            for matrix in (*self._vectors, self._matrix):
                if matrix:
                    self._library.try_call("MatrixDestroy", matrix)
            self._library.try_call("DataDestroy", self._handle.pointer, self._data)
        self._values = None
