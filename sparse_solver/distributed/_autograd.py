"""The distributed solve and the exchange of its gradient as functions of torch, differentiable to any order.

The formulas are those of `_rules`: b̄ = λ = A⁻ᴴ x̄ and v̄ = −λ_i conj(x_j). Rank by rank, λ_i is at hand for the rows i of its
entries, and x_j is that of a column j which another rank may have: `Rows.extend` asks for it, and its adjoint, `Rows.fold`,
gives back.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from .._factor.accuracy import InverseOperator
from .._sparse.kernels import Places, apply_adjoint
from .._torch.modes import is_recorded, materialize
from ._halo_exchange import Rows
from ._reductions import anchored, backward_name, check_plain


def solve(
    values: Tensor,
    rhs: Tensor,
    factor: InverseOperator,
    rows: Rows,
    transpose: bool,
    recorded: bool,
    strict: bool = True,
) -> Tensor:
    """A⁻¹ or A⁻ᵀ applied to the rows of `rhs` (k, n), after the ranks have agreed; `recorded`: whether any of them records it."""
    if not recorded:
        with rows.group.collective():
            return factor.apply_inverse(materialize(rhs).contiguous(), transpose, strict)
    x: Tensor = _Solve.apply(values, rhs, anchored(recorded), factor, rows, transpose, strict)
    return x


class _Solve(Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        values: Tensor,
        rhs: Tensor,
        anchor: Tensor,
        factor: InverseOperator,
        rows: Rows,
        transpose: bool,
        strict: bool,
    ) -> Tensor:
        with rows.group.collective():
            x = factor.apply_inverse(materialize(rhs).contiguous(), transpose, strict)
        ctx.save_for_backward(values, x)
        ctx.factor, ctx.rows, ctx.transpose, ctx.call = factor, rows, transpose, rows.group.calls
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, transpose = ctx.rows, ctx.transpose

        def check() -> tuple[Tensor, Tensor]:
            check_plain(x_bar)
            values, x = ctx.saved_tensors  # raises where they were changed in place, or released
            return values, x

        (values, x), (recorded, wanted) = rows.group.agree(
            backward_name("solve", ctx.call),
            check,
            any_of=lambda saved: (is_recorded(x_bar, *saved), ctx.needs_input_grad[0]),
        )
        lam = solve(
            values, x_bar.conj(), ctx.factor, rows, not transpose, recorded, strict=False
        ).conj()
        values_bar = None
        if wanted:
            left, right = (_extended(lam, rows), x) if transpose else (lam, _extended(x, rows))
            structure = rows.structure
            places = Places(structure.rows, structure.cols, None, structure)
            values_bar = apply_adjoint(left, right, places.of(transpose), -1.0)
        return (values_bar if ctx.needs_input_grad[0] else None), lam, None, None, None, None, None


def _extended(x: Tensor, rows: Rows) -> Tensor:
    return _exchanged(_Extend, "extend", x, rows)


def _exchanged(function: type[_Extend] | type[_Fold], name: str, x: Tensor, rows: Rows) -> Tensor:
    _, (recorded, _) = rows.group.agree(
        name, lambda: check_plain(x), any_of=lambda _: (is_recorded(x),)
    )
    result: Tensor = function.apply(x, anchored(recorded), rows)
    return result


class _Extend(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, rows: Rows) -> Tensor:  # type: ignore[override]
        ctx.rows, ctx.call = rows, rows.group.calls
        with rows.group.collective():
            return rows.extend(materialize(x))

    @staticmethod
    def backward(ctx: Any, y_bar: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _exchanged(_Fold, backward_name("extend", ctx.call), y_bar, ctx.rows), None, None


class _Fold(Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, rows: Rows) -> Tensor:  # type: ignore[override]
        ctx.rows, ctx.call = rows, rows.group.calls
        with rows.group.collective():
            return rows.fold(materialize(y))

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _exchanged(_Extend, backward_name("fold", ctx.call), x_bar, ctx.rows), None, None
