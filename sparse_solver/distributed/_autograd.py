"""The distributed solve and the exchange of numbers as autograd Functions, to any order.

The formulas are those of `_solve.adjoint`: b̄ = λ = A⁻ᴴ x̄ and v̄ = −λ_i conj(x_j). Each rank has
λ_i for the rows i of its entries, but the x_j of a column j may be on another rank: `Rows.extend`
fetches it, and the adjoint of that is `Rows.fold`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from .._factor.accuracy.checked_factor import InverseOperator
from .._sparse.kernels import Places, apply_adjoint
from .._torch.modes import is_recorded, materialize
from ._halo_exchange import Rows
from ._reductions import make_anchor, name_backward, refuse_transforms


def apply_inverse(
    values: Tensor,
    rhs: Tensor,
    factor: InverseOperator,
    rows: Rows,
    transpose: bool,
    recorded: bool,
    strict: bool = True,
) -> Tensor:
    """A⁻¹ or A⁻ᵀ applied to the rows of `rhs` (k, n), after the ranks have agreed.

    recorded : whether any rank records the call
    strict : as for `CheckedFactor.apply_inverse`
    """
    if not recorded:
        return _substitute(rhs, factor, rows, transpose, strict)
    x: Tensor = _Solve.apply(values, rhs, make_anchor(True), factor, rows, transpose, strict)
    return x


def _substitute(
    rhs: Tensor, factor: InverseOperator, rows: Rows, transpose: bool, strict: bool
) -> Tensor:
    with rows.group.collective():
        return factor.apply_inverse(materialize(rhs).contiguous(), transpose, strict)


class _Solve(Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        rhs: Tensor,
        anchor: Tensor,
        factor: InverseOperator,
        rows: Rows,
        transpose: bool,
        strict: bool,
    ) -> Tensor:
        x = _substitute(rhs, factor, rows, transpose, strict)
        ctx.save_for_backward(values, x)
        ctx.factor, ctx.rows, ctx.transpose, ctx.call = factor, rows, transpose, rows.group.calls
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        rows, transpose = ctx.rows, ctx.transpose

        def check() -> tuple[Tensor, Tensor]:
            refuse_transforms(x_bar)
            values, x = ctx.saved_tensors  # raises if they were changed in place, or released
            return values, x

        (values, x), (recorded, wants_values) = rows.group.agree(
            name_backward("solve", ctx.call),
            check,
            any_of=lambda saved: (is_recorded(x_bar, *saved), ctx.needs_input_grad[0]),
        )
        adjoint = ctx.factor, rows, not transpose, recorded
        lam = apply_inverse(values, x_bar.conj(), *adjoint, strict=False).conj()
        values_bar = None
        if wants_values:  # on any rank, since the exchange is collective
            left, right = (_extend(lam, rows), x) if transpose else (lam, _extend(x, rows))
            structure = rows.structure
            places = Places(structure.rows, structure.cols, None, structure).of(transpose)
            values_bar = apply_adjoint(left, right, places, -1.0)
        return (values_bar if ctx.needs_input_grad[0] else None), lam, None, None, None, None, None


def _extend(x: Tensor, rows: Rows) -> Tensor:
    """`Rows.extend`, differentiable."""
    return _exchange(_Extend, "extend", x, rows)


def _exchange(function: type[_Extend] | type[_Fold], name: str, x: Tensor, rows: Rows) -> Tensor:
    """Apply the function after the ranks have agreed."""
    _, (recorded, _) = rows.group.agree(
        name, lambda: refuse_transforms(x), any_of=lambda _: (is_recorded(x),)
    )
    result: Tensor = function.apply(x, make_anchor(recorded), rows)
    return result


class _Extend(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, rows: Rows) -> Tensor:
        ctx.rows, ctx.call = rows, rows.group.calls
        with rows.group.collective():
            return rows.extend(materialize(x))

    @staticmethod
    def backward(ctx: Any, y_bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        return _exchange(_Fold, name_backward("extend", ctx.call), y_bar, ctx.rows), None, None


class _Fold(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, rows: Rows) -> Tensor:
        ctx.rows, ctx.call = rows, rows.group.calls
        with rows.group.collective():
            return rows.fold(materialize(y))

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        return _exchange(_Extend, name_backward("fold", ctx.call), x_bar, ctx.rows), None, None
