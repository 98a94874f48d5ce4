"""`find_root`: Newton's method for sparse systems of equations, whose solution is differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .._energy.energy import fixed_numbers
from .._factor.factors import Factors
from .._factor.options import Assume, Options
from .._factor.problem import Problem
from .._solve.pattern import Pattern
from .._sparse.submatrix import remove_rows
from .._torch.dynamo import disable_dynamo
from ..errors import NonFiniteError, OptionError, ShapeError, SingularMatrixError
from .implicit_diff import Equations, Solution, differentiable
from .line_search import (
    LargestStep,
    Step,
    Stuck,
    backtrack,
    check_start,
    longest_step,
    not_converged,
)
from .report import Iteration, Report, telling

_ENOUGH = "the Newton step is small enough"


_ROUNDING = "rounding errors are all that is left of the residual"


@disable_dynamo
def find_root(
    residual: Callable[..., Tensor],
    jacobian_values: Callable[..., Tensor],
    pattern: Pattern,
    x0: Tensor,
    params: Iterable[Tensor] = (),
    *,
    fixed: Tensor | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_iterations: int = 100,
    assume: Assume = "general",
    largest_step: LargestStep | None = None,
    callback: Callable[[Tensor, Iteration], object] | None = None,
    progress: bool = False,
    engine: str | None = None,
) -> tuple[Tensor, Report]:
    """X with r(X, *params) = 0, and a `Report`, by Newton's method with a line search on ‖r‖; X is differentiable.

    residual : r, of the shape of X, from X and params; differentiable in all of them by torch
    jacobian_values : (nnz,) the values of ∂r/∂X on the pattern, from the same
    pattern : the places of the Jacobian, for unknowns X.reshape(-1) and equations r.reshape(-1)
    x0 : where to begin, float32 or float64; it also holds the fixed values
    params : the tensors in which X shall be differentiable
    fixed : (p,) int64 or int32 rows of x0, or a bool mask, of its rows or its shape: these entries of X stay, and as many
        equations, the ones with their numbers, are left out; None: none
    rtol, atol : iterations end where the Newton step changes no entry by more than rtol of its size, or of how far it is from
        x0; rtol=None: ε^⅔, 4e-11 in double precision. Or where ‖r‖₂ is at most atol, in units of the residual. Or where
        rounding errors are all that is left of r
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
    check_start(x0, parameters, 0.0 if rtol is None else rtol, atol, max_iterations)
    if not isinstance(pattern, Pattern):
        raise OptionError(f"pattern is a {type(pattern).__name__}; expected a Pattern")
    if pattern.shape != (x0.numel(), x0.numel()):
        raise ShapeError(f"the pattern has shape {pattern.shape}, and x0 has {x0.numel()} entries")
    numbers = fixed_numbers(fixed, x0.shape)
    if numbers.numel() == x0.numel():
        return x0.clone(), Report(True, "no unknown is free", (), True)
    submatrix = remove_rows(pattern._structure, numbers) if numbers.numel() else None
    problem = Problem(pattern._structure, Options(assume, engine=engine), submatrix)
    equations = Equations(residual, jacobian_values, parameters, problem)
    with telling(callback, progress, "find_root") as tell:
        search = _Search(equations, (rtol, atol), max_iterations, largest_step, tell)
        solution, report = search.run(x0)
    x = differentiable(
        solution, x0, equations, "the residual", "the residual", "all of them as params="
    )
    return x, report


