"""The objects of cuDSS: a handle for each stream, plans of how to factor a pattern, and their workspaces on the device.

A workspace holds one analysis and one factorisation. It goes back to its plan when the factor that it belongs to dies, and
serves the next factorisation, which then needs no analysis. cuDSS calls what it keeps "data".

Nothing is said about whether cuDSS may be called by several threads, so that one call at a time is made in a process; work
on the device goes on meanwhile. A workspace keeps to the handle, hence the stream, with which it was made, for its memory
and that of the handle belong to that one.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import byref, c_int, c_size_t, c_void_p, sizeof
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..._sparse.triangle import Arrangement
from ..._torch.fork_safe_lock import ForkSafeLock
from ..._torch.modes import outside_transforms, record_current_stream, synchronize_stream
from ...errors import EngineError
from ..idle_memory import RecentlyUsed
from . import library as native
from .library import (
    CONFIG_TYPES,
    DATA_TYPES,
    Config,
    Data,
    DeviceMemHandler,
    Library,
    Phase,
    error_of,
)

T = TypeVar("T")


_lock = ForkSafeLock()


_dead: deque[Callable[[], None]] = deque()  # what destroys objects that nobody uses any more


recently_used = RecentlyUsed(4)  # plans with idle workspaces


@contextmanager
def _alone() -> Iterator[None]:
    try:
        with _lock:
            _destroy_dead()  # whoever died may hold the memory that is needed now
            yield
    finally:
        _bury()


def _destroy_dead() -> None:
    """Whoever calls is alone in the library."""
    while _dead:
        with suppress(Exception):  # there is nobody to tell
            _dead.popleft()()


def _bury() -> None:
    """Destroys what is dead, unless somebody is in the library: garbage is collected anywhere, also inside of a call of
    this very thread, and whoever leaves the library looks here again."""
    while _dead and _lock.acquire(blocking=False):
        try:
            _destroy_dead()
        finally:
            _lock.release()


def _discard(destroy: Callable[[], None], process: int) -> None:
    if process == os.getpid():  # a forked child cannot use the device, nor free its memory
        _dead.append(destroy)
        _bury()


def with_room(work: Callable[[], T]) -> T:
    """What `work` gives; where there is no memory for it, that of dead factors is given back, and it is tried again."""
    try:
        return work()
    except (EngineError, torch.OutOfMemoryError) as error:
        if isinstance(error, EngineError) and not error.out_of_memory:
            raise
    recently_used.release()  # not before the error is gone, which keeps what had no room
    return work()


class DeviceMemory:
    """Has cuDSS take its memory from torch's caching allocator, and counts the bytes of each workspace."""

    def __init__(self, gpu: Any, device: torch.device):
        self.gpu, self.device = gpu, device
        self._live: dict[int, tuple[int, list[int] | None]] = {}
        self.count: list[int] | None = None  # of what is allocated now, the bytes
        self.problem = ""
        # Kept, for cuDSS calls these as long as the handle lives.
        self.handler = DeviceMemHandler(
            None,
            native.Allocate(self._allocate),
            native.Free(self._free),
            b"torch caching allocator",
        )

    def _allocate(self, context: Any, place: Any, size: int, stream: int | None) -> int:
        try:
            address = self.gpu.caching_allocator_alloc(max(size, 1), self.device, stream or 0)
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
                self.gpu.caching_allocator_delete(address)
        except BaseException as error:
            self.problem = str(error)
            return 1
        return 0


class Handle:
    """cuDSS on one stream, for one dtype: one that had served another dtype was reported to give wrong results."""

    def __init__(self, library: Library, gpu: Any, device: torch.device, stream: Any):
        self.stream, self.memory, self.pointer = stream, DeviceMemory(gpu, device), c_void_p()
        try:
            library.call("Create", byref(self.pointer))
            if (
                library.threading_layer is not None
            ):  # without which an analysis takes one core, and longer
                library.status("SetThreadingLayer", self.pointer, library.threading_layer.encode())
            library.call("SetStream", self.pointer, stream.cuda_stream)
            library.call("SetDeviceMemHandler", self.pointer, byref(self.memory.handler))
        except BaseException:
            if self.pointer:
                library.status("Destroy", self.pointer)
            raise
        weakref.finalize(
            self, _shut, library, self.pointer, self.memory, os.getpid()
        ).atexit = False


def _shut(library: Library, pointer: c_void_p, memory: DeviceMemory, process: int) -> None:
    """Destroys a handle, after the workspaces that held it; its memory has been asked for until then."""

    def destroy(memory: DeviceMemory = memory) -> None:
        with memory.gpu.device(memory.device):
            library.status("Destroy", pointer)

    _discard(destroy, process)


