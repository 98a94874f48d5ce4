"""Native libraries: where they are, and the first one that can be loaded."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterable
from ctypes.util import find_library
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def find_package_files(package: str, is_wanted: Callable[[str], bool]) -> list[str]:
    """The paths of the files of an installed package whose names are wanted."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [str(Path(str(file.locate())).resolve()) for file in files if is_wanted(file.name)]


def find_candidates(paths: Iterable[str], name: str) -> list[str]:
    """The paths that exist, without repeats, and then what the system finds by this name."""
    anywhere = find_library(name)
    found = [path for path in paths if os.path.exists(path)] + ([anywhere] if anywhere else [])
    return list(dict.fromkeys(found))


def load_first(
    paths: Iterable[str],
    load: Callable[[str], T],
    errors: tuple[type[Exception], ...] = (OSError, AttributeError),
) -> tuple[T | None, list[str]]:
    """The first result of `load` on these paths; else None and what is wrong with each path.

    `errors` are the exceptions by which `load` refuses a path.
    """
    problems = []
    for path in paths:
        try:
            return load(path), []
        except errors as error:
            problems.append(f"{path}: {error}")
    return None, problems
