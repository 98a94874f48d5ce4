"""Kinds of matrices that are singular by construction, and kinds that are nearly singular."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from tests.contract.matrix_kinds import (
    COMPLEX,
    Draw,
    Matrix,
    grid_edges,
    kind,
    path,
    weighted_laplacian,
)


def birth_death(m: int, ratio: float) -> sp.csr_matrix:
    """The transposed generator of a birth–death process: its columns sum to zero."""
    Q = sp.diags([ratio * np.ones(m - 1), np.ones(m - 1)], [-1, 1], format="csr")
    return sp.csr_matrix(Q - sp.diags(np.asarray(Q.sum(0)).ravel()))


@kind(singular=True)
def birth_death_chain(draw: Draw) -> Matrix:
    A = birth_death(min(draw.n, 200), draw.decades(-2, 0.5))
    return A if draw.rng.random() < 0.5 else A.T


@kind(singular=True)
def queues(draw: Draw) -> Matrix:
    m = max(2, min(draw.side, 25))
    Q, R = (birth_death(m, draw.decades(-2, 0)) for _ in range(2))
    return sp.kron(Q, sp.eye(m)) + sp.kron(sp.eye(m), R)


@kind(singular=True, dtypes=COMPLEX, largest=900)
def lindblad(draw: Draw) -> Matrix:
    """The generator of a driven damped cavity; it preserves the trace."""
    N = draw.side
    drive, damping, detuning = draw.rng.uniform(0.1, 1.5, 3)
    a, eye = np.diag(np.sqrt(np.arange(1, N)), 1) + 0j, np.eye(N)
    H = detuning * a.conj().T @ a + drive * (a + a.conj().T)
    k = damping * a.conj().T @ a
    jumps = damping * np.kron(a.conj(), a) - 0.5 * (np.kron(eye, k) + np.kron(k.T, eye))
    return jumps - 1j * (np.kron(eye, H) - np.kron(H.T, eye))


@kind(singular=True)
def markov(draw: Draw) -> Matrix:
    """I - P, perhaps with states that are left for ever."""
    n = draw.n
    P = draw.zero_one(2.5) * draw.rng.random((n, n)) + np.eye(n, k=1) * draw.decades(-6, 0)
    P = P / P.sum(1, keepdims=True)
    return np.eye(n) - P if draw.rng.random() < 0.5 else (np.eye(n) - P).T


@kind("symmetric", singular=True)
def kronecker_of_ones(draw: Draw) -> Matrix:
    """A node and its eight neighbours on a grid whose side is 2 modulo 3: many null vectors."""
    m = max(2, draw.side - (draw.side - 2) % 3)
    T = abs(path(m)) - sp.eye(m)
    return sp.kron(T, T)


@kind("symmetric", singular=True)
def free_laplacian(draw: Draw) -> Matrix:
    """Components that are not anchored."""
    m, parts = max(2, round((draw.n / 3) ** 0.5)), int(draw.rng.integers(1, 4))
    edges = grid_edges(m)
    weights = draw.choice(1.0, 10 ** draw.rng.uniform(-3, 3, (parts, edges.shape[1])))
    weights = np.broadcast_to(weights, (parts, edges.shape[1]))
    return sp.block_diag([weighted_laplacian(edges, w, m * m) for w in weights])


@kind("symmetric", singular=True)
def incidence_product(draw: Draw) -> Matrix:
    """B Bᵀ of 0/1 vertices and cells: fewer cells than vertices."""
    n = draw.n
    B = sp.csr_matrix(
        (draw.rng.random((n, max(1, n - int(draw.rng.integers(1, 4))))) < 2.5 / n) * 1.0
    )
    return B @ B.T


@kind("symmetric", singular=True)
def dependent_constraints(draw: Draw) -> Matrix:
    m = max(3, round(0.7 * draw.n))
    k = max(2, draw.n - m)
    C = sp.lil_matrix(sp.random(k, m, min(1, 3 / m), random_state=draw.rng))
    C[0, 0] = 1.0
    C[-1, :] = C[0, :] * draw.choice(1, 2, -4)
    H = sp.diags(10 ** draw.rng.uniform(-2, 2, m))
    return sp.bmat([[H, C.T], [C, None]])


@kind(singular=True)
def structurally_singular(draw: Draw) -> Matrix:
    """Three rows with entries in two columns only, or an empty row."""
    n = max(draw.n, 4)
    A = sp.lil_matrix(Draw(draw.rng, n, draw.dtype).sparse())
    if draw.rng.random() < 0.3:
        A[draw.rng.integers(n), :] = 0
        return A
    rows, cols = draw.rng.choice(n, 3, replace=False), draw.rng.choice(n, 2, replace=False)
    A[rows, :] = 0
    for row in rows:
        A[row, cols[0]], A[row, cols[1]] = draw.rng.standard_normal(2)
    return A


@kind(singular=True)
def duplicated_rows(draw: Draw) -> Matrix:
    """Two equal rows or columns, but for a power of two."""
    A = sp.lil_matrix(draw.sparse())
    i, j = draw.rng.choice(draw.n, 2, replace=False)
    A[i, :] = A[j, :] * 2.0 ** draw.rng.integers(-20, 20)
    return A if draw.rng.random() < 0.5 else A.T


@kind(singular=True)
def singular_block_beside_good_one(draw: Draw) -> Matrix:
    m = max(2, draw.n // 3)
    good = Draw(draw.rng, max(1, draw.n - m), draw.dtype).sparse()
    bad = birth_death(m, draw.decades(-1, 1)) * draw.decades(-8, 8)
    return sp.block_diag([bad, good] if draw.rng.random() < 0.5 else [good, bad])


@kind(singular=True)
def scaled_singular(draw: Draw) -> Matrix:
    """A singular matrix whose rows and columns are multiplied by powers of two."""
    k = 5 if draw.eps > 1e-10 else 30
    r, c = 2.0 ** draw.rng.integers(-2 * k, 2 * k, (2, draw.n))
    L = weighted_laplacian(
        np.stack([np.arange(draw.n - 1), np.arange(1, draw.n)]), np.ones(draw.n - 1), draw.n
    )
    return sp.diags(r) @ L @ sp.diags(c)


@kind("hermitian", singular=True, dtypes=COMPLEX)
def magnetic_laplacian(draw: Draw) -> Matrix:
    """A Hermitian Laplacian without flux: D L Dᴴ."""
    m = draw.side
    d = sp.diags(np.exp(1j * draw.rng.uniform(0, 6, m * m)))
    edges = grid_edges(m)
    return d @ weighted_laplacian(edges, np.ones(edges.shape[1]), m * m) @ d.conj()


@kind(singular=True, largest=200)
def low_rank(draw: Draw) -> Matrix:
    """Integers of rank n - 1 … n - 3, dense."""
    n = draw.n
    k = max(1, n - int(draw.rng.integers(1, 4)))
    left, right = draw.rng.integers(-2, 3, (n, k)), draw.rng.integers(-2, 3, (k, n))
    return (left @ right) * 1.0


@kind(singular=True)
def block_triangular_singular(draw: Draw) -> Matrix:
    """A regular block, coupled with a block of integers that has two dependent rows."""
    n, rng = max(draw.n, 6), draw.rng
    k = n // 2
    A = np.zeros((n, n))
    A[:k, :k] = Draw(rng, k, draw.dtype).sparse().toarray()
    B = rng.integers(-2, 3, (n - k, n - k)).astype(float)
    B[-1] = B[0] * 2.0 ** rng.integers(-3, 4)
    A[k:, k:] = B * 2.0 ** rng.integers(-30, 30)
    A[:k, k:] = (rng.random((k, n - k)) < 0.2) * 2.0 ** rng.integers(-20, 20)
    rows, cols = rng.permutation(n), rng.permutation(n)
    return A[rows][:, cols] if rng.random() < 0.5 else A


# Nearly singular


@kind()
def nearly_singular(draw: Draw) -> Matrix:
    """A row that depends on two others but for 1e-14 … 1e-3 of itself."""
    A = sp.lil_matrix(draw.sparse())
    i, j, k = draw.rng.choice(draw.n, 3, replace=False)
    noise = sp.lil_matrix((1, draw.n))
    noise[0, draw.rng.integers(draw.n)] = draw.decades(-14, -3)
    A[i, :] = A[j, :] + A[k, :] + noise
    return A


@kind()
def distance_of_epsilon(draw: Draw) -> Matrix:
    """The same with 0.1 ε … 1000 ε."""
    A = sp.lil_matrix(draw.sparse())
    i, j = draw.rng.choice(draw.n, 2, replace=False)
    A[i, :] = A[j, :]
    place = draw.choice(*A.rows[j])
    A[i, place] *= 1 + draw.eps * draw.decades(-1, 3)
    return A


@kind("symmetric")
def barely_anchored(draw: Draw) -> Matrix:
    """A Laplacian with an anchor of 1e-14 … 1e-2 at a node."""
    m = draw.side
    edges = grid_edges(m)
    L = weighted_laplacian(edges, np.ones(edges.shape[1]), m * m)
    anchor = np.zeros(m * m)
    anchor[draw.rng.integers(m * m)] = draw.decades(-14, -2)
    return L + sp.diags(anchor)


@kind("symmetric")
def near_resonance(draw: Draw) -> Matrix:
    """Helmholtz at 1e-12 … 1e-2 from an eigenvalue."""
    m = draw.side
    edges, shift = grid_edges(m), 2 - 2 * np.cos(np.pi * draw.rng.integers(1, m) / m)
    L = weighted_laplacian(edges, np.ones(edges.shape[1]), m * m)
    return L - shift * (1 + draw.decades(-12, -2)) * sp.eye(m * m)


@kind("symmetric")
def nearly_dependent_constraints(draw: Draw) -> Matrix:
    m = max(3, round(0.7 * draw.n))
    k = max(2, draw.n - m)
    C = sp.lil_matrix(sp.random(k, m, min(1, 3 / m), random_state=draw.rng))
    C[np.arange(min(k, m)), draw.rng.choice(m, min(k, m), replace=False)] = 2.0
    C = C[: min(k, m - 1)]
    C[-1, :] = C[0, :]
    C[-1, draw.rng.integers(m)] += draw.decades(-10, -2)
    return sp.bmat([[sp.diags(10 ** draw.rng.uniform(-2, 2, m)), C.T], [C, None]])
