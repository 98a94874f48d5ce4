"""The solve as a `torch.autograd.Function` that every transform of `torch.func` understands."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function

from .._factor.factors import Factors
from .._factor.lifetime import factors_of, token_of
from .._factor.problem import Problem
from .._torch.dynamo import disable_dynamo
from .._torch.modes import is_recorded, is_traced, is_transformed, is_unrecorded
from ..errors import TransformError
from .adjoint import adjoint, tangent


class Solve(Function):
    """x = A(values)⁻¹ rhs, or A(values)⁻ᵀ rhs, for the rows of `rhs`.

    `values` (nnz,) with `rhs` (k, n), or (B, nnz) with (B, k, n). `token` leads to the factors; the
    solves of the derivatives pass it on, so that they factor nothing. `strict` is that of
    `CheckedFactor.apply_inverse`.
    """

    @staticmethod
    def forward(
        values: Tensor, rhs: Tensor, token: Tensor, problem: Problem, transpose: bool, strict: bool
    ) -> Tensor:
        factors = factors_of(token, problem)
        if torch._C._functorch.is_legacy_batchedtensor(rhs):
            return _apply_to_legacy_batch(factors, values, rhs, transpose, strict)
        if factors.parts is None:  # `apply_inverse` would do it one frame deeper
            factors.prepare(values)
        return factors.apply_inverse(values, rhs, transpose, strict)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, _, token, ctx.problem, ctx.transpose, _ = inputs
        ctx.save_for_backward(values, output, token)
        ctx.save_for_forward(values, output, token)

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        values, x, token = ctx.saved_tensors
        problem, transpose = ctx.problem, not ctx.transpose
        apply_transposed: Callable[[Tensor], Tensor]
        if is_unrecorded(values, x, x_bar):
            factors = factors_of(token, problem)
            apply_transposed = partial(
                factors.apply_inverse, values, transpose=transpose, strict=False
            )
        else:
            apply_transposed = partial(apply_solve, values, token, problem, transpose)
        places = problem.places(values.dtype, ctx.transpose)
        values_bar, rhs_bar = adjoint(apply_transposed, x_bar, x, places, ctx.needs_input_grad[0])
        return values_bar, rhs_bar, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, values_dot: Tensor | None, rhs_dot: Tensor | None, *_: None) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        values, x, token = ctx.saved_tensors
        apply_inverse = partial(apply_solve, values, token, ctx.problem, ctx.transpose)
        places = ctx.problem.places(values.dtype, ctx.transpose)
        return tangent(apply_inverse, values_dot, rhs_dot, x, places)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        values: Tensor,
        rhs: Tensor,
        token: Tensor,
        problem: Problem,
        transpose: bool,
        strict: bool,
    ) -> tuple[Tensor, int]:
        values_dim, rhs_dim = in_dims[0], in_dims[1]
        if values_dim is not None:
            token = token_of(factors_of(token, problem).batched())
        values, rhs, unfold = fold(info.batch_size, values, values_dim, rhs, rhs_dim)
        return unfold(Solve.apply(values, rhs, token, problem, transpose, strict)), 0


# Outside of transforms this is all that `Solve.apply` does, except that torch looks up the defaults
# of `forward` at every call. `forward` has none, and the lookup takes longer than a small solve.
_apply_untransformed = super(Function, Solve).apply


def apply_solve(
    values: Tensor, token: Tensor, problem: Problem, transpose: bool, rhs: Tensor
) -> Tensor:
    """The solve of a derivative."""
    x: Tensor = Solve.apply(values, rhs, token, problem, transpose, False)
    return x


@disable_dynamo
def solve_eagerly(
    values: Tensor, rhs: Tensor, factors: Factors | None, problem: Problem, transpose: bool
) -> Tensor:
    """Solve with the factors of `values`, or with new ones that live as long as the graph."""
    refuse_tracing("use torch.compile")
    factors = Factors(problem) if factors is None else factors
    transformed = is_transformed(values, rhs)
    if transformed:
        refuse_nested_forward_mode(values, rhs)
    elif not is_recorded(values, rhs):
        return factors.apply_inverse(values, rhs, transpose, True)
    arguments = values, rhs, token_of(factors), problem, transpose, True
    if torch._C._are_functorch_transforms_active():
        x: Tensor = Solve.apply(*arguments)
    else:
        x = _apply_untransformed(*unwrap_dead_wrappers(arguments))
    return x


def fold(
    size: int, values: Tensor, values_dim: int | None, rhs: Tensor, rhs_dim: int | None
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Remove a batch dimension of `size`; also return the function that restores it in front.

    Right-hand sides for one matrix become more rows of it; a batch of values becomes a batch of
    matrices.
    """
    if values_dim is None:
        assert rhs_dim is not None
        rhs = rhs.movedim(rhs_dim, -3)  # ([B,] size, k, n)
        *batch, _, k, n = rhs.shape
        folded = rhs.reshape(*batch, size * k, n)
        return values, folded, lambda x: x.reshape(*batch, size, k, n).movedim(-3, 0)
    values = values.movedim(values_dim, 0)
    rhs = rhs.expand(size, *rhs.shape) if rhs_dim is None else rhs.movedim(rhs_dim, 0)
    shape, count = rhs.shape, math.prod(values.shape[:-1])
    folded = rhs.reshape(count, *shape[-2:])
    return values.reshape(count, values.shape[-1]), folded, lambda x: x.reshape(shape)


