"""`torch.compiler.disable` without its price: that imports Dynamo, a second more than `import torch` takes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, at which torch.compile breaks its graph, and below which it traces nothing.

    Where Dynamo falls back to eager code it would go on to trace what that calls; native libraries are not for it.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:  # then nobody is tracing
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        result: R = disabled[0](*args, **kwargs)
        return result

    # What torch.compiler.disable sets, by which Dynamo knows not to look inside.
    wrapper._torchdynamo_disable = True  # type: ignore[attr-defined]
    wrapper._torchdynamo_disable_msg = "sparse_solver calls native libraries here"  # type: ignore[attr-defined]
    return wrapper
