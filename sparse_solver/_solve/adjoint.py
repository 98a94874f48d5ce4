"""The derivatives of x = A⁻¹ b, written once.

Differentiating A x = b gives A dx = db − dA x, so that, with `apply` of `kernels`,

    tangent:   dx = A⁻¹ (db − A(dv) x).

Pairing with the cotangent g of x: <g, A⁻¹ db> = <A⁻ᴴ g, db>, and with λ = A⁻ᴴ g

    adjoint:   b̄ = λ,    <g, −A⁻¹ A(dv) x> = −<λ, A(dv) x>,  hence  v̄ = −apply_adjoint(λ, x).

A⁻ᴴ g = conj(A⁻ᵀ conj(g)) needs only the transposed substitution with the same factor. For
x = A⁻ᵀ b the same holds with rows and columns exchanged. Both rules consist of solves and of
differentiable torch operations, so that derivatives of any order follow from them. Where some rows
and their columns are left out, the solve is S = E (Eᵀ A E)⁻¹ Eᵀ, with E the other columns of the
identity; since dS = −S dA S, the same rules hold with S in place of A⁻¹. (M. B. Giles, "Collected
matrix derivative results for forward and reverse mode algorithmic differentiation", 2008, section
2.3.1.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._sparse.kernels import Places, apply, apply_adjoint


def adjoint(
    apply_transposed: Callable[[Tensor], Tensor],
    x_bar: Tensor,
    x: Tensor,
    places: Places,
    wants_values: bool,
) -> tuple[Tensor | None, Tensor]:
    """(v̄, b̄) from x̄, where `apply_transposed` applies A⁻ᵀ; v̄ is None unless it is wanted."""
    lam = apply_transposed(x_bar.conj()).conj()
    return (apply_adjoint(lam, x, places, -1.0) if wants_values else None), lam


def tangent(
    apply_inverse: Callable[[Tensor], Tensor],
    values_dot: Tensor | None,
    rhs_dot: Tensor | None,
    x: Tensor,
    places: Places,
) -> Tensor:
    """dx from (dv, db), where None stands for zeros; `apply_inverse` applies A⁻¹."""
    right = torch.zeros_like(x) if rhs_dot is None else rhs_dot
    return apply_inverse(right if values_dot is None else right - apply(values_dot, x, places))
