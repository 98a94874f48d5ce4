"""Newton's descent to a minimum: how far to go in a direction, when to stop, and what was found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._directions import Direction, Hessians
from ._implicit import Solution
from ._newton import LargestStep, Step, Stuck, backtrack, longest_step, not_converged
from ._report import Iteration, Report
from ._rules import Places, apply
from .errors import NonFiniteError, ShapeError

_NOISE = 10  # rounding errors of the energy, in units of ε times its size
_EXACT = 32  # those of the gradient, in units of ε |H| |X|
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

    decrement : ½ λ² = −½ gᵀ d
    noise : rounding errors of the energy: of its value, and of terms that cancel in it, which are as large as |X|ᵀ|H||X|
    inexactness : max_i |g_i| / (ε (|H| |X|)_i): what rounding errors of X alone do to the gradient makes it one or so
    """

    def __init__(self, X: Tensor, value: float, g: Tensor, found: Direction, places: Places):
        self.X, self.value, self.g, self.found = X, value, g, found
        eps = torch.finfo(X.dtype).eps
        self.slope = float(g @ found.d)
        self.decrement = -self.slope / 2
        x = X.reshape(1, -1).abs()
        sizes = apply(found.hessian.abs(), x, places).squeeze(0)
        self.noise = _NOISE * eps * (abs(value) + float(x.squeeze(0) @ sizes) / 2)
        moduli = g.abs()
        ratios = torch.where(moduli > 0, moduli / (eps * sizes), moduli)
        self.inexactness = float(ratios.max())
        # Where it no longer falls, and is no more than this, there is no reason to think that it would.
        small = found.matrix == "true" and self.decrement <= eps**1.5 * abs(value)
        self.is_as_good_as_exact = small or self.inexactness <= eps**-0.25


