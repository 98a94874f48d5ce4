"""What Newton's method for minima and for roots have in common: what is passed to it, and its line search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._torch.modes import is_transformed
from ..errors import ConvergenceError, DtypeError, LayoutError, OptionError, TransformError
from .report import Iteration, Report

LargestStep = Callable[[Tensor, Tensor], Any]


_SUFFICIENT = 1e-4  # the part of the decrease that the slope promises, with which a step is content


_HALVINGS = 60


class Stuck(Exception):
    """There is no way on; the message says why."""


class Step(NamedTuple):
    """The fraction of a Newton step, where it leads, and the objective there."""

    fraction: float
    x: Tensor
    value: float


def backtrack(
    evaluate: Callable[[Tensor], float],
    x: Tensor,
    d: Tensor,
    value: float,
    slope: float,
    longest: float,
) -> Step | None:
    """The first of the steps t = longest · 2⁻ᵏ with f(x + t d) ≤ f(x) + 10⁻⁴ t slope; None if there is none.

    (L. Armijo, "Minimization of functions having Lipschitz continuous first partial derivatives", 1966.)
    """
    fraction = longest
    for _ in range(_HALVINGS):
        trial = x + fraction * d
        found = evaluate(trial)
        # A step that rounding errors make too small to change anything is none.
        if (
            math.isfinite(found)
            and found < value
            and found <= value + _SUFFICIENT * fraction * slope
        ):
            return Step(fraction, trial, found)
        fraction /= 2
    return None


def longest_step(largest_step: LargestStep | None, x: Tensor, d: Tensor) -> float:
    """The largest fraction of the step d, at most 1, that the caller's function allows."""
    if largest_step is None:
        return 1.0
    allowed = float(largest_step(x.clone(), d.clone()))
    if allowed == 0:
        raise Stuck("largest_step allows no step")
    if not allowed > 0:
        raise OptionError(
            f"largest_step returned {allowed}; expected a positive number, how far x may go along d"
        )
    return min(1.0, allowed)


def check_start(
    x0: Tensor, parameters: tuple[Tensor, ...], rtol: float, atol: float, max_iterations: int
) -> None:
    """Raises unless Newton's method can begin here."""
    if not isinstance(x0, Tensor) or x0.layout != torch.strided:
        what = f"has layout {x0.layout}" if isinstance(x0, Tensor) else f"is a {type(x0).__name__}"
        raise LayoutError(f"x0 {what}; expected a dense torch tensor")
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            raise LayoutError(f"params holds a {type(parameter).__name__}; expected torch tensors")
    if x0.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"x0 has dtype {x0.dtype}; expected float32 or float64")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < math.inf:
            raise OptionError(f"{name}={tolerance!r}: expected a number that is not negative")
    if not isinstance(max_iterations, int) or max_iterations < 0:
        raise OptionError(f"max_iterations={max_iterations!r}: expected a number of iterations")
    if is_transformed(x0, *parameters):
        raise TransformError(
            "Newton's method decides by numbers that the transforms of torch.func and forward mode hide; differentiate what "
            "it finds by torch.autograd, and call it outside of them"
        )


def not_converged(
    what: str, x: Tensor, reason: str, iterations: list[Iteration]
) -> ConvergenceError:
    """The error for `what` (the minimisation) that ends at x."""
    last = f"; the last decrement was {iterations[-1].decrement:.1e}" if iterations else ""
    steps = sum(iteration.step > 0 for iteration in iterations)
    return ConvergenceError(
        f"{what} did not converge in {steps} steps: {reason}{last}",
        x=x,
        report=Report(False, reason, tuple(iterations), None),
    )
