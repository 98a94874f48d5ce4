"""The equations that Newton's method solves, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._factor.factors import Factors
from .._factor.problem import Problem
from .._solve.shapes import solve_values
from .._sparse.index_checks import describe_type
from .._sparse.kernels import Places, apply
from ..errors import ShapeError, SingularMatrixError, ValueChangedError

CHANGED = (
    "a tensor that {} depends on was changed in place between the solution and its derivative; "
    "clone it before it is changed"
)


@dataclass(frozen=True, eq=False)
class Equations:
    """r(x, θ) = 0.

    residual : r, with as many entries as x, from x and the parameters θ
    jacobian_values : the values of J on the problem's structure, from the same
    parameters : θ
    problem : the structure, how it is factored, and which entries of x.reshape(-1) are not fixed
    name : what r is called in error messages
    jacobian_name : what J is called there
    hint : how tensors on which r depends are to be passed
    """

    residual: Callable[..., Tensor]
    jacobian_values: Callable[..., Tensor]
    parameters: tuple[Tensor, ...]
    problem: Problem
    name: str
    jacobian_name: str
    hint: str

    def flatten(self, residual: Any) -> Tensor:
        """The residual as a detached vector (n,), zero where entries of x are fixed."""
        n, submatrix = self.problem.structure.shape[0], self.problem.submatrix
        if not isinstance(residual, Tensor) or residual.numel() != n:
            given = tuple(residual.shape) if isinstance(residual, Tensor) else None
            what = f"has shape {given}" if given is not None else f"is {describe_type(residual)}"
            expected = f"expected a tensor of the shape of x0, with {n} entries"
            raise ShapeError(f"{self.name} {what}; {expected}")
        r = residual.detach().reshape(-1)
        return r if submatrix is None else r.index_fill(0, submatrix.removed, 0.0)

    def multiply_moduli(self, values: Tensor, x: Tensor) -> Tensor:
        """(n,) |J| |x|; rounding errors of x change the residual by at most ε times that."""
        structure = self.problem.structure
        places = Places(structure.rows, structure.cols)
        return apply(values.abs(), x.reshape(1, -1).abs(), places).squeeze(0)

    def check_unchanged(self, residual: Tensor, before: Tensor, values: Tensor, x: Tensor) -> None:
        """Raise ValueChangedError if the residual at x differs from `before`, up to rounding.

        Tensors that r uses without listing them as parameters may have been overwritten, which
        autograd does not detect.
        """
        largest = (self.multiply_moduli(values, x) + before.abs()).max()
        tolerance = torch.finfo(x.dtype).eps ** 0.5 * largest  # half the digits
        if not bool(((residual - before).abs() <= tolerance).all()):
            raise ValueChangedError(CHANGED.format(self.name))

    def apply_inverse(self, values: Tensor, rhs: Tensor, factors: Factors) -> Tensor:
        """J⁻¹ applied to the vector `rhs`; zero at fixed entries."""
        return solve_values(self.problem, values, rhs, factors=factors)

    def try_inverse(self, values: Tensor, rhs: Tensor, factors: Factors) -> Tensor | None:
        """J⁻¹ applied to `rhs`, or None where no digit of the result would be correct."""
        try:
            return self.apply_inverse(values, rhs, factors)
        except SingularMatrixError:
            return None


@dataclass(frozen=True, eq=False)
class Solution:
    """What Newton's method found.

    residual : (n,) the residual at x, zero where entries of x are fixed
    values, factors : the values of the Jacobian at x, and its factor; None if it is singular
    """

    x: Tensor
    residual: Tensor
    values: Tensor
    factors: Factors | None
