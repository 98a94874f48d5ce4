"""Errors of non-blocking solves: found on the device, and raised by a later call.

The solution of a system that fails is NaN at once. A number that says why is copied to the host
meanwhile, where later calls, and `synchronize`, read it.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from .._engines.protocol import Kind
from .._torch.fork_safe_lock import ForkSafeLock
from ..errors import (
    NonFiniteError,
    NotPositiveDefiniteError,
    NotSymmetricError,
    SingularMatrixError,
    SparseSolverError,
)


class Failure(IntEnum):
    """Why a system cannot be solved, in the order in which it is found out."""

    NONE = 0
    VALUES_NOT_FINITE = 1
    NOT_SYMMETRIC = 2
    DIAGONAL_NOT_POSITIVE = 3
    RHS_NOT_FINITE = 4
    INACCURATE = 5


@dataclass(frozen=True)
class _Pending:
    """The failure of some systems: a number that is on the host once the event has happened."""

    event: Any
    number: Tensor
    order: int
    n: int
    kind: Kind
    engine: str

    def error(self) -> SparseSolverError | None:
        failure, engine = Failure(int(self.number)), self.engine
        what = f"a non-blocking solve by {engine} with a {self.kind} matrix of {self.n} rows failed"
        more = "non_blocking=False gives details"
        if failure is Failure.NONE:
            return None
        if failure is Failure.VALUES_NOT_FINITE:
            return NonFiniteError(f"{what}: values are not finite", argument="values", index=None)
        if failure is Failure.NOT_SYMMETRIC:
            message = f"{what}: the matrix is not symmetric"
            return NotSymmetricError(message, row=None, col=None, difference=None)
        if failure is Failure.RHS_NOT_FINITE:
            return NonFiniteError(f"{what}: b is not finite", argument="b", index=None)
        if failure is Failure.DIAGONAL_NOT_POSITIVE:
            message = (
                f"{what}: it is not positive definite, a diagonal entry is not positive; {more}"
            )
            return NotPositiveDefiniteError(message, row=None, engine=engine)
        if self.kind == "spd":
            singular = "or it is singular to working precision"
            message = f"{what}: it is not positive definite, {singular}; {more}"
            return NotPositiveDefiniteError(message, row=None, engine=engine)
        message = f"{what}: it is singular to working precision, or too badly scaled; {more}"
        return SingularMatrixError(message, row=None, engine=engine)


_pending: deque[_Pending] = deque()
_order = itertools.count()
_lock = ForkSafeLock()  # for taking from `_pending`
_abandoned: list[_Pending] = []


def _abandon() -> None:
    """A forked child can neither query the device of its parent nor release memory there."""
    _abandoned.extend(_pending)
    _pending.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)


def submit(failures: Tensor, n: int, kind: Kind, engine: str) -> None:
    """Start copying the largest of these failures to the host."""
    gpu = torch.get_device_module(failures.device)
    # Into memory that torch pins, so that the copy does not block.
    number = failures.amax().to("cpu", non_blocking=True)
    with gpu.device(failures.device):
        event = gpu.Event()
        event.record(gpu.current_stream(failures.device))
    _pending.append(_Pending(event, number, next(_order), n, kind, engine))


def raise_finished(wait: bool = False) -> None:
    """Raise the first error of the solves that have finished, or with `wait` of all so far."""
    last = next(_order)  # solves submitted later are not waited for
    while (pending := _take(wait, last)) is not None:
        error = pending.error()
        if error is not None:
            raise error


def _take(wait: bool, last: int) -> _Pending | None:
    """Take the first solve that has finished; None if there is none."""
    while True:
        with _lock:
            if not _pending or _pending[0].order > last:
                return None
            pending = _pending[0]
            if pending.event.query():
                return _pending.popleft()
        if not wait:
            return None
        pending.event.synchronize()  # other threads may take finished solves meanwhile


def synchronize() -> None:
    """Wait for all non-blocking solves so far, and raise the first error not raised yet.

    Without solves with ``non_blocking=True``, as on the CPU, it does nothing. The solutions of the
    systems that failed are NaN.

    Raises
    ------
    NonFiniteError, NotSymmetricError, NotPositiveDefiniteError, SingularMatrixError
        What was wrong with the first system that failed.

    Examples
    --------
    >>> import sparse_solver as ss
    >>> ss.synchronize()
    """
    raise_finished(wait=True)
