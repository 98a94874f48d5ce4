"""The covariance of a field with a precision Q under linear constraints C x = d.

Q is positive definite for the x with C x = 0, and may be singular, or nearly so, beyond. It is made
regular by anchors: Q̃ = Q + E Eᵀ, where the columns of E are multiples of unit vectors. With
M = Q̃⁻¹, and V an orthonormal basis of the rows of C,

    M_C = M − M V S⁻¹ Vᵀ M,    S = Vᵀ M V        the covariance of Q̃ under the constraints,
    Σ = M_C + W H⁻¹ Wᵀ,        W = M_C E,  H = I − Eᵀ W        that of Q: without the anchors.

Both are exact, whatever the anchors are, and so are the derivatives. With Z an orthonormal basis of
the x with C x = 0,

    det Zᵀ Q Z = det Q̃ · det S · det H.

All is computed in double precision. (H. Rue, L. Held, "Gaussian Markov Random Fields", 2005,
section 2.3, for positive definite Q.)
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
from ..._torch.modes import (
    is_recorded,
    is_transformed,
    outside_inference,
    outside_transforms,
    recording,
    unwrap,
)
from ...errors import NotPositiveDefiniteError, SingularMatrixError
from .covariance import FreeCovariance, explain_singular, join_structures, sum_squares
from .linear_constraints import LinearConstraints

# Null vectors are found by this many steps of inverse iteration with Q + δ diag(Q).
_STEPS, _SHIFT = 3, 1e-6
# Where the constraints take away more of a variance than this, relative to 1 / Q_ii, anchors keep
# it small: the error of the difference grows with the square, here to 10⁶ ε.
_MOST_TAKEN = 1e3
# Of the eigenvalues of H, which are 1 / (1 + γ σ²) for an anchor γ at a place with the variance σ²,
# half of the digits are left here.
_LEAST = torch.finfo(torch.float64).eps ** 0.5


class _Anchored(NamedTuple):
    """The covariance of Q̃ = Q + E Eᵀ.

    rows, sizes : (k,) the rows and (..., k) the sizes of the columns of E
    """

    free: FreeCovariance
    rows: Tensor
    sizes: Tensor


class _Pieces(NamedTuple):
    """U = M V L⁻ᵀ and T = W K⁻ᵀ, with S = L Lᵀ and H = K Kᵀ, hence Σ = M − U Uᵀ + T Tᵀ.

    M : the covariance of Q̃
    U, T : (..., n, m) and (..., n, anchors)
    L, K : lower triangles
    V : (n, m)
    """

    M: FreeCovariance
    U: Tensor
    T: Tensor
    L: Tensor
    K: Tensor
    V: Tensor


class ConstrainedCovariance:
    """The covariance under the constraints; results have the dtype of the values or vectors."""

    def __init__(self, structure: Structure, values: Tensor, given: LinearConstraints):
        self.structure, self.values, self._given = structure, to_double(values), given
        self.dimension = structure.shape[0] - len(given.C)
        self._dtype = values.dtype
        self._anchored: _Anchored | None = None
        self._pieces: _Pieces | None = None

    @property
    def noise(self) -> int:
        """The rows, and one number for each anchor."""
        if self._anchored is None:
            with torch.no_grad():
                self._find_pieces()
            assert self._anchored is not None
        return self.structure.shape[0] + self._anchored.rows.numel()

    def apply(self, vectors: Tensor) -> Tensor:
        """Σ v = M v − U Uᵀ v + T Tᵀ v."""
        M, U, T, *_ = self._find_pieces()
        doubled = to_double(vectors)
        rows = doubled.unsqueeze(-2)
        taken = (rows @ U @ U.mT - rows @ T @ T.mT).squeeze(-2)
        return (M.apply(doubled) - taken).to(vectors.dtype)

    def color(self, white: Tensor) -> Tensor:
        """Condition a sample of Q̃ on C x = 0, and add what the anchors have taken away."""
        M, U, T, L, _, V = self._find_pieces()
        first, second = to_double(white).split((self.structure.shape[0], T.shape[-1]), -1)
        x = M.color(first)
        excess = (x @ V).unsqueeze(-1)
        x = x - (U @ torch.linalg.solve_triangular(L, excess, upper=False)).squeeze(-1)
        sample: Tensor = x + (T @ second.unsqueeze(-1)).squeeze(-1)
        return sample.to(white.dtype)

    def logdet_precision(self) -> Tensor:
        """Log det Zᵀ Q Z."""
        M, _, _, L, K, _ = self._find_pieces()
        small = _half_logdet(L) + _half_logdet(K)
        return (M.logdet_precision() + 2 * small).to(self._dtype)

    def diagonal(self) -> Tensor:
        """The diagonal of Σ."""
        M, U, T, *_ = self._find_pieces()
        # Where the constraints determine x, rounding errors are left.
        variances = (M.diagonal() - U.square().sum(-1) + T.square().sum(-1)).clamp(min=0)
        return variances.to(self._dtype)

    def pair(self, structure: Structure, values: Tensor) -> Tensor:
        """tr(A M) − tr(Uᵀ A U) + tr(Tᵀ A T)."""
        M, U, T, *_ = self._find_pieces()
        doubled = to_double(values)
        total = M.pair(structure, doubled)
        for side, sign in ((U, -1), (T, 1)):
            total = total + sign * sum_squares(structure, doubled, side.mT)
        return total.to(values.dtype)

    def _find_pieces(self) -> _Pieces:
        if self._pieces is not None and not is_recorded(self.values, *self._given):
            return self._pieces
        with outside_inference():
            known = self._anchored
            pieces = self._choose_anchors() if known is None else self._divide(known)
        if not is_recorded(*pieces[1:]) and not is_transformed(*pieces[1:]):
            self._pieces = pieces
        return pieces

    def _choose_anchors(self) -> _Pieces:
        """Decide whether anchors are needed, and where."""
        free = FreeCovariance(self.structure, self.values)
        none = torch.empty(0, dtype=torch.int64, device=self.values.device)
        anchored = _Anchored(free, none, self.values.new_ones(0))
        try:
            pieces = self._divide(anchored)
            if not self._takes_much(pieces.U):
                self._anchored = anchored
                return pieces
        except (NotPositiveDefiniteError, SingularMatrixError):
            pass  # there are no inverses
        self._anchored = self._add_anchors()
        return self._divide(self._anchored)

    def _takes_much(self, U: Tensor) -> bool:
        taken = _sum_diagonal(self.structure, self.values).unsqueeze(-1) * U.square()
        return taken.numel() > 0 and bool((unwrap(taken).sum(-1) > _MOST_TAKEN).any())

    def _add_anchors(self) -> _Anchored:
        structure, values, n = self.structure, self.values, self.structure.shape[0]
        sizes = _sum_diagonal(structure, values.detach())
        # A row may be zero; its anchor then has any size.
        sizes = torch.where(sizes > 0, sizes, sizes.amax(-1, keepdim=True))
        sizes = torch.where(sizes > 0, sizes, 1)
        with outside_transforms():
            first = unwrap(values).reshape(-1, structure.nnz)[0]
            scales = unwrap(sizes).reshape(-1, n)[0]
            rows = find_anchors(structure, first, scales, len(self._given.C)).to(values.device)
        sizes = sizes.index_select(-1, rows)
        added = values.new_zeros((*values.shape[:-1], n)).index_copy(-1, rows, sizes)
        everywhere = torch.arange(n, device=values.device)
        joined = join_structures(structure, everywhere, everywhere)
        with recording():  # it is used where there is a gradient, too
            free = FreeCovariance(joined, torch.cat((values, added), -1))
        return _Anchored(free, rows, sizes.sqrt())

    def _divide(self, anchored: _Anchored) -> _Pieces:
        """Q̃ and what the constraints and the anchors change."""
        (M, rows, sizes), V = anchored, self._given.find_basis()
        m, n = V.shape[1], V.shape[0]
        unit = torch.nn.functional.one_hot(rows, n).to(V.dtype).mT
        solved = M.apply_columns(torch.cat((V, unit), -1))
        of_constraints, of_anchors = solved.split((m, rows.numel()), -1)
        L = _factor(V.mT @ of_constraints, 0.0)
        U = torch.linalg.solve_triangular(L, of_constraints.mT, upper=False).mT
        W = (of_anchors - U @ U.index_select(-2, rows).mT) * sizes.unsqueeze(-2)
        identity = torch.eye(rows.numel(), dtype=V.dtype, device=V.device)
        K = _factor(identity - sizes.unsqueeze(-1) * W.index_select(-2, rows), _LEAST)
        T = torch.linalg.solve_triangular(K, W.mT, upper=False).mT
        return _Pieces(M, U, T, L, K, V)


def find_anchors(structure: Structure, values: Tensor, scales: Tensor, count: int) -> Tensor:
    """(count,) rows at which no vector that Q nearly annihilates is zero.

    All tensors are plain. `scales` are those of the diagonal, by which Q is scaled.
    """
    n = structure.shape[0]
    host = structure.on(CPU)
    structure = join_structures(host, *(torch.arange(n, device=CPU) for _ in range(2)))
    values, scales = values.to(CPU), scales.to(CPU)
    with explain_singular():
        shifted = torch.cat((values, _SHIFT * scales))
        F = Factorization(Problem(structure, Options("spd")), shifted)
    root = scales.sqrt().unsqueeze(1)
    seeded = torch.Generator(CPU).manual_seed(0)
    block = torch.randn(n, count, dtype=torch.float64, device=CPU, generator=seeded)
    for _ in range(_STEPS):
        block = torch.linalg.qr(root * F.solve(root * block))[0]
    chosen = []
    for _ in range(count):  # pivoted QR: the longest row, whose direction is then taken out
        row = int(torch.linalg.vector_norm(block, dim=1).argmax())
        direction = block[row] / torch.linalg.vector_norm(block[row])
        block = block - torch.outer(block @ direction, direction)
        chosen.append(row)
    return torch.tensor(chosen, device=CPU)


def _sum_diagonal(structure: Structure, values: Tensor) -> Tensor:
    """(..., n) the moduli of the diagonal entries, duplicates summed."""
    on_diagonal = (structure.rows == structure.cols).to(values.device)
    sums = values.new_zeros((*values.shape[:-1], structure.shape[0]))
    return sums.index_add(-1, structure.rows, torch.where(on_diagonal, values, 0)).abs()


def _factor(matrix: Tensor, least: float) -> Tensor:
    """The Cholesky factor; raise unless the eigenvalues are larger than `least`."""
    symmetric = (matrix + matrix.mT) / 2
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    failed = torch.linalg.cholesky_ex((symmetric - least * identity).detach())[1]
    if bool((unwrap(failed) != 0).any()):
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
