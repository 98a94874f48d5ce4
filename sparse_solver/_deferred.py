"""``check="deferred"``: solves on a GPU that nobody waits for, whose errors are raised later.

What is wrong with a system is found out on the device: its solution is NaN at once, and a number that says why is on its
way to the host, where later calls, and `check_deferred`, look for it.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _engines
from ._engines import Kind, Symbolic, is_hermitian
from ._kinds import ASKED_FOR, Options, asymmetry, check_lines, check_triangle, imaginary_diagonal
from ._matrix import Matrix
from ._plain import read_here
from ._structure import Structure
from ._sync import ForkSafeLock
from ._trust import Trusted, row_sizes
from .errors import (
    EngineError,
    EngineUnsupportedError,
    NonFiniteError,
    NotPositiveDefiniteError,
    NotSymmetricError,
    SingularMatrixError,
    SparseSolverError,
)

# What may be wrong, in the order in which it would be found.
_VALUES, _SYMMETRY, _DIAGONAL, _RIGHT, _RESIDUAL = range(1, 6)


class DeferredNumeric:
    """The factorisation of a matrix on a device, to be used like a `Numeric`, that never waits for the device.

    Pivots are not looked at; each solution is judged by its residual.
    """

    def __init__(self, structure: Structure, values: Tensor, options: Options, blocks: int = 1):
        check_triangle(structure, options.triangle)
        check_lines(structure, options.triangle)
        self.n, self._blocks = structure.shape[0], blocks
        self.kind = kind = options.kind(values.dtype)
        self.kind_reason, self.engine, self.engine_reason = ASKED_FOR, "none", "nothing to factor"
        self.analysis_seconds = self.factorization_seconds = 0.0
        self.trusted: Trusted | None = None
        if self.n == 0:
            return
        matrix = Matrix(structure, values)
        self._wrong = self._wrong_with(matrix, options)
        analysis = _engines.analyze(matrix, kind, options.triangle, options.engine)
        self.engine, self.engine_reason, self.analysis_seconds = analysis.engine, analysis.reason, analysis.seconds
        symbolic = analysis.symbolic
        if kind == "general":  # what pivots fail on would be seen too late
            started = time.perf_counter()
            symbolic = _matched(matrix, self.engine, symbolic, blocks)
            self.analysis_seconds += time.perf_counter() - started
        if not isinstance(symbolic, _engines.FactorsAhead):
            raise EngineUnsupportedError(
                f"the engine {self.engine!r} cannot factor without waiting for the device; use check='sync'",
                engine=self.engine,
            )
        started = time.perf_counter()
        factor = symbolic.factor_ahead(matrix)
        self.factorization_seconds = time.perf_counter() - started  # until it was submitted
        self.trusted = Trusted(factor, structure, options.triangle, kind, float("nan"), self.engine, blocks)

    def _wrong_with(self, matrix: Matrix, options: Options) -> Tensor:
        """(blocks,) what is wrong with the values of each block, or 0."""
        wrong = _number(~torch.isfinite(matrix.values).view(self._blocks, -1).all(-1), _VALUES)
        hermitian = is_hermitian(self.kind, matrix.dtype)
        if self.kind == "general":
            return wrong
        if options.triangle is None or hermitian:
            excess = asymmetry(matrix, hermitian)[0] if options.triangle is None else imaginary_diagonal(matrix)
            wrong = torch.where(wrong == 0, _number((excess > 0).view(self._blocks, -1).any(-1), _SYMMETRY), wrong)
        if self.kind == "spd":
            negative = (matrix.diagonal.real <= 0).view(self._blocks, -1).any(-1)
            wrong = torch.where(wrong == 0, _number(negative, _DIAGONAL), wrong)
        return wrong

    def solve(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """A⁻¹ or A⁻ᵀ applied to the rows of `rhs` (k, n); NaN for the systems that cannot be solved."""
        if rhs.numel() == 0:
            return torch.empty_like(rhs)
        assert self.trusted is not None
        read_here(self._wrong)
        each = rhs.view(-1, self.n // self._blocks)
        finite = torch.isfinite(each).all(-1)
        x, accurate = self.trusted.solve_ahead(rhs.masked_fill(~torch.isfinite(rhs), 0), transpose)
        wrong = self._wrong.repeat(rhs.shape[0])
        wrong = torch.where(wrong == 0, _number(~finite, _RIGHT), wrong)
        wrong = torch.where(wrong == 0, _number(~accurate, _RESIDUAL), wrong)
        # A loss that overflowed must reach a gradient scaler as what it is.
        told = wrong if strict else wrong.masked_fill(wrong == _RIGHT, 0)
        _submit(told, self.n // self._blocks, self.kind, self.engine)
        return x.view_as(each).masked_fill((wrong != 0).unsqueeze(-1), float("nan")).view_as(rhs)


def _matched(matrix: Matrix, engine: str, symbolic: Symbolic, blocks: int) -> Symbolic:
    """An analysis that looks at values: at those of the first solve that has some to look at in every block, for which it
    waits. One that fails is tried once more, with other values; solutions are judged, however they were found."""
    structure, key = matrix.structure, ("matched", engine, matrix.dtype)
    failures: list[Exception] = structure.remember(("failed to match", engine, matrix.dtype), list)

    def match() -> Symbolic | None:
        sizes = row_sizes(matrix.canonical.view(blocks, -1))
        if not bool(((sizes > 0) & (sizes < float("inf"))).all()):
            return None
        try:
            return symbolic.retry(matrix) or symbolic
        except (EngineError, EngineUnsupportedError) as error:
            if isinstance(error, EngineError) and error.out_of_memory:
                raise
            failures.append(error.with_traceback(None))
            return symbolic if len(failures) > 1 or isinstance(error, EngineUnsupportedError) else None

    found = structure.remember(key, match)
    if found is None:
        structure.forget(key)
        return symbolic
    return found


def _number(where: Tensor, number: int) -> Tensor:
    return where.to(torch.int8) * number


@dataclass(frozen=True)
class _Verdict:
    """What was found out about some systems: a number that is on the host once the event has happened."""

    event: Any
    number: Tensor
    order: int
    n: int
    kind: Kind
    engine: str

    def error(self) -> SparseSolverError | None:
        number = int(self.number)
        matrix = f"a deferred solve by {self.engine} with a {self.kind} matrix of {self.n} rows failed"
        if number == _VALUES:
            return NonFiniteError(f"{matrix}: values are not finite", argument="values", index=None)
        if number == _SYMMETRY:
            return NotSymmetricError(f"{matrix}: the matrix is not symmetric", row=None, col=None, difference=None)
        if number == _RIGHT:
            return NonFiniteError(f"{matrix}: b is not finite", argument="b", index=None)
        if number == _DIAGONAL or (number == _RESIDUAL and self.kind == "spd"):
            why = (
                "a diagonal entry is not positive" if number == _DIAGONAL else "or it is singular to working precision"
            )
            return NotPositiveDefiniteError(
                f"{matrix}: it is not positive definite, {why}; check='sync' tells more", row=None, engine=self.engine
            )
        if number == _RESIDUAL:
            return SingularMatrixError(
                f"{matrix}: it is singular to working precision, or too badly scaled; check='sync' tells more",
                row=None,
                engine=self.engine,
            )
        return None


_submitted: deque[_Verdict] = deque()
_order = itertools.count()
_lock = ForkSafeLock()  # of taking from it
_abandoned: list[_Verdict] = []


def _abandon() -> None:
    """A forked child can neither ask the device of its parent nor give anything back to it."""
    _abandoned.extend(_submitted)
    _submitted.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)


def _submit(wrong: Tensor, n: int, kind: Kind, engine: str) -> None:
    """Has the largest of these numbers copied to the host, some time."""
    gpu = torch.get_device_module(wrong.device)
    number = wrong.amax().to("cpu", non_blocking=True)  # into memory that torch pins, for nobody to wait
    with gpu.device(wrong.device):
        event = gpu.Event()
        event.record(gpu.current_stream(wrong.device))
    _submitted.append(_Verdict(event, number, next(_order), n, kind, engine))


def raise_finished(wait: bool = False) -> None:
    """Raises the first error among those of the solves that have ended, or that of any solve, for which it waits."""
    last = next(_order)  # later ones are not waited for
    while (verdict := _next(wait, last)) is not None:
        error = verdict.error()
        if error is not None:
            raise error


def _next(wait: bool, last: int) -> _Verdict | None:
    """The first that has ended, taken from the list, or None where there is none, or none that has."""
    while True:
        with _lock:
            if not _submitted or _submitted[0].order > last:
                return None
            verdict = _submitted[0]
            if verdict.event.query():
                return _submitted.popleft()
        if not wait:
            return None
        verdict.event.synchronize()  # others may take what has ended meanwhile


def check_deferred() -> None:
    """Waits for all solves with ``check="deferred"`` so far, and raises the first error among those not raised yet.

    Raises `NonFiniteError`, `NotSymmetricError`, `NotPositiveDefiniteError`, `SingularMatrixError`. Solutions of the systems
    that failed are NaN. Without deferred solves, as on the CPU, it does nothing.

    >>> import sparse_solver as ss
    >>> ss.check_deferred()
    """
    raise_finished(wait=True)
