"""The terms of one summand: their values and derivatives, chunk by chunk, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .._sparse.index_checks import describe_type
from .._torch.modes import is_differentiable, is_transformed
from ..errors import DtypeError, ShapeError, ValueChangedError
from .element_derivatives import Function as TermFunction

# Entries of element Hessians that are computed at once: larger arrays are not faster.
_CHUNK_ENTRIES = 2**22

Derivative = Callable[[TermFunction, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of one summand: weight · Σ_i summand(X[e_i], per_variable[e_i], per_term_i).

    indices : (terms, locals) int64, with rows e_i
    constants : "per_variable", "per_term" and "weight"
    chunk_size : how many terms are computed at once; None for a size of bounded memory
    """

    summand: Callable[..., Tensor]
    indices: Tensor
    constants: dict[str, Any]
    chunk_size: int | None

    def split(self, X: Tensor) -> list[slice]:
        """The slices of terms that are computed at once."""
        variables = self.indices.shape[1] * X.shape[1:].numel()  # of a term
        count, size = self.indices.shape[0], self.chunk_size
        size = size or max(1, _CHUNK_ENTRIES // max(variables, 1) ** 2)
        return [slice(at, min(at + size, count)) for at in range(0, count, size)]

    def evaluate(self, derivative: Derivative, X: Tensor, chunk: slice) -> Tensor:
        """(t, ...) a derivative of each term of a chunk, times the weight."""
        indices, weight = self.indices[chunk], self.constants["weight"]

        def gather(tensor: Tensor) -> Tensor:
            rows = tensor.index_select(0, indices.reshape(-1))
            return rows.reshape(*indices.shape, *tensor.shape[1:])

        arguments = [gather(X)]
        if self.constants["per_variable"] is not None:
            arguments.append(tree_map(gather, self.constants["per_variable"]))
        if self.constants["per_term"] is not None:
            arguments.append(tree_map(lambda tensor: tensor[chunk], self.constants["per_term"]))
        leaves, tree = tree_flatten(arguments)
        batched = vmap(self._check_result(X.dtype))

        def function(x: Tensor, *constants: Tensor) -> Tensor:
            return derivative(lambda x: batched(*tree_unflatten([x, *constants], tree)), x)

        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                result = function(*(leaf.clone() for leaf in leaves))
        elif is_transformed(*leaves) or not torch.is_grad_enabled() or self._captures(leaves, tree):
            result = function(*leaves)
        elif not any(leaf.requires_grad for leaf in leaves):
            with torch.no_grad():
                result = function(*leaves)
        elif len(indices) < len(self.indices):
            result = Recompute.apply(function, *leaves)
        else:
            result = function(*leaves)
        return result if isinstance(weight, float) and weight == 1 else weight * result

    def _check_result(self, dtype: torch.dtype) -> Callable[..., Tensor]:
        """The summand, which raises unless it returns a scalar tensor of this dtype."""
        summand = self.summand

        def checked(*arguments: Any) -> Tensor:
            term = summand(*arguments)
            if not isinstance(term, Tensor) or term.dim() != 0:
                is_tensor = isinstance(term, Tensor)
                what = (
                    f"a tensor of shape {tuple(term.shape)}" if is_tensor else describe_type(term)
                )
                raise ShapeError(f"the summand returned {what}; expected one of shape (), one term")
            if term.dtype != dtype:
                message = f"the summand returned {term.dtype} for variables of {dtype}"
                raise DtypeError(f"{message}; convert its constants")
            return term

        return checked

    def _captures(self, leaves: list[Tensor], tree: Any) -> bool:
        """Whether the summand uses tensors that require gradients, besides its arguments."""
        with torch.enable_grad():
            first = tree_unflatten([leaf[0].detach() for leaf in leaves], tree)
            term = self.summand(*first)
            return isinstance(term, Tensor) and term.requires_grad


class Recompute(Function):
    """A function whose graph keeps only the arguments; its backward computes the rest again.

    So the intermediate results of many chunks are never in memory at the same time. Tensors that
    the function uses besides its arguments are not kept; if they are changed meanwhile, the sum of
    the results differs, and the backward raises ValueChangedError.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*arguments)
        result = function(*arguments)
        ctx.sum = result.sum()
        return result

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] # torch's is (ctx, *grads)
        wanted = ctx.needs_input_grad[1:]
        recorded = torch.is_grad_enabled()  # then the gradients are differentiable, too
        with torch.enable_grad():
            arguments = ctx.saved_tensors
            if not recorded:
                pairs = zip(arguments, wanted, strict=True)
                arguments = tuple(t.detach().requires_grad_(wants) for t, wants in pairs)
            result = ctx.function(*arguments)
            tolerance = torch.finfo(result.dtype).eps ** 0.5 * result.detach().abs().sum()
            if bool((result.detach().sum() - ctx.sum).abs() > tolerance):  # not so for NaN
                message = "a tensor that the summand uses was changed in place before the backward"
                raise ValueChangedError(message)
            if not result.requires_grad:
                return (None, *(None for _ in arguments))
            inputs = [argument for argument, wants in zip(arguments, wanted, strict=True) if wants]
            found = iter(
                torch.autograd.grad(result, inputs, bar, create_graph=recorded, allow_unused=True)
            )
        return (None, *(next(found) if wants else None for wants in wanted))


def is_parameter(leaf: Any) -> bool:
    """Whether a constant is a tensor that can be differentiated in."""
    return isinstance(leaf, Tensor) and is_differentiable(leaf)