# Those that workspaces hold: streams come and go, and their addresses are used again.
_handles: weakref.WeakValueDictionary[tuple[int, torch.device, torch.dtype, int], Handle] = (
    weakref.WeakValueDictionary()
)


def _handle_of(plan: Plan) -> Handle:
    """That of the current stream, on the current device; whoever calls is alone in the library."""
    stream = plan.gpu.current_stream(plan.device)
    key = id(plan.library), plan.device, plan.dtype, stream.cuda_stream
    handle = _handles.get(key)
    if handle is None:
        handle = _handles[key] = Handle(plan.library, plan.gpu, plan.device, stream)
    return handle


class Plan:
    """How matrices of one pattern are factored.

    `layout` : of one matrix, `count` of which are factored at once where that is more than one
    `configuration` : what is not left to cuDSS
    `match` : the values by which rows are matched with columns; None: pivots are taken as they come
    """

    def __init__(
        self,
        library: Library,
        device: torch.device,
        arrangement: Arrangement,
        count: int,
        matrix_type: str,
        dtype: torch.dtype,
        configuration: dict[Config, float],
        match: Tensor | None = None,
    ):
        self.library, self.device, self.gpu = library, device, torch.get_device_module(device)
        self.arrangement, self.count, self.dtype, self.match = arrangement, count, dtype, match
        self.is_hybrid = Config.HYBRID_MEMORY_MODE in configuration
        self.separately = (
            count > 1 or Config.DETERMINISTIC_MODE in configuration
        )  # one right-hand side after the other
        self.n = arrangement.crow.numel() - 1
        wide = arrangement.nnz >= 2**31
        self.col = arrangement.col.to(torch.int32)
        self.crow = arrangement.crow if wide else arrangement.crow.to(torch.int32)
        view = native.VIEW_FULL if arrangement.coverage == "full" else native.VIEW_UPPER
        self.description = (
            *(native.INT64 if wide else native.INT32, native.INT32, native.VALUE_TYPES[dtype]),
            *(native.MATRIX_TYPES[matrix_type], view, native.BASE_ZERO),
        )
        self._idle: list[Workspace] = []
        synchronize_stream(device)  # other streams will read the indices
        with _alone():
            self.config = library.created("ConfigCreate")
            weakref.finalize(
                self, _dismantle, self.config, self._idle, library, os.getpid()
            ).atexit = False
            if count > 1:
                _configure(library, self.config, Config.UBATCH_SIZE, count)
            for name, value in configuration.items():
                _configure(library, self.config, name, value)

    def workspace(self) -> Workspace:
        """An idle one, or a new one with an analysis."""
        recently_used.use(self)
        with _alone():
            return self._idle_one() or Workspace(self)

    def give_back(self, workspace: Workspace) -> None:
        """Runs wherever a factor dies, and takes no lock: see `_bury`."""
        if self._idle:
            _discard(workspace.destroy, workspace.process)
            return
        self._idle.append(workspace)
        if not recently_used.has(self):  # nobody would ask for it to be released
            self.release_idle()

    def release_idle(self) -> None:
        while workspace := self._idle_one():
            _discard(workspace.destroy, workspace.process)

    def _idle_one(self) -> Workspace | None:
        try:
            return self._idle.pop()
        except IndexError:  # also where another thread was faster
            return None


def _configure(library: Library, config: c_void_p, name: Config, value: float) -> None:
    number = CONFIG_TYPES[name](value)
    library.call("ConfigSet", config, name, byref(number), sizeof(number))


def _dismantle(config: c_void_p, idle: list[Workspace], library: Library, process: int) -> None:
    def destroy() -> None:
        for workspace in idle:
            workspace.destroy()
        library.status("ConfigDestroy", config)

    _discard(destroy, process)


