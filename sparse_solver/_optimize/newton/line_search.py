"""The line search of Newton's method, and the limits that the caller sets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import OptionError
from .stopping import Step, StopReason, Stuck

LargestStep = Callable[[Tensor, Tensor], Any]

# A step has to achieve this fraction of the decrease that the slope promises.
_SUFFICIENT = 1e-4
# A step of 2⁻⁶⁰ changes no variable in double precision.
_HALVINGS = 60


@dataclass(frozen=True)
class Limits:
    """When Newton's method stops, and how far it may go; raise OptionError if invalid.

    largest_step : returns the largest fraction of a step that is allowed at x
    """

    rtol: float
    atol: float
    max_iterations: int
    largest_step: LargestStep | None

    def __post_init__(self) -> None:
        for name, tolerance in (("rtol", self.rtol), ("atol", self.atol)):
            if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < math.inf:
                raise OptionError(f"{name}={tolerance!r}; expected a finite number, at least 0")
        if not isinstance(self.max_iterations, int) or self.max_iterations < 0:
            raise OptionError(
                f"max_iterations={self.max_iterations!r}; expected an int, at least 0"
            )

    def longest_step(self, x: Tensor, d: Tensor) -> float:
        """The largest fraction of the step d, at most 1, that is allowed at x."""
        if self.largest_step is None:
            return 1.0
        allowed = float(self.largest_step(x.clone(), d.clone()))
        if allowed == 0:
            raise Stuck(StopReason.NO_STEP_ALLOWED)
        if not allowed > 0:
            expected = "expected a positive number, the largest t for which x + t d is allowed"
            raise OptionError(f"largest_step returned {allowed}; {expected}")
        return min(1.0, allowed)


def backtrack(
    evaluate: Callable[[Tensor], float],
    x: Tensor,
    d: Tensor,
    value: float,
    slope: float,
    longest: float,
) -> Step | None:
    """The first of the steps t = longest · 2⁻ᵏ with f(x + t d) ≤ f(x) + 10⁻⁴ t slope, if any.

    (L. Armijo, "Minimization of functions having Lipschitz continuous first partial derivatives",
    1966.)
    """
    fraction = longest
    for _ in range(_HALVINGS):
        trial = x + fraction * d
        found = evaluate(trial)
        # The second condition rejects steps that are too small to change the value.
        is_lower = found <= value + _SUFFICIENT * fraction * slope and found < value
        if math.isfinite(found) and is_lower:
            return Step(fraction, trial, found)
        fraction /= 2
    return None
