"""Memory of released factors, kept for new ones by the few objects that were used last."""

from __future__ import annotations

import weakref
from collections import OrderedDict

from .._torch.fork_safe_lock import ForkSafeLock
from .protocol import KeepsMemory


class RecentlyUsed:
    """The `capacity` keepers that were used last; any other one is made to release its memory."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._keepers: OrderedDict[int, weakref.ref[KeepsMemory]] = OrderedDict()
        self._lock = ForkSafeLock()

    def use(self, keeper: KeepsMemory) -> None:
        """Record that this keeper was used last."""
        with self._lock:
            self._keepers[id(keeper)] = weakref.ref(keeper)
            self._keepers.move_to_end(id(keeper))
            excess = range(len(self._keepers) - self._capacity)
            old = [self._keepers.popitem(last=False)[1]() for _ in excess]
        _release(old)

    def __contains__(self, keeper: KeepsMemory) -> bool:
        """Whether a later call will make this keeper release its memory; takes no lock."""
        reference = self._keepers.get(id(keeper))
        return reference is not None and reference() is keeper

    def release(self) -> None:
        """Make all keepers release their memory."""
        with self._lock:
            keepers = [reference() for reference in self._keepers.values()]
            self._keepers.clear()
        _release(keepers)


def _release(keepers: list[KeepsMemory | None]) -> None:
    for keeper in keepers:
        if keeper is not None:
            keeper.release_idle()
