"""`minimize`: Newton's method for sparse energies, whose minimiser is differentiable."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._energy.energy import Energy, fixed_numbers, parameters_of, with_diagonal
from .._energy.non_finite_terms import describe_non_finite_term
from .._energy.psd_projection import Projection, projection_of
from .._factor.options import Options
from .._torch.dynamo import disable_dynamo
from ..errors import NonFiniteError, OptionError, ShapeError
from .equations import Equations
from .implicit_diff import attach_derivatives
from .newton.hessian_modification import HessianModifier
from .newton.iterate import energy_at
from .newton.line_search import LargestStep, Limits
from .newton.newton_minimizer import NewtonMinimizer
from .newton.stopping import StopReason
from .report import Iteration, Report, report_progress
from .start import check_start, list_parameters, make_problem, set_fixed_values


@disable_dynamo
def minimize(
    energy: Energy | Callable[..., Energy],
    x0: Tensor,
    *,
    params: Iterable[Tensor] | None = None,
    fixed: Tensor | None = None,
    fixed_values: Tensor | None = None,
    rtol: float = 1e-20,
    atol: float = 0.0,
    max_iterations: int = 200,
    project: bool | Projection = True,
    largest_step: LargestStep | None = None,
    callback: Callable[[Tensor, Iteration], object] | None = None,
    progress: bool = False,
    engine: str | None = None,
) -> tuple[Tensor, Report]:
    """Find a local minimiser X of an energy by Newton's method; X is differentiable.

    Parameters
    ----------
    energy : Energy or callable
        An `IndexedSum`, or another object with the members of `Energy`. With `params`, a function
        that makes the energy from them.
    x0 : Tensor
        The start, float32 or float64, of the shape that the energy takes. It also holds the fixed
        values, unless they are given by `fixed_values`.
    params : iterable of Tensor, optional
        The tensors in which X shall be differentiable. By default those that the energy's method
        ``parameters()`` lists.
    fixed : Tensor, optional
        (p,) vertices (rows of x0), int64 or int32, or a bool mask, of vertices or of x0's shape.
        These entries of X stay.
    fixed_values : Tensor, optional
        The values of the fixed entries, of the dtype and on the device of x0: (p,) for variables
        (vertices,) and (p, dim) for (vertices, dim), in the order of `fixed`, or (count,) in
        row-major order if `fixed` is a mask of x0's shape. The entries of x0 at these places are
        then ignored.
    rtol, atol : float
        Tolerances for the Newton decrement ½ λ² = ½ gᵀ H⁻¹ g, an estimate of E(X) − min E.
        Iterations end where the Hessian is positive definite and

        - the decrement is at most `atol`, in units of the energy, or `rtol` times what E fell in
          the last ten iterations, or
        - the Newton step is at most √rtol times the distance of X from x0, or
        - the gradient is as small as rounding errors allow.
    max_iterations : int
        The limit of the number of steps.
    project : bool or {"zero", "absolute"}
        How each term's Hessian is made positive semidefinite where the Hessian is not positive
        definite, if the energy's `hessian_values` takes ``project=``: by setting negative
        eigenvalues to zero (True or "zero"), by their moduli ("absolute"), or not at all (False).
        If that does not suffice, a multiple of the identity is added to the Hessian.
    largest_step : callable, optional
        Returns, from X and the step d, the largest t for which the energy is defined on
        [X, X + t d], for example to keep elements from inverting. Steps to where the energy is NaN
        or infinite are rejected in any case.
    callback : callable, optional
        Is called with X and the `Iteration` after each iteration.
    progress : bool
        Show the iterations on stderr: on a terminal in a progress bar, which needs tqdm, and
        otherwise in one line each.
    engine : str, optional
        As for `solve`.

    Returns
    -------
    X : Tensor
        The minimiser, of the shape of x0.
    report : Report
        How it was found. ``report.unique`` is False if the Hessian at X is singular, as for a
        structure that is not supported, or for x²⁰; X has no derivatives then.

    Raises
    ------
    ConvergenceError
        If no minimum is found; `error.x` is the last iterate, and `error.report` the report.
    NonFiniteError
        If the energy, its gradient or its Hessian is NaN or infinite at x0; names the term of an
        `IndexedSum`.
    DerivativeError
        If X shall be differentiable, and the Hessian is not the derivative of the gradient.
    NotSymmetricError
        If the values of the Hessian are not symmetric.
    ValueChangedError
        In a backward pass, if a tensor on which the energy depends was changed in place meanwhile.
    SingularMatrixError
        In a backward pass, if the Hessian at X is singular.
    ShapeError, DtypeError, DeviceError, LayoutError, IndexRangeError
        If tensors are not as described, or do not fit each other.
    OptionError
        If an option has no valid value, or if the energy depends on tensors that require gradients
        and are not among its parameters.
    TransformError
        In forward mode and inside of the transforms of `torch.func`.

    Notes
    -----
    The pattern is analysed once, and the Hessian is factored once per iteration, or several times
    where it is not positive definite [1]_ [3]_. Saddle points are escaped along directions of
    negative curvature. If no minimum is found, `ConvergenceError` is raised, also where the energy
    falls ever more slowly, as e⁻ˣ does, until rounding errors hide that it has no minimum. Towards
    minima at which the Hessian is singular, convergence is linear: after sixty such steps, their
    limit is extrapolated.

    The derivatives of X in the parameters and in the fixed values are given by the implicit
    function theorem [2]_, dX = −H⁻¹ (∂g/∂θ) dθ. They cost one substitution with the last factor
    and two derivatives of the gradient, one of them for a check, and can be differentiated again.

    References
    ----------
    .. [1] J. Nocedal and S. J. Wright, "Numerical optimization", 2006, chapter 3.
    .. [2] A. L. Dontchev and R. T. Rockafellar, "Implicit functions and solution mappings", 2014.
    .. [3] A. Longva et al., "Pitfalls of projection: a study of Newton-type solvers for
       incremental potentials", 2023, on projecting only where it is needed.

    Examples
    --------
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
    """
    projection = projection_of(project)
    parameters, make = _find_parameters(energy, params)
    check_start(x0, parameters)
    limits = Limits(rtol, atol, max_iterations, largest_step)
    own: Any = energy if params is None else make(*parameters)
    missing = [name for name in ("value", "gradient", "hessian_values") if not hasattr(own, name)]
    if missing:
        raise OptionError(f"an energy that is a {type(own).__name__} has no {', '.join(missing)}")
    numbers = fixed_numbers(fixed, x0.shape)
    start = set_fixed_values(x0, fixed, fixed_values)
    value = energy_at(own, start.detach())
    if not math.isfinite(value):
        term = describe_non_finite_term(own, start.detach())
        message = f"the energy is {value} at x0" + (f": {term}" if term else "")
        raise NonFiniteError(message, argument="x0", index=None)
    if numbers.numel() == x0.numel():
        only = Iteration(value, 0.0, 0.0, "true", 0.0, 0)
        return start.clone(), Report(True, StopReason.ALL_FIXED.value, (only,), True)

    hessian_values, equations = _make_equations(own, make, parameters, numbers, x0, engine)
    takes_projection = "project" in inspect.signature(own.hessian_values).parameters
    hessians = HessianModifier(
        partial(hessian_values, own), equations, projection if takes_projection else None
    )
    with report_progress(callback, progress, "minimize") as report_iteration:
        search = NewtonMinimizer(own, hessians, limits, report_iteration)
        solution, report = search.run(start, value)
    return attach_derivatives(solution, start, equations), report


def _find_parameters(
    energy: Any, params: Iterable[Tensor] | None
) -> tuple[tuple[Tensor, ...], Callable[..., Any]]:
    """The parameters, and the function that makes the energy from them."""
    if params is None:
        return parameters_of(energy)
    if hasattr(energy, "hessian_values") and not isinstance(energy, type):
        expected = "expected a function that makes the energy from the parameters"
        raise OptionError(f"with params=, energy is a {type(energy).__name__}; {expected}")
    return list_parameters(params), energy


def _make_equations(
    own: Any,
    make: Callable[..., Any],
    parameters: tuple[Tensor, ...],
    fixed: Tensor,
    x0: Tensor,
    engine: str | None,
) -> tuple[Callable[..., Tensor], Equations]:
    """The function that computes an energy's Hessian, and the equations "gradient = 0".

    The Hessian has values on the energy's pattern, and zeros on the diagonal where the pattern
    does not store it.
    """
    pattern, n = own.pattern, x0.numel()
    if pattern.shape != (n, n):
        raise ShapeError(f"the energy's pattern has shape {pattern.shape}; x0 has {n} entries")
    structure = with_diagonal(pattern._structure)
    padding = structure.nnz - pattern.nnz

    def hessian_values(energy: Any, X: Tensor, **options: Any) -> Tensor:
        values: Tensor = energy.hessian_values(X, **options)
        return torch.cat((values, values.new_zeros(padding))) if padding else values

    equations = Equations(
        residual=lambda X, *tensors: make(*tensors).gradient(X),
        jacobian_values=lambda X, *tensors: hessian_values(make(*tensors), X),
        parameters=parameters,
        problem=make_problem(structure, fixed, Options("spd", engine=engine), x0.device),
        name="the energy's gradient",
        jacobian_name="the energy's Hessian",
        hint="them as params=, and as energy a function that makes it from them",
    )
    return hessian_values, equations
