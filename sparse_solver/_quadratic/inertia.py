"""How many eigenvalues of a KKT matrix are negative, where its factorisation does not count them.

S K S has as many negative eigenvalues as K, and so has every Hermitian matrix that is closer to it
than the nearest singular one, at a distance of the smallest singular value [1, 2]. So K is scaled
until all rows have the same size [3], that distance is estimated by inverse iteration with the
factor of K, and the negative pivots are counted for a matrix within that distance that can be
factored without exchanges of rows.

[1] J. J. Sylvester, "A demonstration of the theorem that every homogeneous quadratic polynomial is
reducible by real orthogonal substitutions to the form of a sum of positive and negative squares",
Philosophical Magazine 4, 1852.
[2] H. Weyl, "Das asymptotische Verteilungsgesetz der Eigenwerte linearer partieller
Differentialgleichungen", Mathematische Annalen 71, 1912.
[3] D. Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices",
RAL-TR-2001-034, 2001.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

from .._factor.ladder.ladder import factor_matrix
from .._factor.options import Options
from .._sparse.structure import Structure
from .._sparse.triangle import Arrangement, arrangement_of
from .._sparse.values import CPU, probe_vector, to_double
from ..errors import NotPositiveDefiniteError, SingularMatrixError

# Of the distance to singularity: how far the matrix may be changed, the distance being estimated.
_SAFE = 0.1
# Each step of the scaling halves the exponents of the sizes of rows; 2^6 covers most of doubles.
_SCALING_STEPS = 6
# Steps of inverse iteration; each multiplies the ratio of the components by that of eigenvalues.
_ITERATIONS = 5
# A distance is rounding errors below this many eps of the factor, or of double precision.
_FACTOR_ERRORS, _DOUBLE_ERRORS = 10, 1e3


def assemble_hermitian(arrangement: Arrangement, values: Tensor) -> csr_matrix:
    """The Hermitian matrix whose upper triangle has these entries, in double precision, on the CPU.

    Entries below the diagonal are ignored.
    """
    from scipy.sparse import csr_matrix, diags, triu

    n = arrangement.crow.numel() - 1
    parts = (part.cpu().numpy() for part in (to_double(values), arrangement.col, arrangement.crow))
    upper = triu(csr_matrix(tuple(parts), shape=(n, n)), format="csr")
    return (upper + upper.conj().T - diags(upper.diagonal(), shape=(n, n))).tocsr()


def equilibrate(K: csr_matrix) -> Any:
    """(n,) powers of two s for which the largest entry in each row of s_i K_ij s_j is near one.

    Empty rows have s = 1.
    """
    import numpy as np

    s = np.ones(K.shape[0])
    for _ in range(_SCALING_STEPS):
        s /= np.exp2(np.round(np.log2(_find_largest(K, s)) / 2))
    return s


def _find_largest(K: csr_matrix, s: Any) -> Any:
    """(n,) the largest modulus in each row of s_i K_ij s_j; one for empty rows."""
    import numpy as np
    from scipy.sparse import diags

    scaled = diags(s) @ abs(K) @ diags(s)
    largest = scaled.max(axis=1).toarray().ravel() if scaled.nnz else np.zeros_like(s)
    return np.where(largest > 0, largest, 1.0)


def _find_scalings(K: csr_matrix, is_constraint: Any) -> Iterator[Any]:
    """Two scalings that give all rows of K the same size.

    The first scales all rows together, the second those of Q and then the constraints. Neither is
    always the better one, since constraints can be scaled against unknowns without changing C.
    """
    import numpy as np
    from scipy.sparse import diags

    yield equilibrate(K)
    chosen = diags((~is_constraint).astype(float))
    s = equilibrate((chosen @ K @ chosen).tocsr())
    yield np.where(is_constraint, s / np.exp2(np.round(np.log2(_find_largest(K, s)))), s)


def count_negative_eigenvalues(
    K: csr_matrix, apply_inverse: Callable[[Tensor], Tensor], eps: float, objective: Objective
) -> int | None:
    """Count the negative eigenvalues of K = [[Q, Cᴴ], [C, 0]]; None if they cannot be determined.

    `apply_inverse` applies K⁻¹ to the rows of (1, n) numbers, with rounding errors of `eps`. K is
    not singular to working precision. Raises SingularMatrixError where that is not enough.
    """
    if objective.is_definite(equilibrate(K), 0.0):
        return objective.constraints  # those of −C Q⁻¹ Cᴴ
    candidates = [
        (_estimate_distance(s, apply_inverse, eps), s)
        for s in _find_scalings(K, objective.is_constraint.numpy())
    ]
    distance, s = max(candidates, key=lambda candidate: candidate[0])
    if not distance > 0:
        message = "it is singular up to rounding errors once all rows have the same size"
        raise SingularMatrixError(message, engine=None, row=None)
    # Most Q are semidefinite. If Q + δ is definite, K with Q + δ for Q has one negative eigenvalue
    # per constraint, and so has K.
    if objective.is_definite(s, _SAFE * distance):
        return objective.constraints
    return _count_by_pivots(K, s, distance, objective)


class Objective:
    """Q as a submatrix of K, whose upper triangle has the values `upper`.

    constraints : how many there are in all blocks
    is_constraint : (n,) which rows of K are constraints

    K consists of `blocks` equal diagonal blocks. `structure` is that of K, of which all entries are
    stored, or only one `triangle`.
    """

    def __init__(
        self,
        structure: Structure,
        triangle: str | None,
        upper: Tensor,
        constraints: int,
        blocks: int,
    ):
        self.constraints = blocks * constraints
        self._values = upper.cpu()
        self.is_constraint = _find_constraints(structure.shape[0], blocks, constraints)
        self._entries, self._rows, self._shifted = structure.remember(
            _find_objective, triangle, blocks, constraints
        )

    def is_definite(self, s: Any, shift: float) -> bool:
        """Whether S Q S + shift is positive definite."""
        scale, count = torch.from_numpy(s)[self._rows], self._entries.numel()
        rows, cols = self._shifted.rows[:count], self._shifted.cols[:count]
        scaled = to_double(self._values).index_select(0, self._entries) * scale[rows] * scale[cols]
        if scaled.is_complex():  # the diagonal is real up to rounding errors
            scaled = torch.where(rows == cols, scaled.real.to(scaled.dtype), scaled)
        shifts = scaled.new_full((self._rows.numel(),), shift)
        try:
            factor_matrix(self._shifted, torch.cat((scaled, shifts)), Options("spd", "upper"))
        except (NotPositiveDefiniteError, SingularMatrixError):
            return False
        return True


def _find_objective(
    structure: Structure, triangle: str | None, blocks: int, constraints: int
) -> tuple[Tensor, Tensor, Structure]:
    """Which entries of the upper triangle of K are Q's, which rows, and the structure of Q + δ."""
    arrangement = arrangement_of(structure, "upper", triangle)
    kept = ~_find_constraints(structure.shape[0], blocks, constraints)
    places = arrangement.rows.cpu(), arrangement.col.cpu()
    rows, entries = torch.nonzero(kept).squeeze(-1), kept[places[0]] & kept[places[1]]
    number, chosen = kept.cumsum(0) - 1, torch.nonzero(entries).squeeze(-1)
    row, col = (
        torch.cat((number[at[chosen]], torch.arange(len(rows), device=CPU))) for at in places
    )
    return chosen, rows, Structure(row, col, (len(rows), len(rows)))


