"""`find_root`: Newton's method for sparse systems of equations, whose root is differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .._energy.energy import fixed_numbers
from .._factor.factors import Factors
from .._factor.options import Assume, Options
from .._solve.pattern import Pattern
from .._sparse.index_checks import describe_type
from .._torch.dynamo import disable_dynamo
from ..errors import NonFiniteError, OptionError, ShapeError, SingularMatrixError
from .equations import Equations, Solution
from .implicit_diff import attach_derivatives
from .newton.line_search import LargestStep, Limits, backtrack
from .newton.stopping import Decision, Step, StopReason, Stuck, make_convergence_error
from .report import Iteration, Report, report_progress
from .start import check_start, list_parameters, make_problem, set_fixed_values

# A Newton step of at most this many ε, relative to x, is rounding errors.
_ROUNDING = 4
# Where no step makes the residual smaller, a Newton step of at most ε to this power, relative to x,
# may be due to rounding errors of the residual.
_NOISE_EXPONENT = 0.75
# The default of rtol is ε to this power: convergence is quadratic, so that x is then exact to ε.
_RTOL_EXPONENT = 2 / 3


@disable_dynamo
def find_root(
    residual: Callable[..., Tensor],
    jacobian_values: Callable[..., Tensor],
    pattern: Pattern,
    x0: Tensor,
    *,
    params: Iterable[Tensor] = (),
    fixed: Tensor | None = None,
    fixed_values: Tensor | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_iterations: int = 100,
    assume: Assume = "general",
    largest_step: LargestStep | None = None,
    callback: Callable[[Tensor, Iteration], object] | None = None,
    progress: bool = False,
    engine: str | None = None,
) -> tuple[Tensor, Report]:
    """Find X with r(X, *params) = 0 by Newton's method; X is differentiable.

    Parameters
    ----------
    residual : callable
        r, of the shape of X, from X and `params`; differentiable in all of them by torch.
    jacobian_values : callable
        (nnz,) the values of ∂r/∂X on the pattern, from the same arguments. If they are inexact,
        convergence is slower, and X must not be differentiable.
    pattern : Pattern
        The places of the Jacobian, for unknowns X.reshape(-1) and equations r.reshape(-1).
    x0 : Tensor
        The start, float32 or float64. It also holds the fixed values, unless they are given by
        `fixed_values`.
    params : iterable of Tensor
        The tensors in which X shall be differentiable.
    fixed : Tensor, optional
        (p,) rows of x0, int64 or int32, or a bool mask, of its rows or of its shape. These entries
        of X stay, and the equations with the same numbers are left out.
    fixed_values : Tensor, optional
        The values of the fixed entries, of the dtype and on the device of x0: (p, *x0.shape[1:])
        in the order of `fixed`, or (count,) in row-major order if `fixed` is a mask of x0's shape.
        The entries of x0 at these places are then ignored.
    rtol : float, optional
        Iterations end where the Newton step changes no entry by more than `rtol` times the larger
        of its modulus and its distance from x0. The default is ε^⅔, 4e-11 in double precision.
    atol : float
        Iterations also end where ‖r‖₂ is at most `atol`, in units of the residual.
    max_iterations : int
        The limit of the number of steps.
    assume, engine
        As for `solve`, for the Jacobian.
    largest_step, callback, progress
        As for `minimize`.

    Returns
    -------
    X : Tensor
        The root, of the shape of x0.
    report : Report
        How it was found. ``report.unique`` is False if the Jacobian at X is singular; X has no
        derivatives then.

    Raises
    ------
    ConvergenceError
        If no root is found; `error.x` is the last iterate, and `error.report` the report.
    DerivativeError
        If X shall be differentiable, and `jacobian_values` are not the derivatives of r that torch
        computes: up to ε^¼ of the largest entries, so that difference quotients are exact enough.
    NonFiniteError
        If r is NaN or infinite at x0.
    ValueChangedError
        In a backward pass, if a tensor on which r depends was changed in place meanwhile.
    SingularMatrixError
        In a backward pass, if the Jacobian at X is singular.
    ShapeError, DtypeError, DeviceError, LayoutError, IndexRangeError
        If tensors are not as described, or do not fit each other.
    OptionError
        If an option has no valid value, or if r depends on tensors that require gradients and are
        not among `params`.
    TransformError
        In forward mode and inside of the transforms of `torch.func`.

    Notes
    -----
    The pattern is analysed once, and the Jacobian is factored once per iteration. A line search
    makes ‖r‖₂ fall in each step. Iterations also end where rounding errors allow no progress.

    The derivatives of X in `params` and in the fixed values are given by the implicit function
    theorem, dX = −J⁻¹ (∂r/∂θ) dθ. They cost one substitution with the last factor and two
    derivatives of the residual, one of them for a check, and can be differentiated again if
    `jacobian_values` is differentiable in X and `params`.

    References
    ----------
    .. [1] J. E. Dennis and R. B. Schnabel, "Numerical methods for unconstrained optimization and
       nonlinear equations", 1996, chapter 6.

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> i = torch.arange(2)
    >>> pattern, x0 = ss.Pattern(i, i, (2, 2)), torch.ones(2, dtype=torch.double)
    >>> a = torch.tensor([4.0, 9.0], dtype=torch.double, requires_grad=True)
    >>> x, report = ss.find_root(
    ...     lambda x, a: x**2 - a, lambda x, a: 2 * x, pattern, x0, params=(a,)
    ... )
    >>> x.detach()
    tensor([2., 3.], dtype=torch.float64)
    >>> x.sum().backward()
    >>> a.grad
    tensor([0.2500, 0.1667], dtype=torch.float64)
    """
    parameters = list_parameters(params)
    check_start(x0, parameters)
    rtol = torch.finfo(x0.dtype).eps ** _RTOL_EXPONENT if rtol is None else rtol
    limits = Limits(rtol, atol, max_iterations, largest_step)
    if not isinstance(pattern, Pattern):
        raise OptionError(f"pattern is {describe_type(pattern)}; expected a Pattern")
    n = x0.numel()
    if pattern.shape != (n, n):
        raise ShapeError(f"the pattern has shape {pattern.shape}; x0 has {n} entries")
    numbers = fixed_numbers(fixed, x0.shape)
    start = set_fixed_values(x0, fixed, fixed_values)
    if numbers.numel() == n:
        return start.clone(), Report(True, StopReason.ALL_FIXED.value, (), True)
    options = Options(assume, engine=engine)
    problem = make_problem(pattern._structure, numbers, options, x0.device)
    words = "the residual", "the Jacobian", "all of them as params="
    equations = Equations(residual, jacobian_values, parameters, problem, *words)
    with report_progress(callback, progress, "find_root") as report_iteration:
        solution, report = _RootFinder(equations, limits, report_iteration).run(start)
    return attach_derivatives(solution, start, equations), report


class _RootFinder:
    """One run of Newton's method for a root."""

    def __init__(
        self, equations: Equations, limits: Limits, report: Callable[[Tensor, Iteration], None]
    ):
        self.equations, self.limits, self.report = equations, limits, report
        self.iterations: list[Iteration] = []

    @torch.no_grad()
    def run(self, x0: Tensor) -> tuple[Solution, Report]:
        """Iterate from x0; raise ConvergenceError on failure."""
        X = self._start = x0.detach().clone()
        while True:
            r = self._residual(X)
            size = _norm(r)
            if not math.isfinite(size):  # only at x0, since the line search avoids such points
                raise NonFiniteError("the residual is not finite at x0", argument="x0", index=None)
            try:
                decision = self._decide(X, r, size)
            except (NonFiniteError, Stuck) as error:
                raise self._error(X, str(error)) from error
            action = decision.action
            fraction = action.fraction if isinstance(action, Step) else 0.0
            self.iterations.append(Iteration(size, size, fraction, "true", 0.0, 1))
            self.report(X, self.iterations[-1])
            if isinstance(action, StopReason):
                return self._finish(decision.at, action)
            X = action.x

    def _error(self, X: Tensor, message: str) -> Exception:
        return make_convergence_error("the search for a root", X, message, self.iterations)

    def _finish(self, solution: Solution, reason: StopReason) -> tuple[Solution, Report]:
        """The result at an iterate, where the method stops."""
        if reason is StopReason.MAX_ITERATIONS:
            limit = f"max_iterations={self.limits.max_iterations}"
            raise self._error(solution.x, f"{reason.value}: {limit}")
        unique = solution.factors is not None
        message = reason.value + ("" if unique else "; the Jacobian is singular there")
        return solution, Report(True, message, tuple(self.iterations), unique)

    def _decide(self, X: Tensor, r: Tensor, size: float) -> Decision[Solution]:
        """Decide at X, where the residual is r, of norm `size`."""
        values = self.equations.jacobian_values(X, *self.equations.parameters).detach()
        factors = Factors(self.equations.problem)
        try:
            d = self.equations.apply_inverse(values, -r, factors).reshape(X.shape)
        except SingularMatrixError as error:
            if size <= self.limits.atol:
                return Decision(Solution(X, r, values, None), StopReason.SMALL_RESIDUAL)
            raise Stuck(StopReason.SINGULAR_JACOBIAN, str(error)) from error
        solution = Solution(X, r, values, factors)
        eps, scale = torch.finfo(X.dtype).eps, torch.maximum(X.abs(), (X - self._start).abs())
        if size <= self.limits.atol:
            return Decision(solution, StopReason.SMALL_RESIDUAL)
        if bool((d.abs() <= self.limits.rtol * scale).all()):
            return Decision(solution, StopReason.SHORT_STEP)
        largest = float(d.abs().max()) / max(float(scale.max()), torch.finfo(X.dtype).tiny)
        if largest <= _ROUNDING * eps:
            return Decision(solution, StopReason.ROUNDING)
        if len(self.iterations) == self.limits.max_iterations:
            return Decision(solution, StopReason.MAX_ITERATIONS)
        longest = self.limits.longest_step(X, d)
        step = backtrack(lambda trial: _norm(self._residual(trial)), X, d, size, -size, longest)
        step = step or self._step_by_correction(solution, d, longest, scale)
        if step is None and largest > eps**_NOISE_EXPONENT:
            raise Stuck(StopReason.RESIDUAL_NOT_FALLING)
        return Decision(solution, step or StopReason.ROUNDING)

    def _step_by_correction(
        self, solution: Solution, d: Tensor, longest: float, scale: Tensor
    ) -> Step | None:
        """The whole step, if the next one with the same Jacobian is less than half as long.

        Where equations differ in size, ‖r‖ consists of the rounding errors of the largest one,
        however far the others are from zero. (P. Deuflhard, "Newton methods for nonlinear
        problems", 2004, on the natural monotonicity test.)
        """
        trial = solution.x + longest * d
        r = self._residual(trial)
        if solution.factors is None or not math.isfinite(_norm(r)):
            return None
        following = self.equations.apply_inverse(solution.values, -r, solution.factors)
        scale = scale.clamp(min=torch.finfo(d.dtype).tiny)
        size, following_size = (
            float((step.reshape(d.shape).abs() / scale).max()) for step in (d, following)
        )
        return Step(longest, trial, _norm(r)) if following_size < size / 2 else None

    def _residual(self, X: Tensor) -> Tensor:
        return self.equations.flatten(self.equations.residual(X, *self.equations.parameters))


def _norm(r: Tensor) -> float:
    """‖r‖₂, also where its square overflows."""
    largest = float(r.abs().max())
    return largest * float((r / largest).norm()) if 0 < largest < math.inf else largest
