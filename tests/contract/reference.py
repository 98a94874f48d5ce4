"""Reference solutions in extended precision, with certificates and condition numbers.

The matrix is equilibrated by powers of two, factored in double precision, and its solutions are
refined with residuals in `longdouble`. That refinement contracts proves that the factor is one of
this matrix. Where it does not, a QR factorisation, for matrices whose LU factors grow, or an LU
factorisation in `longdouble` takes its place. Where that is not enough either, arithmetic modulo a
prime decides whether the matrix is exactly singular.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

# The contraction of refinement below which a factor is accepted: its inverse is right to 1/20.
CONTRACTION = 0.05
REFINEMENT_STEPS = 12
# The sizes up to which slower methods are tried.
LARGEST_EXTENDED, LARGEST_EXACT = 500, 700
PRIME = 2**31 - 19  # 1 modulo 4, so that -1 has a root
POWER_STEPS = 30
BAUER_BOUND = 6.0  # Rump: the distance is at most (3 + 2 √2) n / ρ(|A⁻¹||A|)

Array = np.ndarray[Any, Any]


def extended(dtype: np.dtype[Any]) -> type[Any]:
    return np.clongdouble if dtype.kind == "c" else np.longdouble


@dataclass
class Reference:
    """What is known of a matrix A.

    certified : whether `solve` gives solutions with certified errors
    singular : whether A is singular exactly or far beyond working precision; None if unknown
    condition : ρ(|A⁻¹||A|), the smallest condition number that scaling the columns can give
    equilibrated : ‖S⁻¹‖‖S‖ in the ∞-norm, of the equilibrated matrix S
    norm_condition : ‖A⁻¹‖‖A‖ in the ∞-norm
    """

    matrix: sp.csr_matrix
    certified: bool = False
    singular: bool | None = None
    condition: float = np.inf
    equilibrated: float = np.inf
    norm_condition: float = np.inf

    def __post_init__(self) -> None:
        A, eps = self.matrix, np.finfo(self.matrix.dtype).eps
        self.n = A.shape[0]
        matched = match_columns(A)
        if (matched < 0).any():  # structurally
            self.singular = True
            return
        self.matched = matched
        A = A.astype(extended(A.dtype))
        self.rows, self.cols = equilibrate(A)
        self.A = A
        self.S = sp.csr_matrix(sp.diags(self.rows) @ A @ sp.diags(self.cols))
        self.S_transposed = sp.csr_matrix(self.S.T)
        for factor in (_DoubleFactor, _OrthogonalFactor, _ExtendedFactor):
            if factor is not _DoubleFactor and self.n > LARGEST_EXTENDED:
                continue
            try:
                self.factor = factor(self.S)
            except (la.LinAlgError, ZeroDivisionError):
                continue
            probe = np.random.default_rng(0).standard_normal((self.n, 2)).astype(A.dtype)
            ratios = [self._refine(probe, transpose, 1)[1] for transpose in (False, True)]
            if max(ratios) < CONTRACTION:
                self.certified = True
                break
        if self.certified:
            self._measure()
            self.singular = bool(self.condition * eps > 10 * BAUER_BOUND * self.n)
        elif self.n <= LARGEST_EXACT and is_exactly_singular(self.matrix):
            self.singular = True

    def _measure(self) -> None:
        self.inverse = abs(self.factor.inverse())
        modulus = abs(self.S).astype(float)
        self.condition = _condition(modulus, self.inverse, self.matched)
        sums = self.inverse.sum(1)
        self.equilibrated = float(sums.max() * np.asarray(modulus.sum(1)).max())
        norm = np.asarray(abs(self.A).sum(1)).max()
        inverse_sums = self.cols * _product(self.inverse, self.rows)
        self.norm_condition = float(norm * inverse_sums.max())

    def _refine(self, rhs: Array, transpose: bool, steps: int) -> tuple[Array, float]:
        """Solutions of S x = rhs or Sᵀ x = rhs, and the contraction of the first step."""
        S = self.S_transposed if transpose else self.S
        x = self.factor.solve(rhs, transpose)
        first, last = np.nan, np.inf
        for step in range(steps):
            change = self.factor.solve(rhs - S @ x, transpose)
            size = abs(x).max(0)
            ratio = float((abs(change).max(0) / np.where(size > 0, size, 1)).max())
            first = ratio if step == 0 else first
            x = x + change
            if not ratio < last / 2 or ratio < 1e-18:
                break
            last = ratio
        return x, first if np.isfinite(first) else np.inf

    def solve(self, b: Array, transpose: bool) -> tuple[Array, Array, Array]:
        """The solutions of A x = b or Aᵀ x = b (n, k), their Skeel condition numbers, and errors.

        The errors are estimates relative to the largest entry.
        """
        left, right = (self.cols, self.rows) if transpose else (self.rows, self.cols)
        rhs = left[:, None] * b.astype(self.A.dtype)
        y, _ = self._refine(rhs, transpose, REFINEMENT_STEPS)
        S, inverse = (self.S_transposed, self.inverse.T) if transpose else (self.S, self.inverse)
        bound = abs(S) @ abs(y) + abs(rhs)
        x = right[:, None] * y
        size = abs(x).max(0)
        size = np.where(size > 0, size, 1)
        skeel = (right[:, None] * _product(inverse, bound)).max(0) / size
        error = (right[:, None] * _product(inverse, abs(rhs - S @ y))).max(0) / size
        return x, skeel, error + np.finfo(np.longdouble).eps * skeel


def match_columns(A: sp.csr_matrix) -> Array:
    """A column with an entry for each row, or -1: a maximum matching by augmenting paths.

    SciPy's `maximum_bipartite_matching` takes minutes for some matrices of 1,400 rows.
    """
    neighbours = np.split(A.indices, A.indptr[1:-1])
    column_of, row_of = np.full(A.shape[0], -1), np.full(A.shape[1], -1)
    seen = np.full(A.shape[1], -1)
    for start in range(A.shape[0]):
        reached_from: dict[int, int] = {}
        queue, end = [start], -1
        for row in queue:
            for col in neighbours[row].tolist():
                if seen[col] != start:
                    seen[col], reached_from[col] = start, row
                    if row_of[col] < 0:
                        end = col
                        break
                    queue.append(int(row_of[col]))
            if end >= 0:
                break
        while end >= 0:  # exchange along the path
            row = reached_from[end]
            following = int(column_of[row])
            column_of[row], row_of[end] = end, row
            end = following
    return column_of


def _condition(modulus: sp.csr_matrix, inverse: Array, matched: Array) -> float:
    """A lower bound of ρ(|A⁻¹||A|), tight but for slow convergence (Collatz and Wielandt).

    It is the largest one of the irreducible blocks on the diagonal of the block triangular form.
    """
    n = len(matched)
    count, block = connected_components(modulus[:, matched], connection="strong")
    order = np.argsort(block, kind="stable")
    best = 1.0
    for rows in np.split(order, np.cumsum(np.bincount(block, minlength=count))[:-1]):
        if len(rows) == 1:
            continue
        cols = matched[rows]
        B = modulus[rows][:, cols] if len(rows) < n else modulus[:, cols]
        C = inverse[np.ix_(cols, rows)] if len(rows) < n else inverse[cols]
        v = np.ones(len(rows))
        for _ in range(POWER_STEPS):
            w = C @ (B @ v)
            bound = float((w / v).min())
            v = w / w.max() + np.finfo(float).tiny
        best = max(best, bound)
    return best


def _product(matrix: Array, vectors: Array) -> Array:
    """The product of a matrix in double precision and vectors with large exponents."""
    scale = np.exp2(np.round(np.log2(np.maximum(vectors.max(0), np.finfo(np.longdouble).tiny))))
    return np.asarray((matrix @ (vectors / scale).astype(float)) * scale)


def equilibrate(A: sp.csr_matrix) -> tuple[Array, Array]:
    """Powers of two that bring the entries near 1 in geometric mean, and then rows to 1."""
    n = A.shape[0]
    coo = A.tocoo()
    logs = np.log2(abs(coo.data))
    r, c = np.zeros(n, np.longdouble), np.zeros(n, np.longdouble)
    rows, cols = np.bincount(coo.row, minlength=n), np.bincount(coo.col, minlength=n)
    for _ in range(20):
        r = -np.bincount(coo.row, (logs + c[coo.col]).astype(float), n) / rows
        c = -np.bincount(coo.col, (logs + r[coo.row]).astype(float), n) / cols
    for _ in range(2):
        for mine, other, i, j in ((r, c, coo.row, coo.col), (c, r, coo.col, coo.row)):
            top = np.full(n, -np.inf)
            np.maximum.at(top, i, (logs + other[j]).astype(float))
            mine[:] = -top
    return tuple(np.exp2(np.round(e).astype(np.longdouble)) for e in (r, c))  # type: ignore[return-value]


class _DoubleFactor:
    """An LU factorisation with partial pivoting in double precision."""

    def __init__(self, S: sp.csr_matrix):
        self.dtype = np.complex128 if S.dtype.kind == "c" else np.float64
        self.extended, self.n = S.dtype, S.shape[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not self._factor(S.toarray().astype(self.dtype)).all():
                raise la.LinAlgError

    def _factor(self, S: Array) -> Array:
        """Factor, and return the pivots."""
        self.lu = la.lu_factor(S, check_finite=False)
        return np.asarray(self.lu[0].diagonal())

    def _substitute(self, rhs: Array, transpose: bool) -> Array:
        return np.asarray(la.lu_solve(self.lu, rhs, trans=int(transpose), check_finite=False))

    def solve(self, rhs: Array, transpose: bool) -> Array:
        size = abs(rhs).max(0)
        scale = np.where(size > 0, np.exp2(np.round(np.log2(np.where(size > 0, size, 1)))), 1)
        with np.errstate(all="ignore"):
            scaled = (rhs / scale).astype(self.dtype)
            x = self._substitute(scaled, transpose)
        return np.asarray(x.astype(self.extended) * scale)

    def inverse(self) -> Array:
        return self._substitute(np.eye(self.n, dtype=self.dtype), False)


class _OrthogonalFactor(_DoubleFactor):
    """A QR factorisation with pivoting of columns in double precision."""

    def _factor(self, S: Array) -> Array:
        self.q, self.r, self.order = la.qr(S, pivoting=True, check_finite=False)
        return np.asarray(self.r.diagonal())

    def _substitute(self, rhs: Array, transpose: bool) -> Array:
        if transpose:
            x = la.solve_triangular(self.r, rhs[self.order], trans=1, check_finite=False)
            return np.asarray(self.q.conj() @ x)
        x = np.empty_like(rhs)
        x[self.order] = la.solve_triangular(self.r, self.q.conj().T @ rhs, check_finite=False)
        return x


class _ExtendedFactor:
    """An LU factorisation with partial pivoting in `longdouble`."""

    def __init__(self, S: sp.csr_matrix):
        lu = S.toarray()
        self.order = np.arange(len(lu))
        for k in range(len(lu)):
            pivot = k + int(abs(lu[k:, k]).argmax())
            if lu[pivot, k] == 0:
                raise la.LinAlgError
            if pivot != k:
                lu[[k, pivot]], self.order[[k, pivot]] = lu[[pivot, k]], self.order[[pivot, k]]
            below = k + 1 + np.flatnonzero(lu[k + 1 :, k])
            lu[below, k] /= lu[k, k]
            right = k + 1 + np.flatnonzero(lu[k, k + 1 :])
            lu[np.ix_(below, right)] -= np.outer(lu[below, k], lu[k, right])
        self.lu = lu

    def solve(self, rhs: Array, transpose: bool) -> Array:
        lu, x = self.lu, np.array(rhs)
        n = len(lu)
        if transpose:
            for k in range(n):
                x[k] = (x[k] - lu[:k, k] @ x[:k]) / lu[k, k]
            for k in reversed(range(n)):
                x[k] -= lu[k + 1 :, k] @ x[k + 1 :]
            back = np.empty_like(x)
            back[self.order] = x
            return back
        x = x[self.order]
        for k in range(n):
            x[k] -= lu[k, :k] @ x[:k]
        for k in reversed(range(n)):
            x[k] = (x[k] - lu[k, k + 1 :] @ x[k + 1 :]) / lu[k, k]
        return x

    def inverse(self) -> Array:
        inverse = self.solve(np.eye(len(self.lu), dtype=self.lu.dtype), False)
        return inverse.astype(np.complex128 if inverse.dtype.kind == "c" else float)


def is_exactly_singular(A: sp.csr_matrix) -> bool:
    """Whether the determinant is zero modulo a prime; never wrong if it is not.

    The entries are integers times powers of two, and i is a root of -1 modulo the prime.
    """
    i_residue = next(
        r for r in (pow(g, (PRIME - 1) // 4, PRIME) for g in range(2, 99)) if r * r % PRIME != 1
    )
    data = A.data.astype(np.complex128)
    residues = (_residues(data.real) + i_residue * _residues(data.imag)) % PRIME
    M = sp.csr_matrix((residues, A.indices, A.indptr), A.shape, dtype=np.int64).toarray()
    for k in range(len(M)):
        rows = k + np.flatnonzero(M[k:, k])
        if not len(rows):
            return True
        pivot, rows = rows[0], rows[1:]
        if pivot != k:
            M[[k, pivot]] = M[[pivot, k]]
        cols = k + 1 + np.flatnonzero(M[k, k + 1 :])
        if len(rows) and len(cols):
            factors = M[rows, k] * pow(int(M[k, k]), -1, PRIME) % PRIME
            block = np.ix_(rows, cols)
            M[block] = (M[block] - factors[:, None] * M[k, cols] % PRIME) % PRIME
    return False


def _residues(numbers: Array) -> Array:
    mantissas, exponents = np.frexp(numbers)
    integers = np.ldexp(mantissas, 53).astype(np.int64) % PRIME
    distinct, where = np.unique(exponents - 53, return_inverse=True)
    powers = np.array([pow(2, int(e), PRIME) for e in distinct], np.int64)
    return integers * powers[where] % PRIME
