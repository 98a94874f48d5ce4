"""What was made from index tensors, found again by comparing all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ._plain import finish, plainly
from ._sync import ForkSafeLock

T = TypeVar("T")
Check = Callable[..., None]


class IndexCache(Generic[T]):
    """The most recently used of the things that were made from index tensors."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._lock = ForkSafeLock()
        self._entries: OrderedDict[int, tuple[Any, tuple[Tensor, ...], T]] = OrderedDict()
        self._next = 0

    def find(
        self, key: Hashable, indices: tuple[Tensor, ...], build: Callable[..., T], check: Check | None = None
    ) -> T:
        """What was built from equal `indices` and an equal `key`, or what ``build(*indices)`` makes now.

        `build` receives copies that nobody else writes to. `check` raises where indices are not what they should be;
        those that are known already have passed it.
        """
        signature = (key, *((tuple(i.shape), i.dtype, i.device) for i in indices))
        with self._lock:
            candidates = [(k, e) for k, e in reversed(self._entries.items()) if e[0] == signature]
        for number, (_, known, made) in candidates:
            if all(torch.equal(a, b) for a, b in zip(known, indices, strict=True)):
                with self._lock:
                    if number in self._entries:
                        self._entries.move_to_end(number)
                return made
        with plainly():
            known = tuple(i.detach().clone(memory_format=torch.contiguous_format) for i in indices)
            if check is not None:
                check(*known)
            made = build(*known)
            for device in {i.device for i in known}:
                finish(device)
        with self._lock:
            self._entries[self._next] = (signature, known, made)
            self._next += 1
            while len(self._entries) > self.capacity:
                self._entries.popitem(last=False)
        return made

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)
