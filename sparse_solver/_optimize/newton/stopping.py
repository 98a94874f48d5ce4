"""Why Newton's method stops, and what it decides at each iterate."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from ...errors import ConvergenceError
from ..report import Iteration, Report

P = TypeVar("P")


class StopReason(Enum):
    """A reason to stop; the value is its message."""

    # Reasons to stop at a solution.
    ALL_FIXED = "all entries are fixed"
    SMALL_DECREMENT = "the Newton decrement is small enough"
    SMALL_RESIDUAL = "the residual is small enough"
    SHORT_STEP = "the Newton step is short enough"
    ROUNDING = "rounding errors allow no further progress"
    # Reasons to give up.
    MAX_ITERATIONS = "the iteration limit is reached"
    OVERFLOW = "the variables overflow"
    NO_STEP_ALLOWED = "largest_step allows no step"
    SINGULAR_JACOBIAN = "the Jacobian is singular"
    RESIDUAL_NOT_FALLING = (
        "no step along the Newton direction makes the residual smaller; is the Jacobian right?"
    )
    ENERGY_NOT_FALLING = (
        "no step along the descent direction makes the energy fall; are its derivatives right, "
        "and does it have a minimum?"
    )
    NOT_DOWNHILL = (
        "the Newton direction does not lead downhill, since the Hessian is too ill-conditioned"
    )
    SADDLE = (
        "the gradient is small where the Hessian is indefinite, and no lower energy is found "
        "along the direction of its lowest curvature"
    )
    NO_MINIMUM = (
        "the gradient and the Hessian vanish, but the energy does not rise farther along the way "
        "from x0; does it have a minimum?"
    )
    NOT_SHIFTABLE = "no multiple of the identity makes the Hessian positive definite"
    NOT_INVERTIBLE = (
        "the Hessian is too small or too large to be inverted; does the energy have a minimum?"
    )


class Step(NamedTuple):
    """A fraction of a Newton step, the point to which it leads, and the objective there."""

    fraction: float
    x: Tensor
    value: float


@dataclass(frozen=True)
class Decision(Generic[P]):
    """What Newton's method decides at an iterate.

    at : the iterate, with what was computed there
    action : the step to take, or the reason to stop
    """

    at: P
    action: Step | StopReason


class Stuck(Exception):
    """Newton's method cannot go on; the message says why."""

    def __init__(self, reason: StopReason, detail: str = ""):
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)


def make_convergence_error(
    name: str, x: Tensor, message: str, iterations: list[Iteration]
) -> ConvergenceError:
    """The error that says why `name` did not converge; x is the last iterate."""
    report = Report(False, message, tuple(iterations), None)
    last = f"; the last decrement was {iterations[-1].decrement:.1e}" if iterations else ""
    text = f"{name} did not converge in {report.steps} steps: {message}{last}"
    return ConvergenceError(text, x=x, report=report)
