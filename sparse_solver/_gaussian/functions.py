"""The derivatives of the log-determinant and of the selected inverse Z, the entries of A⁻¹.

    d log det A = tr(Z dA),    dZ = -Z dA Z

Stored entries are independent variables, so that the gradient of the log-determinant at (i, j) is
Z_ji = Z_ij; with one triangle stored, an entry off the diagonal stands for two. The matrix is
symmetric, hence only the symmetric part of a cotangent V of Z matters, and that of a direction dA:
the gradient is -Z sym(V) Z. (M. B. Giles, "Collected matrix derivative results for forward and
reverse mode algorithmic differentiation", 2008, sections 2.2.3 and 2.2.4.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import pad

from .._factor.factors import Factors
from .._solve.shapes import solve_values
from .._sparse.kernels import apply
from .._sparse.values import CPU, to_double
from ..errors import OptionError
from .entries import spread_blocks, sum_blocks, weigh
from .factors import InverseFactors

# Columns of the inverse that derivatives compute at once.
COLUMNS = 64


class OfValues(Function):
    """A Function of the values of matrices and their factors, also of those that vmap adds."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        values, ctx.factors = inputs
        ctx.save_for_backward(values)
        ctx.save_for_forward(values)

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, values: Tensor, factors: Any) -> Any:  # type: ignore[override] # static in torch, which calls it by the class
        found = cls.apply(fold_values(values, in_dims[0]), factors.batched())
        lead = values.movedim(in_dims[0], 0).shape[:-1]
        if isinstance(found, tuple):
            return tuple(each.view(*lead, each.shape[-1]) for each in found), (0,) * len(found)
        return found.view(*lead, found.shape[-1]), 0


class LogDeterminant(OfValues):
    """(..., blocks) log det of the blocks of A, for `values` (nnz,) or (B, nnz)."""

    @staticmethod
    def forward(values: Tensor, factors: InverseFactors) -> Tensor:
        return factors.sum_log_pivots(values).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        (values,), factors = ctx.saved_tensors, ctx.factors
        return spread_blocks(factors.structure, bar) * _gradient(values, factors), None

    @staticmethod
    def jvp(ctx: Any, values_dot: Tensor, _: None) -> Tensor:  # type: ignore[override] # likewise
        (values,), factors = ctx.saved_tensors, ctx.factors
        changes = values_dot * _gradient(values, factors)
        return sum_blocks(factors.structure, changes, factors.blocks)


def _gradient(values: Tensor, factors: InverseFactors) -> Tensor:
    inverse: Tensor = SelectedInverse.apply(values, factors)
    return weigh(inverse, factors.entries.on_diagonal, 2 if factors.is_half else 1)


class SelectedInverse(OfValues):
    """The entries of A⁻¹ at the stored places, for `values` (nnz,) or (B, nnz)."""

    @staticmethod
    def forward(values: Tensor, factors: InverseFactors) -> Tensor:
        return factors.entries.unfold(factors.invert(values)).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        (values,), factors = ctx.saved_tensors, ctx.factors
        entries = factors.entries
        upper = PerturbedInverse.apply(values, entries.fold(bar, 0.5), factors)
        gradient = entries.unfold(upper)
        return weigh(gradient, entries.on_diagonal, 2 if factors.is_half else 1), None

    @staticmethod
    def jvp(ctx: Any, values_dot: Tensor, _: None) -> Tensor:  # type: ignore[override] # likewise
        (values,), factors = ctx.saved_tensors, ctx.factors
        direction = factors.entries.fold(values_dot, 1 if factors.is_half else 0.5)
        change: Tensor = factors.entries.unfold(PerturbedInverse.apply(values, direction, factors))
        return change


