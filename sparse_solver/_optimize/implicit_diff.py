"""Derivatives of minima and roots, by the implicit function theorem.

Let x(θ) solve r(x, θ) = 0, with J = ∂r/∂x. Differentiating gives J dx = −(∂r/∂θ) dθ, so that a
cotangent x̄ of x pulls back to

    θ̄ = −(∂r/∂θ)ᵀ λ,    Jᵀ λ = x̄,

which needs one substitution with the factor of J at the solution, which the last iteration made,
and one derivative of the residual. Where entries x_f = y are fixed, λ is zero, and
ȳ = x̄_f − (∂r/∂y)ᵀ λ. The rule consists of x itself, of θ, and of differentiable operations, so that
it can be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import get_gradient_edge

from .._energy.terms.recomputation import differs, pull_back
from .._factor.factors import Factors
from .._factor.lifetime import token_of
from .._solve.autograd import Solve
from .._torch.modes import is_differentiable
from ..errors import OptionError, SingularMatrixError, ValueChangedError
from .derivative_checks import check_jacobian, differentiate_residual
from .equations import CHANGED, Equations, Solution


class _ImplicitFunction(Function):
    """x as a function of the parameters, and of the fixed ones among the entries of `start`."""

    @staticmethod
    def forward(
        ctx: Any,
        start: Tensor,
        equations: Equations,
        solution: Solution,
        token: Tensor,
        before: list[Tensor],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.equations, ctx.is_regular = equations, solution.factors is not None
        ctx.count, x = len(before), solution.x.clone()
        saved = (x, solution.residual, solution.values, token)
        ctx.save_for_backward(*saved, *before, *parameters)
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] # torch's is (ctx, *grads)
        x, residual, values, token, *others = ctx.saved_tensors
        before, parameters = others[: ctx.count], others[ctx.count :]
        equations: Equations = ctx.equations
        if not ctx.is_regular:
            raise SingularMatrixError(
                "the solution has no derivative, since it is not unique: its Hessian or Jacobian "
                "is singular; fix some entries",
                engine=None,
                row=None,
            )
        rhs, problem = x_bar.reshape(1, -1), equations.problem
        wanted = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5:])
        # In a recorded backward pass the result is differentiable, too.
        is_recorded = torch.is_grad_enabled()
        derivatives = _Derivatives(equations, (x, *parameters), is_recorded)
        derivatives.check_unchanged(residual, values, before)
        if is_recorded:
            now = equations.jacobian_values(x, *parameters)
            if differs(values, now.detach()):
                raise ValueChangedError(CHANGED.format(equations.jacobian_name))
            values = now
        # Not strict: a gradient that is not finite, as of a gradient scaler, is passed on.
        lam = Solve.apply(values, rhs, token, problem, True, False).squeeze(0)
        pulled = derivatives.pull_back(-lam, wanted)
        start_bar = None
        if wanted[0] and problem.submatrix is not None:
            total = (x_bar if pulled[0] is None else x_bar + pulled[0]).reshape(-1)
            start_bar = total.index_fill(0, problem.submatrix.rows, 0.0).reshape(x.shape)
        return start_bar, None, None, None, None, *pulled[1:]


class _Derivatives:
    """The derivatives of the residual in its arguments, x first and then the parameters."""

    def __init__(self, equations: Equations, arguments: tuple[Tensor, ...], is_recorded: bool):
        self.equations, self.is_recorded = equations, is_recorded
        with torch.enable_grad():
            # x depends on the parameters, and these may depend on each other. Autograd's total
            # derivatives in new aliases are the partial derivatives that are needed.
            alias = torch.Tensor.view_as if is_recorded else _detach
            self.aliases = [alias(argument, argument) for argument in arguments]
            self.residual = equations.residual(*self.aliases)

    def check_unchanged(self, residual: Tensor, values: Tensor, before: list[Tensor]) -> None:
        """Raise ValueChangedError if the residual or its derivatives are no longer the same.

        residual, values, before : the residual, the Jacobian, and `compute_probe`, at the solution
        """
        equations, now = self.equations, self.equations.flatten(self.residual)
        equations.check_unchanged(now, residual, values, self.aliases[0].detach())
        if any(map(differs, before, self.compute_probe(values))):
            raise ValueChangedError(CHANGED.format(equations.name))

    def compute_probe(self, values: Tensor) -> list[Tensor]:
        """uᵀ ∂r/∂a for x and each parameter that requires gradients, with a scattered vector u."""
        x, *others = self.aliases
        pairs = zip(others, self.equations.parameters, strict=True)
        arguments = [x, *(alias for alias, parameter in pairs if parameter.requires_grad)]
        return differentiate_residual(self.equations, values, self.residual, arguments)

    def pull_back(self, bar: Tensor, wanted: tuple[bool, ...]) -> list[Tensor | None]:
        """(∂r/∂a)ᵀ bar for each argument a; None for those that are not wanted."""
        bar = bar.reshape(self.residual.shape)
        return pull_back(self.residual, self.aliases, wanted, bar, self.is_recorded)


def _detach(tensor: Tensor, _: Tensor) -> Tensor:
    """A detached alias that requires gradients, if its dtype allows that."""
    return tensor.detach().requires_grad_(is_differentiable(tensor))


def attach_derivatives(solution: Solution, start: Tensor, equations: Equations) -> Tensor:
    """The solution, differentiable in the parameters, and in `start` at the fixed entries.

    Raises OptionError if it would lack derivatives, DerivativeError if they would be wrong.
    """
    if not torch.is_grad_enabled():
        return solution.x
    parameters, name = equations.parameters, equations.name
    has_fixed = start.requires_grad and equations.problem.submatrix is not None
    derivatives = _Derivatives(equations, (solution.x, *parameters), False)
    aliases = derivatives.aliases
    others, depends_on_x = _find_leaves(derivatives.residual, aliases)
    if others:  # a leaf that is made anew in each call is not a tensor of the caller
        again, _ = _find_leaves(equations.residual(*aliases), aliases)
        others = [leaf for leaf in others if any(leaf is other for other in again)]
    if others:
        raise OptionError(
            f"{name} depends on tensors that require gradients and are not among its parameters, "
            f"so that the solution would lack derivatives: pass {equations.hint}, or detach them"
        )
    if not has_fixed and not any(parameter.requires_grad for parameter in parameters):
        return solution.x
    if not depends_on_x:
        raise OptionError(
            f"{name} must be differentiable in its argument, for derivatives of the solution; do "
            f"not detach it"
        )
    before = derivatives.compute_probe(solution.values)
    if solution.factors is not None:
        check_jacobian(equations, solution.values, derivatives.residual, aliases[0], before[0])
    token = token_of(solution.factors or Factors(equations.problem))
    start = start if has_fixed else start.detach()
    x: Tensor = _ImplicitFunction.apply(start, equations, solution, token, before, *parameters)
    return x


def _find_leaves(result: Tensor, aliases: list[Tensor]) -> tuple[list[Tensor], bool]:
    """The leaves of the graph of `result` besides the aliases, and whether it has the first alias.

    Aliases stand for the arguments, which may also be used in other ways than as arguments.
    """
    if not result.requires_grad:
        return [], False
    edges = [get_gradient_edge(alias).node for alias in aliases if alias.requires_grad]
    stack, seen, others = [get_gradient_edge(result).node], set(), []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node not in edges and hasattr(node, "variable"):
            others.append(node.variable)
        stack.extend(following for following, _ in node.next_functions if following is not None)
    return others, edges[0] in seen
