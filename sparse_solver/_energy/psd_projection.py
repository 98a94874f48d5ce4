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

# Rounding errors of an eigenvalue of a (d, d) matrix, in units of d · eps times its largest entry.
_EIGENVALUE_ERRORS = 4


def projection_of(project: bool | Projection) -> Projection | None:
    """The projection that ``project=`` names; raises OptionError if it does not exist."""
    if project is True:
        return "zero"
    if project is False:
        return None
    if project not in ("zero", "absolute"):
        raise OptionError(f"project={project!r}: expected True, False, 'zero' or 'absolute'")
    return project


def project_matrices(matrices: Tensor, how: Projection) -> Tensor:
    """V f(Λ) Vᵀ for the symmetric parts V Λ Vᵀ of matrices (t, d, d), f(λ) = max(λ, 0) or |λ|.

    "zero" gives the nearest positive semidefinite matrix in the Frobenius norm [1], [2]; "absolute"
    preserves the scale of negative curvature [3]. Differentiable once; the derivative at an
    eigenvalue of zero is that of a negative one. Matrices with NaN or infinity are left unchanged.

    [1] N. J. Higham, "Computing a nearest symmetric positive semidefinite matrix", Linear Algebra
    and its Applications 103, 1988.
    [2] J. Teran et al., "Robust quasistatic finite elements and flesh simulation", Symposium on
    Computer Animation, 2005.
    [3] H. Chen et al., "Stabler neo-Hookean simulation: absolute eigenvalue filtering for projected
    Newton", SIGGRAPH, 2024.
    """
    if is_transformed(matrices):
        raise TransformError("project= looks at eigenvalues, which torch.func transforms forbid")
    matrices = _symmetrize(matrices)
    positive: Tensor = _PositivePart.apply(matrices)
    return positive if how == "zero" else 2 * positive - matrices  # |λ| = 2 max(λ, 0) − λ


class _PositivePart(Function):
    """V max(Λ, 0) Vᵀ.

    Its derivative is V (Γ ∘ (Vᵀ dH V)) Vᵀ with the divided differences
    Γ_ij = (f(λ_i) − f(λ_j)) / (λ_i − λ_j): 1 where both eigenvalues are positive, 0 where neither
    is, and λ_i / (λ_i − λ_j) between. They are finite for equal eigenvalues, at which torch's
    derivative of eigh is infinite. (N. J. Higham, "Functions of matrices", 2008, theorem 3.11.)
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        count, d, _ = matrices.shape
        size = matrices.abs().amax((-2, -1)) if matrices.numel() else matrices.new_zeros(count)
        # A Cholesky factorisation, which suffices for most elements, costs a fifteenth of the
        # eigenvalues. The shift covers the rounding errors of zero eigenvalues, such as those of
        # rigid motions.
        shift = (_EIGENVALUE_ERRORS * d * torch.finfo(matrices.dtype).eps * size)[:, None, None]
        identity = torch.eye(d, dtype=matrices.dtype, device=matrices.device)
        failed = torch.linalg.cholesky_ex(matrices + shift * identity)[1] != 0
        which = torch.nonzero(failed & torch.isfinite(size) & (size > 0)).squeeze(-1)
        eigenvalues, vectors = torch.linalg.eigh(matrices.index_select(0, which))
        ctx.save_for_backward(which, eigenvalues, vectors)
        positive = _symmetrize((vectors * eigenvalues.clamp(min=0).unsqueeze(-2)) @ vectors.mT)
        return matrices.index_copy(0, which, positive)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Tensor:  # type: ignore[override] # torch's is (ctx, *grads)
        # torch's once_differentiable would let torch.autograd.grad omit derivatives silently.
        if torch.is_grad_enabled():
            message = "a projected Hessian can be differentiated once: not with create_graph=True"
            raise TransformError(message)
        which, eigenvalues, vectors = ctx.saved_tensors
        row, column = eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2)
        high, low = torch.maximum(row, column), torch.minimum(row, column)
        mixed = high / (high - low)
        ones, zeros = torch.ones_like(mixed), torch.zeros_like(mixed)
        differences = torch.where(low > 0, ones, torch.where(high > 0, mixed, zeros))
        inner = vectors.mT @ _symmetrize(bar.index_select(0, which)) @ vectors
        return bar.index_copy(0, which, vectors @ (differences * inner) @ vectors.mT)


def _symmetrize(matrices: Tensor) -> Tensor:
    return (matrices + matrices.mT) / 2
