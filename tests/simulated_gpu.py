"""A simulated GPU: tensors on a device of their own, with their numbers in the memory of the host.

`torch.device("gpu")` behaves as CUDA does where it matters here. Operators and numpy() refuse
tensors of other devices, and `torch.get_device_module` has streams, events and an allocator that
keeps accounts. What makes the host wait is counted (`synchronisations`): reads of a number, results
whose size depends on the data, and copies between host and device, in both directions, as by
`torch.cuda.set_sync_debug_mode`. The simulation cannot show what real kernels do.

Older versions of torch have no devices made in Python; then `MISSING` says so, and `require` skips
tests. With SPARSE_SOLVER_REAL_GPU in the environment there is no simulation either: torch would
take it for its accelerator, and its autograd would wait for the streams of nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

Backend: Any = object
MISSING: str | None = None
try:
    from torch.utils.backend_registration import _DummyBackendModule as Backend
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
except ImportError as error:
    MISSING = f"torch {torch.__version__} cannot simulate a GPU ({error})"
if os.environ.get("SPARSE_SOLVER_REAL_GPU"):
    MISSING = "only real GPUs are tested"

TYPE = "gpu" if MISSING is None else "privateuseone"

_COPIES = ("aten::_to_copy", "aten::copy_", "aten::set_", "aten::lift_fresh")
_READS = (
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::repeat_interleave",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::_coalesce",
)
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_synchronisations = 0


def require() -> None:
    """Skip the test, or the whole test module that is being imported, if there is no simulation."""
    if MISSING is not None:
        pytest.skip(MISSING, allow_module_level=True)


def synchronisations() -> int:
    """The number of times that the host has waited for the device."""
    return _synchronisations


def count_synchronisation() -> None:
    global _synchronisations
    _synchronisations += 1


def _on_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == TYPE


class SimulatedTensor(Tensor):
    """A tensor on the device; `host` holds its numbers."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> SimulatedTensor:
        where: dict[str, Any] = {"dtype": host.dtype, "layout": host.layout, "device": DEVICE}
        if host.layout == torch.strided:
            where |= {"strides": host.stride(), "storage_offset": host.storage_offset()}
        made: SimulatedTensor = Tensor._make_wrapper_subclass(cls, host.shape, **where)
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operator, args, kwargs or {})

    def record_stream(self, stream: Any) -> None:
        self.recorded = stream

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def tolist(self) -> Any:
        count_synchronisation()
        return self.host.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")

    __array__ = numpy

    def __repr__(self) -> str:  # type: ignore[override] # torch's has an option
        return f"SimulatedTensor({self.host!r})"


def _wrapped(host: Any) -> Any:
    if not isinstance(host, Tensor):
        return host
    if host._is_zerotensor():
        host = torch.zeros(host.shape, dtype=host.dtype)
    elif host.layout == torch.strided:  # a wrapper has no bit for lazy conjugates
        host = host.resolve_conj().resolve_neg()
    return SimulatedTensor(host)


def _waits(name: str, args: Any, kwargs: dict[str, Any], stays: bool) -> bool:
    """Whether the host waits for the device in this operator, of which an argument is there."""
    if name in _COPIES:
        source = next(a for a in reversed(args) if isinstance(a, Tensor))
        arrives = stays and not isinstance(source, SimulatedTensor)
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        return (arrives or not stays) and not non_blocking
    if name in _INDEXING:  # a mask has to be read to know how many numbers it chooses
        masks = [i for i in args[1] if isinstance(i, Tensor) and i.dtype == torch.bool]
        return bool(masks) and (name == "aten::index" or args[2].numel() > 1)
    return name in _READS


def _leaves(things: Any) -> Iterator[Any]:
    """The arguments, and the elements of those that are lists."""
    for thing in things:
        if isinstance(thing, (list, tuple)):
            yield from _leaves(thing)
        else:
            yield thing


