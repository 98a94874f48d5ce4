"""Kinds of test matrices, by name; each is a function of a `Draw` to a SciPy sparse matrix.

A kind says which symmetry its matrices have, and whether they are singular by construction, so
that the judge in `verdicts.py` needs to compute neither. The other kinds are in `singular_kinds.py`
and `package_kinds.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as la
import scipy.sparse as sp

DTYPES = ("float32", "float64", "complex64", "complex128")
COMPLEX = DTYPES[2:]
Matrix = Any  # a SciPy sparse matrix or a NumPy array


@dataclass(frozen=True)
class Draw:
    """The random choices of one matrix with about `n` rows, to be rounded to `dtype`."""

    rng: np.random.Generator
    n: int
    dtype: np.dtype[Any]

    @property
    def eps(self) -> float:
        return float(np.finfo(self.dtype).eps)

    @property
    def side(self) -> int:
        """The side of a square grid with about `n` nodes."""
        return max(2, round(float(self.n) ** 0.5))

    def decades(self, low: float, high: float) -> float:
        """A number whose logarithm is uniform between those of 10^low and 10^high."""
        return float(10 ** self.rng.uniform(low, high))

    def choice(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def scales(self, decades: float) -> np.ndarray:
        return 10 ** self.rng.uniform(-decades, decades, self.n)

    def zero_one(self, degree: float) -> np.ndarray:
        """(n, n) ones with probability degree / n, and ones on a random permutation."""
        A = (self.rng.random((self.n, self.n)) < degree / self.n) * 1.0
        A[np.arange(self.n), self.rng.permutation(self.n)] = 1
        return A

    def sparse(self, degree: float = 3.5) -> sp.csr_matrix:
        """(n, n) normal numbers at random places, and on a random permutation."""
        return sp.csr_matrix(self.zero_one(degree) * self.rng.standard_normal((self.n, self.n)))


@dataclass(frozen=True)
class Kind:
    """A kind of matrices.

    symmetry : "spd", "symmetric", "hermitian" or "general"
    singular : whether its matrices are singular by construction, but for rounding
    dtypes : those that it is tested with
    largest : the largest n
    """

    name: str
    make: Callable[[Draw], Matrix]
    symmetry: str
    singular: bool
    dtypes: tuple[str, ...]
    largest: int


KINDS: dict[str, Kind] = {}


def kind(
    symmetry: str = "general",
    *,
    singular: bool = False,
    dtypes: tuple[str, ...] = DTYPES,
    largest: int = 2000,
) -> Callable[[Callable[[Draw], Matrix]], Callable[[Draw], Matrix]]:
    """Register a function as a kind."""

    def register(make: Callable[[Draw], Matrix]) -> Callable[[Draw], Matrix]:
        name = make.__name__
        KINDS[name] = Kind(name, make, symmetry, singular, dtypes, largest)
        return make

    return register


def make_matrix(kind: Kind, n: int, seed: int, dtype: str) -> tuple[sp.csr_matrix, str]:
    """A matrix rounded to `dtype`, without stored zeros, and its symmetry.

    A real matrix becomes complex by D A D or D A Dᴴ with a random diagonal D of powers of i, which
    changes no modulus.
    """
    draw = Draw(np.random.default_rng([n, seed]), min(n, kind.largest), np.dtype(dtype))
    exact = sp.csr_matrix(kind.make(draw))
    symmetry = kind.symmetry
    if draw.dtype.kind == "c" and exact.dtype.kind != "c":
        left = sp.diags(1j ** draw.rng.integers(0, 4, exact.shape[0]))
        if symmetry == "general":
            right = sp.diags(1j ** draw.rng.integers(0, 4, exact.shape[0]))
        elif symmetry == "spd" or draw.rng.random() < 0.5:
            right, symmetry = left.conj(), "spd" if symmetry == "spd" else "hermitian"
        else:
            right = left
        exact = sp.csr_matrix(left @ exact @ right)
    if symmetry != "general":  # rounding may have disturbed it
        lower = sp.tril(exact, -1, format="csr")
        diagonal = exact.diagonal() if symmetry == "symmetric" else exact.diagonal().real
        upper = lower.T if symmetry == "symmetric" else lower.conj().T
        exact = sp.csr_matrix(lower + upper + sp.diags(diagonal))
    with np.errstate(over="ignore", under="ignore"):
        A = exact.astype(draw.dtype)
    A.eliminate_zeros()
    A.sort_indices()
    return A, symmetry


# What kinds are made of


def path(m: int) -> sp.csr_matrix:
    """The second differences on m nodes with fixed ends."""
    return sp.diags([-np.ones(m - 1), 2 * np.ones(m), -np.ones(m - 1)], [-1, 0, 1], format="csr")


def grid_laplacian(m: int) -> sp.csr_matrix:
    return sp.csr_matrix(sp.kron(path(m), sp.eye(m)) + sp.kron(sp.eye(m), path(m)))


def weighted_laplacian(edges: np.ndarray, weights: Matrix, n: int) -> sp.csr_matrix:
    i, j = edges
    off = sp.coo_matrix((-weights, (i, j)), (n, n))
    off = sp.csr_matrix(off + off.T)
    return sp.csr_matrix(off - sp.diags(np.asarray(off.sum(1)).ravel()))


def grid_edges(m: int) -> np.ndarray:
    node = np.arange(m * m).reshape(m, m)
    right = np.stack([node[:, :-1].ravel(), node[:, 1:].ravel()])
    return np.concatenate([right, np.stack([node[:-1].ravel(), node[1:].ravel()])], 1)


# Bad scales


@kind()
def scaled_rows_and_columns(draw: Draw) -> Matrix:
    k = draw.rng.uniform(0, 15 if draw.eps > 1e-10 else 100)
    rows, cols = draw.choice((k, 0), (0, k), (k / 2, k / 2))
    return sp.diags(draw.scales(rows)) @ draw.sparse() @ sp.diags(draw.scales(cols))


@kind()
def scaled_zero_one(draw: Draw) -> Matrix:
    k = draw.rng.uniform(0, 12)
    rows, cols = draw.choice((k, 0), (0, k), (k, k))
    A = sp.csr_matrix(draw.zero_one(3.5))
    return sp.diags(draw.scales(rows)) @ A @ sp.diags(draw.scales(cols))


@kind("symmetric")
def scaled_symmetric(draw: Draw) -> Matrix:
    D, S = sp.diags(draw.scales(draw.rng.uniform(0, 14))), draw.sparse()
    return D @ (S + S.T + sp.diags(draw.rng.standard_normal(draw.n))) @ D


@kind("spd")
def scaled_spd(draw: Draw) -> Matrix:
    n = draw.side**2
    D = sp.diags(10 ** (draw.rng.uniform(-1, 1, n) * draw.rng.uniform(0, 12)))
    return D @ grid_laplacian(draw.side) @ D


@kind()
def huge_or_tiny(draw: Draw) -> Matrix:
    """Entries near the largest or the smallest numbers of the dtype."""
    k = draw.rng.uniform(25, 36) if draw.eps > 1e-10 else draw.rng.uniform(200, 300)
    return draw.sparse() * 10 ** (draw.choice(-1, 1) * k)


@kind()
def denormal(draw: Draw) -> Matrix:
    """Entries about the smallest normal number, of which some have lost digits."""
    return draw.sparse() * float(np.finfo(draw.dtype).tiny) * draw.decades(-3, 2)


@kind()
def blocks_of_different_scale(draw: Draw) -> Matrix:
    k = draw.rng.uniform(3, 15)
    sizes = np.diff(np.unique([0, *draw.rng.integers(1, draw.n, 4), draw.n]))
    blocks = []
    for size in sizes:
        block = Draw(draw.rng, int(size), draw.dtype).sparse()
        blocks.append(block * draw.decades(-k, k))
    return sp.block_diag(blocks)


@kind()
def graded_rows(draw: Draw) -> Matrix:
    """Rows that shrink geometrically."""
    return sp.diags(np.logspace(0, -draw.rng.uniform(3, 25), draw.n)) @ draw.sparse()


# Growing solutions and growing factors


@kind(largest=60)
def wilkinson_growth(draw: Draw) -> Matrix:
    """The matrix for which partial pivoting lets entries grow as 2ⁿ, perturbed."""
    A = np.eye(draw.n) - np.tril(np.ones((draw.n, draw.n)), -1)
    A[:, -1] = 1
    return A * (1 - draw.choice(0, 1e-3) * draw.rng.random(A.shape))


@kind(largest=600)
def upwind_recurrence(draw: Draw) -> Matrix:
    """The recurrence x_{i+1} = a x_i + b_i; its solutions may grow beyond all bounds."""
    a = draw.choice(2.0, 1.1, draw.rng.uniform(0.5, 3))
    limit = 30 if draw.eps > 1e-10 else 250
    n = min(draw.n, int(limit / max(abs(np.log10(a)), 0.05)))
    A = sp.diags([np.ones(n), -a * np.ones(n - 1)], [0, -1])
    return A if draw.rng.random() < 0.5 else A.T


@kind(largest=400)
def unstable_three_terms(draw: Draw) -> Matrix:
    """A boundary value problem with growing and decaying solutions, solved as a recurrence."""
    n, a = draw.n, draw.rng.uniform(2, 6)
    A = sp.diags([np.ones(n - 1), -a * np.ones(n), np.ones(n - 1)], [-1, 0, 1], format="lil")
    if draw.rng.random() < 0.5:  # both conditions at one end
        A = sp.csr_matrix(A)
        return sp.csr_matrix(sp.vstack([sp.csr_matrix(np.eye(1, n)), A[:-1]]))[:, :n]
    return A


@kind()
def hadamard_growth(draw: Draw) -> Matrix:
    """Orthogonal blocks with small pivots, which grow without pivoting."""
    order = draw.choice(2, 4, 8)
    blocks = Draw(draw.rng, max(2, draw.n // order), draw.dtype).zero_one(1.5)
    A = sp.kron(sp.csr_matrix(blocks), la.hadamard(order) * 1.0)
    return A if draw.rng.random() < 0.5 else A + draw.decades(-9, -2) * sp.eye(A.shape[0])


@kind()
def tiny_pivots(draw: Draw) -> Matrix:
    """Diagonals of 1e-12 … 1e-3 beside entries of 1."""
    A = sp.lil_matrix(draw.sparse())
    A.setdiag(draw.decades(-12, -3) * draw.rng.standard_normal(draw.n))
    i = np.arange(draw.n - 1)
    A[i, i + 1] = 1.0
    A[i + 1, i] = -1.0
    return A


# Zeros and ones


@kind()
def zero_one_general(draw: Draw) -> Matrix:
    return draw.zero_one(draw.rng.uniform(1.5, 5))


@kind("symmetric")
def zero_one_symmetric(draw: Draw) -> Matrix:
    U = np.triu(draw.zero_one(draw.rng.uniform(1.5, 4)))
    return np.maximum(U, U.T)


@kind("symmetric", dtypes=COMPLEX)
def zero_one_complex_symmetric(draw: Draw) -> Matrix:
    A = draw.zero_one(draw.rng.uniform(2, 4))
    U = np.triu(A, 1) * 1j ** draw.rng.integers(0, 4, A.shape)
    return U + U.T + np.diag(np.diag(A))


@kind()
def small_integers(draw: Draw) -> Matrix:
    return draw.zero_one(3.5) * draw.rng.integers(-4, 5, (draw.n, draw.n))


@kind()
def signed_incidence(draw: Draw) -> Matrix:
    """0, 1, -1: the node-arc incidence of a spanning tree, reduced and permuted."""
    n = draw.n
    parent = np.array([draw.rng.integers(-1, i) for i in range(n)])
    i, to = np.arange(n), parent >= 0
    A = sp.eye(n).tolil()
    A[i[to], parent[to]] = -1
    order = draw.rng.permutation(n)
    return sp.csr_matrix(A)[order][:, draw.rng.permutation(n)]


# Permutations, triangles, dense but small


@kind()
def permuted_triangular(draw: Draw) -> Matrix:
    n = draw.n
    A = np.tril(draw.zero_one(2.5) * draw.rng.standard_normal((n, n)), -1)
    A[np.arange(n), np.arange(n)] = draw.rng.uniform(0.5, 2, n) * draw.choice(1, draw.scales(3))
    return A[draw.rng.permutation(n)][:, draw.rng.permutation(n)]


@kind(largest=120)
def kahan(draw: Draw) -> Matrix:
    theta = draw.rng.uniform(0.5, 1.4)
    powers = np.sin(theta) ** np.arange(draw.n)
    A = np.diag(powers) @ (np.eye(draw.n) - np.cos(theta) * np.triu(np.ones((draw.n,) * 2), 1))
    return A if draw.rng.random() < 0.5 else A.T


@kind()
def zero_diagonal(draw: Draw) -> Matrix:
    A = sp.lil_matrix(draw.sparse())
    A.setdiag(0)
    shift = np.roll(np.arange(draw.n), 1)
    A[np.arange(draw.n), shift] = 1 + draw.rng.random(draw.n)
    return A


@kind(largest=24)
def vandermonde(draw: Draw) -> Matrix:
    return np.vander(np.sort(draw.rng.uniform(-1, 1, draw.n)))


@kind("spd", largest=14)
def hilbert(draw: Draw) -> Matrix:
    return la.hilbert(draw.n)


@kind()
def companion(draw: Draw) -> Matrix:
    n = draw.n
    A = sp.diags([np.ones(n - 1)], [-1], shape=(n, n), format="lil")
    A[0, :] = draw.rng.standard_normal(n) * draw.choice(1, draw.scales(draw.rng.uniform(0, 6)))
    return A


@kind()
def toeplitz(draw: Draw) -> Matrix:
    """A band of a random symbol, perhaps with a winding number, for which it is ill-conditioned."""
    offsets = [-2, -1, 0, 1, 2]
    entries = draw.rng.standard_normal(5) * draw.choice(1, np.array([0, 0, 1, 1, 1]))
    return sp.diags(entries, offsets, shape=(draw.n, draw.n))


@kind("symmetric")
def arrow(draw: Draw) -> Matrix:
    n = draw.n
    A = sp.diags(draw.rng.standard_normal(n) * draw.choice(1, draw.scales(4))).tolil()
    A[0, 1:] = row = draw.rng.standard_normal(n - 1)
    A[1:, 0] = row[:, None]
    return A
