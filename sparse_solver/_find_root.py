"""`find_root`: Newton's method for sparse systems of equations, whose solution is differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ._energy import fixed_numbers
from ._factors import Factors, Problem
from ._implicit import Equations, Solution, differentiable
from ._kinds import Assume, Options
from ._newton import LargestStep, Step, Stuck, backtrack, check_start, longest_step, not_converged
from ._pattern import Pattern
from ._report import Iteration, Report, progress_bar
from ._untraced import untraced
from .errors import NonFiniteError, OptionError, ShapeError, SingularMatrixError

_ROUNDING = "rounding errors are all that is left of the residual"


@untraced
def find_root(
    residual: Callable[..., Tensor],
    jacobian_values: Callable[..., Tensor],
    pattern: Pattern,
    x0: Tensor,
    params: Iterable[Tensor] = (),
    *,
    fixed: Tensor | None = None,
    rtol: float = 1e-10,
    atol: float = 0.0,
    max_iterations: int = 100,
    assume: Assume = "general",
    largest_step: LargestStep | None = None,
    callback: Callable[[Tensor, Iteration], object] | None = None,
    progress: bool = False,
    engine: str | None = None,
) -> tuple[Tensor, Report]:
    """X with r(X, *params) = 0, and a `Report`, by Newton's method with a line search on ½‖r‖²; X is differentiable.

    residual : r, of the shape of X, from X and params; differentiable in all of them by torch
    jacobian_values : (nnz,) the values of ∂r/∂X on the pattern, from the same
    pattern : the places of the Jacobian, for unknowns X.reshape(-1) and equations r.reshape(-1)
    x0 : where to begin, float32 or float64; it also holds the fixed values
    params : the tensors in which X shall be differentiable
    fixed : (p,) int64 or int32 rows of x0, or a bool mask, of its rows or its shape: these entries of X stay, and as many
        equations, the ones with their numbers, are left out; None: none
    rtol, atol : iterations end where ‖r‖₂ is at most atol, or rtol times what it was at x0. Where rounding errors do not
        allow that, they end when the Newton step is as small as these
    assume, engine : as for `solve`, for the Jacobian
    max_iterations, largest_step, callback, progress : as for `minimize`

    The pattern is analysed once, and the Jacobian is factored once an iteration. The derivatives of X in params and in the
    fixed values are those of the implicit function theorem, dX = −J⁻¹ (∂r/∂θ) dθ: a substitution with the last factor and
    a derivative of the residual. They can be differentiated again, if `jacobian_values` is differentiable in X and params.
    They are not available in forward mode, nor inside of `torch.func`.

    Raises `ConvergenceError`, with the last iterate `x` and the `report`, if no root is found. A root at which the Jacobian
    is singular is returned, but has no derivatives: ``report.unique`` is False. Raises `NonFiniteError` if r is NaN or
    infinite at x0, and `ShapeError`, `DtypeError`, `DeviceError`, `OptionError`, `TransformError`.

    >>> import torch, sparse_solver as ss
    >>> i = torch.arange(2)
    >>> a = torch.tensor([4.0, 9.0], dtype=torch.double, requires_grad=True)
    >>> x, report = ss.find_root(
    ...     lambda x, a: x**2 - a, lambda x, a: 2 * x, ss.Pattern(i, i, (2, 2)), torch.ones(2, dtype=torch.double), (a,)
    ... )
    >>> x.detach()
    tensor([2., 3.], dtype=torch.float64)
    >>> x.sum().backward()
    >>> a.grad
    tensor([0.2500, 0.1667], dtype=torch.float64)

    (J. E. Dennis and R. B. Schnabel, "Numerical methods for unconstrained optimization and nonlinear equations", 1996,
    chapter 6.)
    """
    parameters = tuple(params)
    check_start(x0, parameters, rtol, atol, max_iterations)
    if not isinstance(pattern, Pattern):
        raise OptionError(f"pattern is a {type(pattern).__name__}; expected a Pattern")
    if pattern.shape != (x0.numel(), x0.numel()):
        raise ShapeError(f"the pattern has shape {pattern.shape}, and x0 has {x0.numel()} entries")
    numbers = fixed_numbers(fixed, x0.shape)
    if numbers.numel() == x0.numel():
        return x0.clone(), Report(True, "there is nothing to be found", (), True)
    part = pattern._structure.without(numbers) if numbers.numel() else None
    problem = Problem(pattern._structure, Options(assume, engine=engine), part)
    equations = Equations(residual, jacobian_values, parameters, problem)
    with progress_bar(progress, "find_root") as bar:

        def told(X: Tensor, iteration: Iteration) -> None:
            bar.update(iteration)
            if callback is not None:
                callback(X, iteration)

        search = _Search(equations, (rtol, atol), max_iterations, largest_step, told)
        solution, report = search.run(x0)
    x = differentiable(
        solution, x0, equations, lambda: residual(solution.x, *parameters), "the residual", "all of them as params="
    )
    return x, report


class _Search:
    """A run of the method."""

    def __init__(
        self, equations: Equations, tolerances: tuple[float, float], max_iterations: int,
        largest_step: LargestStep | None, told: Callable[[Tensor, Iteration], None],
    ):  # fmt: skip
        self.equations = equations
        self.rtol, self.atol = tolerances
        self.max_iterations, self.largest_step, self.told = max_iterations, largest_step, told
        self.iterations: list[Iteration] = []

    def run(self, x0: Tensor) -> tuple[Solution, Report]:
        """The solution and the report."""
        X, parameters = x0.detach().clone(), self.equations.parameters
        enough: float | None = None
        while True:
            with torch.no_grad():
                r = self._free(self.equations.residual(X, *parameters), X)
                size = float(torch.linalg.vector_norm(r))
                if not math.isfinite(size):  # in later iterations, the line search sees to it
                    raise NonFiniteError("the residual is not finite at x0", argument="x0", index=None)
                enough = max(self.atol, self.rtol * size) if enough is None else enough
                try:
                    solution, step, reason = self._step(X, r, size, enough)
                except (NonFiniteError, Stuck) as error:
                    raise not_converged("the search", X, str(error), self.iterations) from error
            fraction = 0.0 if step is None else step.fraction
            made = Iteration(size**2 / 2, size**2 / 2, fraction, "true", 0.0, 1)
            self.iterations.append(made)
            self.told(X, made)
            if step is None:
                unique = solution.factors is not None
                reason += "" if unique else "; the Jacobian is singular there"
                return solution, Report(True, reason, tuple(self.iterations), unique)
            if len(self.iterations) > self.max_iterations:
                reason = f"max_iterations={self.max_iterations} is reached"
                raise not_converged("the search", X, reason, self.iterations)
            X = step.x

    def _step(self, X: Tensor, r: Tensor, size: float, enough: float) -> tuple[Solution, Step | None, str]:
        """X with its factor, the step to be taken, or None and why there is none."""
        values = self.equations.jacobian_values(X, *self.equations.parameters).detach()
        factors = Factors(self.equations.problem)
        try:
            d = self.equations.solve(values, -r, factors).reshape(X.shape)
        except SingularMatrixError as error:
            if size <= enough:
                return Solution(X, values, None), None, "the residual is small enough"
            raise Stuck(f"the Jacobian is singular ({error})") from error
        solution = Solution(X, values, factors)
        if size <= enough:
            return solution, None, "the residual is small enough"
        eps, step_size, scale = torch.finfo(X.dtype).eps, float(d.abs().max()), float(X.abs().max())
        if step_size <= 4 * eps * scale:
            return solution, None, _ROUNDING
        longest = longest_step(self.largest_step, X, d)
        step = backtrack(lambda trial: self._objective(trial), X, d, size**2 / 2, -(size**2), longest)
        if step is None:
            # Rounding errors of the residual are as large as it, and lead to steps that are a little larger than theirs.
            if step_size <= eps ** (2 / 3) * scale:
                return solution, None, _ROUNDING
            raise Stuck("no step along the Newton direction makes the residual smaller; is the Jacobian right?")
        return solution, step, ""

    def _objective(self, X: Tensor) -> float:
        r = self._free(self.equations.residual(X, *self.equations.parameters), X)
        return float(torch.linalg.vector_norm(r)) ** 2 / 2

    def _free(self, residual: Any, X: Tensor) -> Tensor:
        """The residual as a vector, zero where its equations are left out."""
        if not isinstance(residual, Tensor) or residual.numel() != X.numel():
            what = f"of shape {tuple(residual.shape)}" if isinstance(residual, Tensor) else type(residual).__name__
            raise ShapeError(f"the residual is {what}; expected a tensor of the shape of x0, {tuple(X.shape)}")
        part, r = self.equations.problem.part, residual.detach().reshape(-1)
        return r if part is None else r.index_fill(0, part.removed, 0.0)
