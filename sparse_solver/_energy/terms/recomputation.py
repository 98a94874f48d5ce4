"""Derivatives that compute again what they need, and notice if it would come out differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..._sparse.values import probe_vector
from ...errors import ValueChangedError

# Every so many terms, one is differentiated in advance, at a few percent of the cost of all.
_STRIDE = 32
# Rounding errors in results that are computed again, in units of ε times the largest entry: sums
# may be added up in another order.
_REORDERED = 100


class Recompute(Function):
    """A function whose graph keeps only the arguments; its backward computes the rest again.

    So the intermediate results of many chunks are never in memory at the same time. Tensors that
    the function uses besides its arguments are not kept. If they are changed meanwhile, the results
    or their derivatives differ, and the backward raises ValueChangedError: each term is compared
    by one number, and some terms by derivatives, since terms may vanish whatever the constants are.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*arguments)
        result = function(*arguments)
        ctx.before = _fingerprint(function, arguments, result, ctx.needs_input_grad[1:])
        return result

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] # torch's is (ctx, *grads)
        wanted = ctx.needs_input_grad[1:]
        recorded = torch.is_grad_enabled()  # then the gradients are differentiable, too
        arguments = ctx.saved_tensors
        with torch.enable_grad():
            if not recorded:
                arguments = _detach(arguments, wanted)
            result = ctx.function(*arguments)
            now = _fingerprint(ctx.function, arguments, result, wanted)
            if any(map(differs, ctx.before, now)):
                message = "a tensor that the summand uses was changed in place before the backward"
                raise ValueChangedError(f"{message}; clone it before it is changed")
            return (None, *pull_back(result, arguments, wanted, bar, recorded))


def differs(before: Tensor, now: Tensor) -> bool:
    """Whether a tensor that is computed again differs by more than rounding errors explain.

    The tolerances are half the digits of an entry, and rounding errors of the largest one.
    """
    eps = torch.finfo(before.dtype).eps
    finite = before.abs().nan_to_num(0.0, 0.0, 0.0)
    largest = float(finite.max()) if finite.numel() else 0.0
    tolerances = {"rtol": eps**0.5, "atol": _REORDERED * eps * largest}
    return not torch.allclose(now, before, equal_nan=True, **tolerances)


def _fingerprint(
    function: Callable[..., Tensor],
    arguments: Sequence[Tensor],
    result: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """One number for each term of the result, and derivatives of some of the terms."""
    entries = result.detach().reshape(len(result), -1)
    probe = probe_vector(entries.shape[1], result.dtype, 0.0, result.device).squeeze(0)
    with torch.enable_grad():
        some = _detach([argument[::_STRIDE] for argument in arguments], wanted)
        bar = probe.reshape(result.shape[1:]).expand(len(some[0]), *result.shape[1:])
        found = pull_back(function(*some), some, wanted, bar, False)
    return [entries @ probe, *(derivative for derivative in found if derivative is not None)]


def _detach(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    pairs = zip(tensors, wanted, strict=True)
    return tuple(tensor.detach().requires_grad_(wants) for tensor, wants in pairs)


def pull_back(
    result: Tensor, arguments: Sequence[Tensor], wanted: Sequence[bool], bar: Tensor, recorded: bool
) -> list[Tensor | None]:
    """The cotangents of the arguments; None for those that are not wanted."""
    inputs = [argument for argument, wants in zip(arguments, wanted, strict=True) if wants]
    found: tuple[Tensor | None, ...] = (None,) * len(inputs)
    if result.requires_grad:
        found = torch.autograd.grad(result, inputs, bar, create_graph=recorded, allow_unused=True)
    each = iter(found)
    return [next(each) if wants else None for wants in wanted]
