"""B b and Bᴴ b for the rows b, where B Bᴴ = A⁻¹: half of a solve.

B is linear, so that its derivatives in b are B and Bᴴ themselves. Those in the values of A are
derivatives of the Cholesky factor: by reverse mode once, for a factor that has them, or refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch.dynamo import disable_dynamo
from ..errors import TransformError
from .autograd import fold, refuse_tracing

# Apply B, or Bᴴ if the first flag is True, for plain values (nnz,) and rows (k, n), or (B, nnz) and
# (B, k, n). Rows that are not finite raise an error if the second flag is True.
ApplyHalf = Callable[[Tensor, Tensor, bool, bool], Tensor]
# The gradient of Σ gᵀ Bᵀ h in the values, for plain values (nnz,) or (B, nnz), and the rows g, B g
# and Bᵀ h, (..., k, n) or (B, ..., k, n). There is one gradient for each of the further dimensions.
DifferentiateHalf = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Half:
    """One half of the inverse of the matrix with certain values.

    differentiate : None if derivatives in the values are refused
    batched : make the same for the values that vmap makes of these; None if that is refused
    """

    apply: ApplyHalf
    differentiate: DifferentiateHalf | None = None
    batched: Callable[[], Half] | None = None


@disable_dynamo
def solve_half(values: Tensor, rhs: Tensor, half: Half, adjoint: bool) -> Tensor:
    """B rhs or Bᴴ rhs, for the rows of `rhs`."""
    refuse_tracing("call solve_factor outside of them")
    guarded = _Guard.apply(values, half.differentiate is not None)
    x: Tensor = _HalfSolve.apply(guarded, rhs, half, adjoint, True)
    return x


class _HalfSolve(Function):
    @staticmethod
    def forward(values: Tensor, rhs: Tensor, half: Half, adjoint: bool, strict: bool) -> Tensor:
        if torch._C._functorch.is_legacy_batchedtensor(rhs):
            raise TransformError(
                "solve_factor is not differentiated with is_grads_batched=True or vectorize=True; "
                "use torch.func instead"
            )
        return half.apply(values, rhs, adjoint, strict)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, rhs, ctx.half, ctx.adjoint, _ = inputs
        known = (rhs, output) if ctx.half.differentiate is not None else ()
        ctx.save_for_backward(values, *known)
        ctx.save_for_forward(values)

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        values, *known = ctx.saved_tensors
        rhs_bar = _HalfSolve.apply(values, x_bar, ctx.half, not ctx.adjoint, False)
        values_bar = None
        if ctx.needs_input_grad[0]:
            # The inner product of x and its cotangent is gᵀ Bᵀ h, with these g and h:
            # g = rhs, h = x_bar for x = B rhs, and g = x_bar, h = rhs for x = Bᵀ rhs.
            if not known:  # `_Guard` raises if the gradient of the values is asked for
                values_bar = torch.zeros_like(values)
            elif ctx.adjoint:
                values_bar = _Gradient.apply(values, x_bar, rhs_bar, known[1], ctx.half)
            else:
                values_bar = _Gradient.apply(values, *known, rhs_bar, ctx.half)
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
        half: Half,
        adjoint: bool,
        strict: bool,
    ) -> tuple[Tensor, int]:
        if in_dims[0] is not None:
            half = _batch(half)
        values, rhs, unfold = fold(info.batch_size, values, in_dims[0], rhs, in_dims[1])
        return unfold(_HalfSolve.apply(values, rhs, half, adjoint, strict)), 0


class _Gradient(Function):
    """The gradient of Σ gᵀ Bᵀ h in the values, which is not differentiated again."""

    @staticmethod
    def forward(values: Tensor, g: Tensor, Bg: Tensor, Bh: Tensor, half: Half) -> Tensor:
        assert half.differentiate is not None
        return half.differentiate(values, g, Bg, Bh)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        raise _second_derivative()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:  # type: ignore[override] # likewise
        raise _second_derivative()

    @staticmethod
    def vmap(info: Any, in_dims: Any, values: Tensor, *rest: Any) -> tuple[Tensor, int]:
        (values_dim, *dims, _), (*rows, half) = in_dims, rest
        size, at = info.batch_size, 0 if values_dim is not None else values.dim() - 1
        moved = [
            (each.unsqueeze(at).expand(*each.shape[:at], size, *each.shape[at:]))
            if dim is None
            else each.movedim(dim, at)
            for each, dim in zip(rows, dims, strict=True)
        ]
        if values_dim is None:  # more gradients for each matrix
            return _Gradient.apply(values, *moved, half), at
        values = values.movedim(values_dim, 0)
        shape, own = values.shape, values.dim() - 1
        folded = [each.reshape(shape[:-1].numel(), *each.shape[own:]) for each in moved]
        values = values.reshape(shape[:-1].numel(), shape[-1])
        gradient = _Gradient.apply(values, *folded, _batch(half))
        return gradient.reshape(*shape[:-1], *gradient.shape[1:]), 0


class _Guard(Function):
    """The values, in which there are no tangents, and derivatives only if the flag is True."""

    @staticmethod
    def forward(values: Tensor, is_differentiable: bool) -> Tensor:
        # A copy, since what is written to the values later is not part of the matrix; those of a
        # Factorization are one already.
        return values.clone() if is_differentiable else values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.is_differentiable = inputs

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        if not ctx.is_differentiable:
            raise _refusal()
        return bar, None

    @staticmethod
    def jvp(ctx: Any, values_dot: Tensor, _: None) -> Any:  # type: ignore[override] # likewise
        if not ctx.is_differentiable:
            raise _refusal()
        raise TransformError(
            "half solves are not differentiated in the values of the matrix by forward mode (jvp, "
            "jacfwd, hessian); use reverse mode, once"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, values: Tensor, flag: bool) -> tuple[Tensor, Any]:
        return _Guard.apply(values, flag), in_dims[0]


def _batch(half: Half) -> Half:
    if half.batched is None:
        raise TransformError(
            "solve_factor under torch.vmap needs a factorisation that was made outside of it; "
            "factorize a batch instead"
        )
    return half.batched()


def _refusal() -> TransformError:
    return TransformError(
        "solve_factor of a Factorization is differentiable in b only, not in the values of the "
        "matrix, whose derivatives would be those of its Cholesky factor: factorize the values "
        "detached, or call Pattern.solve_factor(values, b), which is differentiable in both"
    )


def _second_derivative() -> TransformError:
    return TransformError(
        "the gradient of a half solve in the values of the matrix is not differentiated again: "
        "take one derivative in the values only, without create_graph=True"
    )
