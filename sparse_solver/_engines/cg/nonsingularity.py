"""Proofs that a symmetric matrix is positive definite, and how far it is from a singular one.

A backward error that is small does not show that the matrix is not singular: the system may have no
solution, or many. So the smallest eigenvalue λ of D^-½ A D^-½, with the diagonal D of A, is bounded
from below before anything is solved with, by the first of these that applies.

1. **Diagonal dominance.** By Gershgorin's theorem, λ ≥ 1 − max_i Σ_{j≠i} |a_ij| / a_ii, since
   D⁻¹ A has the same eigenvalues.
2. **M-matrices**, whose entries off the diagonal are not positive: any v > 0 with A v > 0 shows
   that λ ≥ min_i (A v)_i / √d_i / max_i √d_i v_i, since it bounds the row sums of the inverse,
   which has no negative entries. Conjugate gradients for A v = D^½ e, with ones e, find such a
   vector after a few iterations; rounding errors are taken into account.
3. **Ritz values.** Conjugate gradients for a scattered right-hand side converge, and the smallest
   Ritz value, that of the tridiagonal matrix of Lanczos, which their coefficients make up, is not
   small. This is no proof, but λ could be smaller only if its eigenvector had no part in the
   right-hand side, or else the residual would have kept that part.

With another preconditioner M than the diagonal, Ritz values are those of M⁻¹ A. Then the pivots of
a sound factor of nearly the same matrix will do. Otherwise 1 and 2 hold as they are, and instead of
3, inverse iteration measures 1 / λ: a scattered right-hand side is solved for as accurately as in
3, so that no part of an eigenvector in it is left out, and the growth of the solution in two rough
steps more is 1 / λ. If M is positive definite, A has as many negative eigenvalues as M⁻¹ A, and the
method meets a direction p with pᵀAp < 0 unless there is none; else the diagonal serves for 2 and 3.

A Ritz value is an upper bound of λ, and so is pᵀAp / ‖p‖² for any p. So a small one shows that the
matrix is singular to working precision, and a negative one that it is not positive definite.

Sources: A. M. Ostrowski, "Über die Determinanten mit überwiegender Hauptdiagonale", Comment. Math.
Helv. 10, 1937; J. M. Varah, "A lower bound for the smallest singular value of a matrix", Linear
Algebra Appl. 11, 1975. A. Berman, R. J. Plemmons, "Nonnegative Matrices in the Mathematical
Sciences", 1979, chapter 6. G. H. Golub, C. F. Van Loan, "Matrix Computations", 4th ed., sections
10.1 and 11.3: Lanczos' method in conjugate gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..._sparse.dense import Array
from ..._sparse.values import PROBE_MEAN, probe_vector
from ...errors import SingularMatrixError
from ..protocol import not_positive_definite
from .iteration import DOUBLE_EPS, Norms, Precondition, Recurrence
from .products import SymmetricMatrix

# A smaller λ, in ε, might be changed by rounding errors of the entries.
_LEAST_EIGENVALUE = 1e4
# Ritz values below so many ε of double precision, relative to the norm, are rounding errors.
_ZERO_EIGENVALUE = 16.0
# ‖r‖ / ‖b‖ of the scattered right-hand side. The part of an eigenvector in it is about 1 / √n, and
# hardly ever so small that it would not show.
_SCATTERED_RESIDUAL = 1e-12
# (A v)_i / √d_i from which on v is taken: half of what is solved for.
_LEAST_PRODUCT = 0.5
# Iterations before the first look at the vectors, and the part of the iterations so far before the
# next one. Ritz values are looked at whenever the iterations have doubled.
_FIRST_STEPS, _MORE_STEPS = 4, 0.25
# ‖r‖² relative to the first one, below which the coefficients are noise.
_NOISE = 1e-200

_DOMINANT = "diagonally dominant"
_M_MATRIX = "A v > 0 for a vector v > 0, and no entry off the diagonal is positive"
_RITZ = "Ritz values"
_INVERSE = "inverse iteration"
# ‖r‖ / ‖b‖ in the steps of inverse iteration. In the first one, a part of an eigenvector that is
# left out would hide a small eigenvalue; after that the eigenvalue is wanted to a digit.
_INVERSE_RESIDUALS = (_SCATTERED_RESIDUAL, 1e-2, 1e-2)


@dataclass(frozen=True)
class Proof:
    """What shows that a matrix is positive definite.

    reason : in words
    eigenvalue : a lower bound of the smallest eigenvalue of D^-½ A D^-½, or nearly one; None if
        that is not known, but large enough
    iterations : those of conjugate gradients that were needed
    """

    reason: str
    eigenvalue: float | None
    iterations: int = 0

    def is_strong(self, eps: float) -> bool:
        """Whether all solutions with a small backward error are good."""
        return self.eigenvalue is None or self.eigenvalue > least_eigenvalue(eps)

    def __str__(self) -> str:
        if self.eigenvalue is None:
            return self.reason
        return f"{self.reason}; after scaling, no eigenvalue is below {self.eigenvalue:.0e}"


def least_eigenvalue(eps: float) -> float:
    """The eigenvalue from which on half of the digits are right, and ‖r‖ ≤ √ε ‖b‖ can be met."""
    return max(_LEAST_EIGENVALUE * eps, math.sqrt(eps))


def find_proof(
    matrix: SymmetricMatrix,
    norm: Tensor,
    row_sums: Tensor,
    limit: int,
    precondition: Precondition | None = None,
) -> Proof | None:
    """A proof for all blocks; None if there is none within the limit of iterations.

    norm : (blocks,) ‖D^-½ A D^-½‖
    row_sums : (n,) Σ_j |a_ij| / a_ii
    precondition : applies a positive definite matrix; None for the diagonal

    Raises NotPositiveDefiniteError or SingularMatrixError.
    """
    margin = find_margin(matrix, row_sums)
    if margin > least_eigenvalue(DOUBLE_EPS):
        return Proof(_DOMINANT, margin)
    found, spent = _find_vector(matrix, norm, limit, precondition)
    if found is not None:
        return found
    if precondition is None:
        return _find_ritz_value(matrix, norm, limit)
    return _iterate_inversely(matrix, norm, limit - spent, precondition)


def find_margin(matrix: SymmetricMatrix, row_sums: Tensor) -> float:
    """A lower bound of 1 − max_i Σ_{j≠i} |a_ij| / a_ii, the margin of diagonal dominance."""
    return 2 - float(row_sums.amax()) - _relative_rounding(matrix)


def _relative_rounding(matrix: SymmetricMatrix) -> float:
    """A bound of the rounding errors of a row of A x, relative to that of |A||x|."""
    return (matrix.longest_row + 2) * DOUBLE_EPS


def _find_vector(
    matrix: SymmetricMatrix, norm: Tensor, limit: int, precondition: Precondition | None
) -> tuple[Proof | None, int]:
    """The proof for M-matrices, if the matrix is one, and the iterations that were made."""
    if matrix.has_positive_entry_off_diagonal():
        return None, 0
    roots = matrix.diagonal.sqrt()
    search = _Search(matrix, norm, roots.unsqueeze(0), limit, precondition)
    recurrence = search.recurrence
    converged = _SCATTERED_RESIDUAL**2 * recurrence.find_squares()
    while search.advance():
        if float((recurrence.r / roots).amax()) > 1 - _LEAST_PRODUCT:
            continue
        v = recurrence.e
        product = matrix.multiply(v, torch.empty_like(v)) / roots
        scaled = v * roots
        # With v > 0 and A v > 0, |A|v = 2 D v − A v is below 2 D v.
        product -= 2 * _relative_rounding(matrix) * scaled
        if float(scaled.amin()) > 0 and float(product.amin()) >= _LEAST_PRODUCT / 2:
            eigenvalue = float(product.amin()) / float(scaled.amax())
            return Proof(_M_MATRIX, eigenvalue, recurrence.iterations), recurrence.iterations
        if bool((recurrence.find_squares() <= converged).all()):
            break  # v is so large that rounding errors spoil it
    return None, recurrence.iterations


def _find_ritz_value(matrix: SymmetricMatrix, norm: Tensor, limit: int) -> Proof | None:
    """The proof by a scattered right-hand side."""
    rhs = matrix.diagonal.sqrt() * _scatter(matrix)
    search, norms = _Search(matrix, norm, rhs, limit), Norms.of(matrix, norm, rhs)
    small = (_SCATTERED_RESIDUAL * norms.b_size).square()
    while search.advance():
        if bool((search.recurrence.rho <= small).all()):
            low = search.find_smallest_ritz_value()
            return Proof(_RITZ, low, search.recurrence.iterations)
    return None


def _iterate_inversely(
    matrix: SymmetricMatrix, norm: Tensor, limit: int, precondition: Precondition
) -> Proof | None:
    """The proof by the growth of scattered vectors."""
    vector = matrix.diagonal.sqrt() * _scatter(matrix)
    spent, eigenvalue = 0, math.inf
    for residual in _INVERSE_RESIDUALS:
        size = matrix.inner(vector, vector * matrix.inverse_diagonal).sqrt_()
        vector = (matrix.split(vector) / size).view_as(vector)
        search = _Search(matrix, norm, vector, limit - spent, precondition)
        recurrence = search.recurrence
        while not bool((recurrence.find_squares() <= residual**2).all()):
            if not search.advance():
                return None
        spent += recurrence.iterations
        vector = matrix.diagonal * recurrence.e
        growth = matrix.inner(vector, recurrence.e).sqrt_()
        eigenvalue = min(eigenvalue, 1 / float(growth.amax()))
    return Proof(_INVERSE, eigenvalue, spent)


def _scatter(matrix: SymmetricMatrix) -> Tensor:
    """(1, n) scattered numbers."""
    return probe_vector(matrix.n, torch.float64, PROBE_MEAN, matrix.diagonal.device)


class _Search:
    """Conjugate gradients that look at upper bounds of the smallest eigenvalue.

    These are the Ritz values or, with a preconditioner, the Rayleigh quotients of the directions.
    """

    def __init__(
        self,
        matrix: SymmetricMatrix,
        norm: Tensor,
        rhs: Tensor,
        limit: int,
        precondition: Precondition | None = None,
    ):
        self.recurrence = Recurrence(matrix, rhs.clone(), True, precondition)
        self._is_preconditioned = precondition is not None
        self._norm, self._limit, self._next_look = norm.cpu().numpy(), limit, 2 * _FIRST_STEPS

    def advance(self) -> bool:
        """Make some iterations; False at the limit."""
        recurrence = self.recurrence
        rest = self._limit - recurrence.iterations
        if rest <= 0:
            return False
        if self._is_preconditioned:  # each iteration takes long, and few are needed
            recurrence.advance(1)
            self._check(recurrence.lowest.view(-1).cpu().numpy(), "a Rayleigh quotient")
            return True
        steps = max(_FIRST_STEPS, int(_MORE_STEPS * recurrence.iterations))
        recurrence.advance(min(rest, steps))
        if recurrence.iterations >= min(self._next_look, self._limit):
            self._next_look = 2 * recurrence.iterations
            self.find_smallest_ritz_value()
        return True

    def find_smallest_ritz_value(self) -> float:
        """The smallest Ritz value of a block; raise if one is not positive, or nearly zero."""
        recurrence, zero = self.recurrence, self._zero
        steps, ratios = (
            torch.cat(numbers, 1).cpu().numpy() for numbers in (recurrence.steps, recurrence.ratios)
        )
        given = zip(steps, ratios, zero.tolist(), strict=True)
        low = np.array([smallest_ritz_value(*each) for each in given])
        self._check(low, "a Ritz value")
        return float(low.min())

    @property
    def _zero(self) -> Array:
        return _ZERO_EIGENVALUE * DOUBLE_EPS * self._norm

    def _check(self, low: Array, what: str) -> None:
        """Raise if an upper bound of the smallest eigenvalue of a block is not clearly positive."""
        zero = self._zero
        if bool((low < -zero).any()):
            raise not_positive_definite("cg", "the method of conjugate gradients", None)
        if not bool((low > zero).all()):
            worst = float((low / self._norm).min())
            raise SingularMatrixError(
                f"the matrix is singular to working precision: after scaling, {what} is "
                f"{abs(worst):.0e} of its norm (a graph or mesh Laplacian needs an anchor: a fixed "
                f"vertex, or a multiple of the identity or of the mass matrix added)",
                engine="cg",
                row=None,
            )


def smallest_ritz_value(steps: Array, ratios: Array, zero: float) -> float:
    """The smallest eigenvalue of the tridiagonal matrix of Lanczos, from the α and β.

    Its diagonal is 1/α_j + β_{j−1}/α_{j−1}, and beside that is √β_j / α_j. What follows a step that
    is not positive, or a residual that has vanished, is not used. Nor is what follows the first
    iteration after which the eigenvalue is at most `zero`, since rounding errors are large there.
    """
    with np.errstate(all="ignore"):
        sizes = np.concatenate(([1.0], np.cumprod(ratios)[:-1]))
        is_used = (steps > 0) & (steps < math.inf) & (sizes > _NOISE)
        used = len(steps) if is_used.all() else int(is_used.argmin())
        if used < len(steps) and sizes[used] > _NOISE:
            used += 1  # the step that is not positive shows the most
        inverse = 1 / steps[:used]
        diagonal = inverse.copy()
        diagonal[1:] += ratios[: used - 1] * inverse[:-1]
        beside = np.sqrt(ratios[: used - 1]) * inverse[:-1]
    is_finite = np.isfinite(diagonal)
    is_finite[1:] &= np.isfinite(beside)
    most = used if is_finite.all() else int(is_finite.argmin())
    if most == 0:
        return -math.inf
    lowest = _smallest_eigenvalue(diagonal[:most], beside)
    least = 1
    while lowest <= zero and least < most:  # a larger matrix has a smaller eigenvalue
        middle = (least + most) // 2
        value = _smallest_eigenvalue(diagonal[:middle], beside)
        if value <= zero:
            lowest, most = value, middle
        else:
            least = middle + 1
    return lowest


def _smallest_eigenvalue(diagonal: Array, beside: Array) -> float:
    """The smallest eigenvalue of a tridiagonal matrix; surplus entries of `beside` are not used."""
    from scipy.linalg import eigvalsh_tridiagonal

    n = len(diagonal)
    if n == 1:
        return float(diagonal[0])
    given = diagonal, beside[: n - 1]
    return float(eigvalsh_tridiagonal(*given, select="i", select_range=(0, 0))[0])
