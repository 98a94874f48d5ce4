"""The objects of cuDSS: a handle for each device, plans of how to factor a pattern, and their workspaces on the device.

A workspace holds one analysis and one factorisation. It goes back to its plan when the factor that it belongs to dies, and
serves the next factorisation, which then needs no analysis. cuDSS calls what it keeps "data".

Nothing is said about whether cuDSS may be called by several threads, so that one call at a time is made in a process; work
on the device goes on meanwhile. A workspace keeps to the stream on which it was made, for its memory belongs to that one.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_int, c_size_t, c_void_p, sizeof
from typing import Any

import torch
from torch import Tensor

from .._layout import Layout
from .._plain import plainly
from .._sync import ForkSafeLock
from . import _cudss as native
from ._cudss import CONFIG_TYPES, DATA_TYPES, Config, Data, DeviceMemHandler, Library, Phase, error_of
from ._idle import RecentlyUsed

_lock = ForkSafeLock()
_dead: deque[Callable[[], None]] = deque()  # what destroys objects that nobody uses any more
recently_used = RecentlyUsed(4)  # plans with idle workspaces


@contextmanager
def _alone() -> Iterator[None]:
    try:
        with _lock:
            yield
    finally:
        _bury()


def _bury() -> None:
    """Destroys what is dead, unless somebody is in the library: garbage is collected anywhere, also inside of a call of
    this very thread, and whoever leaves the library looks here again."""
    while _dead and _lock.acquire(blocking=False):
        try:
            while _dead:
                _dead.popleft()()
        finally:
            _lock.release()


def _discard(destroy: Callable[[], None], process: int) -> None:
    if process == os.getpid():  # a forked child cannot use the device, nor free its memory
        _dead.append(destroy)
        _bury()


class DeviceMemory:
    """Has cuDSS take its memory from torch's caching allocator, and counts the bytes of each workspace."""

    def __init__(self, gpu: Any, device: torch.device):
        self._gpu, self._device = gpu, device
        self._live: dict[int, tuple[int, list[int] | None]] = {}
        self.count: list[int] | None = None  # of what is allocated now, the bytes
        self.problem = ""
        # Kept, for cuDSS calls these as long as the handle lives.
        self.handler = DeviceMemHandler(
            None, native.Allocate(self._allocate), native.Free(self._free), b"torch caching allocator"
        )

    def _allocate(self, context: Any, place: Any, size: int, stream: int | None) -> int:
        try:
            address = self._gpu.caching_allocator_alloc(max(size, 1), self._device, stream or 0)
            if self.count is not None:
                self.count[0] += size
            self._live[address] = size, self.count
            place[0] = address
        except BaseException as error:  # nothing may be raised through a library
            self.problem = str(error)
            return 1
        return 0

    def _free(self, context: Any, address: int | None, size: int, stream: int | None) -> int:
        try:
            if address:
                counted, count = self._live.pop(address)
                if count is not None:
                    count[0] -= counted
                self._gpu.caching_allocator_delete(address)
        except BaseException as error:
            self.problem = str(error)
            return 1
        return 0


class Handle:
    """cuDSS on one device, for one dtype: one that had served another dtype was reported to give wrong results."""

    def __init__(self, library: Library, device: torch.device):
        self.library, self.device = library, device
        self.gpu = torch.get_device_module(device)
        self.memory = DeviceMemory(self.gpu, device)
        self.pointer = c_void_p()
        with self.gpu.device(device):
            status = library.status("Create", byref(self.pointer))
            if status:
                if self.pointer:
                    library.status("Destroy", self.pointer)
                raise error_of(status, "Create")
            if library.threading_layer is not None:
                library.call("SetThreadingLayer", self.pointer, library.threading_layer.encode())
            library.call("SetDeviceMemHandler", self.pointer, byref(self.memory.handler))

    def current_stream(self) -> Any:
        return self.gpu.current_stream(self.device)


_handles: dict[tuple[int, torch.device, torch.dtype], Handle] = {}


def handle_of(library: Library, device: torch.device, dtype: torch.dtype) -> Handle:
    key = id(library), device, dtype
    with _alone():
        if key not in _handles:
            _handles[key] = Handle(library, device)
        return _handles[key]


