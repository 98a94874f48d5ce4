"""The engines, by name. Nothing outside this folder knows what an engine is called.

To add one: a file here that implements `_protocol.Engine` as ``ENGINE``, a line in `_MODULES`, and, for it to be
chosen without being asked for, a place in `_select.select`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import torch

from .._matrix import Matrix
from .._structure import Structure
from ..errors import EngineUnavailableError, EngineUnsupportedError, OptionError
from ._protocol import (
    CPU,
    DTYPES,
    Availability,
    Engine,
    Factor,
    FactorsAhead,
    KeepsMemory,
    Kind,
    Symbolic,
    is_doubtful,
    is_hermitian,
    not_positive_definite,
    scattered,
)
from ._select import Choice, envelope_flops, is_close, select

__all__ = [
    "CPU",
    "DTYPES",
    "Analysis",
    "Availability",
    "Engine",
    "Factor",
    "FactorsAhead",
    "Kind",
    "Symbolic",
    "analyze",
    "available",
    "engine_named",
    "installed_on",
    "is_doubtful",
    "is_hermitian",
    "names",
    "not_positive_definite",
    "release_idle",
    "scattered",
    "solves_on",
    "why_missing",
]

# In the order in which `engines()` lists them. Modules are imported, and libraries loaded, on first use.
_MODULES = {name: "." + name for name in ("pardiso", "qdldl", "superlu", "cudss", "cudss_hybrid")}


def names() -> tuple[str, ...]:
    return tuple(_MODULES)


@cache
def engine_named(name: str) -> Engine:
    """The engine called `name`, installed or not."""
    if name not in _MODULES:
        raise OptionError(f"there is no engine {name!r}; the engines are {', '.join(map(repr, _MODULES))}")
    engine: Engine = import_module(_MODULES[name], __name__).ENGINE
    return engine


def available() -> dict[str, Availability]:
    """What is installed here; the answer is found once per process."""
    return {name: engine_named(name).availability() for name in _MODULES}


def solves_on(device: torch.device, engine: str | None) -> bool:
    """Whether the engine, or if that is None one that is installed, takes matrices on this device."""
    return bool(installed_on(device)) if engine is None else _is_for(engine, device)


def release_idle() -> None:
    """Has the engines give back the memory that they keep for factors to come."""
    for name in _MODULES:
        engine = engine_named(name)
        if isinstance(engine, KeepsMemory):
            engine.release_idle()


def installed_on(device: torch.device) -> list[str]:
    """The engines that are installed here and take matrices on this device; no other library is loaded."""
    return [name for name in _MODULES if _is_for(name, device) and engine_named(name).availability().installed]


def _is_for(name: str, device: torch.device) -> bool:
    return device.type in engine_named(name).device_types


@dataclass(frozen=True)
class Analysis:
    """A symbolic analysis, the `engine` that made it, the `reason` for that engine, and the `seconds` spent now."""

    symbolic: Symbolic
    engine: str
    reason: str
    seconds: float


def analyze(matrix: Matrix, kind: Kind, stored: str | None, engine: str | None) -> Analysis:
    """The analysis of a pattern by the engine asked for or, if that is None, by the one that suits; made once."""
    structure, dtype = matrix.structure, matrix.dtype
    started, fresh = time.perf_counter(), []

    def symbolic_of(name: str) -> Symbolic:
        def build() -> Symbolic:
            fresh.append(name)
            return engine_named(name).analyze(structure, kind, dtype, stored)

        return structure.remember(_symbolic_key(name, kind, dtype, stored), build)

    def choose() -> Choice:
        able = {name for name in installed_on(structure.device) if engine_named(name).supports(kind, dtype)}
        choice = select(structure.shape[0], kind, dtype, able)
        if choice is not None and choice.provisional:
            factor_nnz = symbolic_of(choice.engine).factor_nnz(matrix)
            if factor_nnz is not None:
                envelope = envelope_flops(structure) if is_close(structure.shape[0], factor_nnz) else None
                choice = select(structure.shape[0], kind, dtype, able, factor_nnz, envelope)
        if choice is None:
            missing = why_missing(structure.device)
            raise EngineUnavailableError(
                f"no engine here can factor a {kind} matrix of {dtype} on {structure.device} ({missing})",
                engine=None,
                hint=missing,
            )
        return choice

    if engine is not None:
        _require(engine, structure.device, kind, dtype)
        chosen = Choice(engine, "asked for")
    else:
        key = ("choice", kind, dtype, stored)
        chosen = structure.remember(key, choose)
        if chosen.provisional:  # these values could not be factored; others may tell the fill
            structure.forget(key)
    symbolic = symbolic_of(chosen.engine)
    return Analysis(symbolic, chosen.engine, chosen.reason, time.perf_counter() - started if fresh else 0.0)


def remember_better(
    structure: Structure, engine: str, kind: Kind, dtype: torch.dtype, stored: str | None, symbolic: Symbolic
) -> None:
    """From now on `analyze` returns this analysis, which met fewer bad pivots than the one before."""
    structure.replace(_symbolic_key(engine, kind, dtype, stored), symbolic)


def _symbolic_key(engine: str, kind: Kind, dtype: torch.dtype, stored: str | None) -> tuple[object, ...]:
    return ("symbolic", engine, kind, dtype, stored)


def why_missing(device: torch.device) -> str:
    """What keeps engines from solving on this device, in words."""
    reasons: dict[str | None, list[str]] = {}
    for name in _MODULES:
        if _is_for(name, device):
            reasons.setdefault(engine_named(name).availability().missing, []).append(name)
    why = [f"{', '.join(names)}: {missing}" for missing, names in reasons.items() if missing]
    return "; ".join(why) or f"no engine is made for {device.type}"


def _require(name: str, device: torch.device, kind: Kind, dtype: torch.dtype) -> None:
    engine = engine_named(name)
    if not _is_for(name, device):
        where = " or ".join(engine.device_types)
        raise EngineUnsupportedError(
            f"the engine {name!r} solves on {where}, and the matrix is on {device}: move it, or choose another engine",
            engine=name,
        )
    found = engine.availability()
    if found.missing is not None:
        raise EngineUnavailableError(
            f"the engine {name!r} is not available: {found.missing}", engine=name, hint=found.missing
        )
    if not engine.supports(kind, dtype):
        able = [other for other in _MODULES if _is_for(other, device) and engine_named(other).supports(kind, dtype)]
        raise EngineUnsupportedError(
            f"the engine {name!r} cannot factor a {kind} matrix of {dtype}; {' and '.join(map(repr, able))} can",
            engine=name,
        )
