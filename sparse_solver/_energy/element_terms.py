"""The terms of one summand: their values and derivatives, chunk by chunk, in memory that is bounded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from .._torch.modes import is_differentiable, is_transformed
from ..errors import DeviceError, DtypeError, LayoutError, ShapeError, ValueChangedError
from .element_derivatives import Function as TermFunction

# Entries of element Hessians that are computed at once: larger arrays are not faster.
_CHUNK = 2**22


Derivative = Callable[[TermFunction, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of one summand: weight · Σ_i summand(X[indices_i], per_variable[indices_i], per_term_i)."""

    summand: Callable[..., Tensor]
    indices: Tensor
    constants: dict[str, Any]  # "per_variable", "per_term", "weight"
    chunk: int | None

    def parts(self, X: Tensor) -> list[slice]:
        """The terms, chunk by chunk."""
        count, size = (
            self.indices.shape[0],
            self.chunk or max(1, _CHUNK // max(self.variables(X), 1) ** 2),
        )
        return [slice(at, min(at + size, count)) for at in range(0, count, size)]

    def variables(self, X: Tensor) -> int:
        """How many numbers of X a term depends on."""
        return self.indices.shape[1] * X.shape[1:].numel()

    @property
    def weight(self) -> Any:
        return self.constants["weight"]

    def evaluate(self, derivative: Derivative, X: Tensor, part: slice) -> Tensor:
        """(t, ...) the values of some terms, or a derivative of each, times the weight."""
        indices = self.indices[part]

        def gathered(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, indices.reshape(-1)).reshape(
                *indices.shape, *tensor.shape[1:]
            )

        arguments = [gathered(X)]
        if self.constants["per_variable"] is not None:
            arguments.append(tree_map(gathered, self.constants["per_variable"]))
        if self.constants["per_term"] is not None:
            arguments.append(tree_map(lambda tensor: tensor[part], self.constants["per_term"]))
        leaves, tree = tree_flatten(arguments)
        batched = vmap(self._checked_summand(X.dtype))

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
            result = Recomputed.apply(function, *leaves)
        else:
            result = function(*leaves)
        return (
            result if isinstance(self.weight, float) and self.weight == 1 else self.weight * result
        )

    def _checked_summand(self, dtype: torch.dtype) -> Callable[..., Tensor]:
        summand = self.summand

        def checked(*arguments: Any) -> Tensor:
            term = summand(*arguments)
            if not isinstance(term, Tensor) or term.dim() != 0:
                what = (
                    f"shape {tuple(term.shape)}"
                    if isinstance(term, Tensor)
                    else f"type {type(term).__name__}"
                )
                raise ShapeError(
                    f"the summand returned something of {what}; expected a tensor of shape (), one term"
                )
            if term.dtype != dtype:
                raise DtypeError(
                    f"the summand returned {term.dtype} for variables of {dtype}; convert its constants"
                )
            return term

        return checked

    def _captures(self, leaves: list[Tensor], tree: Any) -> bool:
        """Whether the summand uses tensors that require gradients, besides its arguments."""
        with torch.enable_grad():
            one = tree_unflatten([leaf[0].detach() for leaf in leaves], tree)
            term = self.summand(*one)
            return isinstance(term, Tensor) and term.requires_grad


class Recomputed(Function):
    """A function of which the graph keeps the arguments only; its backward computes the rest again.

    So what many chunks need in between is never in memory at the same time. Tensors that the function uses besides its
    arguments are not kept; if they are changed meanwhile, a sum of what is computed again shows it.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*arguments)
        result = function(*arguments)
        ctx.sum = result.sum()
        return result

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        wanted = ctx.needs_input_grad[1:]
        recorded = torch.is_grad_enabled()  # then the gradients are differentiable, too
        with torch.enable_grad():
            arguments = ctx.saved_tensors
            if not recorded:
                pairs = zip(arguments, wanted, strict=True)
                arguments = tuple(
                    argument.detach().requires_grad_(wants) for argument, wants in pairs
                )
            result = ctx.function(*arguments)
            tolerance = torch.finfo(result.dtype).eps ** 0.5 * result.detach().abs().sum()
            if bool((result.detach().sum() - ctx.sum).abs() > tolerance):  # not so for NaN
                raise ValueChangedError(
                    "a tensor that the summand uses was changed in place before the backward"
                )
            if not result.requires_grad:
                return (None, *(None for _ in arguments))
            inputs = [argument for argument, wants in zip(arguments, wanted, strict=True) if wants]
            found = iter(
                torch.autograd.grad(result, inputs, bar, create_graph=recorded, allow_unused=True)
            )
        return (None, *(next(found) if wants else None for wants in wanted))


def is_parameter(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and is_differentiable(leaf)


def check_constants(name: str, tree: Any, count: int, device: torch.device) -> None:
    for leaf in tree_leaves(tree) if tree is not None else ():
        if not isinstance(leaf, Tensor) or leaf.layout != torch.strided:
            raise LayoutError(f"{name} holds a {type(leaf).__name__}; expected dense torch tensors")
        if leaf.dim() == 0 or leaf.shape[0] != count:
            raise ShapeError(f"{name} has shape {tuple(leaf.shape)}; expected ({count}, ...)")
        if leaf.device != device:
            raise DeviceError(f"{name} is on {leaf.device}, the indices are on {device}")
