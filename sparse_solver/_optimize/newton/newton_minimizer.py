"""Newton's method for a minimum: which step to take at an iterate, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..._energy.non_finite_terms import describe_non_finite_term
from ...errors import NonFiniteError
from ..equations import Solution
from ..report import Iteration, Report
from .degenerate_minima import Convergence, is_runaway
from .hessian_modification import Direction, HessianModifier
from .iterate import Point, energy_at, scatter_signs
from .line_search import Limits, backtrack
from .stopping import Decision, Step, StopReason, Stuck, make_convergence_error

# Rounding errors explain a decrement up to this multiple of one that rounding errors of X cause.
_EXACT = 16
# A decrement above this fraction of `hidden_noise`, which is never too small, is no rounding error.
_SUSPICIOUS = 1e-3
# A decrement that fell to this fraction of the one before shows progress.
_PROGRESS = 1 / 4
# Changed Hessians in a row, after which a negative curvature is looked for.
_PATIENCE = 5
# The tolerance is relative to what the energy fell in this many iterations, in which Newton's
# method divides x⁻ᵖ and eˣ by e¹⁰ at most. Near a pole, the energy falls by orders of magnitude far
# from any minimum.
_LATELY = 10
# Near an inflection, or where the slope flattens, the decrement falls more slowly than to this
# fraction; then these multiples of the Newton step are tried, which would leave a minimum behind.
_CONVERGENCE = 1e-6
_FAR = (16.0, 1e3, 1e5)
# The lengths of the first step along a negative curvature, in units of the size of X, and how often
# it is doubled.
_FIRST_LENGTHS = tuple(1e-3 * 8.0**k for k in (0, -1, -2, -3, 1, 2, 3))
_DOUBLINGS = 20
# The search by slopes accepts a rise of the energy by this multiple of its noise, within so many
# halvings of the step.
_RISE = 1e3
_HALVINGS = 20

# A way of at most ε to this power, relative to all of it, is due to rounding errors.
_SOFT_EXPONENT = 2 / 3
# In so many iterations, a parabola leads to its minimum. Its decrement is what the energy falls, of
# which it is at most 86 % for x³, and less for x⁴, e⁻ˣ and x⁻ᵖ.
_RECENT = 5


class NewtonMinimizer:
    """One run of Newton's method for a minimum."""

    def __init__(
        self,
        energy: Any,
        hessians: HessianModifier,
        limits: Limits,
        report: Callable[[Tensor, Iteration], None],
    ):
        self.energy, self.hessians, self.limits, self.report = energy, hessians, limits, report
        self.iterations: list[Iteration] = []
        self._last_decrement: float | None = None
        self._convergence = Convergence()

    @torch.no_grad()
    def run(self, x0: Tensor, value: float) -> tuple[Solution, Report]:
        """Iterate from x0, where the energy has this value; raise ConvergenceError on failure."""
        X = self._start = x0.detach().clone()
        cautious = False
        while True:
            decision = self._decide_at(X, value, cautious)
            point, action = decision.at, decision.action
            fraction = action.fraction if isinstance(action, Step) else 0.0
            self._record(point, fraction)
            if isinstance(action, StopReason):
                return self._finish(point, action)
            X, value = action.x, action.value
            if not bool(torch.isfinite(X).all()):
                raise self._error(X, StopReason.OVERFLOW.value)
            cautious = point.direction.is_changed and fraction < 1

    def _decide_at(self, X: Tensor, value: float, cautious: bool) -> Decision[Point]:
        """Decide at X, within the limit of iterations; raise ConvergenceError if stuck."""
        is_last = len(self.iterations) >= self.limits.max_iterations
        self.hessians.factorizations = 0
        try:
            g = self._gradient(X)
            direction = self.hessians.find_direction(X, g, cautious)
            decision = self._decide(self._point(X, value, g, direction), is_last)
        except NonFiniteError as error:
            message = describe_non_finite_term(self.energy, X) or str(error)
            if self.iterations:
                raise self._error(X, message) from error
            raise NonFiniteError(message, argument=error.argument, index=error.index) from error
        except Stuck as error:
            raise self._error(X, str(error)) from error
        if is_last and isinstance(decision.action, Step):
            return Decision(decision.at, StopReason.MAX_ITERATIONS)
        return decision

    def _point(self, X: Tensor, value: float, g: Tensor, direction: Direction) -> Point:
        return Point(X, value, g, direction, self.hessians.equations)

    def _record(self, point: Point, fraction: float) -> None:
        found, factorizations = point.direction, self.hessians.factorizations
        iteration = Iteration(
            point.value, point.decrement, fraction, found.matrix, found.shift, factorizations
        )
        self.iterations.append(iteration)
        self.report(point.X, iteration)

    def _error(self, X: Tensor, message: str) -> Exception:
        return make_convergence_error("the minimisation", X, message, self.iterations)

    def _finish(self, point: Point, reason: StopReason) -> tuple[Solution, Report]:
        """The result at a point, where the method stops."""
        message, found = reason.value, point.direction
        if reason is StopReason.MAX_ITERATIONS:
            limit = f"max_iterations={self.limits.max_iterations}"
            raise self._error(point.X, f"{message}: {limit}")
        is_unique = found.is_true and not self._convergence.is_degenerate
        far = any(step.step > 1 and step.matrix == "true" for step in self.iterations[-_LATELY:])
        if (far or not is_unique) and self._is_runaway(point):
            raise self._error(point.X, StopReason.NO_MINIMUM.value)
        if not is_unique:
            message += "; the Hessian is singular to working precision there: the minimum is not "
            message += "unique, or of a higher order"
        factors = found.factors if is_unique else None
        solution = Solution(point.X, point.g, found.values, factors)
        return solution, Report(True, message, tuple(self.iterations), is_unique)

    def _is_runaway(self, point: Point) -> bool:
        """Whether the Hessian vanishes since the energy becomes ever flatter, without a minimum."""
        X, travel, eps = point.X, point.X - self._start, torch.finfo(point.X.dtype).eps
        size, tiny = float(travel.abs().max()), torch.finfo(X.dtype).tiny / eps
        # Energies may be constant beyond a point, to which the steps converge, or a parabola leads.
        if self._convergence.is_local(X, eps**0.5 * size):
            return False
        for last in reversed(self.iterations[-_RECENT:]):
            if last.matrix == "curvature" or last.step not in (0, 1):
                break
            fall, decrement = last.objective - point.value, last.decrement
            if decrement > tiny and abs(fall - decrement) < decrement / 10:
                return False
        if point.direction.is_true:  # the last step of linear convergence
            way = point.d * (size / (float(point.d.abs().max()) or 1.0))
        else:
            way = self.hessians.select_soft_part(X, point.g, travel)
        is_soft = float(way.abs().max()) > eps**_SOFT_EXPONENT * size
        return is_soft and is_runaway(partial(energy_at, self.energy), X, point.value, way)

    def _decide(self, point: Point, is_last: bool) -> Decision[Point]:
        """Decide at a point; the decision may rest on another direction there."""
        if not point.direction.is_true:
            return self._decide_without_true_hessian(point, is_last)
        action: Step | StopReason | None = self._find_reason_to_stop(point)
        if action is not None:
            action = self._step_far(point) or action
        elif is_last:
            action = StopReason.MAX_ITERATIONS
        else:
            step = self._find_step(point)
            action = self._extrapolate(point, step) if step else StopReason.ROUNDING
        self._last_decrement = point.decrement
        self._convergence.last = point.X, float(point.d.abs().max())
        return Decision(point, action)

    def _extrapolate(self, point: Point, step: Step) -> Step:
        """The step, or a longer one to the limit of linear convergence if it leads further."""
        if step.fraction < 1:
            self._convergence.reset()
            return step
        fraction = self._convergence.extrapolate(point.d)
        if fraction is None or self.limits.largest_step is not None:
            return step
        trial = point.X + fraction * point.d
        value = energy_at(self.energy, trial)
        if value <= step.value and self._gradient_norm(trial) < self._gradient_norm(step.x):
            self._convergence.jump()
            return Step(fraction, trial, value)
        return step

    def _decide_without_true_hessian(self, point: Point, is_last: bool) -> Decision[Point]:
        """Decide at a point whose direction comes from a changed Hessian."""
        reason, step, stuck = self._find_reason_to_stop(point), None, None
        self._last_decrement = point.decrement
        if reason is None and is_last:
            return Decision(point, StopReason.MAX_ITERATIONS)
        if reason is None:
            try:
                step = self._find_step(point)
                reason = StopReason.ROUNDING if step is None else None
            except Stuck as error:
                stuck = error
        if reason is not None:  # the gradient vanishes, but perhaps not at a minimum
            true = self.hessians.try_true(point.X, point.g)
            if true is not None:
                return self._decide(self._point(point.X, point.value, point.g, true), is_last)
        if step is None or self.hessians.changed % _PATIENCE == 0:
            escape, is_negative = self._escape_saddle(point, step)
            if escape is not None:
                point.direction = replace(point.direction, matrix="curvature")
                return Decision(point, escape)
            if not is_negative and self._is_below_noise(point):
                return Decision(point, StopReason.ROUNDING)
        action = step or reason
        if action is None:
            assert stuck is not None
            raise stuck
        return Decision(point, action)

    def _find_reason_to_stop(self, point: Point) -> StopReason | None:
        is_true = point.direction.is_true
        if is_true:
            if point.decrement <= self._tolerance(point.value):
                return StopReason.SMALL_DECREMENT
            distance = float((point.X - self._start).abs().max())
            if float(point.d.abs().max()) <= self.limits.rtol**0.5 * distance:
                return StopReason.SHORT_STEP
        if not bool(point.g.any()):
            return StopReason.ROUNDING
        if not point.slope < 0:
            if self._is_rounding(point):
                return StopReason.ROUNDING
            raise Stuck(StopReason.NOT_DOWNHILL)
        before = self._last_decrement
        falls = before is not None and point.decrement <= _PROGRESS * before
        # A shift makes soft directions stiff, along which the minimum may be far away. With a
        # shift, a step is tried first.
        is_rounding = is_true and not falls and self._is_rounding(point)
        return StopReason.ROUNDING if is_rounding else None

    def _is_rounding(self, point: Point) -> bool:
        """Whether rounding errors of X, in X + δ, make decrements as large as this one."""
        X, equations = point.X, self.hessians.equations
        if point.decrement > _SUSPICIOUS * point.hidden_noise:
            return False
        moved = self._gradient(X + torch.finfo(X.dtype).eps * X * scatter_signs(X)) - point.g
        found = point.direction
        step = equations.try_inverse(found.values, moved, found.factors)
        return step is not None and point.decrement <= _EXACT * float(moved @ step) / 2

    def _tolerance(self, value: float) -> float:
        """The decrement that is small enough."""
        lately = [iteration.objective for iteration in self.iterations[-_LATELY:]]
        return max(self.limits.atol, self.limits.rtol * (lately[0] - value) if lately else 0.0)

    def _find_step(self, point: Point) -> Step | None:
        """A step that makes the energy fall or, if its value is too inexact, the slope.

        None if rounding errors allow no step.
        """
        X, d, value, slope = point.X, point.d, point.value, point.slope
        longest = self.limits.longest_step(X, d)
        step = backtrack(lambda trial: energy_at(self.energy, trial), X, d, value, slope, longest)
        step = step or self._search_by_slope(point, longest)
        if step is None:
            tiny = torch.finfo(X.dtype).eps ** 1.5 * abs(value)
            is_tiny = point.direction.is_true and point.decrement <= tiny
            if not is_tiny and not self._is_rounding(point):
                raise Stuck(StopReason.ENERGY_NOT_FALLING)
        return step

    def _search_by_slope(self, point: Point, longest: float) -> Step | None:
        """The first of the steps t = longest · 2⁻ᵏ after which the slope has fallen enough.

        The energy may rise by what rounding errors explain. (The idea is in W. W. Hager and
        H. Zhang, "A new conjugate gradient method with guaranteed descent", 2005.)
        """
        rise = max(_RISE * point.noise, min(point.hidden_noise, 10 * point.decrement))
        fraction = longest
        for _ in range(_HALVINGS):
            trial = point.X + fraction * point.d
            value = energy_at(self.energy, trial)
            if math.isfinite(value) and value <= point.value + rise:
                slope = float(self._gradient(trial) @ point.direction.d)
                if abs(slope) <= (1 - fraction / 4) * -point.slope:
                    return Step(fraction, trial, value)
            fraction /= 2
        return None

    def _step_far(self, point: Point) -> Step | None:
        """Many Newton steps at once, if that lowers the energy.

        Newton's method creeps towards an inflection, and along a slope that becomes ever flatter.
        Far along its direction, the energy is lower there, but not beyond a minimum. Where the
        method converges as it does to a minimum, nothing is tried.
        """
        before = self._last_decrement
        is_slow = before is not None and point.decrement > _CONVERGENCE * before
        if self.limits.largest_step is None and is_slow:
            for fraction in _FAR:
                step = self._step_if_lower(point.X, point.d, fraction, point.value - point.noise)
                if step is not None:
                    return step
        return None

    def _step_if_lower(self, X: Tensor, d: Tensor, fraction: float, bound: float) -> Step | None:
        """The step X + fraction · d, if the energy there is lower than the bound."""
        trial = X + fraction * d
        value = energy_at(self.energy, trial)
        return Step(fraction, trial, value) if -math.inf < value < bound else None

    def _is_below_noise(self, point: Point) -> bool:
        """Whether rounding errors explain the gradient, X being exact relative to its way.

        Where the Hessian is singular, steps with a shift do not reach the minimum.
        """
        scale = torch.maximum(point.X.abs(), (point.X - self._start).abs())
        noise = self.hessians.equations.multiply_moduli(point.direction.hessian, scale)
        return bool((point.g.abs() <= torch.finfo(scale.dtype).eps * noise).all())

    def _escape_saddle(self, point: Point, step: Step | None) -> tuple[Step | None, bool]:
        """A step along the lowest curvature, if it lowers the energy more than `step` does.

        Also returns whether that curvature is negative.

        Saddle points attract Newton's method. (J. J. Moré and D. C. Sorensen, "On the use of
        directions of negative curvature in a modified Newton method", 1979.)
        """
        v, is_negative = self.hessians.find_lowest_curvature(point.X, point.g)
        escape = self._search_along(point, v.reshape(point.X.shape))
        if escape is not None and (step is None or escape.value < step.value):
            return escape, is_negative
        if step is None and is_negative:
            raise Stuck(StopReason.SADDLE)
        return None, is_negative

    def _search_along(self, point: Point, v: Tensor) -> Step | None:
        """A step along v or −v that lowers the energy, doubled as long as that lowers it."""
        X, limits = point.X, self.limits
        size = max(float((X - X.mean(0)).abs().max()), float((X - self._start).abs().max())) or 1.0
        for unit in (v * (size / v.abs().max()), v * (-size / v.abs().max())):
            longest = math.inf if limits.largest_step is None else limits.longest_step(X, unit)
            best: Step | None = None
            for fraction in _FIRST_LENGTHS:
                if best is None and fraction <= longest:
                    best = self._step_if_lower(X, unit, fraction, point.value - point.noise)
            if best is None:
                continue
            for _ in range(_DOUBLINGS):
                if 2 * best.fraction > longest:
                    break
                further = self._step_if_lower(X, unit, 2 * best.fraction, best.value)
                if further is None:
                    break
                best = further
            return best
        return None

    def _gradient_norm(self, X: Tensor) -> float:
        return float(self.hessians.equations.flatten(self.energy.gradient(X)).norm())

    def _gradient(self, X: Tensor) -> Tensor:
        """The gradient as a vector, zero at fixed entries."""
        g = self.hessians.equations.flatten(self.energy.gradient(X))
        if not bool(torch.isfinite(g).all()):
            message = "the gradient of the energy is not finite"
            raise NonFiniteError(message, argument="gradient", index=None)
        return g