class _Search:
    """A run of the method."""

    def __init__(
        self, equations: Equations, tolerances: tuple[float | None, float], max_iterations: int,
        largest_step: LargestStep | None, tell: Callable[[Tensor, Iteration], None],
    ):  # fmt: skip
        self.equations = equations
        self.rtol, self.atol = tolerances
        self.max_iterations, self.largest_step, self.tell = max_iterations, largest_step, tell
        self.iterations: list[Iteration] = []

    @torch.no_grad()
    def run(self, x0: Tensor) -> tuple[Solution, Report]:
        """The solution and the report."""
        X = x0.detach().clone()
        while True:
            r = self._residual(X)
            size = _norm(r)
            if not math.isfinite(size):  # in later iterations, the line search sees to it
                raise NonFiniteError("the residual is not finite at x0", argument="x0", index=None)
            try:
                is_last = len(self.iterations) == self.max_iterations
                solution, step, reason = self._next(X, x0.detach(), r, size, is_last)
            except (NonFiniteError, Stuck) as error:
                raise not_converged("the search", X, str(error), self.iterations) from error
            made = Iteration(size, size, 0.0 if step is None else step.fraction, "true", 0.0, 1)
            self.iterations.append(made)
            self.tell(X, made)
            if step is not None:
                X = step.x
            elif not reason:
                reason = f"max_iterations={self.max_iterations} is reached"
                raise not_converged("the search", X, reason, self.iterations)
            else:
                unique = solution.factors is not None
                reason += "" if unique else "; the Jacobian is singular there"
                return solution, Report(True, reason, tuple(self.iterations), unique)

    def _next(
        self, X: Tensor, x0: Tensor, r: Tensor, size: float, is_last: bool
    ) -> tuple[Solution, Step | None, str]:
        """X with its factor, the step to be taken, or why none is needed; neither at the last one."""
        values = self.equations.jacobian_values(X, *self.equations.parameters).detach()
        factors = Factors(self.equations.problem)
        try:
            d = self.equations.solve(values, -r, factors).reshape(X.shape)
        except SingularMatrixError as error:
            if size <= self.atol:
                return Solution(X, r, values, None), None, _ENOUGH
            raise Stuck(f"the Jacobian is singular ({error})") from error
        solution = Solution(X, r, values, factors)
        eps, scale = torch.finfo(X.dtype).eps, torch.maximum(X.abs(), (X - x0).abs())
        rtol = eps ** (2 / 3) if self.rtol is None else self.rtol
        if size <= self.atol or bool((d.abs() <= rtol * scale).all()):
            return solution, None, _ENOUGH
        largest = float(d.abs().max()) / max(float(scale.max()), torch.finfo(X.dtype).tiny)
        if largest <= 4 * eps:
            return solution, None, _ROUNDING
        if is_last:
            return solution, None, ""
        longest = longest_step(self.largest_step, X, d)
        step = backtrack(lambda trial: _norm(self._residual(trial)), X, d, size, -size, longest)
        if step is None:
            step = self._by_correction(X, d, values, factors, longest, scale)
        if (
            step is None and largest > eps**0.75
        ):  # else, rounding errors of the residual are as large as it
            raise Stuck(
                "no step along the Newton direction makes the residual smaller; is the Jacobian right?"
            )
        return solution, step, _ROUNDING if step is None else ""

    def _by_correction(
        self, X: Tensor, d: Tensor, values: Tensor, factors: Factors, longest: float, scale: Tensor
    ) -> Step | None:
        """The whole step, if the one after it, by the same Jacobian, is less than half as long.

        Where equations differ in size, ‖r‖ is the rounding errors of the largest, however far the others are from zero. (P.
        Deuflhard, "Newton methods for nonlinear problems", 2004, on the natural monotonicity test.)
        """
        trial = X + longest * d
        r = self._residual(trial)
        if not math.isfinite(_norm(r)):
            return None
        next_ = self.equations.solve(values, -r, factors).reshape(X.shape)
        scale = scale.clamp(min=torch.finfo(X.dtype).tiny)
        shorter = float((next_.abs() / scale).max()) < float((d.abs() / scale).max()) / 2
        return Step(longest, trial, _norm(r)) if shorter else None

    def _residual(self, X: Tensor) -> Tensor:
        return self.equations.free(
            self.equations.residual(X, *self.equations.parameters), "the residual"
        )


def _norm(r: Tensor) -> float:
    """‖r‖₂, also where its square overflows."""
    largest = float(r.abs().max())
    return largest * float((r / largest).norm()) if 0 < largest < math.inf else largest