class Workspace:
    """An analysis, and room for one factorisation; made, and called, by whoever is alone in the library."""

    def __init__(self, plan: Plan):
        self._gpu, self._device, self.process = plan.gpu, plan.device, os.getpid()
        self._count, self._n, self._dtype = plan.count, plan.n, plan.dtype
        self._library, self._config = plan.library, plan.config
        self._indices = plan.crow, plan.col  # which cuDSS may read as long as this lives
        self._separately = plan.separately
        self._values: Tensor | None = None
        self._vectors: tuple[c_void_p, ...] = ()
        self._was_tried = self.is_factored = False  # the latter is for whoever reads INFO to say
        self._bytes, self._limit = [0], 0
        self._data, self._matrix = c_void_p(), c_void_p()
        with self._gpu.device(self._device), outside_transforms():
            self._handle = _handle_of(plan)
            self._library.call("DataCreate", self._handle.pointer, byref(self._data))
            try:
                values = plan.match
                if values is None:  # which nobody looks at
                    values = torch.ones(
                        plan.count * plan.arrangement.nnz, dtype=plan.dtype, device=self._device
                    )
                record_current_stream(*self._indices, values)
                self._matrix = self._library.created(
                    "MatrixCreateCsr", self._n, self._n, plan.arrangement.nnz, plan.crow.data_ptr(), None, plan.col.data_ptr(),
                    values.data_ptr(), *plan.description,
                )  # fmt: skip
                scratch = torch.empty(
                    (1, self._n * self._count), dtype=plan.dtype, device=self._device
                )
                self._run(Phase.ANALYSIS, scratch, scratch)
                self._values = values
                if plan.is_hybrid:
                    self._limit = self._room()
            except BaseException:
                self.destroy()
                raise

    def _room(self) -> int:
        """The bytes of device memory for a factorisation that may use the host's as well: most of what is free."""
        gpu, device = self._gpu, self._device
        free = (
            gpu.mem_get_info(device)[0] + gpu.memory_reserved(device) - gpu.memory_allocated(device)
        )
        least: int = self._get(Data.HYBRID_DEVICE_MEMORY_MIN).value
        return max(least, int(0.8 * free))

    @property
    def memory_bytes(self) -> int:
        return self._bytes[0]

    def factor(self, values: Tensor) -> None:
        """Factors the matrix with these values, which are kept, since cuDSS may read them as long as it solves."""
        with _alone(), self._gpu.device(self._device):
            self._library.call("MatrixSetValues", self._matrix, values.data_ptr())
            values.record_stream(self._handle.stream)
            self._values = values
            if self._limit:
                _configure(
                    self._library, self._config, Config.HYBRID_DEVICE_MEMORY_LIMIT, self._limit
                )
            scratch = torch.empty(
                (1, self._n * self._count), dtype=values.dtype, device=values.device
            )
            if self._was_tried:  # or the error of that would stay
                none = c_int(0)
                self._library.call(
                    "DataSet",
                    self._handle.pointer,
                    self._data,
                    Data.INFO,
                    byref(none),
                    sizeof(none),
                )
            again, self._was_tried, self.is_factored = self.is_factored, True, False
            self._run(Phase.REFACTORIZATION if again else Phase.FACTORIZATION, scratch, scratch)

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        """For the rows of `rhs` (k, n · count)."""
        x = torch.empty_like(rhs)
        with _alone(), self._gpu.device(self._device):
            _configure(
                self._library,
                self._config,
                Config.SOLVE_MODE,
                native.SOLVE_TRANSPOSE if transpose else native.SOLVE_NORMAL,
            )
            step = 1 if self._separately else rhs.shape[0]
            for x_rows, b_rows in zip(x.split(step), rhs.split(step), strict=True):
                self._run(Phase.SOLVE, x_rows, b_rows)
        return x

    def get(self, what: Data) -> Any:
        """What cuDSS tells about the analysis or factorisation, for which it waits."""
        with _alone(), self._gpu.device(self._device):
            return self._get(what)

    def _get(self, what: Data) -> Any:
        value, written = DATA_TYPES[what](), c_size_t()
        self._library.call(
            "DataGet",
            self._handle.pointer,
            self._data,
            what,
            byref(value),
            sizeof(value),
            byref(written),
        )
        return value

    def _run(self, phase: Phase, x: Tensor, b: Tensor) -> None:
        """One phase, after what the current stream has been given so far, and before what it will be given."""
        current, stream, memory = (
            self._gpu.current_stream(self._device),
            self._handle.stream,
            self._handle.memory,
        )
        for vector in self._vectors:
            self._library.status("MatrixDestroy", vector)
        self._vectors = ()
        for vectors in (x, b):  # each is kept at once, lest the other one cannot be made
            self._vectors += (self._dense(vectors),)
        if current != stream:
            stream.wait_stream(current)
        memory.count, memory.problem = self._bytes, ""
        try:
            status = self._library.status(
                "Execute",
                self._handle.pointer,
                phase,
                self._config,
                self._data,
                self._matrix,
                *self._vectors,
            )
        finally:
            memory.count = None
        if current != stream:
            current.wait_stream(stream)
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
        with self._gpu.device(self._device):
            for matrix in (*self._vectors, self._matrix):
                if matrix:
                    self._library.status("MatrixDestroy", matrix)
            self._library.status("DataDestroy", self._handle.pointer, self._data)
        self._values = None