class Descent:
    """A run of the method."""

    def __init__(
        self, energy: Any, hessians: Hessians, tolerances: tuple[float, float], max_iterations: int,
        largest_step: LargestStep | None, told: Callable[[Tensor, Iteration], None],
    ):  # fmt: skip
        self.energy, self.hessians = energy, hessians
        self.rtol, self.atol = tolerances
        self.max_iterations, self.largest_step, self.told = max_iterations, largest_step, told
        self.iterations: list[Iteration] = []
        self._before: float | None = None  # the decrement before a step that the energy was too inexact to judge
        structure = hessians.equations.problem.structure
        self._places = Places(structure.rows, structure.cols)

    @torch.no_grad()
    def run(self, x0: Tensor, value: float) -> tuple[Solution, Report]:
        """The solution and the report, from x0 and its energy."""
        X = x0.detach().clone()
        self._start, cautious = X, False
        while True:
            self.hessians.factorizations = 0
            try:
                g = self._free(self.energy.gradient(X))
                point = _Point(X, value, g, self.hessians.direction(X, g, cautious), self._places)
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
            self.told(X.clone(), made)
            if step is not None:
                _, X, value = step
                cautious = found.matrix in ("projected", "shifted") and made.step < 1
            elif not reason:
                reason = f"max_iterations={self.max_iterations} is reached"
                raise not_converged("the minimisation", X, reason, self.iterations)
            else:
                unique = found.matrix == "true"
                reason += (
                    "" if unique else "; the Hessian is singular there, so that the minimum is not unique, or none"
                )
                solution = Solution(X, g, found.values, found.factors if unique else None)
                return solution, Report(True, reason, tuple(self.iterations), unique)

    def _next(self, point: _Point, is_last: bool) -> tuple[_Point, Step | None, str]:
        """The point, perhaps with a better direction, the step to be taken, or why none is needed; neither at the last one."""
        reason = self._reason_to_stop(point)
        if is_last and not reason:
            return point, None, ""
        step, stuck = None, None
        if not reason:
            try:
                step = self._step(point)
                reason = "" if step is not None else _ROUNDING
            except Stuck as error:
                if point.found.matrix == "true":
                    raise
                stuck = error
        if point.found.matrix == "true":
            return point, step, reason
        if reason:  # by a Hessian that was changed: the gradient vanishes, but is this a minimum?
            true = self.hessians.true(point.X, point.g)
            if true is not None:
                return self._next(_Point(point.X, point.value, point.g, true, self._places), is_last)
        if step is None or self.hessians.changed % _PATIENCE == 0:
            point, step, reason = self._leave_saddle(point, step, reason)
        if step is None and stuck is not None:
            raise stuck
        return point, step, reason

    def _reason_to_stop(self, point: _Point) -> str:
        if point.found.matrix == "true":
            if point.decrement <= self._enough(point.value):
                return _ENOUGH
            if float(point.found.d.abs().max()) <= self.rtol**0.5 * float((point.X - self._start).abs().max()):
                return _SHORT
        if point.inexactness <= _EXACT:
            return _ROUNDING
        if not point.slope < 0:
            raise Stuck("the Newton direction does not lead downhill: the Hessian is too ill-conditioned")
        stagnates = self._before is not None and point.decrement > 0.9 * self._before
        return _ROUNDING if stagnates and point.is_as_good_as_exact else ""

    def _enough(self, value: float) -> float:
        # What it has fallen lately: near a pole, say, it falls by orders of magnitude, without being near a minimum.
        lately = [iteration.objective for iteration in self.iterations[-_LATELY:]]
        return max(self.atol, self.rtol * (lately[0] - value) if lately else 0.0)

    def _step(self, point: _Point) -> Step | None:
        """A step that makes the energy fall, or where that is too inexact, the slope; None where rounding errors are all."""
        X, d = point.X, point.found.d.reshape(point.X.shape)
        longest = longest_step(self.largest_step, X, d)
        step = None
        judged = 2 * point.decrement > point.noise
        if judged:
            step = backtrack(lambda trial: energy_at(self.energy, trial), X, d, point.value, point.slope, longest)
        self._before = None if judged and step is not None else point.decrement
        if step is None:
            step = self._by_slope(point, d, longest)
        if step is None and not point.is_as_good_as_exact:
            raise Stuck(
                "no step along the descent direction makes the energy fall; are its derivatives right, and has it a minimum?"
            )
        return step

    def _by_slope(self, point: _Point, d: Tensor, longest: float) -> Step | None:
        """The first of the steps t = longest · 2⁻ᵏ with which the slope falls as it should, if the energy does not rise by more
        than noise; large terms that cancel make it larger than it seems.

        (W. W. Hager and H. Zhang, "A new conjugate gradient method with guaranteed descent", 2005, on the same idea.)
        """
        fraction = longest
        for _ in range(20):
            trial = point.X + fraction * d
            there = energy_at(self.energy, trial)
            if there <= point.value + 1e3 * point.noise:
                slope = float(self._free(self.energy.gradient(trial)) @ point.found.d)
                if abs(slope) <= (1 - fraction / 4) * -point.slope:
                    return Step(fraction, trial, there)
            fraction /= 2
        return None

    def _leave_saddle(self, point: _Point, step: Step | None, reason: str) -> tuple[_Point, Step | None, str]:
        """A saddle, which attracts Newton's method, is left along its lowest curvature, if that lowers the energy more than `step`.

        (J. J. Moré and D. C. Sorensen, "On the use of directions of negative curvature in a modified Newton method", 1979.)
        """
        v, is_negative = self.hessians.lowest_curvature(point.X, point.g)
        away = self._along(point, v.reshape(point.X.shape))
        if away is not None and (step is None or away.value < step.value):
            point.found = replace(point.found, matrix="curvature")
            self._before = None
            return point, away, ""
        if step is None and is_negative:
            raise Stuck("the gradient vanishes where the Hessian is indefinite, and nowhere near is the energy lower")
        return point, step, reason

    def _along(self, point: _Point, v: Tensor) -> Step | None:
        """The step along v, or against it, that lowers the energy, doubled as long as that lowers it further."""
        X = point.X
        size = float((X - X.mean(0)).abs().max()) or 1.0
        best: Step | None = None
        for unit in (v * (size / v.abs().max()), v * (-size / v.abs().max())):
            longest = longest_step(self.largest_step, X, unit)
            for fraction in (1e-3 * 8.0**k for k in (0, -1, -2, -3, 1, 2, 3)):
                if best is None and fraction <= longest:
                    there = energy_at(self.energy, X + fraction * unit)
                    best = Step(fraction, X + fraction * unit, there) if there < point.value - point.noise else None
            for _ in range(_DOUBLINGS):
                if best is None or 2 * best.fraction > longest:
                    break
                trial = X + 2 * best.fraction * unit
                there = energy_at(self.energy, trial)
                if not (math.isfinite(there) and there < best.value):
                    break
                best = Step(2 * best.fraction, trial, there)
            if best is not None:
                return best
        return None

    def _free(self, gradient: Any) -> Tensor:
        """The gradient as a vector, zero at fixed entries."""
        problem = self.hessians.equations.problem
        if not isinstance(gradient, Tensor) or gradient.numel() != problem.structure.shape[0]:
            what = (
                f"shape {tuple(gradient.shape)}" if isinstance(gradient, Tensor) else f"type {type(gradient).__name__}"
            )
            raise ShapeError(f"the energy's gradient has {what}; expected a tensor of the shape of x0")
        g = gradient.detach().reshape(-1)
        g = g if problem.part is None else g.index_fill(0, problem.part.removed, 0.0)
        if not bool(torch.isfinite(g).all()):
            raise NonFiniteError("the gradient of the energy is not finite", argument="gradient", index=None)
        return g