def _mapped(function: Callable[[Any], Any], thing: Any) -> Any:
    if isinstance(thing, (list, tuple)):
        return type(thing)(_mapped(function, part) for part in thing)
    return function(thing)


def _run(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in _leaves((*args, *kwargs.values())) if isinstance(leaf, Tensor)]
    simulated = {id(t.host): t for t in tensors if isinstance(t, SimulatedTensor)}
    name = operator._schema.name
    if (
        simulated
        and name not in _COPIES
        and any(t.dim() > 0 and not isinstance(t, SimulatedTensor) for t in tensors)
    ):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{DEVICE} and cpu! ({name})"
        )

    def unwrapped(leaf: Any) -> Any:
        if isinstance(leaf, SimulatedTensor):
            return leaf.host
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    device = kwargs.get("device", next((a for a in args if isinstance(a, torch.device)), None))
    stays = bool(simulated) if device is None else _on_device(device)
    if name == "aten::copy_":
        stays = isinstance(args[0], SimulatedTensor)
    if (simulated or stays) and _waits(name, args, kwargs, stays):
        count_synchronisation()
    kwargs = {
        key: _mapped(unwrapped, value) for key, value in kwargs.items() if key != "pin_memory"
    }
    result = operator(*_mapped(unwrapped, args), **kwargs)
    if not stays:
        return result
    return _mapped(
        lambda leaf: simulated[id(leaf)] if id(leaf) in simulated else _wrapped(leaf), result
    )


class Stream:
    """A stream, whose work is done when it is submitted; it records what it waited for."""

    def __init__(self, device: Any = None, number: int = 0):
        self.device, self.cuda_stream, self.waited_for = DEVICE, number, []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other.cuda_stream)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.cuda_stream == self.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)

    def synchronize(self) -> None:
        count_synchronisation()


class Event:
    def __init__(self, enable_timing: bool = False):
        self._time = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self._time = time.perf_counter()

    def elapsed_time(self, other: Event) -> float:
        return 1e3 * (other._time - self._time)

    def query(self) -> bool:
        return Module.finished

    def synchronize(self) -> None:
        Module.finished = True


class Module(Backend):
    """The counterpart of `torch.cuda`, as far as it is used."""

    Stream, Event = Stream, Event
    finished = True  # what events report
    capturing = False  # whether a CUDA graph records what is submitted
    allocated: dict[int, tuple[Any, int, int]] = {}
    out_of_memory = False
    _current = threading.local()

    def current_stream(self, device: Any = None) -> Stream:
        return getattr(self._current, "stream", Stream())

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream()
        self._current.stream = stream
        try:
            yield
        finally:
            self._current.stream = before

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    @contextlib.contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before = self.is_current()
        self._current.is_current = True
        try:
            yield
        finally:
            self._current.is_current = before

    def is_current(self) -> bool:
        """Whether this device was chosen; without that, another one is the current device."""
        return getattr(self._current, "is_current", False)

    def caching_allocator_alloc(self, size: int, device: Any = None, stream: Any = None) -> int:
        if self.out_of_memory:
            raise torch.OutOfMemoryError(f"tried to allocate {size} bytes")
        memory = ctypes.create_string_buffer(size)
        address = ctypes.addressof(memory)
        self.allocated[address] = (memory, size, stream)
        return address

    def caching_allocator_delete(self, address: int) -> None:
        del self.allocated[address]

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return 2**30, 2**31

    def memory_reserved(self, device: Any = None) -> int:
        return 0

    def memory_allocated(self, device: Any = None) -> int:
        return sum(size for _, size, _ in self.allocated.values())

    max_memory_allocated = memory_allocated  # as if all of it were still in use

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        pass


def _factory(operator: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(operator, args, kwargs)


module = Module()
if MISSING is None:
    _setup_privateuseone_for_python_backend(TYPE, module)
    _library = torch.library.Library("_", "IMPL")
    _library.fallback(_factory, "PrivateUse1")
DEVICE = torch.device(TYPE, 0)
