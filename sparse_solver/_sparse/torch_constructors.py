"""The derivatives of torch's constructors of sparse tensors, made differentiable.

The backward pass of `torch.sparse_coo_tensor` is not recorded by autograd, and that of the
compressed layouts raises an error when it is: second derivatives in the values would lack terms
without notice, or fail. A hook at the node of the constructor computes the same gradient by
operations that are differentiable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_CONSTRUCTORS = ("SparseCooTensor", "SparseCompressedTensor")
# The nodes that are searched: a tensor may have been coalesced, converted, scaled or added to
# others since it was made.
_SEARCHED = 8

# The values at the places of a tensor that are asked for of a gradient.
Sample = Callable[[Tensor, Tensor], Tensor]


def repair_constructors(A: Tensor, sample: Sample) -> None:
    """Let ``sample(gradient, made)`` be the gradient in the values of the tensors `made` for A."""
    waiting, searched = deque([A.grad_fn]), 0
    while waiting and searched < _SEARCHED:
        node: Any = waiting.popleft()
        if node is None:
            continue
        searched += 1
        if not node.name().startswith(_CONSTRUCTORS):
            waiting.extend(function for function, _ in node.next_functions)
        elif __name__ not in node.metadata:
            try:
                made = node._saved_result.detach()
            except RuntimeError:  # a backward pass has released it: no other one follows
                continue
            node.metadata[__name__] = node.register_hook(_make_hook(made, sample))


def _make_hook(made: Tensor, sample: Sample) -> Callable[..., Any]:

    def differentiate(inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> Any:
        """The gradients of the constructor's inputs, of which only the values have one."""
        if not torch.is_grad_enabled() or outputs[0] is None or not outputs[0].requires_grad:
            return None
        return tuple(None if bar is None else sample(outputs[0], made) for bar in inputs)

    return differentiate
