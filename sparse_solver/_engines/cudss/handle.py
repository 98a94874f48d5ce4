"""The handles of cuDSS, their memory, and the lock around all calls.

NVIDIA does not document that cuDSS may be called by several threads, so a process makes one call
at a time; work on the device goes on meanwhile. There is a handle for each stream and dtype, since
the memory of a handle belongs to its stream.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import byref, c_void_p
from typing import Any

import torch

from ..._torch.fork_safe_lock import ForkSafeLock
from .library import Allocate, DeviceMemHandler, Free, Library

_lock = ForkSafeLock()
_dead: deque[Callable[[], None]] = deque()  # what destroys the objects that were discarded


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold the lock under which cuDSS is called."""
    try:
        with _lock:
            _destroy_dead()  # their memory may be needed now
            yield
    finally:
        _destroy_dead_if_unlocked()


def discard(destroy: Callable[[], None], process: int) -> None:
    """Call `destroy` under the lock, now or when the lock is released.

    It takes no lock itself: an object may be discarded in a garbage collection, inside a call that
    this very thread makes. `process` made the object; a forked child leaves it alone, because it
    can neither use the device of its parent nor release memory there.
    """
    if process == os.getpid():
        _dead.append(destroy)
        _destroy_dead_if_unlocked()


def _destroy_dead_if_unlocked() -> None:
    while _dead and _lock.acquire(blocking=False):
        try:
            _destroy_dead()
        finally:
            _lock.release()


def _destroy_dead() -> None:
    while _dead:
        with suppress(Exception):  # no caller could act on it
            _dead.popleft()()


class DeviceMemory:
    """Memory for cuDSS from torch's caching allocator.

    counter : a list with the bytes in use by the workspace that is being called, or None
    problem : the message of the last error, which cannot be raised through a C library
    ran_out : whether there was no memory
    """

    def __init__(self, gpu: Any, device: torch.device):
        self.gpu, self.device = gpu, device
        self.counter: list[int] | None = None
        self.problem, self.ran_out = "", False
        self._live: dict[int, tuple[int, list[int] | None]] = {}
        # cuDSS calls these functions as long as the handle lives, so they must be kept.
        name = b"torch caching allocator"
        self.handler = DeviceMemHandler(None, Allocate(self._allocate), Free(self._free), name)

    def _allocate(self, context: Any, place: Any, size: int, stream: int | None) -> int:
        try:
            address = self.gpu.caching_allocator_alloc(max(size, 1), self.device, stream or 0)
            if self.counter is not None:
                self.counter[0] += size
            self._live[address] = size, self.counter
            place[0] = address
        except BaseException as error:
            self.problem, self.ran_out = str(error), True
            return 1
        return 0

    def _free(self, context: Any, address: int | None, size: int, stream: int | None) -> int:
        try:
            if address:
                counted, counter = self._live.pop(address)
                if counter is not None:
                    counter[0] -= counted
                self.gpu.caching_allocator_delete(address)
        except BaseException as error:
            self.problem = str(error)
            return 1
        return 0


class Handle:
    """cuDSS on one stream, for one dtype.

    A handle that had served another dtype was reported to give wrong results.
    """

    def __init__(self, library: Library, gpu: Any, device: torch.device, stream: Any):
        self.stream, self.memory, self.pointer = stream, DeviceMemory(gpu, device), c_void_p()
        try:
            library.call("Create", byref(self.pointer))
            if library.threading_layer is not None:  # if it fails, analyses take one core
                layer = library.threading_layer.encode()
                library.try_call("SetThreadingLayer", self.pointer, layer)
            library.call("SetStream", self.pointer, stream.cuda_stream)
            library.call("SetDeviceMemHandler", self.pointer, byref(self.memory.handler))
        except BaseException:
            if self.pointer:
                library.try_call("Destroy", self.pointer)
            raise
        given = library, self.pointer, self.memory, os.getpid()
        weakref.finalize(self, _discard_handle, *given).atexit = False


def _discard_handle(
    library: Library, pointer: c_void_p, memory: DeviceMemory, process: int
) -> None:
    """Discard a handle, whose workspaces were discarded before; its memory lives until then."""

    def destroy() -> None:
        with memory.gpu.device(memory.device):
            library.try_call("Destroy", pointer)

    discard(destroy, process)
