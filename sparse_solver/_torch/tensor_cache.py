"""Caches whose keys are index tensors, compared entry by entry."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .fork_safe_lock import ForkSafeLock
from .modes import outside_transforms, synchronize_stream

T = TypeVar("T")
Check = Callable[..., None]

# Sixteen patterns cover a multigrid hierarchy or a few alternating meshes. What was dropped is
# computed again when it is used again.
_CAPACITY = 16


class TensorCache(Generic[T]):
    """The results for the index tensors that were used last, at most `capacity` of them."""

    def __init__(self, capacity: int = _CAPACITY):
        self.capacity = capacity
        self._lock = ForkSafeLock()
        self._entries: OrderedDict[int, tuple[Any, tuple[Tensor, ...], T]] = OrderedDict()
        self._next = 0
        _caches.add(self)

    def find(
        self,
        key: Hashable,
        indices: tuple[Tensor, ...],
        build: Callable[..., T],
        check: Check | None = None,
    ) -> T:
        """Return the result for equal `indices` and an equal `key`, or ``build(*indices)``.

        `build` receives private copies of the indices. `check` raises for indices that are not
        valid; those in the cache have passed it.
        """
        signature = (key, *((tuple(i.shape), i.dtype, i.device) for i in indices))
        with self._lock:
            candidates = [(k, e) for k, e in reversed(self._entries.items()) if e[0] == signature]
        for number, (_, known, result) in candidates:
            if all(torch.equal(a, b) for a, b in zip(known, indices, strict=True)):
                with self._lock:
                    if number in self._entries:
                        self._entries.move_to_end(number)
                return result
        with outside_transforms():
            copies = (i.detach().clone(memory_format=torch.contiguous_format) for i in indices)
            known = tuple(copies)
            if check is not None:
                check(*known)
            result = build(*known)
            for device in {i.device for i in known}:
                synchronize_stream(device)
        with self._lock:
            self._entries[self._next] = (signature, known, result)
            self._next += 1
            while len(self._entries) > self.capacity:
                self._entries.popitem(last=False)
        return result

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


_caches: weakref.WeakSet[TensorCache[Any]] = weakref.WeakSet()


def clear_caches() -> None:
    """Empty every cache of the package."""
    for cache in list(_caches):
        cache.clear()
