"""B b and Bᴴ b for the rows b, where B Bᴴ = A⁻¹: half of a solve, differentiable in b.

B is linear, so that its derivatives are B and Bᴴ themselves. Those in the values of A would be
derivatives of the Cholesky factor, and are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch.dynamo import disable_dynamo
from .._torch.modes import is_traced
from ..errors import TransformError
from .autograd import fold

# Apply B, or Bᴴ if the first flag is True, for plain values (nnz,) and rows (k, n), or (B, nnz) and
# (B, k, n). Rows that are not finite raise an error if the second flag is True.
ApplyHalf = Callable[[Tensor, Tensor, bool, bool], Tensor]


@disable_dynamo
def solve_half(values: Tensor, rhs: Tensor, apply: ApplyHalf, adjoint: bool) -> Tensor:
    """B rhs or Bᴴ rhs, for the rows of `rhs`."""
    if is_traced():
        raise TransformError(
            "torch.jit.trace and make_fx would record the result as a constant; call solve_factor "
            "outside of them"
        )
    x: Tensor = _HalfSolve.apply(_Refuse.apply(values), rhs, apply, adjoint, True)
    return x


class _HalfSolve(Function):
    @staticmethod
    def forward(
        values: Tensor, rhs: Tensor, apply: ApplyHalf, adjoint: bool, strict: bool
    ) -> Tensor:
        if torch._C._functorch.is_legacy_batchedtensor(rhs):
            raise TransformError(
                "solve_factor is not differentiated with is_grads_batched=True or vectorize=True; "
                "use torch.func instead"
            )
        return apply(values, rhs, adjoint, strict)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, _, ctx.half, ctx.adjoint, _ = inputs
        ctx.save_for_backward(values)
        ctx.save_for_forward(values)

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        (values,) = ctx.saved_tensors
        rhs_bar = _HalfSolve.apply(values, x_bar, ctx.half, not ctx.adjoint, False)
        # `_Refuse` raises if the gradient of the values is asked for.
        values_bar = torch.zeros_like(values) if ctx.needs_input_grad[0] else None
        return values_bar, rhs_bar, None, None, None

    @staticmethod
    def jvp(ctx: Any, values_dot: Any, rhs_dot: Any, *_: None) -> Tensor:  # type: ignore[override] # likewise
        (values,) = ctx.saved_tensors
        x_dot: Tensor = _HalfSolve.apply(values, rhs_dot, ctx.half, ctx.adjoint, False)
        return x_dot

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        values: Tensor,
        rhs: Tensor,
        apply: ApplyHalf,
        adjoint: bool,
        strict: bool,
    ) -> tuple[Tensor, int]:
        if in_dims[0] is not None:
            raise TransformError(
                "solve_factor under torch.vmap needs a factorisation that was made outside of it; "
                "factorize a batch instead"
            )
        values, rhs, unfold = fold(info.batch_size, values, None, rhs, in_dims[1])
        return unfold(_HalfSolve.apply(values, rhs, apply, adjoint, strict)), 0


class _Refuse(Function):
    """The values, in which no derivative is computed."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        raise _refusal()

    @staticmethod
    def jvp(ctx: Any, values_dot: Tensor) -> Any:  # type: ignore[override] # likewise
        raise _refusal()

    @staticmethod
    def vmap(info: Any, in_dims: Any, values: Tensor) -> tuple[Tensor, Any]:
        return _Refuse.apply(values), in_dims[0]


def _refusal() -> TransformError:
    return TransformError(
        "solve_factor is differentiable in b only, not in the values of the matrix, whose "
        "derivatives would be those of its Cholesky factor: factorize the values detached"
    )
