"""With which method the factorisations of a pattern start."""

from __future__ import annotations

from typing import Any

# The first method is tried again after so many factorisations, then after twice as many, ...
_FIRST_RETRY = 16


class Start:
    """Where the factorisations of one pattern start.

    method : what was good enough last time; None for the first method
    """

    def __init__(self) -> None:
        self.method: Any = None
        self._uses, self._retry = 0, _FIRST_RETRY

    def find(self) -> Any:
        """The method to start with; None for the first one."""
        if self.method is None:
            return None
        self._uses += 1
        if self._uses < self._retry:
            return self.method
        self._uses, self._retry = 0, 2 * self._retry
        return None

    def keep(self, method: Any) -> None:
        """Start with this method, or for None with the first one."""
        if method is None:
            self._uses, self._retry = 0, _FIRST_RETRY
        self.method = method