class PerturbedInverse(Function):
    """The upper entries of -A⁻¹ V A⁻¹, for the upper entries of a symmetric V.

    `values` (nnz,) with `upper` (..., count), or (B, nnz) with (B, ..., count).
    """

    @staticmethod
    def forward(values: Tensor, upper: Tensor, factors: InverseFactors) -> Tensor:
        return factors.perturb_inverse(values, upper).to(values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, upper, ctx.factors = inputs
        ctx.save_for_backward(values, upper)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        (values, upper), factors = ctx.saved_tensors, ctx.factors
        values_bar = upper_bar = None
        if ctx.needs_input_grad[1]:
            # An entry off the diagonal stands for two, in V and in the result.
            on_diagonal = factors.entries.upper_on_diagonal
            halved = PerturbedInverse.apply(values, weigh(bar, on_diagonal, 0.5), factors)
            upper_bar = weigh(halved, on_diagonal, 2)
        if ctx.needs_input_grad[0]:
            values_bar = _differentiate_by_solves(values, upper, bar, factors)
        return values_bar, upper_bar, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, values: Tensor, upper: Tensor, factors: InverseFactors
    ) -> tuple[Tensor, int]:
        values_dim, upper_dim, _ = in_dims
        if values_dim is None:  # more directions for each matrix
            at = values.dim() - 1
            result = PerturbedInverse.apply(values, upper.movedim(upper_dim, at), factors)
            return result, at
        size = info.batch_size
        upper = (
            upper.expand(size, *upper.shape) if upper_dim is None else upper.movedim(upper_dim, 0)
        )
        rest = upper.shape[values.dim() - 1 :]  # without the batch dimensions of the values
        folded = fold_values(values, values_dim)
        result = PerturbedInverse.apply(
            folded, upper.reshape(len(folded), *rest), factors.batched()
        )
        return result.view(upper.shape), 0


def fold_values(values: Tensor, dim: int) -> Tensor:
    """(B, nnz) values of all matrices, where vmap has one more dimension."""
    moved = values.movedim(dim, 0)
    return moved.reshape(moved.shape[:-1].numel(), moved.shape[-1])


def unit_rows(low: int, high: int, n: int, dtype: torch.dtype) -> Tensor:
    """(high - low, n) the rows of the identity with these numbers."""
    return pad(torch.eye(high - low, dtype=dtype, device=CPU), (low, n - high))


def _differentiate_by_solves(
    values: Tensor, upper: Tensor, bar: Tensor, factors: InverseFactors
) -> Tensor:
    """The gradient in `values` of the entries of -A⁻¹ V A⁻¹, by solves with all unit vectors.

    The solves are differentiable, so that derivatives of any order follow.
    """
    check_solves(
        2 * factors.n,
        factors.max_solves,
        "two for each row of the matrix that is factored",
        "take at most two derivatives of a log-determinant and one of a selected inverse",
    )
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # A copy, so that only this expression is differentiated, and not what led to `upper`.
        own = to_double(values).clone()
        own = own if own.requires_grad else own.requires_grad_()
        shape = *values.shape[:-1], -1, upper.shape[-1]
        pairs = to_double(upper).reshape(shape), to_double(bar).reshape(shape)
        total = own.new_zeros(())
        solver = Factors(factors.problem)
        for direction, weights in zip(*(pair.unbind(-2) for pair in pairs), strict=True):
            total = total + _pair_by_solves(own, direction, weights, factors, solver)
        (gradient,) = torch.autograd.grad(total, own, create_graph=create_graph)
    return gradient.to(values.dtype)


def check_solves(count: int, most: int, reason: str, advice: str) -> None:
    """Raise OptionError where a derivative takes more solves than are allowed."""
    if count > most:
        raise OptionError(
            f"this derivative takes {count} solves, {reason}, and max_solves={most}: pass a larger "
            f"max_solves=, or {advice}"
        )


def _pair_by_solves(
    values: Tensor, upper: Tensor, weights: Tensor, factors: InverseFactors, solver: Factors
) -> Tensor:
    """Σ weights · (-A⁻¹ V A⁻¹), over the upper entries."""
    problem, places, n = factors.problem, factors.upper_places, factors.n
    total = values.new_zeros(())
    for low in range(0, n, COLUMNS):
        high = min(n, low + COLUMNS)
        unit = unit_rows(low, high, n, torch.float64).mT
        unit = unit.expand(*values.shape[:-1], *unit.shape)
        columns = solve_values(problem, values, unit, factors=solver)
        product = apply(upper, columns.mT, places).mT
        columns = solve_values(problem, values, product, factors=solver)
        chosen = torch.nonzero((places.cols >= low) & (places.cols < high)).squeeze(-1)
        numbers = columns[..., places.rows[chosen], places.cols[chosen] - low]
        total = total - (weights[..., chosen] * numbers).sum()
    return total
