"""The engines by name.

To add one, implement `protocol.Engine` in a file of this folder, add a function that imports it and
a line to `_ENGINES`, and, for the engine to be chosen by default, a place in `select.select`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import EngineUnavailableError, EngineUnsupportedError, OptionError
from .ordering import register_engines
from .protocol import Availability, Compiled, Engine, Iterative, KeepsMemory, Kind


def _pardiso() -> Engine:
    from .mkl.pardiso import ENGINE

    return ENGINE


def _qdldl() -> Engine:
    from .qdldl import ENGINE

    return ENGINE


def _superlu() -> Engine:
    from .superlu import ENGINE

    return ENGINE


def _rslab() -> Engine:
    from .rslab import ENGINE

    return ENGINE


def _lapack() -> Engine:
    from .lapack import ENGINE

    return ENGINE


def _supernodal() -> Engine:
    from .supernodal.engine import ENGINE

    return ENGINE


def _cudss() -> Engine:
    from .cudss.engine import ENGINE

    return ENGINE


def _cudss_hybrid() -> Engine:
    from .cudss.engine import HYBRID

    return HYBRID


def _cg() -> Engine:
    from .cg.engine import ENGINE

    return ENGINE


# In the order in which `engines()` lists them. A module is imported, and its library loaded, when
# the engine is first used: by functions, since torch.compile traces these, but not importlib.
_ENGINES: dict[str, Callable[[], Engine]] = {
    "pardiso": _pardiso,
    "qdldl": _qdldl,
    "superlu": _superlu,
    "rslab": _rslab,
    "lapack": _lapack,
    "supernodal": _supernodal,
    "cudss": _cudss,
    "cudss_hybrid": _cudss_hybrid,
    "cg": _cg,
}


def engine_names() -> tuple[str, ...]:
    """The names of all engines, installed or not."""
    return tuple(_ENGINES)


def check_name(name: str) -> None:
    """Raise OptionError unless there is an engine called `name`."""
    if name not in engine_names():
        names = ", ".join(map(repr, _ENGINES))
        raise OptionError(f"engine={name!r}: there is no such engine; the engines are {names}")


def engine_named(name: str) -> Engine:
    """The engine called `name`, installed or not."""
    check_name(name)
    return _ENGINES[name]()


def available_engines() -> dict[str, Availability]:
    """Whether each engine can be used, or why not; determined once per process."""
    return {name: engine_named(name).availability() for name in _ENGINES}


def serves(name: str, device: torch.device) -> bool:
    """Whether an engine takes matrices on this device."""
    return device.type in engine_named(name).device_types


def installed_on(device: torch.device) -> list[str]:
    """The installed engines that take matrices on this device; no other library is loaded."""
    names = (name for name in _ENGINES if serves(name, device))
    return [name for name in names if engine_named(name).availability().installed]


def direct_engines_on(device: torch.device) -> list[str]:
    """The installed engines that factor; beside PARDISO, none that is still to be compiled."""
    names = [name for name in installed_on(device) if not iterates(name)]
    if "pardiso" not in names:
        return names
    engines = ((name, engine_named(name)) for name in names)
    return [name for name, e in engines if not isinstance(e, Compiled) or e.is_ready]


def iterative_engines_on(device: torch.device) -> list[str]:
    """The installed engines that iterate on this device."""
    return [name for name in installed_on(device) if iterates(name)]


def iterates(name: str) -> bool:
    """Whether an engine iterates instead of factoring."""
    return isinstance(engine_named(name), Iterative)


def solves_on(device: torch.device, engine: str | None) -> bool:
    """Whether the engine, or for None any one that factors, takes matrices on this device."""
    return bool(direct_engines_on(device)) if engine is None else serves(engine, device)


def why_missing(device: torch.device) -> str:
    """The reasons why no engine solves on this device, and what to install."""
    reasons: dict[str, list[str]] = {}
    for name in _ENGINES:
        missing = engine_named(name).availability().missing if serves(name, device) else None
        if missing is not None:
            reasons.setdefault(missing, []).append(name)
    why = "; ".join(f"{', '.join(names)}: {missing}" for missing, names in reasons.items())
    return why or f"no engine is made for {device.type}"


def check_engine(name: str, device: torch.device, kind: Kind, dtype: torch.dtype) -> None:
    """Raise unless the engine can factor such a matrix on this machine."""
    engine = engine_named(name)
    if not serves(name, device):
        where = " or ".join(engine.device_types)
        raise EngineUnsupportedError(
            f"the engine {name!r} solves on {where}, and the matrix is on {device}: move the "
            f"matrix, or choose another engine",
            engine=name,
        )
    found = engine.availability()
    if found.missing is not None:
        message = f"the engine {name!r} is not available: {found.missing}"
        raise EngineUnavailableError(message, engine=name, hint=found.missing)
    if not engine.supports(kind, dtype):
        others = (other for other in _ENGINES if serves(other, device))
        able = [repr(other) for other in others if engine_named(other).supports(kind, dtype)]
        raise EngineUnsupportedError(
            f"the engine {name!r} cannot factor a {kind} matrix of {dtype}; "
            f"{' and '.join(able)} can",
            engine=name,
        )


def release_idle() -> None:
    """Make the engines release the memory that they keep for new factors."""
    for name in _ENGINES:
        engine = engine_named(name)
        if isinstance(engine, KeepsMemory):
            engine.release_idle()


register_engines(lambda: [engine_named(name) for name in _ENGINES])
