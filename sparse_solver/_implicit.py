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

from ._factors import Factors, Problem, factors_of, token_of
from ._solve import solve_values
from .errors import OptionError, SingularMatrixError


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

    def solve(self, values: Tensor, rhs: Tensor, factors: Factors, transpose: bool = False) -> Tensor:
        """J⁻¹ or J⁻ᵀ applied to the vector `rhs`; zero at fixed entries."""
        problem = self.problem
        return solve_values(problem.structure, values, rhs, problem.options, transpose, factors, problem.part)


@dataclass(frozen=True, eq=False)
class Solution:
    """What Newton's method found: x, and the factor there, of the Jacobian with these values. None: it is singular."""

    x: Tensor
    values: Tensor
    factors: Factors | None


class _Implicit(Function):
    """x as a function of the parameters, and of the fixed ones among the entries of `start`."""

    @staticmethod
    def forward(
        ctx: Any, start: Tensor, equations: Equations, solution: Solution, token: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.equations, ctx.regular = equations, solution.factors is not None
        x = solution.x.clone()
        ctx.save_for_backward(x, solution.values, token, *parameters)
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, values, token, *parameters = ctx.saved_tensors
        equations: Equations = ctx.equations
        if not ctx.regular:
            raise SingularMatrixError(
                "the solution has no derivative, since it is not unique: its Hessian is singular; fix some variables",
                engine=None,
                row=None,
            )
        recorded = torch.is_grad_enabled()  # then the result is differentiable, too
        factors = factors_of(token, equations.problem)
        wants_start, wants = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        with torch.set_grad_enabled(recorded):
            if recorded:
                values = equations.jacobian_values(x, *parameters)
            lam = equations.solve(values, x_bar.reshape(-1), factors, transpose=True)
        with torch.enable_grad():
            # Partial derivatives, though x depends on the parameters, and they may depend on each other: autograd takes total
            # ones, but nothing else depends on these aliases.
            alias = torch.Tensor.view_as if recorded else _detached
            at, *parameters = (alias(tensor, tensor) for tensor in (x, *parameters))
            residual = equations.residual(at, *parameters).reshape(-1)
            inputs = [parameter for parameter, wanted in zip(parameters, wants, strict=True) if wanted]
            inputs = [at, *inputs] if wants_start else inputs
            pulled: Iterable[Tensor | None] = (None for _ in inputs)
            if residual.requires_grad:
                pulled = torch.autograd.grad(residual, inputs, -lam, create_graph=recorded, allow_unused=True)
            found = iter(pulled)
            start_bar, part = None, equations.problem.part
            if wants_start and part is not None:
                pulled_x = next(found)
                total = (x_bar if pulled_x is None else x_bar + pulled_x).reshape(-1)
                start_bar = total.index_fill(0, part.rows, 0.0).reshape(x.shape)
        return (start_bar, None, None, None, *(next(found) if wanted else None for wanted in wants))


def _detached(tensor: Tensor, _: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def differentiable(
    solution: Solution, start: Tensor, equations: Equations, recorded: Callable[[], Tensor], name: str, hint: str
) -> Tensor:
    """The solution, with its derivatives in the parameters, and in `start` where that is fixed.

    `recorded` : something whose graph shows on which tensors the equations depend, listed or not
    `name`, `hint` : what has to list them, and how they are to be passed
    """
    if not torch.is_grad_enabled():
        return solution.x
    parameters = equations.parameters
    if _depends_on_others(recorded(), parameters):
        raise OptionError(
            f"{name} depends on tensors that require gradients and are not among its parameters, so that the solution would "
            f"lack derivatives: pass {hint}, or detach them"
        )
    fixed = start.requires_grad and equations.problem.part is not None
    if not fixed and not any(parameter.requires_grad for parameter in parameters):
        return solution.x
    factors = solution.factors
    token = token_of(Factors(equations.problem) if factors is None else factors)
    start = start if fixed else start.detach()
    x: Tensor = _Implicit.apply(start, equations, solution, token, *parameters)
    return x


def _depends_on_others(tensor: Tensor, parameters: tuple[Tensor, ...]) -> bool:
    """Whether the graph of `tensor` leads to a leaf by a way around the parameters."""
    if not tensor.requires_grad:
        return False
    edges = (get_gradient_edge(parameter) for parameter in parameters if parameter.requires_grad)
    known = {(edge.node, edge.output_nr) for edge in edges}
    own = get_gradient_edge(tensor)
    stack, seen = [(own.node, own.output_nr)], set()
    while stack:
        edge = stack.pop()
        node = edge[0]
        if edge in known or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # a leaf
            return True
        stack.extend((following, number) for following, number in node.next_functions if following is not None)
    return False
