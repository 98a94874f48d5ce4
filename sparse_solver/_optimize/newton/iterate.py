"""An iterate of Newton's method for a minimum, with its energy and its direction of descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._sparse.values import probe_vector
from ...errors import ShapeError
from ..equations import Equations
from .hessian_modification import Direction

# Rounding errors of the energy, in units of ε times its size.
_NOISE = 10


def energy_at(energy: Any, X: Tensor) -> float:
    """The energy as a number."""
    with torch.no_grad():
        value = energy.value(X)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ShapeError(f"the energy's value has shape {tuple(value.shape)}; expected a scalar")
    return float(value)


def scatter_signs(X: Tensor) -> Tensor:
    """Scattered signs, of the shape of X."""
    return probe_vector(X.numel(), X.dtype, 0.0, X.device).sign().reshape(X.shape)


class Point:
    """An iterate X with its energy, its gradient as a vector, and a direction of descent.

    slope, decrement : gᵀ d, and ½ λ² = −½ gᵀ d
    noise : a bound of the rounding errors of the energy's value
    hidden_noise : a bound that includes terms which cancel in the value, and which are as large as
        |X|ᵀ|H||X| / 2; mostly much too large
    """

    def __init__(
        self, X: Tensor, value: float, g: Tensor, direction: Direction, equations: Equations
    ):
        self.X, self.value, self.g, self.direction = X, value, g, direction
        self.d = direction.d.reshape(X.shape)
        self.slope = float(g @ direction.d)
        self.decrement = -self.slope / 2
        eps = torch.finfo(X.dtype).eps
        terms = equations.multiply_moduli(direction.hessian, X)
        size = float(X.reshape(-1).abs() @ terms) / 2
        self.noise = _NOISE * eps * abs(value)
        self.hidden_noise = _NOISE * eps * (abs(value) + size)
