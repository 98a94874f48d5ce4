"""Minima at which the Hessian is singular, and energies that only look as if they had one.

Towards a minimum of order p, such as that of xᵖ, Newton's method converges linearly: each step is
(p − 2) / (p − 1) of the one before. Along a slope that becomes ever flatter, as that of e⁻ˣ, steps
do not shrink, but the energy, its gradient and its Hessian underflow or drown in rounding errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .iterate import scatter_signs

# After this many steps of linear convergence, the limit is extrapolated.
_SLOW = 60
# Steps that shrink to at least this fraction converge linearly; xᵖ has more than it for p ≥ 4.
_LINEAR = 0.3
# By how much successive steps may differ in direction, relative to their length.
_PARALLEL = 0.1
# An extrapolated step is at most so many Newton steps.
_LONGEST = 1e3
# The distances at which the energy is compared, in units of the way from the start.
_FRACTIONS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
# Rounding errors of the energy, in units of what a disturbance of X by rounding errors causes.
_NOISE = 16


class Convergence:
    """How successive Newton steps converge.

    is_degenerate : whether linear convergence was extrapolated, and nothing contradicted that
    last : the last X with a positive definite Hessian, and the largest entry of the step there
    """

    def __init__(self) -> None:
        self.is_degenerate = False
        self.last: tuple[Tensor, float] | None = None
        self._count = 0
        self._d: Tensor | None = None

    def extrapolate(self, d: Tensor) -> float | None:
        """The multiple of the Newton step d that leads to the limit, once that is known."""
        last, self._d = self._d, d.reshape(-1)
        if last is None:
            return None
        ratio = float(d.reshape(-1) @ last) / float(last @ last)
        deviation = float((d.reshape(-1) - ratio * last).norm())
        is_linear = ratio > _LINEAR and deviation <= _PARALLEL * float(d.norm())
        self._count = self._count + 1 if is_linear else 0
        self.is_degenerate = self.is_degenerate and is_linear
        return min(1 / (1 - ratio), _LONGEST) if self._count >= _SLOW and ratio < 1 else None

    def is_local(self, X: Tensor, distance: float) -> bool:
        """Whether the last step, and all that followed, moved X by at most this distance."""
        if self.last is None:
            return False
        return max(self.last[1], float((X - self.last[0]).abs().max())) <= distance

    def jump(self) -> None:
        """Note that an extrapolated step is taken, after which steps are compared anew."""
        self.is_degenerate, self._d = True, None

    def reset(self) -> None:
        """Note that a step is taken that is no full Newton step."""
        self.is_degenerate, self._count, self._d = False, 0, None


def is_runaway(evaluate: Callable[[Tensor], float], X: Tensor, value: float, way: Tensor) -> bool:
    """Whether X, with an energy of this value, is on a slope that becomes ever flatter.

    way : the way to X, without the directions along which the Hessian is not singular

    At a minimum, the energy rises farther along the way, or is the same on both sides, as for the
    rigid motions of a structure. On a slope, it does not rise ahead, but behind.
    """
    rises, falls = _find_changes(evaluate, X, value, way)
    return not rises and (falls or _find_changes(evaluate, X, value, -way)[0])


def _find_changes(
    evaluate: Callable[[Tensor], float], X: Tensor, value: float, v: Tensor
) -> tuple[bool, bool]:
    """Whether the energy rises along v, and whether it falls, by more than rounding errors."""
    falls, eps = False, torch.finfo(X.dtype).eps
    for fraction in _FRACTIONS:
        trial = X + fraction * v
        found, size = evaluate(trial), eps * float(trial.abs().max())
        # An energy of differences does not see a common shift, nor one of sums opposite ones.
        disturbances = size * scatter_signs(X), size * torch.ones_like(X)
        changes = (
            abs(evaluate(trial + sign * d) - found) for d in disturbances for sign in (1, -1)
        )
        moved = max(changes)
        noise = _NOISE * max(moved if math.isfinite(moved) else 0.0, eps * abs(value))
        if value + noise < found < math.inf:
            return True, falls
        falls = falls or found < value - noise
    return False, falls