class Plan:
    """How matrices of one pattern are factored.

    `layout` : of one matrix, `count` of which are factored at once where that is more than one
    `configuration` : what is not left to cuDSS
    `match` : the values by which rows are matched with columns; None: pivots are taken as they come
    """

    def __init__(
        self,
        handle: Handle,
        layout: Layout,
        count: int,
        matrix_type: str,
        dtype: torch.dtype,
        configuration: dict[Config, float],
        match: Tensor | None = None,
    ):
        self.handle, self.layout, self.count, self.dtype, self.match = handle, layout, count, dtype, match
        self.is_hybrid = Config.HYBRID_MEMORY_MODE in configuration
        self.separately = count > 1 or Config.DETERMINISTIC_MODE in configuration  # one right-hand side after the other
        self.n = layout.crow.numel() - 1
        wide = layout.nnz >= 2**31
        self.col = layout.col.to(torch.int32)
        self.crow = layout.crow if wide else layout.crow.to(torch.int32)
        view = native.VIEW_FULL if layout.part == "full" else native.VIEW_UPPER
        self.description = (
            *(native.INT64 if wide else native.INT32, native.INT32, native.VALUE_TYPES[dtype]),
            *(native.MATRIX_TYPES[matrix_type], view, native.BASE_ZERO),
        )
        self._idle: list[Workspace] = []
        library = handle.library
        with _alone():
            self.config = library.created("ConfigCreate")
            weakref.finalize(self, _dismantle, self.config, self._idle, library, os.getpid()).atexit = False
            if count > 1:
                self.configure(Config.UBATCH_SIZE, count)
            for name, value in configuration.items():
                self.configure(name, value)

    def configure(self, name: Config, value: float) -> None:
        number = CONFIG_TYPES[name](value)
        self.handle.library.call("ConfigSet", self.config, name, byref(number), sizeof(number))

    def workspace(self) -> Workspace:
        """An idle one, of the current stream where there is one, or a new one with an analysis."""
        current = self.handle.current_stream()
        with _alone():
            if self._idle:
                at = next((i for i, one in enumerate(self._idle) if one.stream == current), 0)
                return self._idle.pop(at)
            return Workspace(self, current)

    def give_back(self, workspace: Workspace) -> None:
        """Runs wherever a factor dies: see `_bury`."""
        if self._idle:
            _discard(workspace.destroy, workspace.process)
        else:
            self._idle.append(workspace)

    def release_idle(self) -> None:
        while self._idle:
            workspace = self._idle.pop()
            _discard(workspace.destroy, workspace.process)


def _dismantle(config: c_void_p, idle: list[Workspace], library: Library, process: int) -> None:
    def destroy() -> None:
        for workspace in idle:
            workspace.destroy()
        library.status("ConfigDestroy", config)

    _discard(destroy, process)


