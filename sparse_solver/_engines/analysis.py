"""Symbolic analyses, made once per pattern, by the engine that was asked for or by the best one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from .._sparse.matrix import Matrix
from .._sparse.structure import Structure
from .._torch.fork_safe_lock import ForkSafeLock
from .._torch.modes import outside_transforms, synchronize_stream
from ..errors import EngineUnavailableError
from .protocol import Kind, Symbolic
from .registry import check_engine, direct_engines_on, engine_named, why_missing
from .select import Choice, envelope_flops, select, settle

ASKED_FOR = "asked for"  # the reason for what the caller chose


class _Request(NamedTuple):
    """What an analysis depends on besides the structure."""

    kind: Kind
    dtype: torch.dtype
    triangle: str | None


@dataclass(frozen=True)
class Analysis:
    """A symbolic analysis.

    reason : why this engine was taken
    seconds : the time spent on it in this call
    """

    symbolic: Symbolic
    engine: str
    reason: str
    seconds: float


class Analyses:
    """The analyses of one structure, and the engines that were chosen for it."""

    def __init__(self, structure: Structure):
        # It holds no reference to the structure, which remembers this object.
        self._symbolic: dict[tuple[str, _Request], Symbolic] = {}
        self._choices: dict[_Request, Choice] = {}
        self._lock = ForkSafeLock(reentrant=True)

    def find(self, matrix: Matrix, request: _Request, engine: str | None) -> Analysis:
        """The analysis by this engine, or for None by the one that `select` chooses."""
        device = matrix.structure.device
        if engine is not None:
            check_engine(engine, device, request.kind, request.dtype)
        choice = self._choices.get(request) if engine is None else Choice(engine, ASKED_FOR)
        found = None if choice is None else self._symbolic.get((choice.engine, request))
        if choice is not None and found is not None:
            return Analysis(found, choice.engine, choice.reason, 0.0)
        started = time.perf_counter()
        with self._lock, outside_transforms():
            choice = self._choose(matrix, request) if choice is None else choice
            symbolic = self._analyze(matrix.structure, request, choice.engine)
            synchronize_stream(device)
        return Analysis(symbolic, choice.engine, choice.reason, time.perf_counter() - started)

    def _analyze(self, structure: Structure, request: _Request, engine: str) -> Symbolic:
        found = self._symbolic.get((engine, request))
        if found is None:
            found = engine_named(engine).analyze(structure, *request)
            self._symbolic[engine, request] = found
        return found

    def _choose(self, matrix: Matrix, request: _Request) -> Choice:
        kind, dtype, device = request.kind, request.dtype, matrix.structure.device
        names = direct_engines_on(device)
        able = {name for name in names if engine_named(name).supports(kind, dtype)}
        while (choice := select(matrix.structure.shape[0], kind, dtype, able)) is not None:
            try:
                choice = self._settle(matrix, request, able, choice)
            except EngineUnavailableError:  # it is installed, but does not run here
                able.discard(choice.engine)
                continue
            if not choice.provisional:  # else these values could not be factored; others may be
                self._choices[request] = choice
            return choice
        missing = why_missing(device)
        message = f"no engine here can factor a {kind} matrix of {dtype} on {device}"
        raise EngineUnavailableError(f"{message} ({missing})", engine=None, hint=missing)

    def _settle(self, matrix: Matrix, request: _Request, able: set[str], choice: Choice) -> Choice:
        """The choice once the fill is known, for the engine of which there is an analysis then."""
        structure = matrix.structure

        def find_fill(engine: str) -> int | None:
            return self._analyze(structure, request, engine).factor_nnz(matrix)

        given = structure.shape[0], request.kind, request.dtype, able
        find_envelope = partial(structure.remember, envelope_flops)
        found = settle(choice, *given, find_fill, find_envelope)
        self._analyze(structure, request, found.engine)
        return found


def analyze(matrix: Matrix, kind: Kind, triangle: str | None, engine: str | None) -> Analysis:
    """The analysis of a pattern, made once; see `Analyses.find`."""
    analyses = matrix.structure.remember(Analyses)
    return analyses.find(matrix, _Request(kind, matrix.dtype, triangle), engine)
