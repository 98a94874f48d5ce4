"""Derivatives of what Newton's method finds, by the implicit function theorem.

x(θ) with r(x, θ) = 0, J = ∂r/∂x. Differentiating gives J dx = −∂r/∂θ dθ, so that a cotangent x̄ pulls back to

    θ̄ = −(∂r/∂θ)ᵀ λ,    Jᵀ λ = x̄:

one substitution with the factor of the last iteration, whose matrix is that at the solution, and one derivative of the
residual. Where entries x_f = y are fixed, λ is zero there (see `_rules`), and ȳ = x̄_f − (∂r/∂y)ᵀ λ. The rule is made of x
itself, of θ, and of differentiable operations, so that it can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import get_gradient_edge

from .._factor.factors import Factors
from .._factor.lifetime import token_of
from .._factor.problem import Problem
from .._solve.autograd import Solve
from .._solve.shapes import solve_values
from .._sparse.kernels import Places, apply
from .._torch.modes import is_differentiable
from ..errors import OptionError, ShapeError, SingularMatrixError, ValueChangedError


@dataclass(frozen=True, eq=False)
class Equations:
    """r(x, θ) = 0.

    residual : r (of the shape of x) from x and the parameters θ
    jacobian_values : the values of J on the problem's structure, from the same
    parameters : θ
    problem : the structure, how it is factored, and which entries of x.reshape(-1) are not fixed
    """

    residual: Callable[..., Tensor]
    jacobian_values: Callable[..., Tensor]
    parameters: tuple[Tensor, ...]
    problem: Problem

    def free(self, residual: Any, name: str) -> Tensor:
        """The residual, called `name`, as a vector (n,), zero where entries of x are fixed; raises if it is none."""
        n, submatrix = self.problem.structure.shape[0], self.problem.submatrix
        if not isinstance(residual, Tensor) or residual.numel() != n:
            given = isinstance(residual, Tensor)
            what = f"shape {tuple(residual.shape)}" if given else f"type {type(residual).__name__}"
            raise ShapeError(
                f"{name} has {what}; expected a tensor of the shape of x0, with {n} entries"
            )
        r = residual.detach().reshape(-1)
        return r if submatrix is None else r.index_fill(0, submatrix.removed, 0.0)

    def sizes(self, values: Tensor, x: Tensor) -> Tensor:
        """(n,) |J| |x|: rounding errors of x change the residual by ε times that, at most."""
        structure = self.problem.structure
        return apply(
            values.abs(), x.reshape(1, -1).abs(), Places(structure.rows, structure.cols)
        ).squeeze(0)

    def check_unchanged(self, residual: Tensor, before: Tensor, values: Tensor, x: Tensor) -> None:
        """Raises unless the residual at x is what it was, but for rounding errors.

        Tensors that are no parameters, but that the residual uses, may have been overwritten; autograd does not see to these.
        """
        largest = (self.sizes(values, x) + before.abs()).max()
        if not bool(((residual - before).abs() <= torch.finfo(x.dtype).eps ** 0.5 * largest).all()):
            raise ValueChangedError(
                "what the energy or the residual depends on was changed in place between the solution and its derivative"
            )

    def solve(
        self, values: Tensor, rhs: Tensor, factors: Factors, transpose: bool = False
    ) -> Tensor:
        """J⁻¹ or J⁻ᵀ applied to the vector `rhs`; zero at fixed entries."""
        return solve_values(self.problem, values, rhs, transpose=transpose, factors=factors)


@dataclass(frozen=True, eq=False)
class Solution:
    """What Newton's method found: x, the residual there (n,), zero where entries of x are fixed, and the factor there, of the
    Jacobian with these values. None: it is singular."""

    x: Tensor
    residual: Tensor
    values: Tensor
    factors: Factors | None


class _Implicit(Function):
    """x as a function of the parameters, and of the fixed ones among the entries of `start`."""

    @staticmethod
    def forward(
        ctx: Any,
        start: Tensor,
        equations: Equations,
        solution: Solution,
        token: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.equations, ctx.regular = equations, solution.factors is not None
        x = solution.x.clone()
        ctx.save_for_backward(x, solution.residual, solution.values, token, *parameters)
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, residual_then, values, token, *parameters = ctx.saved_tensors
        equations: Equations = ctx.equations
        if not ctx.regular:
            raise SingularMatrixError(
                "the solution has no derivative, since it is not unique: its Hessian is singular; fix some variables",
                engine=None,
                row=None,
            )
        recorded = torch.is_grad_enabled()  # then the result is differentiable, too
        wants_start, wants = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        with torch.set_grad_enabled(recorded):
            if recorded:
                values = equations.jacobian_values(x, *parameters)
            # Not strict: what is not finite, as for a gradient scaler, is passed on.
            lam = Solve.apply(
                values, x_bar.reshape(1, -1), token, equations.problem, True, False
            ).squeeze(0)
        with torch.enable_grad():
            # Partial derivatives, though x depends on the parameters, and they may depend on each other: autograd takes total
            # ones, but nothing else depends on these aliases.
            alias = torch.Tensor.view_as if recorded else _detached
            at, *parameters = (alias(tensor, tensor) for tensor in (x, *parameters))
            residual = equations.residual(at, *parameters)
            now = equations.free(residual, "the residual")
            equations.check_unchanged(now, residual_then, values.detach(), x.detach())
            inputs = [
                parameter for parameter, wanted in zip(parameters, wants, strict=True) if wanted
            ]
            inputs = [at, *inputs] if wants_start else inputs
            pulled: Iterable[Tensor | None] = (None for _ in inputs)
            if residual.requires_grad:
                pulled = torch.autograd.grad(
                    residual,
                    inputs,
                    -lam.reshape(residual.shape),
                    create_graph=recorded,
                    allow_unused=True,
                )
            found = iter(pulled)
            start_bar, submatrix = None, equations.problem.submatrix
            if wants_start and submatrix is not None:
                pulled_x = next(found)
                total = (x_bar if pulled_x is None else x_bar + pulled_x).reshape(-1)
                start_bar = total.index_fill(0, submatrix.rows, 0.0).reshape(x.shape)
        return (start_bar, None, None, None, *(next(found) if wanted else None for wanted in wants))


def _detached(tensor: Tensor, _: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(is_differentiable(tensor))


def differentiable(
    solution: Solution, start: Tensor, equations: Equations, name: str, gradient: str, hint: str
) -> Tensor:
    """The solution, with its derivatives in the parameters, and in `start` where that is fixed.

    `name`, `gradient`, `hint` : what has to list them, what r is called, and how they are to be passed
    """
    if not torch.is_grad_enabled():
        return solution.x
    parameters = equations.parameters
    fixed = start.requires_grad and equations.problem.submatrix is not None
    wanted = fixed or any(parameter.requires_grad for parameter in parameters)
    aliases = [_detached(tensor, tensor) for tensor in (solution.x, *parameters)]
    others, depends_on_x = _leaves(equations.residual(*aliases), aliases)
    if others:  # those that are there the second time, too, are not made by the function
        again, _ = _leaves(equations.residual(*aliases), aliases)
        others = [leaf for leaf in others if any(leaf is other for other in again)]
    if others:
        raise OptionError(
            f"{name} depends on tensors that require gradients and are not among its parameters, so that the solution would "
            f"lack derivatives: pass {hint}, or detach them"
        )
    if not wanted:
        return solution.x
    if not depends_on_x:
        raise OptionError(
            f"{gradient} must be differentiable in its argument, for derivatives of the solution: it is not to be detached"
        )
    factors = solution.factors
    token = token_of(Factors(equations.problem) if factors is None else factors)
    start = start if fixed else start.detach()
    x: Tensor = _Implicit.apply(start, equations, solution, token, *parameters)
    return x


def _leaves(made: Tensor, aliases: list[Tensor]) -> tuple[list[Tensor], bool]:
    """The leaves of a graph that are none of the aliases, and whether the first alias is one.

    Aliases of the arguments, since one of them may also be used in another way than as an argument.
    """
    if not made.requires_grad:
        return [], False
    edges = [get_gradient_edge(alias).node for alias in aliases if alias.requires_grad]
    stack, seen, others = [get_gradient_edge(made).node], set(), []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node not in edges and hasattr(node, "variable"):
            others.append(node.variable)
        stack.extend(following for following, _ in node.next_functions if following is not None)
    return others, edges[0] in seen
