"""The eager door: the solve as a `torch.autograd.Function` that every transform of `torch.func` understands."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function

from ._factors import Factors, Problem, factors_of, token_of
from ._plain import is_plain, is_transformed
from ._rules import adjoint, tangent
from ._untraced import untraced
from .errors import TransformError


class Solve(Function):
    """x = A(values)⁻¹ rhs, or A(values)⁻ᵀ rhs, for the rows of `rhs`.

    `values` (nnz,) with `rhs` (k, n), or (B, nnz) with (B, k, n). `token` leads to the factors; the solves of the
    derivatives pass it on, which is why they factor nothing. `strict`: see `Numeric.solve`.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:  # type: ignore[override]
        """What torch does outside of transforms, without looking up the defaults of `forward`, which has none: on small
        systems that takes longer than the solve."""
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        return super(Function, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]

    @staticmethod
    def forward(values: Tensor, rhs: Tensor, token: Tensor, problem: Problem, transpose: bool, strict: bool) -> Tensor:
        factors = factors_of(token, problem)
        if torch._C._functorch.is_legacy_batchedtensor(rhs):
            return _solve_legacy_batch(factors, values, rhs, transpose, strict)
        return factors.solve(values, rhs, transpose, strict)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, _, token, ctx.problem, ctx.transpose, _ = inputs
        ctx.save_for_backward(values, output, token)
        ctx.save_for_forward(values, output, token)

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, x, token = ctx.saved_tensors
        # Where nothing is recorded, `forward` is all there is to a solve.
        solve = Solve.forward if is_plain(values, x, x_bar) else Solve.apply
        values_bar, rhs_bar = adjoint(
            lambda g: solve(values, g, token, ctx.problem, not ctx.transpose, False),
            x_bar,
            x,
            ctx.problem.places(values.dtype).of(ctx.transpose),
            ctx.needs_input_grad[0],
        )
        return values_bar, rhs_bar, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, values_dot: Tensor | None, rhs_dot: Tensor | None, *_: None) -> Tensor:  # type: ignore[override]
        values, x, token = ctx.saved_tensors
        return tangent(
            lambda right: Solve.apply(values, right, token, ctx.problem, ctx.transpose, False),
            values_dot,
            rhs_dot,
            x,
            ctx.problem.places(values.dtype).of(ctx.transpose),
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], values: Tensor, rhs: Tensor, token: Tensor, problem: Problem,
             transpose: bool, strict: bool) -> tuple[Tensor, int]:  # fmt: skip
        values_dim, rhs_dim = in_dims[0], in_dims[1]
        if values_dim is not None:
            token = token_of(factors_of(token, problem).batched())
        values, rhs, unfold = fold(info.batch_size, values, values_dim, rhs, rhs_dim)
        return unfold(Solve.apply(values, rhs, token, problem, transpose, strict)), 0


def fold(
    size: int, values: Tensor, values_dim: int | None, rhs: Tensor, rhs_dim: int | None
) -> tuple[Tensor, Tensor, Any]:
    """A solve with one more batch dimension of `size` as one without, and the function that restores it in front.

    Right-hand sides for one matrix become more rows of it; a batch of values becomes a batch of matrices.
    """
    if values_dim is None:
        assert rhs_dim is not None
        rhs = rhs.movedim(rhs_dim, -3)  # ([B,] size, k, n)
        *batch, _, k, n = rhs.shape
        return values, rhs.reshape(*batch, size * k, n), lambda x: x.reshape(*batch, size, k, n).movedim(-3, 0)
    values = values.movedim(values_dim, 0)
    rhs = rhs.expand(size, *rhs.shape) if rhs_dim is None else rhs.movedim(rhs_dim, 0)
    shape, count = rhs.shape, math.prod(values.shape[:-1])
    return values.reshape(count, values.shape[-1]), rhs.reshape(count, *shape[-2:]), lambda x: x.reshape(shape)


def _solve_legacy_batch(factors: Factors, values: Tensor, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
    """The solve under ``torch.autograd.grad(..., is_grads_batched=True)`` and its users.

    They still go by torch's first implementation of vmap, which does not know the rule of a Function: tensors
    arrive with their batch dimension hidden at the current level.
    """
    level = torch._C._vmapmode_increment_nesting() - 1  # 0 in the thread that runs the backward pass of a GPU
    torch._C._vmapmode_decrement_nesting()
    rhs = torch._remove_batch_dim(rhs, 1, 1, 0)
    if level > 1 or any(map(torch._C._functorch.is_legacy_batchedtensor, (values, rhs))):
        raise TransformError("is_grads_batched=True and vectorize=True cannot be nested; use torch.func instead")
    values, rhs, unfold = fold(rhs.shape[0], values, None, rhs, 0)
    batched: Tensor = torch._add_batch_dim(unfold(factors.solve(values, rhs, transpose, strict)), 0, 1)
    return batched


def _refuse_nested_forward_mode(values: Tensor, rhs: Tensor) -> None:
    """Raises where two forward-mode transforms are about to differentiate the same solve.

    torch drops the outer tangent of what the jvp of a Function computes (seen with torch 2.13, where
    ``jacfwd(jacfwd(f))`` is wrong for torch.linalg.solve, too), and zeros would pass for derivatives.
    """
    functorch = torch._C._functorch
    stack = functorch.get_interpreter_stack() or ()
    forward = {level.level() for level in stack if level.key() == functorch.TransformType.Jvp}
    if len(forward) < 2:
        return
    differentiated = set()
    for tensor in (values, rhs):
        while functorch.is_functorch_wrapped_tensor(tensor):
            differentiated.add(functorch.maybe_get_level(tensor))
            tensor = functorch.get_unwrapped(tensor)
    if len(differentiated & forward) > 1:
        raise TransformError(
            "torch gets nested forward mode wrong (jvp of jvp, jacfwd of jacfwd); use reverse mode for all but one of "
            "the derivatives: torch.func.hessian is jacfwd of jacrev"
        )


@untraced
def solve_eagerly(values: Tensor, rhs: Tensor, factors: Factors | None, problem: Problem, transpose: bool) -> Tensor:
    """The solve with the factors of `values`, or with new ones that live as long as its graph."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise TransformError("torch.jit.trace would record the solution as a constant; use torch.compile")
    _refuse_nested_forward_mode(values, rhs)
    factors = Factors(problem) if factors is None else factors
    recorded = torch.is_grad_enabled() and (values.requires_grad or rhs.requires_grad)
    if not recorded and not is_transformed(values, rhs):  # no graph, and nothing else that the Function is for
        return factors.solve(values, rhs, transpose, True)
    x: Tensor = Solve.apply(values, rhs, token_of(factors), problem, transpose, True)
    return x
