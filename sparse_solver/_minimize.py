"""`minimize`: Newton's method for sparse energies, whose minimiser is differentiable."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._directions import Direction, Hessians
from ._energy import Energy, fixed_numbers, parameters_of, with_diagonal
from ._factors import Problem
from ._implicit import Equations, Solution, differentiable
from ._kinds import Options
from ._newton import LargestStep, Step, Stuck, backtrack, check_start, longest_step, not_converged
from ._pattern import Pattern
from ._projection import Projection, projection_of
from ._report import Iteration, Report, progress_bar
from ._untraced import untraced
from .errors import NonFiniteError, ShapeError

_NOISE = 10  # rounding errors of the energy, in units of ε times the largest energy seen
_PATIENCE = 5  # changed Hessians in a row, after which negative curvature is looked for
_DOUBLINGS = 20  # of the first step along it
_ROUNDING = "rounding errors are all that is left of the decrement"


def _value(energy: Energy, X: Tensor) -> float:
    with torch.no_grad():
        return float(energy.value(X))


def _recorded(energy: Any, X: Tensor) -> Tensor:
    """Something with a graph that leads to all that the energy depends on."""
    value = energy.value(X)
    return value if isinstance(value, Tensor) else energy.gradient(X)


@untraced
def minimize(
    energy: Energy | Callable[..., Energy],
    x0: Tensor,
    *,
    fixed: Tensor | None = None,
    params: Iterable[Tensor] | None = None,
    rtol: float = 1e-20,
    atol: float = 0.0,
    max_iterations: int = 100,
    project: bool | Projection = True,
    largest_step: LargestStep | None = None,
    callback: Callable[[Tensor, Iteration], object] | None = None,
    progress: bool = False,
    engine: str | None = None,
) -> tuple[Tensor, Report]:
    """A local minimiser X of an energy, and a `Report`, by Newton's method; X is differentiable.

    energy : an `IndexedSum`, or whatever has `value`, `gradient`, `hessian_values` and `pattern` as that has; or with params,
        a function that makes one from them
    x0 : where to begin, float32 or float64, of the shape that the energy takes; it also holds the fixed values
    fixed : (p,) int64 or int32 vertices (rows of x0), or a bool mask: of vertices, or of x0's shape; None: none
    params : the tensors in which X shall be differentiable; None: those that the energy has for `parameters()`
    rtol, atol : on the Newton decrement ½λ² = ½ gᵀH⁻¹g, an estimate of E(X) − min E: iterations end where it is at most
        atol (in units of the energy), or rtol times what the energy has fallen since x0. X is then off by about √rtol of
        the way that it went. Where rounding errors do not allow that, they end when these are all that is left
    max_iterations : of Newton's method
    project : how a Hessian that is not positive definite is made so, if the energy's `hessian_values` takes ``project=``: True
        or "zero", "absolute", or False for not at all. If that does not do, a multiple of the identity is added
    largest_step : a function of X and the step d that returns the largest t for which the energy is defined on [X, X + t d], to
        keep elements from inverting, and bodies from passing through each other. Steps to where the energy is NaN or
        infinite are not taken in any case
    callback : is called with X and the `Iteration` after each
    progress : show a progress bar (needs tqdm)
    engine : as for `solve`

    The pattern is analysed once, and a Hessian is factored once an iteration; once or several times more in those where it is
    not positive definite. The derivatives of X in the energy's parameters, in params, and in the fixed values are those of
    the implicit function theorem, dX = −H⁻¹ (∂g/∂θ) dθ, and cost a substitution with the last factor and a derivative of
    the gradient; they can be differentiated again. They are not available in forward mode, nor inside of `torch.func`.

    Raises `ConvergenceError`, with the last iterate `x` and the `report`, if no minimum is found: a stationary point where
    the Hessian is indefinite is none, and is left along its negative curvature. A minimum that is not the only one nearby (a structure that is not held) is
    returned, but has no derivatives: ``report.unique`` is False, and a backward raises `SingularMatrixError`. Raises
    `NonFiniteError` if the energy or a derivative is NaN or infinite where it should not be, and `NotSymmetricError`,
    `ShapeError`, `DtypeError`, `DeviceError`, `OptionError`, `TransformError`.

    >>> import torch, sparse_solver as ss
    >>> def spring(x, k):
    ...     return k / 2 * ((x[1] - x[0]).norm() - 1) ** 2
    >>> k = torch.tensor([1.0, 3.0], dtype=torch.double, requires_grad=True)
    >>> energy = ss.IndexedSum(spring, torch.tensor([[0, 1], [1, 2]]), per_term=k)
    >>> x0 = torch.tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]], dtype=torch.double)
    >>> x, report = ss.minimize(energy, x0, fixed=torch.tensor([0, 2]))
    >>> x[1], report.converged
    (tensor([2.5000, 0.0000], dtype=torch.float64, grad_fn=<SelectBackward0>), True)
    >>> x[1, 0].backward()
    >>> k.grad
    tensor([-0.3750,  0.1250], dtype=torch.float64)

    (J. Nocedal and S. J. Wright, "Numerical optimization", 2006, chapter 3; the implicit function theorem: A. L. Dontchev and
    R. T. Rockafellar, "Implicit functions and solution mappings", 2014. Projecting only where it is needed: A. Longva et al.,
    "Pitfalls of projection: a study of Newton-type solvers for incremental potentials", 2023.)
    """
    made: Any = energy
    parameters, made = parameters_of(energy) if params is None else (tuple(params), made)
    check_start(x0, parameters, rtol, atol, max_iterations)
    own: Any = energy if params is None else made(*parameters)
    value = _value(own, x0)
    if not math.isfinite(value):
        raise NonFiniteError(f"the energy is {value} at x0", argument="x0", index=None)
    numbers = fixed_numbers(fixed, x0.shape)
    if numbers.numel() == x0.numel():
        return x0.clone(), Report(True, "all variables are fixed", (), True)
    problem, padding = _problem(own.pattern, numbers, x0, engine)

    def values_of(energy: Any, X: Tensor, **options: Any) -> Tensor:
        values: Tensor = energy.hessian_values(X, **options)
        return torch.cat((values, values.new_zeros(padding))) if padding else values

    equations = Equations(
        lambda X, *parameters: made(*parameters).gradient(X),
        lambda X, *parameters: values_of(made(*parameters), X),
        parameters,
        problem,
    )
    how = projection_of(project)
    if "project" not in inspect.signature(own.hessian_values).parameters:
        how = None
    hessians = Hessians(lambda X, **options: values_of(own, X, **options), equations, how)
    with progress_bar(progress, "minimize") as bar:

        def told(X: Tensor, iteration: Iteration) -> None:
            bar.update(iteration)
            if callback is not None:
                callback(X, iteration)

        descent = _Descent(own, hessians, (rtol, atol), max_iterations, largest_step, told)
        solution, report = descent.run(x0, value)
    hint = "them as params=, and as energy a function that makes it from them"
    x = differentiable(solution, x0, equations, lambda: _recorded(own, solution.x), "the energy", hint)
    return x, report


def _problem(pattern: Pattern, fixed: Tensor, x0: Tensor, engine: str | None) -> tuple[Problem, int]:
    """What is solved in each iteration, and how many zeros the values of the pattern lack for it."""
    if pattern.shape != (x0.numel(), x0.numel()):
        raise ShapeError(f"the energy's pattern has shape {pattern.shape}, and x0 has {x0.numel()} entries")
    structure = with_diagonal(pattern._structure)
    part = structure.without(fixed) if fixed.numel() else None
    return Problem(structure, Options("spd", engine=engine), part), structure.nnz - pattern.nnz


class _Descent:
    """A run of the method."""

    def __init__(
        self, energy: Energy, hessians: Hessians, tolerances: tuple[float, float], max_iterations: int,
        largest_step: LargestStep | None, told: Callable[[Tensor, Iteration], None],
    ):  # fmt: skip
        self.energy, self.hessians = energy, hessians
        self.rtol, self.atol = tolerances
        self.max_iterations, self.largest_step, self.told = max_iterations, largest_step, told
        self.iterations: list[Iteration] = []
        self._first = self._largest = math.nan  # the energy at x0, and the largest so far, by modulus
        self._polished: float | None = None  # the decrement before a step that the energy could not judge

    def run(self, x0: Tensor, value: float) -> tuple[Solution, Report]:
        """The solution and the report, from x0 and its energy."""
        X = x0.detach().clone()
        self._first = self._largest = value
        cautious = False
        while True:
            with torch.no_grad():
                g = self._free(self.energy.gradient(X))
                self.hessians.factorizations = 0
                try:
                    found = self.hessians.direction(X, g, cautious)
                    decrement, step = self._step(X, g, found, value, self._enough(value))
                    if found.matrix != "true" and (step is None or self.hessians.changed % _PATIENCE == 0):
                        found, decrement, step = self._judged(X, g, value, found, decrement, step)
                except (NonFiniteError, Stuck) as error:
                    if not self.iterations and isinstance(error, NonFiniteError):
                        raise
                    raise not_converged("the minimisation", X, str(error), self.iterations) from error
            fraction = 0.0 if step is None else step.fraction
            made = Iteration(value, decrement, fraction, found.matrix, found.shift, self.hessians.factorizations)
            self.iterations.append(made)
            self.told(X, made)
            if step is None:
                unique = found.matrix == "true"
                reason = "the decrement is small enough" if decrement <= self._enough(value) else _ROUNDING
                reason += "" if unique else "; the minimum is not unique, since the Hessian is singular"
                solution = Solution(X, found.values, found.factors if unique else None)
                return solution, Report(True, reason, tuple(self.iterations), unique)
            if len(self.iterations) > self.max_iterations:
                reason = f"max_iterations={self.max_iterations} is reached"
                raise not_converged("the minimisation", X, reason, self.iterations)
            _, X, value = step
            self._largest = max(self._largest, abs(value))
            cautious = found.matrix in ("projected", "shifted") and fraction < 1

    def _judged(
        self, X: Tensor, g: Tensor, value: float, found: Direction, decrement: float, step: Step | None
    ) -> tuple[Direction, float, Step | None]:
        """The direction, decrement and step where those by a Hessian that was changed do not lead far.

        At a minimum, the true Hessian is positive definite, or singular. Else there is a saddle nearby, which attracts Newton's
        method, and which is left along the negative curvature. (J. J. Moré and D. C. Sorensen, "On the use of directions of
        negative curvature in a modified Newton method", 1979.)
        """
        if step is None:
            true = self.hessians.judged(X, g)
            if true is not None:
                return true, *self._step(X, g, true, value, self._enough(value))
        v = self.hessians.negative_curvature(X, g)
        away = None if v is None else self._along(X, v.reshape(X.shape), value)
        if away is not None and (step is None or away.value < step.value):
            return replace(found, matrix="curvature"), decrement, away
        if step is None:  # the decrement is small enough, but this is no minimum
            decrement, step = self._step(X, g, found, value, 0.0)
        if step is None:
            raise Stuck("the gradient vanishes where the Hessian is indefinite, and nowhere near is the energy lower")
        return found, decrement, step

    def _along(self, X: Tensor, v: Tensor, value: float) -> Step | None:
        """The step along v that lowers the energy, doubled as long as that lowers it further."""
        size = float((X - X.mean(0)).abs().max()) or 1.0
        unit = v * (size / v.abs().max())
        longest = longest_step(self.largest_step, X, unit)
        best: Step | None = None
        for fraction in (1e-3 * 8.0**k for k in (0, -1, -2, -3, 1, 2)):
            if best is None and fraction <= longest:
                there = _value(self.energy, X + fraction * unit)
                best = Step(fraction, X + fraction * unit, there) if there < value - self._noise(X) else None
        for _ in range(_DOUBLINGS):
            if best is None or 2 * best.fraction > longest:
                break
            trial = X + 2 * best.fraction * unit
            there = _value(self.energy, trial)
            if not (math.isfinite(there) and there < best.value):
                break
            best = Step(2 * best.fraction, trial, there)
        return best

    def _noise(self, X: Tensor) -> float:
        """Rounding errors of the energy."""
        return _NOISE * torch.finfo(X.dtype).eps * abs(self._largest)

    def _step(self, X: Tensor, g: Tensor, found: Direction, value: float, enough: float) -> tuple[float, Step | None]:
        """The decrement, and the step to be taken; None if X is as stationary as it can be, or the decrement small enough."""
        slope = float(g @ found.d)
        decrement = -slope / 2
        if decrement <= enough:
            return decrement, None
        d = found.d.reshape(X.shape)
        longest = longest_step(self.largest_step, X, d)
        noise = self._noise(X)
        if -slope > noise:
            self._polished = None
            step = backtrack(lambda trial: _value(self.energy, trial), X, d, value, slope, longest)
            step = self._unjudged(X, d, value, slope, longest) if step is None else step
            if step is None:
                raise Stuck("no step along the descent direction makes the energy fall; are its derivatives right?")
            return decrement, step
        if self._polished is not None and decrement > self._polished / 4:
            return decrement, None
        self._polished = decrement
        return decrement, self._unjudged(X, d, value, slope, longest)

    def _unjudged(self, X: Tensor, d: Tensor, value: float, slope: float, longest: float) -> Step | None:
        """The whole step, if the energy there is the same but for noise, and the slope says that it is better.

        Where large terms cancel, the noise is larger than it seems.
        """
        trial = X + longest * d
        there = _value(self.energy, trial)
        if not abs(there - value) <= 1e4 * self._noise(X):
            return None
        new_slope = float(self._free(self.energy.gradient(trial)) @ d.reshape(-1))
        return Step(longest, trial, there) if abs(new_slope) <= abs(slope) / 2 else None

    def _enough(self, value: float) -> float:
        return max(self.atol, self.rtol * (self._first - value))

    def _free(self, gradient: Tensor) -> Tensor:
        """The gradient as a vector, zero at fixed entries."""
        part, g = self.hessians.equations.problem.part, gradient.detach().reshape(-1)
        g = g if part is None else g.index_fill(0, part.removed, 0.0)
        if not bool(torch.isfinite(g).all()):
            raise NonFiniteError("the gradient of the energy is not finite", argument="gradient", index=None)
        return g
