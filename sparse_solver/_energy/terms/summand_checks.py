"""What a summand may do: advice in place of torch's errors, and no changes of captured tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from ..._sparse.index_checks import describe_type
from ..._torch.modes import is_differentiable
from ...errors import DtypeError, ShapeError, SparseSolverError, TransformError

# What torch.vmap's errors contain, and what the summand did, with advice. The first match counts.
_ADVICE = {
    "random operation": "draws random numbers, which differ between the energy and its "
    "derivatives; draw them once, and pass them as per_term=",
    "data-dependent control flow": "branches on the values of tensors, which differ from term to "
    "term; compute both cases, and choose by torch.where",
    ".item()": "converts a tensor to a number (by .item(), float() or int()), though its value "
    "differs from term to term; compute with the tensor",
    "data pointer": "reads the values of a tensor (by .tolist() or .numpy()), though they differ "
    "from term to term; compute with torch operations only",
    "dynamic shape": "selects a number of entries that depends on their values; choose by "
    "torch.where, or multiply by a mask",
    "inplace arithmetic": "changes in place a tensor that is the same for all terms; write the "
    "result to a new tensor",
    "vmap": "uses an operation that torch.vmap, which computes many terms at once, does not "
    "support; write the summand with other torch operations",
}
# Operators that work in place; the names of such methods end with one underscore.
_IN_PLACE = {
    "__setitem__",
    *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "div", "pow")),
}
_IN_PLACE |= {
    f"__i{name}__" for name in ("floordiv", "mod", "and", "or", "xor", "lshift", "rshift")
}
# Added to the arguments of a summand, so that they are not zero.
_DISPLACEMENT = 0.731


def run_summand(summand: Callable[..., Tensor], arguments: Any) -> Any:
    """One term; errors of torch.vmap become a TransformError with advice."""
    try:
        return summand(*arguments)
    except SparseSolverError:
        raise
    except RuntimeError as error:
        advice = next((advice for text, advice in _ADVICE.items() if text in str(error)), None)
        if advice is None:
            raise
        raise TransformError(f"the summand {advice}") from error


def check_term(term: Any, dtype: torch.dtype) -> Tensor:
    """The term as a scalar tensor; raise unless it is a single number of this dtype."""
    if not isinstance(term, Tensor) or term.shape not in ((), (1,)):
        is_tensor = isinstance(term, Tensor)
        what = f"a tensor of shape {tuple(term.shape)}" if is_tensor else describe_type(term)
        raise ShapeError(f"the summand returned {what}; expected one of shape (), one term")
    if term.dtype != dtype:
        message = f"the summand returned {term.dtype} for variables of {dtype}"
        raise DtypeError(f"{message}; convert its constants")
    return term.reshape(())


def check_summand(summand: Callable[..., Tensor], arguments: Any) -> None:
    """Raise TransformError if the summand changes captured tensors, or draws random numbers.

    `torch.vmap` notices neither the former, nor random numbers of Python and NumPy. A random factor
    of zeros does not show, so that the summand is also called with other numbers.
    """
    with torch.no_grad():
        is_equal = _is_repeatable(summand, arguments, 0.0)
        with suppress(Exception):  # the summand may not be defined at other numbers
            is_equal = is_equal and _is_repeatable(summand, arguments, _DISPLACEMENT)
    if not is_equal:
        raise TransformError(f"the summand {_ADVICE['random operation']}")


def _is_repeatable(summand: Callable[..., Tensor], arguments: Any, displacement: float) -> bool:
    """Whether two calls return equal terms, with this number added to all arguments."""

    def displace(leaf: Tensor) -> Tensor:
        return leaf + displacement if is_differentiable(leaf) else leaf.clone()

    terms = []
    for _ in range(2):
        own = tree_map(displace, arguments)
        with _CapturedTensorGuard(own):
            term = run_summand(summand, own)
        terms.append(term.nan_to_num() if isinstance(term, Tensor) else torch.empty(0))
    return torch.equal(*terms)


class _CapturedTensorGuard(TorchFunctionMode):
    """Raises TransformError before a tensor that the summand captured is changed in place."""

    def __init__(self, arguments: Any):
        super().__init__()
        self._own = {id(leaf): leaf for leaf in tree_leaves(arguments)}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        is_in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        changed = [kwargs.get("out"), *args[:1]] if is_in_place else [kwargs.get("out")]
        for leaf in tree_leaves(changed):
            if isinstance(leaf, Tensor) and not self._owns(leaf):
                raise TransformError(
                    f"the summand changes a tensor of shape {tuple(leaf.shape)} in place (by "
                    f"{name}) that is not one of its arguments; write the result to a new tensor"
                )
        result = func(*args, **kwargs)
        given = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        for leaf in tree_leaves(result):
            is_new = isinstance(leaf, Tensor) and id(leaf) not in given
            if is_new and (leaf._base is None or self._owns(leaf._base)):
                self._own[id(leaf)] = leaf
        return result

    def _owns(self, tensor: Tensor) -> bool:
        """Whether the tensor is an argument, or was made by the summand or by its transforms."""
        known = id(tensor) in self._own or id(tensor._base) in self._own
        return known or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
