"""First and second derivatives of many small functions at once.

`function` maps x (t, ...) to (t,) numbers, of which number i depends on x_i alone, so that the
derivative of their sum holds the derivative of each. It is the vmap of one term, and derivatives
are taken of the vmap. The reverse order, the vmap of a derivative, gives wrong results without an
error for det, slogdet and functions made of them: torch's batched rules are wrong for these in
forward mode, and in reverse mode without a graph (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vjp

from ..._torch.modes import is_transformed

Function = Callable[[Tensor], Tensor]


def compute_values(function: Function, x: Tensor) -> Tensor:
    """(t,) the numbers themselves."""
    return function(x)


def compute_gradients(function: Function, x: Tensor) -> Tensor:
    """(t, ...) the gradient of each number; in a graph if grad mode is enabled."""
    if is_transformed(x):  # these transforms do not differentiate through torch.autograd
        gradient: Tensor = grad(lambda x: function(x).sum())(x)
        return gradient
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        at = _make_variable(x, recorded)
        return _differentiate(function(at).sum(), at, recorded, False)


def compute_hessians(function: Function, x: Tensor) -> Tensor:
    """(t, d, d) the Hessian of each number, with d = x_i.numel(); in a graph if grad mode is on."""
    d = x[0].numel()
    if is_transformed(x):

        def sum_gradients(x: Tensor) -> Tensor:
            gradient: Tensor = grad(lambda x: function(x).sum())(x)
            return gradient.reshape(-1, d).sum(0)

        gradient, pull, *_ = vjp(sum_gradients, x)
        units = torch.eye(d, dtype=gradient.dtype, device=gradient.device)
        rows = [pull(unit)[0] for unit in units]
    else:
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            at = _make_variable(x, recorded)
            gradient = _differentiate(function(at).sum(), at, True, False).reshape(-1, d).sum(0)
            rows = [_differentiate(gradient[j], at, recorded, j + 1 < d) for j in range(d)]
    return torch.stack([row.reshape(-1, d) for row in rows], 1)


def _make_variable(x: Tensor, recorded: bool) -> Tensor:
    """A tensor to differentiate in, connected to x if the derivative is recorded."""
    return x.view_as(x) if recorded and x.requires_grad else x.detach().requires_grad_()


def _differentiate(y: Tensor, at: Tensor, recorded: bool, again: bool) -> Tensor:
    """∂y/∂at; `again` keeps the graph of y for another derivative."""
    if not y.requires_grad:
        return torch.zeros_like(at)
    (found,) = torch.autograd.grad(
        y, at, retain_graph=recorded or again, create_graph=recorded, allow_unused=True
    )
    return torch.zeros_like(at) if found is None else found
