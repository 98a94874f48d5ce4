"""The nearest positive semidefinite matrices to a batch of small symmetric ones."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch.modes import is_transformed
from ..errors import OptionError, TransformError

# How negative eigenvalues are treated: "zero" sets them to zero, "absolute" takes their modulus.
Projection = Literal["zero", "absolute"]


def projection_of(project: bool | Projection) -> Projection | None:
    """What ``project=`` asks for; raises if that does not exist."""
    if project is True:
        return "zero"
    if project is False:
        return None
    if project not in ("zero", "absolute"):
        raise OptionError(f"project={project!r}: expected True, False, 'zero' or 'absolute'")
    return project


def projected(matrices: Tensor, how: Projection) -> Tensor:
    """V f(Λ) Vᵀ of the symmetric parts V Λ Vᵀ of the matrices (t, d, d), f(λ) = max(λ, 0) or |λ|.

    "zero" gives the nearest positive semidefinite matrix in the Frobenius norm (N. J. Higham, "Computing a nearest
    symmetric positive semidefinite matrix", 1988; for element Hessians J. Teran et al., "Robust quasistatic finite elements
    and flesh simulation", 2005), "absolute" leaves more of what the energy knows about its scale (H. Chen et al., "Stabler
    neo-Hookean simulation: absolute eigenvalue filtering for projected Newton", 2024). Differentiable once; where an
    eigenvalue is zero, as if it were one of those that do not change. Matrices that hold NaN or infinity are left alone.
    """
    if is_transformed(matrices):
        raise TransformError(
            "project= looks at eigenvalues, which the transforms of torch.func do not allow"
        )
    matrices = _symmetric(matrices)
    positive: Tensor = _PositivePart.apply(matrices)
    return positive if how == "zero" else 2 * positive - matrices  # |λ| = 2 max(λ, 0) − λ


class _PositivePart(Function):
    """V max(Λ, 0) Vᵀ.

    Its derivative is V (Γ ∘ (Vᵀ dH V)) Vᵀ with the divided differences Γ_ij = (f(λ_i) − f(λ_j)) / (λ_i − λ_j), for which
    equal eigenvalues, at which torch's own derivative of eigh is infinite, are nothing special: 1 where both are positive,
    0 where neither is, and λ_i / (λ_i − λ_j) between. (N. J. Higham, "Functions of matrices", 2008, theorem 3.11.)
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        size = (
            matrices.abs().amax((-2, -1))
            if matrices.numel()
            else matrices.new_zeros(matrices.shape[0])
        )
        # A Cholesky factorisation costs a fifteenth of the eigenvalues, and most elements need no more. The shift is what
        # rounding errors would add to eigenvalues that are zero, as those of rigid motions are.
        shift = (4 * matrices.shape[-1] * torch.finfo(matrices.dtype).eps * size)[:, None, None]
        identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        failed = torch.linalg.cholesky_ex(matrices + shift * identity)[1] != 0
        which = torch.nonzero(failed & torch.isfinite(size) & (size > 0)).squeeze(-1)
        eigenvalues, vectors = torch.linalg.eigh(matrices.index_select(0, which))
        ctx.save_for_backward(which, eigenvalues, vectors)
        positive = _symmetric((vectors * eigenvalues.clamp(min=0).unsqueeze(-2)) @ vectors.mT)
        return matrices.index_copy(0, which, positive)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Tensor:  # type: ignore[override]
        # Not torch's once_differentiable, which lets torch.autograd.grad pass with derivatives missing.
        if torch.is_grad_enabled():
            raise TransformError(
                "a projected Hessian can be differentiated once: not with create_graph=True"
            )
        which, eigenvalues, vectors = ctx.saved_tensors
        row, column = eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)
        high, low = torch.maximum(row, column), torch.minimum(row, column)
        mixed = high / (high - low)
        ones, zeros = torch.ones_like(mixed), torch.zeros_like(mixed)
        differences = torch.where(low > 0, ones, torch.where(high > 0, mixed, zeros))
        inner = vectors.mT @ _symmetric(bar.index_select(0, which)) @ vectors
        return bar.index_copy(0, which, vectors @ (differences * inner) @ vectors.mT)


def _symmetric(matrices: Tensor) -> Tensor:
    return (matrices + matrices.mT) / 2
