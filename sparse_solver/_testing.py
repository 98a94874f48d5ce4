"""Instruments for the tests: counts of an engine's calls and of living factors, and frames.

No other module imports this one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import _engines
from ._engines.protocol import Factor, Kind
from ._engines.registry import engine_named, engine_names, installed_on
from ._factor.accuracy.checked_factor import InverseOperator
from ._factor.lifetime import count_alive as count_alive
from ._solve.factorization import Factorization


def engine_methods() -> Iterator[tuple[type, str, str]]:
    """Every class of an engine with one of its methods and the name under which that is counted."""
    homes = {type(engine_named(name)).__module__ for name in engine_names()}
    # An engine of several files has a folder of its own.
    folders = {home.rpartition(".")[0] for home in homes} - {_engines.__name__}
    for module in list(sys.modules):
        if module not in homes and module.rpartition(".")[0] not in folders:
            continue
        for cls in vars(sys.modules[module]).values():
            if not isinstance(cls, type) or cls.__module__ != module:
                continue
            if hasattr(cls, "analyze_values"):  # a Symbolic
                names = ("factor", "factor_upper", "factor_dense", "factor_non_blocking")
                yield from ((cls, name, "factor") for name in names if hasattr(cls, name))
            elif hasattr(cls, "analyze"):
                yield cls, "analyze", "analyze"
            elif hasattr(cls, "substitute"):
                ways = ("substitute", "substitute_columns")
                yield from ((cls, name, "substitute") for name in ways if hasattr(cls, name))


def counted(method: Callable[..., Any], name: str, counts: Counter[str]) -> Callable[..., Any]:
    """A method that counts its calls under a name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        counts[name] += 1
        return method(*args, **kwargs)

    return call


@contextmanager
def count_calls() -> Iterator[Counter[str]]:
    """Count the calls of "analyze", "factor" and "substitute", of all engines together."""
    counts: Counter[str] = Counter()
    originals = [(cls, name, key, getattr(cls, name)) for cls, name, key in engine_methods()]
    for cls, name, key, method in originals:
        setattr(cls, name, counted(method, key, counts))
    try:
        yield counts
    finally:
        for cls, name, _, method in originals:
            setattr(cls, name, method)


def installed_engines(*kinds: Kind) -> list[str]:
    """The installed engines that factor real double matrices of all these kinds on the CPU."""
    found = installed_on(torch.device("cpu"))
    engines = [(name, engine_named(name)) for name in found]
    return [n for n, e in engines if all(e.supports(kind, torch.float64) for kind in kinds)]


def checked_factors(F: Factorization) -> list[InverseOperator]:
    """The factors of a Factorization, one for each part of its batch."""
    return [part.factor for part in F._factors.parts or []]


def engine_factors(F: Factorization) -> list[Factor]:
    """The engine's factors in a Factorization, one for each part of its batch."""
    factors = (checked.factor for checked in checked_factors(F))
    return [factor for factor in factors if factor is not None]


@contextmanager
def record_calls(package: str = __package__ or "") -> Iterator[list[tuple[str, int]]]:
    """Record each call in this thread, and the depth of the package's frames where it is made.

    Yields a list of (name of the function, frames of `package` below and including its caller).
    Native functions that Python does not profile, such as those of ctypes, are not recorded.
    """
    calls: list[tuple[str, int]] = []

    def profile(frame: Any, event: str, arg: Any) -> None:
        if event not in ("call", "c_call"):
            return
        name = frame.f_code.co_name if event == "call" else arg.__name__
        at, depth = frame.f_back if event == "call" else frame, 0
        while at is not None:
            depth += at.f_globals.get("__name__", "").split(".")[0] == package
            at = at.f_back
        calls.append((name, depth))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(before)
