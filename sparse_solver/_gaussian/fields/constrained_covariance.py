"""The covariance of a field with a precision Q under linear constraints C x = d.

Q is positive definite for the x with C x = 0, and may be singular beyond. It is made regular by
anchors: Q̃ = Q + γ E Eᵀ, where the columns of E are unit vectors. With M = Q̃⁻¹,

    M_C = M − M Cᵀ S⁻¹ C M,       S = C M Cᵀ       the covariance of Q̃ under the constraints,
    Σ = M_C + W H⁻¹ Wᵀ,           W = M_C E,  H = I/γ − Eᵀ W       that of Q: without the anchors.

Both are exact, whatever the anchors are, and so are the derivatives. With Z an orthonormal basis of
the x with C x = 0,

    det Zᵀ Q Z = det Q̃ · det S · det γH / det C Cᵀ.

(H. Rue, L. Held, "Gaussian Markov Random Fields", 2005, section 2.3, for positive definite Q.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._factor.options import Options
from ..._factor.problem import Problem
from ..._solve.factorization import Factorization
from ..._sparse.structure import Structure
from ..._sparse.values import CPU, to_double
from ..._torch.modes import is_recorded, is_transformed
from ...errors import NotPositiveDefiniteError, SingularMatrixError, TransformError
from .covariance import FreeCovariance, explain_singular, join_structures, sum_squares

# Null vectors are found by this many steps of inverse iteration with Q + δ diag(Q).
_STEPS, _SHIFT = 3, 1e-6


class _Pieces(NamedTuple):
    """U = M Cᵀ L⁻ᵀ and T = W K⁻ᵀ, with S = L Lᵀ and H = K Kᵀ, hence Σ = M − U Uᵀ + T Tᵀ.

    U, T : (..., n, m) and (..., n, anchors)
    L, K : lower triangles
    """

    U: Tensor
    T: Tensor
    L: Tensor
    K: Tensor


class ConstrainedCovariance:
    """The covariance under the constraints C x = d, for C (m, n)."""

    def __init__(self, structure: Structure, values: Tensor, C: Tensor):
        self.structure, self.values, self._C = structure, values, C
        self.dimension = structure.shape[0] - C.shape[0]
        self._anchored: FreeCovariance | None = None
        self._anchors = torch.empty(0, dtype=torch.int64)
        self._strength = values.new_ones(values.shape[:-1])
        self._pieces: _Pieces | None = None

    @property
    def noise(self) -> int:
        """The rows, and one number for each anchor."""
        self._anchor()
        return self.structure.shape[0] + self._anchors.numel()

    def apply(self, vectors: Tensor) -> Tensor:
        """Σ v = M v − U Uᵀ v + T Tᵀ v."""
        U, T, *_ = self._find_pieces()
        free = self._anchor().apply(vectors)
        rows = vectors.unsqueeze(-2)
        return free - (rows @ U @ U.mT - rows @ T @ T.mT).squeeze(-2)

    def color(self, white: Tensor) -> Tensor:
        """Condition a sample of Q̃ on C x = 0, and add what the anchors have taken away."""
        U, T, L, _ = self._find_pieces()
        first, second = white.split((self.structure.shape[0], T.shape[-1]), -1)
        x = self._anchor().color(first)
        excess = (x @ self._C.mT).unsqueeze(-1)
        x = x - (U @ torch.linalg.solve_triangular(L, excess, upper=False)).squeeze(-1)
        sample: Tensor = x + (T @ second.unsqueeze(-1)).squeeze(-1)
        return sample

    def logdet_precision(self) -> Tensor:
        """Log det Zᵀ Q Z."""
        _, _, L, K = self._find_pieces()
        gram = torch.linalg.cholesky(self._C @ self._C.mT)
        scaled = K * self._strength.sqrt()[..., None, None]
        small = _half_logdet(L) + _half_logdet(scaled) - _half_logdet(gram)
        return self._anchor().logdet_precision() + 2 * small

    def diagonal(self) -> Tensor:
        """The diagonal of Σ."""
        U, T, *_ = self._find_pieces()
        free = self._anchor().diagonal()
        # Where the constraints determine x, rounding errors are left.
        return (free - U.square().sum(-1) + T.square().sum(-1)).clamp(min=0)

    def pair(self, structure: Structure, values: Tensor) -> Tensor:
        """tr(A M) − tr(Uᵀ A U) + tr(Tᵀ A T)."""
        total = self._anchor().pair(structure, values)
        for side, sign in zip(self._find_pieces()[:2], (-1, 1), strict=True):
            total = total + sign * sum_squares(structure, values, side.mT)
        return total

    def _anchor(self) -> FreeCovariance:
        """The covariance of Q̃; there are no anchors if Q is positive definite."""
        if self._anchored is None:
            free = FreeCovariance(self.structure, self.values)
            try:
                _ = free.factorization
            except (NotPositiveDefiniteError, SingularMatrixError):
                free = self._add_anchors()
            self._anchored = free
        return self._anchored

    def _add_anchors(self) -> FreeCovariance:
        if is_transformed(self.values):
            raise TransformError(
                "a field whose precision is singular cannot be made inside of a transform of "
                "torch.func; use torch.autograd"
            )
        structure, values = self.structure, self.values
        on_diagonal = (structure.rows == structure.cols).to(values.device)
        sizes = values.detach().abs() * on_diagonal
        self._strength = sizes.sum(-1) / structure.shape[0]
        E = find_anchors(structure, values, self._C.shape[0])
        self._anchors = E.to(values.device)
        added = self._strength.unsqueeze(-1).expand(*values.shape[:-1], E.numel())
        anchored = join_structures(structure, self._anchors, self._anchors)
        free = FreeCovariance(anchored, torch.cat((values, added), -1))
        _ = free.factorization  # raises unless the anchors are enough
        return free

    def _find_pieces(self) -> _Pieces:
        if self._pieces is not None:
            return self._pieces
        free, C, E = self._anchor(), self._C, self._anchors
        m, n = C.shape
        unit = torch.nn.functional.one_hot(E, n).to(C.dtype).mT
        solved = free.apply_columns(torch.cat((C.mT, unit), -1))
        of_constraints, of_anchors = solved.split((m, E.numel()), -1)
        L = _factor(C @ of_constraints, 0.0)
        U = torch.linalg.solve_triangular(L, of_constraints.mT, upper=False).mT
        W = of_anchors - U @ U.index_select(-2, E).mT
        resistance = self._strength[..., None, None].reciprocal()
        identity = torch.eye(E.numel(), dtype=C.dtype, device=C.device)
        least = torch.finfo(C.dtype).eps ** 0.5 * resistance
        K = _factor(resistance * identity - W.index_select(-2, E), least)
        T = torch.linalg.solve_triangular(K, W.mT, upper=False).mT
        pieces = _Pieces(U, T, L, K)
        if not is_recorded(*pieces) and not is_transformed(*pieces):
            self._pieces = pieces
        return pieces


def find_anchors(structure: Structure, values: Tensor, count: int) -> Tensor:
    """(count,) rows at which no vector that Q nearly annihilates is zero.

    A batch has the anchors of its first matrix; where they do not suffice, its factorisation fails.
    """
    numbers = to_double(values.detach().to(CPU)).reshape(-1, structure.nnz)[0]
    diagonal = structure.rows == structure.cols
    shifted = torch.where(diagonal, numbers + _SHIFT * numbers.abs(), numbers)
    with explain_singular():
        F = Factorization(Problem(structure.on(CPU), Options("spd")), shifted)
    n = structure.shape[0]
    block = torch.randn(n, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(_STEPS):
        block = torch.linalg.qr(F.solve(block))[0]
    chosen = []
    for _ in range(count):  # pivoted QR: the longest row, whose direction is then taken out
        row = int(torch.linalg.vector_norm(block, dim=1).argmax())
        direction = block[row] / torch.linalg.vector_norm(block[row])
        block = block - torch.outer(block @ direction, direction)
        chosen.append(row)
    return torch.tensor(chosen)


def _factor(matrix: Tensor, least: Tensor | float) -> Tensor:
    """The Cholesky factor; raise unless the eigenvalues are larger than `least`."""
    symmetric = (matrix + matrix.mT) / 2
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    failed = torch.linalg.cholesky_ex((symmetric - least * identity).detach())[1]
    if not is_transformed(matrix) and bool((failed != 0).any()):
        raise SingularMatrixError(
            "the precision of the field is not positive definite for the x with C x = 0: an "
            "intrinsic field needs a constraint that no vector x with Q x = 0 satisfies",
            row=None,
            engine=None,
        )
    lower: Tensor = torch.linalg.cholesky_ex(symmetric)[0]
    return lower


def _half_logdet(lower: Tensor) -> Tensor:
    return lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
