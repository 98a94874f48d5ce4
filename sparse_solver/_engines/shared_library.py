"""Where native libraries are, and the first of them that can be loaded."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterable
from ctypes.util import find_library
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def files_of(package: str, is_wanted: Callable[[str], bool]) -> list[str]:
    """The paths of the installed files of a package whose names are wanted."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [str(Path(str(file.locate())).resolve()) for file in files if is_wanted(file.name)]


def candidates(paths: Iterable[str], name: str) -> list[str]:
    """Those that exist, each once, and then what the system finds by this name."""
    anywhere = find_library(name)
    return list(
        dict.fromkeys(
            [path for path in paths if os.path.exists(path)] + ([anywhere] if anywhere else [])
        )
    )


def first_loaded(
    paths: Iterable[str],
    load: Callable[[str], T],
    errors: tuple[type[Exception], ...] = (OSError, AttributeError),
) -> tuple[T | None, list[str]]:
    """The first library that `load` makes of a path, else None and what is wrong with each: which of these `errors`."""
    problems = []
    for path in paths:
        try:
            return load(path), []
        except errors as error:
            problems.append(f"{path}: {error}")
    return None, problems
