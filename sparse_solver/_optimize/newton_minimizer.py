"""Newton's descent to a minimum: how far to go in a direction, when to stop, and what was found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._sparse.values import probe_vector
from ..errors import NonFiniteError, ShapeError
from .hessian_modification import Direction, Hessians
from .implicit_diff import Equations, Solution
from .line_search import LargestStep, Step, Stuck, backtrack, longest_step, not_converged
from .report import Iteration, Report

_NOISE = 10  # rounding errors of the energy, in units of ε times its size


_EXACT = 16  # decrements, in units of one that rounding errors of X make


_PATIENCE = 5  # changed Hessians in a row, after which negative curvature is looked for


_LATELY = 10  # iterations, in which Newton's method divides x⁻ᵖ and eˣ by e¹⁰ at most


_DOUBLINGS = 20  # of the first step along it


_SHORT = "the Newton step is short enough"


_ENOUGH = "the decrement is small enough"


_ROUNDING = "rounding errors are all that is left of the gradient"


def energy_at(energy: Any, X: Tensor) -> float:
    """The energy as a number."""
    with torch.no_grad():
        value = energy.value(X)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ShapeError(f"the energy's value has shape {tuple(value.shape)}; expected a scalar")
    return float(value)


class _Point:
    """An iterate X: the energy, the gradient as a vector (zero at fixed entries), and a direction with its derivatives.

    slope, decrement : gᵀ d, and ½ λ² = −½ gᵀ d
    noise : rounding errors that the energy's value shows
    hidden_noise : those of terms that may cancel in it, which are as large as |X|ᵀ|H||X| / 2; mostly much too large
    """

    def __init__(self, X: Tensor, value: float, g: Tensor, found: Direction, equations: Equations):
        self.X, self.value, self.g, self.found = X, value, g, found
        self.slope = float(g @ found.d)
        self.decrement = -self.slope / 2
        eps = torch.finfo(X.dtype).eps
        size = float(X.reshape(-1).abs() @ equations.sizes(found.hessian, X)) / 2
        self.noise = _NOISE * eps * abs(value)
        self.hidden_noise = _NOISE * eps * (abs(value) + size)


class Descent:
    """A run of the method."""

    def __init__(
        self, energy: Any, hessians: Hessians, tolerances: tuple[float, float], max_iterations: int,
        largest_step: LargestStep | None, tell: Callable[[Tensor, Iteration], None],
    ):  # fmt: skip
        self.energy, self.hessians = energy, hessians
        self.rtol, self.atol = tolerances
        self.max_iterations, self.largest_step, self.tell = max_iterations, largest_step, tell
        self.iterations: list[Iteration] = []
        self._before: float | None = None  # the decrement of the iteration before

    @torch.no_grad()
    def run(self, x0: Tensor, value: float) -> tuple[Solution, Report]:
        """The solution and the report, from x0 and its energy."""
        X = x0.detach().clone()
        self._start, cautious = X, False
        while True:
            self.hessians.factorizations = 0
            try:
                g = self._gradient(X)
                point = _Point(
                    X, value, g, self.hessians.direction(X, g, cautious), self.hessians.equations
                )
                is_last = len(self.iterations) == self.max_iterations
                point, step, reason = self._next(point, is_last)
            except (NonFiniteError, Stuck) as error:
                if not self.iterations and isinstance(error, NonFiniteError):
                    raise
                raise not_converged("the minimisation", X, str(error), self.iterations) from error
            found = point.found
            made = Iteration(
                value, point.decrement, 0.0 if step is None else step.fraction, found.matrix, found.shift,
                self.hessians.factorizations,
            )  # fmt: skip
            self.iterations.append(made)
            self.tell(X, made)
            if step is not None:
                _, X, value = step
                if not bool(torch.isfinite(X).all()):
                    raise not_converged(
                        "the minimisation", X, "the variables overflow", self.iterations
                    )
                cautious = found.matrix in ("projected", "shifted") and made.step < 1
            elif not reason:
                reason = f"max_iterations={self.max_iterations} is reached"
                raise not_converged("the minimisation", X, reason, self.iterations)
            else:
                unique = found.matrix == "true"
                if not unique:
                    reason += "; the Hessian is singular there to working precision: the minimum is not unique, or none"
                solution = Solution(X, g, found.values, found.factors if unique else None)
                return solution, Report(True, reason, tuple(self.iterations), unique)

    def _next(self, point: _Point, is_last: bool) -> tuple[_Point, Step | None, str]:
        """The point, perhaps with a better direction, the step to be taken, or why none is needed; neither at the last one."""
        is_true = point.found.matrix == "true"
        reason, step, stuck = self._reason_to_stop(point), None, None
        if is_true and reason:
            step = self._beyond(point)
            reason = reason if step is None else ""
        elif not reason and not is_last:
            try:
                step = self._step(point)
                reason = "" if step is not None else _ROUNDING
            except Stuck as error:
                if is_true:
                    raise
                stuck = error
        self._before = point.decrement
        if is_true or (is_last and not reason):
            return point, None if is_last else step, reason
        if reason:  # by a Hessian that was changed: the gradient vanishes, but is this a minimum?
            true = self.hessians.true(point.X, point.g)
            if true is not None:
                return self._next(
                    _Point(point.X, point.value, point.g, true, self.hessians.equations), is_last
                )
        if step is None or self.hessians.changed % _PATIENCE == 0:
            point, step, reason = self._leave_saddle(point, step, reason)
        if step is None and stuck is not None:
            raise stuck
        return point, step, reason

    def _reason_to_stop(self, point: _Point) -> str:
        if point.found.matrix == "true":
            if point.decrement <= self._enough(point.value):
                return _ENOUGH
            if float(point.found.d.abs().max()) <= self.rtol**0.5 * float(
                (point.X - self._start).abs().max()
            ):
                return _SHORT
        if not bool(point.g.any()):
            return _ROUNDING
        if not point.slope < 0:
            if self._is_rounding(point):
                return _ROUNDING
            raise Stuck(
                "the Newton direction does not lead downhill: the Hessian is too ill-conditioned"
            )
        falls = self._before is not None and point.decrement <= self._before / 4
        # A shift makes soft directions stiff, in which there may be a long way to go: then a step is tried first.
        return (
            _ROUNDING
            if point.found.matrix == "true" and not falls and self._is_rounding(point)
            else ""
        )

    def _is_rounding(self, point: _Point) -> bool:
        """Whether the decrement is what rounding errors of X make of one: those of X + δ, with δ as large as they are."""
        eps = torch.finfo(point.X.dtype).eps
        if point.decrement > 1e-3 * point.hidden_noise:  # which is never too small for that
            return False
        signs = (
            probe_vector(point.X.numel(), point.X.dtype, 0.0)
            .sign()
            .reshape(point.X.shape)
            .to(point.X.device)
        )
        moved = self._gradient(point.X + eps * point.X * signs) - point.g
        equations, found = self.hessians.equations, point.found
        noise = float(moved @ equations.solve(found.values, moved, found.factors)) / 2
        return point.decrement <= _EXACT * noise

    def _enough(self, value: float) -> float:
        # What it has fallen lately: near a pole, say, it falls by orders of magnitude, without being near a minimum.
        lately = [iteration.objective for iteration in self.iterations[-_LATELY:]]
        return max(self.atol, self.rtol * (lately[0] - value) if lately else 0.0)

    def _step(self, point: _Point) -> Step | None:
        """A step that makes the energy fall, or where that is too inexact, the slope; None where rounding errors are all."""
        X, d = point.X, point.found.d.reshape(point.X.shape)
        longest = longest_step(self.largest_step, X, d)
        step = backtrack(
            lambda trial: energy_at(self.energy, trial), X, d, point.value, point.slope, longest
        )
        step = self._by_slope(point, d, longest) if step is None else step
        if step is None:
            eps, is_true = torch.finfo(X.dtype).eps, point.found.matrix == "true"
            if not (
                is_true and point.decrement <= eps**1.5 * abs(point.value)
            ) and not self._is_rounding(point):
                raise Stuck(
                    "no step along the descent direction makes the energy fall; are its derivatives right, and has it a minimum?"
                )
        return step

    def _by_slope(self, point: _Point, d: Tensor, longest: float) -> Step | None:
        """The first of the steps t = longest · 2⁻ᵏ with which the slope falls as it should, if the energy does not rise by more
        than rounding errors may make of it.

        (W. W. Hager and H. Zhang, "A new conjugate gradient method with guaranteed descent", 2005, on the same idea.)
        """
        rise = max(1e3 * point.noise, min(point.hidden_noise, 10 * point.decrement))
        fraction = longest
        for _ in range(20):
            trial = point.X + fraction * d
            there = energy_at(self.energy, trial)
            if math.isfinite(there) and there <= point.value + rise:
                slope = float(self._gradient(trial) @ point.found.d)
                if abs(slope) <= (1 - fraction / 4) * -point.slope:
                    return Step(fraction, trial, there)
            fraction /= 2
        return None

    def _beyond(self, point: _Point) -> Step | None:
        """Many Newton steps at once, if that lowers the energy: a minimum would be behind X by then, but an inflection, to which
        the method creeps, or a slope that becomes ever flatter, is not. Where it converges as to a minimum, there is no need.
        """
        d, step = point.found.d.reshape(point.X.shape), None
        if (
            self.largest_step is None
            and self._before is not None
            and point.decrement > 1e-6 * self._before
        ):
            for many in (16.0, 1e3, 1e5):
                step = (
                    self._lower(point.X, d, many, point.value - point.noise)
                    if step is None
                    else step
                )
        return step

    def _lower(self, X: Tensor, d: Tensor, fraction: float, than: float) -> Step | None:
        """The step X + fraction · d, if the energy is lower there than that."""
        trial = X + fraction * d
        there = energy_at(self.energy, trial)
        return Step(fraction, trial, there) if -math.inf < there < than else None

    def _leave_saddle(
        self, point: _Point, step: Step | None, reason: str
    ) -> tuple[_Point, Step | None, str]:
        """A saddle, which attracts Newton's method, is left along its lowest curvature, if that lowers the energy more than `step`.

        (J. J. Moré and D. C. Sorensen, "On the use of directions of negative curvature in a modified Newton method", 1979.)
        """
        v, is_negative = self.hessians.lowest_curvature(point.X, point.g)
        away = self._along(point, v.reshape(point.X.shape))
        if away is not None and (step is None or away.value < step.value):
            point.found = replace(point.found, matrix="curvature")
            return point, away, ""
        if step is None and is_negative:
            raise Stuck(
                "no minimum: the gradient is small where the Hessian is indefinite, and along its lowest curvature, the energy is "
                "not found to be lower"
            )
        return point, step, reason

    def _along(self, point: _Point, v: Tensor) -> Step | None:
        """The step along v, or against it, that lowers the energy, doubled as long as that lowers it further."""
        X = point.X
        size = max(float((X - X.mean(0)).abs().max()), float((X - self._start).abs().max())) or 1.0
        best: Step | None = None
        for unit in (v * (size / v.abs().max()), v * (-size / v.abs().max())):
            longest = (
                math.inf if self.largest_step is None else longest_step(self.largest_step, X, unit)
            )
            for fraction in (1e-3 * 8.0**k for k in (0, -1, -2, -3, 1, 2, 3)):
                if best is None and fraction <= longest:
                    best = self._lower(X, unit, fraction, point.value - point.noise)
            for _ in range(_DOUBLINGS):
                if best is None or 2 * best.fraction > longest:
                    break
                further = self._lower(X, unit, 2 * best.fraction, best.value)
                if further is None:
                    break
                best = further
            if best is not None:
                break
        return best

    def _gradient(self, X: Tensor) -> Tensor:
        """The gradient as a vector, zero at fixed entries."""
        g = self.hessians.equations.free(self.energy.gradient(X), "the energy's gradient")
        if not bool(torch.isfinite(g).all()):
            raise NonFiniteError(
                "the gradient of the energy is not finite", argument="gradient", index=None
            )
        return g
