"""`minimize`: Newton's method for sparse energies, whose minimiser is differentiable."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from .._energy.energy import Energy, fixed_numbers, parameters_of, with_diagonal
from .._energy.psd_projection import Projection, projection_of
from .._factor.options import Options
from .._factor.problem import Problem
from .._solve.pattern import Pattern
from .._sparse.submatrix import remove_rows
from .._torch.dynamo import disable_dynamo
from ..errors import NonFiniteError, OptionError, ShapeError
from .hessian_modification import Hessians
from .implicit_diff import Equations, differentiable
from .line_search import LargestStep, check_start
from .newton_minimizer import Descent, energy_at
from .report import Iteration, Report, telling


@disable_dynamo
def minimize(
    energy: Energy | Callable[..., Energy],
    x0: Tensor,
    *,
    fixed: Tensor | None = None,
    params: Iterable[Tensor] | None = None,
    rtol: float = 1e-20,
    atol: float = 0.0,
    max_iterations: int = 200,
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
    rtol, atol : on the Newton decrement ½λ² = ½ gᵀH⁻¹g, an estimate of E(X) − min E: iterations end where the Hessian is
        positive definite, and it is at most atol (in units of the energy), or rtol times what E has fallen in the last ten
        iterations; or the Newton step is at most √rtol of how far X is from x0; or where the gradient is as small as rounding
        errors allow
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
    the Hessian is indefinite is none, and is left along its negative curvature. A minimum that is not the only one nearby (a
    structure that is not held) is returned, but has no derivatives: ``report.unique`` is False, and a backward raises
    `SingularMatrixError`. Raises `NonFiniteError` if the energy or its gradient is NaN or infinite at x0, `ValueChangedError`
    in a backward if what the energy depends on was overwritten meanwhile, and `NotSymmetricError`, `ShapeError`,
    `DtypeError`, `DeviceError`, `OptionError`, `TransformError`.

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
    how = projection_of(project)
    parameters, made = _parametric(energy, params)
    check_start(x0, parameters, rtol, atol, max_iterations)
    own: Any = energy if params is None else made(*parameters)
    missing = [name for name in ("value", "gradient", "hessian_values") if not hasattr(own, name)]
    if missing:
        raise OptionError(f"an energy that is a {type(own).__name__} has no {', '.join(missing)}")
    value = energy_at(own, x0.detach())
    if not math.isfinite(value):
        raise NonFiniteError(f"the energy is {value} at x0", argument="x0", index=None)
    numbers = fixed_numbers(fixed, x0.shape)
    if numbers.numel() == x0.numel():
        return x0.clone(), Report(
            True, "no variable is free", (Iteration(value, 0.0, 0.0, "true", 0.0, 0),), True
        )
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
    if "project" not in inspect.signature(own.hessian_values).parameters:
        how = None
    hessians = Hessians(lambda X, **options: values_of(own, X, **options), equations, how)
    with telling(callback, progress, "minimize") as tell:
        descent = Descent(own, hessians, (rtol, atol), max_iterations, largest_step, tell)
        solution, report = descent.run(x0, value)
    hint = "them as params=, and as energy a function that makes it from them"
    x = differentiable(solution, x0, equations, "the energy", "the energy's gradient", hint)
    return x, report


def _parametric(
    energy: Any, params: Iterable[Tensor] | None
) -> tuple[tuple[Tensor, ...], Callable[..., Any]]:
    """The parameters, and the function that makes the energy from them."""
    if params is None:
        return parameters_of(energy)
    if hasattr(energy, "hessian_values") and not isinstance(energy, type):
        raise OptionError(
            f"with params=, energy is a function that makes one from them, not a {type(energy).__name__}"
        )
    return tuple(params), energy


def _problem(
    pattern: Pattern, fixed: Tensor, x0: Tensor, engine: str | None
) -> tuple[Problem, int]:
    """What is solved in each iteration, and how many zeros the values of the pattern lack for it."""
    if pattern.shape != (x0.numel(), x0.numel()):
        raise ShapeError(
            f"the energy's pattern has shape {pattern.shape}, and x0 has {x0.numel()} entries"
        )
    structure = with_diagonal(pattern._structure)
    submatrix = remove_rows(structure, fixed) if fixed.numel() else None
    return Problem(structure, Options("spd", engine=engine), submatrix), structure.nnz - pattern.nnz
