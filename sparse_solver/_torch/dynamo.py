"""`torch.compiler.disable` without importing Dynamo, which takes a second more than torch."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def disable_dynamo(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function so that torch.compile breaks its graph there and traces nothing below.

    Where Dynamo falls back to eager code it would go on to trace the functions called there, and
    it cannot trace native libraries.
    """
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:  # nothing is being traced
            return function(*args, **kwargs)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        result: R = disabled(*args, **kwargs)
        return result

    # The attributes that torch.compiler.disable sets, by which Dynamo knows not to look inside.
    wrapper._torchdynamo_disable = True  # type: ignore[attr-defined] # an attribute of a function
    wrapper._torchdynamo_disable_msg = "sparse_solver calls native libraries here"  # type: ignore[attr-defined] # likewise
    return wrapper