def _find_constraints(n: int, blocks: int, constraints: int) -> Tensor:
    """(n,) which rows of K, with so many equal blocks, are constraints."""
    size = n // blocks
    return torch.arange(n, device=CPU) % max(size, 1) >= size - constraints


def _estimate_distance(s: Any, apply_inverse: Callable[[Tensor], Tensor], eps: float) -> float:
    """The smallest singular value of S K S, or slightly more; zero if it is rounding errors."""
    scale = torch.from_numpy(s)
    right = probe_vector(scale.numel(), torch.float64, 0.0)
    growth = float("nan")
    for _ in range(_ITERATIONS):
        right = right / torch.linalg.vector_norm(right)
        right = to_double(apply_inverse(right / scale)) / scale
        growth = float(torch.linalg.vector_norm(right))
    distance = 1 / growth if growth > 0 else 0.0
    errors = max(_FACTOR_ERRORS * eps, _DOUBLE_ERRORS * torch.finfo(torch.float64).eps)
    return distance if distance > errors else 0.0


def _count_by_pivots(K: csr_matrix, s: Any, distance: float, objective: Objective) -> int | None:
    """Count the negative pivots of S K S ± δ, with + for unknowns and − for constraints.

    The shift, which is below the distance to singularity, avoids pivots of zero. None if there are
    some nevertheless, or if the factors without exchanges of rows are too inaccurate.
    """
    import numpy as np
    from scipy.sparse import diags
    from scipy.sparse.linalg import splu

    shifts = np.where(objective.is_constraint.numpy(), -1.0, 1.0) * _SAFE * distance
    shifted = (diags(s) @ K @ diags(s) + diags(shifts)).tocsc()
    options = {"SymmetricMode": True, "Equil": False}
    try:
        lu = splu(shifted, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=options)
    except RuntimeError:  # a pivot of zero
        return None
    if not np.array_equal(lu.perm_r, lu.perm_c):
        return None
    # Small pivots make errors large; their size is that of (L U − shifted) v for generic v with
    # entries of order one.
    v = np.sqrt(3) * probe_vector(K.shape[0], torch.float64, 0.0).numpy()[0]
    permuted = np.empty_like(v)
    permuted[lu.perm_c] = v
    error = np.linalg.norm((lu.L @ (lu.U @ permuted))[lu.perm_r] - shifted @ v)
    return int((lu.U.diagonal().real < 0).sum()) if error < _SAFE * distance else None
