"""The two formulas that all derivatives of a sparse solve are made of, each written once.

Notation. A(v) is the matrix with stored values v at (r_e, c_e), duplicates summed; vectors are the *rows* of
(..., k, n) arrays. `apply` is the bilinear map

    apply(v, x) = A(v) x,         y_i = Σ_{e: r_e = i} v_e x_{c_e},

and `apply_adjoint` its adjoint in v under torch's complex inner product <a, b> = Re Σ conj(a) b, that is

    <λ, A(v) x> = <apply_adjoint(λ, x), v>    with    apply_adjoint(λ, x)_e = Σ_k λ_{k,r_e} conj(x_{k,c_e}),

since Re Σ conj(λ_r) v x_c = Re Σ conj(λ_r conj(x_c)) v. Where one triangle is stored, an entry off the diagonal
also stands at (c_e, r_e): with the same value ("symmetric"), which adds λ_c conj(x_r), or with the conjugate
one ("hermitian"), which adds the conjugate of that: Re conj(λ_c) conj(v) x_r = Re λ_c v conj(x_r), whose
gradient is conj(λ_c) x_r.

The derivatives of x = A⁻¹ b. Differentiating A x = b gives A dx = db − dA x, so

    tangent:   dx = A⁻¹ (db − A(dv) x).

Pairing with the cotangent g of x: <g, A⁻¹ db> = <A⁻ᴴ g, db>, and with λ = A⁻ᴴ g

    adjoint:   b̄ = λ,    <g, −A⁻¹ A(dv) x> = −<λ, A(dv) x>,  hence  v̄ = −apply_adjoint(λ, x).

A⁻ᴴ g = conj(A⁻ᵀ conj(g)) needs nothing but the other substitution with the same factor. For x = A⁻ᵀ b the same
holds with rows and columns exchanged throughout. Both rules are built from solves and from differentiable torch
operations, so derivatives of any order follow from them. Where some rows are known, and with their columns left out,
the solve is S = E (Eᵀ A E)⁻¹ Eᵀ, E the columns of the identity for the rest: dS = −S dA S, so that the same rules hold
with S for A⁻¹. (M. B. Giles, "Collected matrix derivative results for
forward and reverse mode algorithmic differentiation", 2008, section 2.3.1.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ._blocks import blocks_of, joined
from ._plain import is_plain
from ._structure import Structure

_SMALL = 2**17  # products that are not worth the arrangements for a sparse kernel
_LARGE = 2**26  # numbers to hold at once


@dataclass(frozen=True)
class Places:
    """Where the entries of A(v) stand.

    `mirror` : what an off-diagonal entry also stands for at the opposite place: None (nothing),
    "symmetric" or "hermitian".
    `structure` : the structure whose entries these are, or with `is_transposed` those opposite to them, if there is one.
    """

    rows: Tensor
    cols: Tensor
    mirror: str | None = None
    structure: Structure | None = None
    is_transposed: bool = False

    def of(self, transpose: bool) -> Places:
        return self.transposed() if transpose else self

    def transposed(self) -> Places:
        """The places of the entries of A(v)ᵀ: also right for a Hermitian triangle, whose transpose has the
        stored value v at (c, r) and conj(v) at (r, c)."""
        return Places(self.cols, self.rows, self.mirror, self.structure, not self.is_transposed)


def apply(values: Tensor, x: Tensor, places: Places) -> Tensor:
    """A(v) x for `values` (..., nnz) and the rows of `x` (..., k, n), with equal leading dimensions."""
    rows, cols = places.rows, places.cols
    y = torch.zeros_like(x).index_add(-1, rows, values.unsqueeze(-2) * x.index_select(-1, cols))
    if places.mirror is not None:
        mirrored = values.masked_fill(rows == cols, 0)
        # Resolved at once: compiled graphs run operators with the handling of lazy conjugates switched off.
        mirrored = mirrored.conj().resolve_conj() if places.mirror == "hermitian" else mirrored
        y = y.index_add(-1, cols, mirrored.unsqueeze(-2) * x.index_select(-1, rows))
    return y


def apply_adjoint(lam: Tensor, x: Tensor, places: Places, scale: float = 1.0) -> Tensor:
    """`scale` times the adjoint of `apply` in the values: (..., nnz) from the rows of `lam` and `x` (..., k, n)."""
    values_bar = _sampled_product(lam, x, places, scale)
    if places.mirror is not None:
        mirrored = _sampled_product(lam, x, places.transposed(), scale).masked_fill(places.rows == places.cols, 0)
        values_bar = values_bar + (mirrored.conj() if places.mirror == "hermitian" else mirrored)
    return values_bar


def adjoint(
    solve_transposed: Callable[[Tensor], Tensor], x_bar: Tensor, x: Tensor, places: Places, wants_values: bool
) -> tuple[Tensor | None, Tensor]:
    """(v̄, b̄) from x̄; `solve_transposed` applies A⁻ᵀ, and v̄ is None unless it is wanted."""
    lam = solve_transposed(x_bar.conj()).conj()
    return (apply_adjoint(lam, x, places, -1.0) if wants_values else None), lam


def tangent(
    solve: Callable[[Tensor], Tensor], values_dot: Tensor | None, rhs_dot: Tensor | None, x: Tensor, places: Places
) -> Tensor:
    """dx from (dv, db), where None stands for zeros; `solve` applies A⁻¹."""
    right = torch.zeros_like(x) if rhs_dot is None else rhs_dot
    return solve(right if values_dot is None else right - apply(values_dot, x, places))


def _sampled_product(lam: Tensor, x: Tensor, places: Places, scale: float) -> Tensor:
    """scale · Σ_k λ_{k,r} conj(x_{k,c}): the entries (r, c) of the outer product, without forming it."""
    on_cpu = lam.device.type == "cpu"
    if lam.dim() == 3 and places.structure is not None and on_cpu and is_plain(lam, x):
        product = lam.new_empty(lam.shape[0], places.rows.numel())
        for part, block in blocks_of(places.structure, lam.shape[0]):
            rows, cols = (block.cols, block.rows) if places.is_transposed else (block.rows, block.cols)
            of_block = Places(rows, cols, None, block, places.is_transposed)
            product[part] = _sampled_product(joined(lam[part]), joined(x[part]), of_block, scale).view_as(product[part])
        return product
    structure, right = places.structure, x.conj()
    small = lam.numel() == 0 or (lam.shape[-2] == 1 and places.rows.numel() < _SMALL)
    if structure is not None and lam.dim() == 2 and on_cpu and not small and is_plain(lam, x):
        sides = (right, lam) if places.is_transposed else (lam, right)
        return structure.sampled_product(*sides, scale)
    scaled = scale * lam if scale != 1 else lam
    if lam.shape[-2] == 1:
        return scaled.squeeze(-2).index_select(-1, places.rows) * right.squeeze(-2).index_select(-1, places.cols)
    if on_cpu:
        return _summed_products(scaled, right, places)
    width = max(1, _LARGE // max(1, places.rows.numel() * lam.shape[:-2].numel()))
    parts = zip(scaled.split(width, -2), right.split(width, -2), strict=True)
    return reduce(torch.add, (_summed_products(u, v, places) for u, v in parts))


def _summed_products(left: Tensor, right: Tensor, places: Places) -> Tensor:
    return (left.index_select(-1, places.rows) * right.index_select(-1, places.cols)).sum(-2)