def _apply_to_legacy_batch(
    factors: Factors, values: Tensor, rhs: Tensor, transpose: bool, strict: bool
) -> Tensor:
    """The solve under ``torch.autograd.grad(..., is_grads_batched=True)``.

    That still uses torch's first implementation of vmap, which does not know the rule of a
    Function: tensors arrive with their batch dimension hidden at the current level.
    """
    # In the thread that runs the backward pass of a GPU, the level is 0.
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    rhs = torch._remove_batch_dim(rhs, 1, 1, 0)
    if level > 1 or any(map(torch._C._functorch.is_legacy_batchedtensor, (values, rhs))):
        raise TransformError(
            "is_grads_batched=True and vectorize=True cannot be nested; use torch.func instead"
        )
    values, rhs, unfold = fold(rhs.shape[0], values, None, rhs, 0)
    x = unfold(factors.apply_inverse(values, rhs, transpose, strict))
    batched: Tensor = torch._add_batch_dim(x, 0, 1)
    return batched


def refuse_tracing(advice: str) -> None:
    """Raise where torch.jit.trace or make_fx records operations, with what to do instead."""
    if is_traced():
        raise TransformError(
            f"torch.jit.trace, make_fx and torch.func.linearize would record the result as a "
            f"constant; {advice}, and torch.func.jvp or vjp in place of linearize"
        )


def refuse_nested_forward_mode(*tensors: Tensor) -> None:
    """Raise where two forward-mode transforms are about to differentiate in the same tensors.

    torch drops the outer tangent of the results of a Function's jvp (in torch 2.13,
    ``jacfwd(jacfwd(f))`` is wrong for torch.linalg.solve, too), and zeros would pass for
    derivatives.
    """
    functorch = torch._C._functorch
    stack = functorch.get_interpreter_stack() or ()
    forward = {level.level() for level in stack if level.key() == functorch.TransformType.Jvp}
    if len(forward) < 2:
        return
    differentiated = set()
    for tensor in tensors:
        while functorch.is_functorch_wrapped_tensor(tensor):
            differentiated.add(functorch.maybe_get_level(tensor))
            tensor = functorch.get_unwrapped(tensor)
    if len(differentiated & forward) > 1:
        raise TransformError(
            "torch computes nested forward mode wrongly (jvp of jvp, jacfwd of jacfwd); use "
            "reverse mode for all but one of the derivatives, as torch.func.hessian does "
            "(jacfwd of jacrev)"
        )
