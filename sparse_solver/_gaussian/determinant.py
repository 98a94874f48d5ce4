"""The derivatives of the phase s and of the logarithm l of the modulus of the determinant.

With S = A⁻¹ and t = tr(S dA) = Σ S_ji dA_ij,

    dl = Re t,    ds = i s Im t.

With the cotangents l̄ and s̄, and c = l̄ + i Im(conj(s) s̄), Re(l̄ dl) + Re(conj(s̄) ds) = Re(conj(c) t),
so that the gradient at (i, j) is c conj(S_ji). Where one triangle is stored, an entry v off the
diagonal also stands at (j, i): as v ("symmetric"), which doubles that since then S_ij = S_ji, or as
conj(v) ("hermitian"), which adds conj(c) S_ij = conj(c) conj(S_ji).

The entries S_ji at the stored places (i, j) are a function of the values themselves. A cotangent W,
which stands at the places (j, i), has the gradient -Sᴴ W Sᴴ, and a direction dA gives -S dA S. Both
are computed by solves with all unit vectors and by differentiable operations, so that derivatives
of any order follow. (M. B. Giles, "Collected matrix derivative results for forward and reverse mode
algorithmic differentiation", 2008, sections 2.2.3 and 2.2.4.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._factor.lifetime import token_of
from .._solve.autograd import apply_solve
from .._sparse.kernels import Places, apply
from .determinant_factors import DeterminantFactors
from .entries import spread_blocks, sum_blocks
from .functions import COLUMNS, OfValues, check_solves, unit_rows


class SignAndLogarithm(OfValues):
    """(..., blocks) s and l of the blocks of A, for `values` (nnz,) or (B, nnz)."""

    @staticmethod
    def forward(values: Tensor, factors: DeterminantFactors) -> tuple[Tensor, Tensor]:
        found = factors.find(values)
        return found.phases.clone(), found.logarithms.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        values, ctx.factors = inputs
        ctx.save_for_backward(values, output[0])
        ctx.save_for_forward(values, output[0])

    @staticmethod
    def backward(ctx: Any, sign_bar: Tensor, log_bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        (values, sign), factors = ctx.saved_tensors, ctx.factors
        c = log_bar
        if values.is_complex():
            c = torch.complex(log_bar, (sign.conj() * sign_bar).imag)
        c = spread_blocks(factors.problem.structure, c)
        inverse = InverseEntries.apply(values, factors).conj()
        c = c.expand(inverse.shape)
        return (c + _mirror(c, _places_of(values, factors))) * inverse, None

    @staticmethod
    def jvp(ctx: Any, values_dot: Tensor, _: None) -> tuple[Tensor, Tensor]:  # type: ignore[override] # likewise
        (values, sign), factors = ctx.saved_tensors, ctx.factors
        changes = InverseEntries.apply(values, factors) * values_dot
        changes = changes + _mirror(changes, _places_of(values, factors))
        trace = sum_blocks(factors.problem.structure, changes, factors.blocks)
        if not values.is_complex():
            return torch.zeros_like(sign), trace
        return torch.complex(-trace.imag * sign.imag, trace.imag * sign.real), trace.real


class InverseEntries(OfValues):
    """The entries (A⁻¹)_ji at the stored places (i, j), for `values` (nnz,) or (B, nnz)."""

    @staticmethod
    def forward(values: Tensor, factors: DeterminantFactors) -> Tensor:
        inverse = factors.find(values).inverse
        if inverse is not None:  # of a Hermitian matrix
            return inverse.selected_inverse().conj().resolve_conj()
        _check(factors, factors.n, "one for each row")
        places = _places_of(values, factors)
        (entries,) = _find_entries(values, factors, [places.of(True)])
        return entries

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        (values,), factors = ctx.saved_tensors, ctx.factors
        _check(factors, 2 * factors.n, "two for each row")
        places = _places_of(values, factors)
        middle = bar, Places(places.cols, places.rows)
        wanted = [places] if places.mirror is None else [places, places.of(True)]
        found = _find_entries(values, factors, wanted, middle, adjoint=True)
        return -(found[0] + _mirror(found[-1], places)), None

    @staticmethod
    def jvp(ctx: Any, values_dot: Tensor, _: None) -> Tensor:  # type: ignore[override] # likewise
        (values,), factors = ctx.saved_tensors, ctx.factors
        _check(factors, 2 * factors.n, "two for each row")
        places = _places_of(values, factors)
        (change,) = _find_entries(values, factors, [places.of(True)], (values_dot, places))
        return -change


def _mirror(numbers: Tensor, places: Places) -> Tensor:
    """What entries that also stand at the opposite place add: these numbers or their conjugates."""
    if places.mirror is None:
        return torch.zeros_like(numbers)
    opposite = numbers.conj() if places.mirror == "hermitian" else numbers
    return opposite.masked_fill(places.rows == places.cols, 0)


def _places_of(values: Tensor, factors: DeterminantFactors) -> Places:
    return factors.problem.places(values.dtype, False)


def _check(factors: DeterminantFactors, count: int, reason: str) -> None:
    advice = (
        "use logdet if the matrix is positive definite, whose first two derivatives take no solve"
    )
    check_solves(count, factors.max_solves, f"{reason} of the matrix", advice)


def _find_entries(
    values: Tensor,
    factors: DeterminantFactors,
    wanted: list[Places],
    middle: tuple[Tensor, Places] | None = None,
    adjoint: bool = False,
) -> list[Tensor]:
    """(..., nnz) entries of S, or of S V S for the matrix V with these values and places.

    S is A⁻¹, or A⁻ᴴ if `adjoint`. The columns of S are found some at a time; those of all matrices
    with different patterns together.
    """
    problem, n = factors.problem, factors.n
    token = token_of(factors.solver)

    def solve(rows: Tensor) -> Tensor:
        if not adjoint:
            return apply_solve(values, token, problem, False, rows)
        return apply_solve(values, token, problem, True, rows.conj()).conj()

    columns = [places.cols % max(1, n) for places in wanted]
    orders = [torch.argsort(column, stable=True) for column in columns]
    count = -(-n // COLUMNS)
    sizes = [torch.bincount(column // COLUMNS, minlength=count).tolist() for column in columns]
    parts = [order.split(size) for order, size in zip(orders, sizes, strict=True)]
    pieces: list[list[Tensor]] = [[] for _ in wanted]
    for number in range(count):
        low, high = number * COLUMNS, min(n, (number + 1) * COLUMNS)
        unit = unit_rows(low, high, n, values.dtype).repeat(1, factors.blocks)
        x = solve(unit.expand(*values.shape[:-1], *unit.shape))
        if middle is not None:
            x = solve(apply(middle[0], x, middle[1]))
        for piece, places, column, part in zip(pieces, wanted, columns, parts, strict=True):
            chosen = part[number]
            piece.append(x[..., column[chosen] - low, places.rows[chosen]])
    return [_reorder(piece, order, values) for piece, order in zip(pieces, orders, strict=True)]


def _reorder(pieces: list[Tensor], order: Tensor, values: Tensor) -> Tensor:
    """The numbers of these pieces, which are in this order, in the order of the values."""
    if not pieces:
        return torch.zeros_like(values)
    return torch.cat(pieces, -1).index_select(-1, torch.argsort(order))
