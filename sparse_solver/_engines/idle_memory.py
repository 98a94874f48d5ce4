"""Memory of dead factors that is kept for those to come: only what was used last may keep it."""

from __future__ import annotations

import weakref
from collections import OrderedDict

from .._torch.fork_safe_lock import ForkSafeLock
from .protocol import KeepsMemory


class RecentlyUsed:
    """The `most` keepers that were used last; others have to release what is idle."""

    def __init__(self, most: int):
        self._most = most
        self._keepers: OrderedDict[int, weakref.ref[KeepsMemory]] = OrderedDict()
        self._lock = ForkSafeLock()

    def use(self, keeper: KeepsMemory) -> None:
        """Notes that this one was used last."""
        with self._lock:
            self._keepers[id(keeper)] = weakref.ref(keeper)
            self._keepers.move_to_end(id(keeper))
            old = [
                self._keepers.popitem(last=False)[1]()
                for _ in range(len(self._keepers) - self._most)
            ]
        for one in old:
            if one is not None:
                one.release_idle()

    def has(self, keeper: KeepsMemory) -> bool:
        """Whether this one will be told to release; without the lock, for those who may be inside of it."""
        reference = self._keepers.get(id(keeper))
        return reference is not None and reference() is keeper

    def release(self) -> None:
        """Has all of them release what is idle."""
        with self._lock:
            keepers = [reference() for reference in self._keepers.values()]
            self._keepers.clear()
        for one in keepers:
            if one is not None:
                one.release_idle()
