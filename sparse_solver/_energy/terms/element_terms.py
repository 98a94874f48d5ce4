"""The terms of one summand: their values and derivatives, chunk by chunk, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ..._torch.modes import is_differentiable, is_transformed
from ...errors import ShapeError
from .element_derivatives import Function as TermFunction
from .recomputation import Recompute
from .summand_checks import check_summand, check_term, run_summand

# Entries of element Hessians that are computed at once: larger arrays are not faster.
_CHUNK_ENTRIES = 2**22

Derivative = Callable[[TermFunction, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of one summand: weight · Σ_i summand(X[e_i], per_variable[e_i], per_term_i).

    The weight is the product of some factors, divided by some divisors.

    indices : (terms, locals) int64, with rows e_i
    constants : "per_variable", "per_term", and the tuples "factors" and "divisors"
    chunk_size : how many terms are computed at once; None for a size of bounded memory
    checked : not empty after `check_summand`, also for the same summand with other constants
    """

    summand: Callable[..., Tensor]
    indices: Tensor
    constants: dict[str, Any]
    chunk_size: int | None
    checked: list[bool] = field(default_factory=list)

    def scale(self, how: str, number: float | Tensor) -> Terms:
        """The terms with one more of the "factors" or "divisors", which are not copied."""
        if isinstance(number, Tensor) and how == "factors" and not _is_number(number):
            what = f"a tensor of {number.dtype} and shape {tuple(number.shape)}"
            raise ShapeError(f"an energy times {what}; expected a floating-point scalar")
        numbers = (*self.constants[how], number)
        return replace(self, constants=self.constants | {how: numbers})

    def exchange(self, new: dict[int, Tensor]) -> Terms:
        """The terms with other constants, which are listed by the id of those that they replace."""
        constants = tree_map(lambda leaf: new.get(id(leaf), leaf), self.constants)
        return replace(self, constants=constants)

    def split(self, X: Tensor) -> list[slice]:
        """The slices of terms that are computed at once."""
        variables = self.indices.shape[1] * X.shape[1:].numel()  # of a term
        count, size = self.indices.shape[0], self.chunk_size
        size = size or max(1, _CHUNK_ENTRIES // max(variables, 1) ** 2)
        return [slice(at, min(at + size, count)) for at in range(0, count, size)]

    def evaluate(self, derivative: Derivative, X: Tensor, chunk: slice) -> Tensor:
        """(t, ...) a derivative of each term of a chunk, times the weight."""
        indices = self.indices[chunk]

        def gather(tensor: Tensor) -> Tensor:
            rows = tensor.index_select(0, indices.reshape(-1))
            return rows.reshape(*indices.shape, *tensor.shape[1:])

        arguments = [gather(X)]
        if self.constants["per_variable"] is not None:
            arguments.append(tree_map(gather, self.constants["per_variable"]))
        if self.constants["per_term"] is not None:
            arguments.append(tree_map(lambda tensor: tensor[chunk], self.constants["per_term"]))
        leaves, tree = tree_flatten(arguments)
        batched = self._map_summand(X.dtype)

        def first() -> Any:
            return tree_unflatten([leaf[0].detach().clone() for leaf in leaves], tree)

        if not self.checked and not is_transformed(*leaves):
            check_summand(self.summand, first())
            self.checked.append(True)

        def function(x: Tensor, *constants: Tensor) -> Tensor:
            return derivative(lambda x: batched(*tree_unflatten([x, *constants], tree)), x)

        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                result = function(*(leaf.clone() for leaf in leaves))
        elif is_transformed(*leaves) or not torch.is_grad_enabled() or self._captures(first()):
            result = function(*leaves)
        elif not any(leaf.requires_grad for leaf in leaves):
            with torch.no_grad():
                result = function(*leaves)
        elif len(indices) < len(self.indices):
            result = Recompute.apply(function, *leaves)
        else:
            result = function(*leaves)
        return self._weigh(result)

    def _weigh(self, result: Tensor) -> Tensor:
        """The result times the weight, whose tensors may have been updated in place meanwhile."""
        factors, divisors = self.constants["factors"], self.constants["divisors"]
        result = math.prod(factors) * result if factors else result
        for divisor in divisors:
            result = result / divisor
        return result

    def _map_summand(self, dtype: torch.dtype) -> Callable[..., Tensor]:
        """The summand of many terms at once, with checks; it may change its arguments in place."""

        def call(*arguments: Any) -> Tensor:
            copies = tree_map(torch.clone, arguments)
            return check_term(run_summand(self.summand, copies), dtype)

        return vmap(call)

    def _captures(self, arguments: Any) -> bool:
        """Whether the summand uses tensors that require gradients, besides its arguments."""
        with torch.enable_grad():
            term = run_summand(self.summand, arguments)
            return isinstance(term, Tensor) and term.requires_grad


def _is_number(tensor: Tensor) -> bool:
    return tensor.dim() == 0 and tensor.is_floating_point()


def is_parameter(leaf: Any) -> bool:
    """Whether a constant is a tensor that can be differentiated in."""
    return isinstance(leaf, Tensor) and is_differentiable(leaf)
