"""First and second derivatives of many small functions at once.

`function` maps x (t, ...) to (t,) numbers, the i-th of which depends on x_i alone; so the derivatives of their sum are
theirs. It is what vmap makes of one term, and vmap is inside of all derivatives: the other way round, where a derivative is
computed of each term, torch's batched rules get det, slogdet and their like wrong without an error, in forward mode
always, in reverse mode without a graph (seen with torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vjp

from .._torch.modes import is_transformed

Function = Callable[[Tensor], Tensor]


def values(function: Function, x: Tensor) -> Tensor:
    """(t,) the numbers themselves."""
    return function(x)


def gradients(function: Function, x: Tensor) -> Tensor:
    """(t, ...) the gradient of each; recorded for further derivatives if grad mode is enabled."""
    if is_transformed(x):  # these transforms do not see through torch.autograd
        gradient: Tensor = grad(lambda x: function(x).sum())(x)
        return gradient
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        at = _variable(x, recorded)
        return _derivative(function(at).sum(), at, recorded, False)


def hessians(function: Function, x: Tensor) -> Tensor:
    """(t, d, d) the Hessian of each, d = x_i.numel(); recorded likewise."""
    d = x[0].numel()
    if is_transformed(x):
        gradient, pull, *_ = vjp(
            lambda x: grad(lambda x: function(x).sum())(x).reshape(-1, d).sum(0), x
        )
        units = torch.eye(d, dtype=gradient.dtype, device=gradient.device)
        rows = [pull(unit)[0] for unit in units]
    else:
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            at = _variable(x, recorded)
            gradient = _derivative(function(at).sum(), at, True, False).reshape(-1, d).sum(0)
            rows = [_derivative(gradient[j], at, recorded, j + 1 < d) for j in range(d)]
    return torch.stack([row.reshape(-1, d) for row in rows], 1)


def _variable(x: Tensor, recorded: bool) -> Tensor:
    return x.view_as(x) if recorded and x.requires_grad else x.detach().requires_grad_()


def _derivative(y: Tensor, at: Tensor, recorded: bool, again: bool) -> Tensor:
    """∂y/∂at; `again`: whether the graph is needed once more."""
    if not y.requires_grad:
        return torch.zeros_like(at)
    found = torch.autograd.grad(
        y, at, retain_graph=recorded or again, create_graph=recorded, allow_unused=True
    )[0]
    return torch.zeros_like(at) if found is None else found