class Workspace:
    """An analysis, and room for one factorisation; made, and called, by whoever is alone in the library."""

    def __init__(self, plan: Plan, stream: Any):
        self._handle, self.stream, self.process = plan.handle, stream, os.getpid()
        self._count, self._n, self._dtype = plan.count, plan.n, plan.dtype
        self._library, self._config = plan.handle.library, plan.config
        self._indices = plan.crow, plan.col  # which cuDSS may read as long as this lives
        self._separately = plan.separately
        self._values: Tensor | None = None
        self._vectors: tuple[c_void_p, ...] = ()
        self._was_tried = self.is_factored = False
        self._bytes = [0]
        self._data, self._matrix = c_void_p(), c_void_p()
        with self._handle.gpu.device(self._handle.device), plainly():
            self._library.call("DataCreate", self._handle.pointer, byref(self._data))
            try:
                values = plan.match
                if values is None:  # which nobody looks at
                    values = torch.ones(plan.count * plan.layout.nnz, dtype=plan.dtype, device=self._handle.device)
                self._matrix = self._library.created(
                    "MatrixCreateCsr", self._n, self._n, plan.layout.nnz, plan.crow.data_ptr(), None, plan.col.data_ptr(),
                    values.data_ptr(), *plan.description,
                )  # fmt: skip
                scratch = torch.empty((1, self._n * self._count), dtype=plan.dtype, device=self._handle.device)
                self._run(Phase.ANALYSIS, scratch, scratch)
                self._values = values
                if plan.is_hybrid:
                    plan.configure(Config.HYBRID_DEVICE_MEMORY_LIMIT, self._room())
            except BaseException:
                self.destroy()
                raise

    def _room(self) -> int:
        """The bytes of device memory for a factorisation that may use the host's as well: most of what is free."""
        gpu, device = self._handle.gpu, self._handle.device
        free = gpu.mem_get_info(device)[0] + gpu.memory_reserved(device) - gpu.memory_allocated(device)
        least: int = self._get(Data.HYBRID_DEVICE_MEMORY_MIN).value
        return max(least, int(0.8 * free))

    @property
    def memory_bytes(self) -> int:
        return self._bytes[0]

    def factor(self, values: Tensor) -> None:
        """Factors the matrix with these values, which are kept, since cuDSS may read them as long as it solves."""
        with _alone(), self._handle.gpu.device(self._handle.device):
            self._library.call("MatrixSetValues", self._matrix, values.data_ptr())
            self._values = values
            scratch = torch.empty((1, self._n * self._count), dtype=values.dtype, device=values.device)
            if self._was_tried:  # or the error of that would stay
                none = c_int(0)
                self._library.call("DataSet", self._handle.pointer, self._data, Data.INFO, byref(none), sizeof(none))
            again, self._was_tried, self.is_factored = self.is_factored, True, False
            self._run(Phase.REFACTORIZATION if again else Phase.FACTORIZATION, scratch, scratch)
            self.is_factored = True

    def solve(self, rhs: Tensor, transpose: bool) -> Tensor:
        """For the rows of `rhs` (k, n · count)."""
        x = torch.empty_like(rhs)
        with _alone(), self._handle.gpu.device(self._handle.device):
            mode = c_int(native.SOLVE_TRANSPOSE if transpose else native.SOLVE_NORMAL)
            self._library.call("ConfigSet", self._config, Config.SOLVE_MODE, byref(mode), sizeof(mode))
            step = 1 if self._separately else rhs.shape[0]
            for x_rows, b_rows in zip(x.split(step), rhs.split(step), strict=True):
                self._run(Phase.SOLVE, x_rows, b_rows)
        return x

    def get(self, what: Data) -> Any:
        """What cuDSS tells about the analysis or factorisation, for which it waits."""
        with _alone(), self._handle.gpu.device(self._handle.device):
            self._library.call("SetStream", self._handle.pointer, self.stream.cuda_stream)
            return self._get(what)

    def _get(self, what: Data) -> Any:
        value, written = DATA_TYPES[what](), c_size_t()
        self._library.call(
            "DataGet", self._handle.pointer, self._data, what, byref(value), sizeof(value), byref(written)
        )
        return value

    def _run(self, phase: Phase, x: Tensor, b: Tensor) -> None:
        """One phase, after what the current stream has been given so far, and before what it will be given."""
        current, memory = self._handle.current_stream(), self._handle.memory
        for vector in self._vectors:
            self._library.status("MatrixDestroy", vector)
        self._vectors = ()
        self._vectors = tuple(self._dense(vector) for vector in (x, b))
        if current != self.stream:
            self.stream.wait_stream(current)
            if self._values is not None:  # whose memory the other stream must not reuse before this one has read it
                self._values.record_stream(self.stream)
        self._library.call("SetStream", self._handle.pointer, self.stream.cuda_stream)
        memory.count, memory.problem = self._bytes, ""
        try:
            status = self._library.status(
                "Execute", self._handle.pointer, phase, self._config, self._data, self._matrix, *self._vectors
            )
        finally:
            memory.count = None
        if current != self.stream:
            current.wait_stream(self.stream)
        if status:
            raise error_of(status, f"Execute, {phase.name.lower()},", memory.problem)

    def _dense(self, vectors: Tensor) -> c_void_p:
        """The n-by-k matrix whose columns are the rows of contiguous `vectors`; of several systems, those of one."""
        k = vectors.shape[0]
        return self._library.created(
            "MatrixCreateDn",
            self._n,
            k,
            self._n,
            vectors.data_ptr(),
            native.VALUE_TYPES[self._dtype],
            native.COLUMN_MAJOR,
        )

    def destroy(self) -> None:
        """Gives everything back; whoever calls is alone in the library."""
        with self._handle.gpu.device(self._handle.device):
            for matrix in (*self._vectors, self._matrix):
                if matrix:
                    self._library.status("MatrixDestroy", matrix)
            self._library.status("SetStream", self._handle.pointer, self.stream.cuda_stream)
            self._library.status("DataDestroy", self._handle.pointer, self._data)
        self._values = None
