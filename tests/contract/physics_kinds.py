"""Kinds of matrices that discretised equations, networks and optimisation lead to."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from tests.contract.matrix_kinds import (
    COMPLEX,
    Draw,
    Matrix,
    grid_edges,
    grid_laplacian,
    kind,
    weighted_laplacian,
)


def with_holes(draw: Draw, shape: tuple[int, ...]) -> np.ndarray:
    """The stiffness of each cell: 1, or 1e-10 … 1e-3 in random rectangles."""
    stiffness = np.ones(shape)
    void = draw.decades(-10, -3)
    for _ in range(draw.rng.integers(1, 4)):
        a, b = (np.sort(draw.rng.integers(0, s + 1, 2)) for s in shape)
        stiffness[a[0] : a[1], b[0] : b[1]] = void
    return stiffness


def _quadrilateral_stiffness(nu: float = 0.3) -> np.ndarray:
    """(8, 8) the stiffness of a bilinear square under plane stress."""
    D = np.array([[1, nu, 0], [nu, 1, 0], [0, 0, (1 - nu) / 2]]) / (1 - nu**2)
    K = np.zeros((8, 8))
    for s in (-1, 1):
        for t in (-1, 1):
            x, y = s / 3**0.5, t / 3**0.5
            dx = np.array([-(1 - y), 1 - y, 1 + y, -(1 + y)]) / 2
            dy = np.array([-(1 - x), -(1 + x), 1 + x, 1 - x]) / 2
            B = np.zeros((3, 8))
            B[0, ::2], B[1, 1::2], B[2, ::2], B[2, 1::2] = dx, dy, dy, dx
            K += B.T @ D @ B / 4
    return K


@kind("spd")
def laplacian_grid(draw: Draw) -> Matrix:
    return grid_laplacian(draw.side) + draw.choice(0, draw.decades(-3, 3)) * sp.eye(draw.side**2)


@kind("spd")
def void_laplacian(draw: Draw) -> Matrix:
    m = draw.side
    A = weighted_laplacian(
        grid_edges(m),
        np.concatenate([with_holes(draw, s).ravel() for s in ((m, m - 1), (m - 1, m))]),
        m * m,
    )
    keep = np.arange(m * m) >= m  # the first row of nodes is held
    return A[keep][:, keep]


@kind("spd")
def void_elasticity(draw: Draw) -> Matrix:
    m = max(2, round((draw.n / 2) ** 0.5))
    node = np.arange(m * (m + 1)).reshape(m + 1, m)
    corners = np.stack([node[:-1, :-1], node[:-1, 1:], node[1:, 1:], node[1:, :-1]], -1)
    freedoms = (2 * corners.reshape(-1, 4, 1) + np.arange(2)).reshape(-1, 8)
    stiffness = with_holes(draw, (m, m - 1)).ravel()
    values = stiffness[:, None, None] * _quadrilateral_stiffness()
    rows, cols = np.repeat(freedoms, 8, 1).ravel(), np.tile(freedoms, (1, 8)).ravel()
    size = 2 * node.size
    A = sp.coo_matrix((values.ravel(), (rows, cols)), (size, size)).tocsr()
    return A[2 * m :][:, 2 * m :]  # the first row of nodes is held


@kind("symmetric")
def helmholtz(draw: Draw) -> Matrix:
    """Indefinite, not too near a resonance."""
    m = draw.side
    return grid_laplacian(m) - draw.rng.uniform(0.3, 6) * sp.eye(m * m)


@kind("symmetric", dtypes=COMPLEX)
def damped_helmholtz(draw: Draw) -> Matrix:
    m = draw.side
    damping = 1j * draw.decades(-3, 0)
    return grid_laplacian(m) - (draw.rng.uniform(0.3, 6) + damping) * sp.eye(m * m)


@kind()
def convection_diffusion(draw: Draw) -> Matrix:
    """Péclet numbers up to 1e6, with central or upwind differences."""
    m, peclet = draw.side, draw.decades(-1, 6)
    D = sp.diags([-np.ones(m - 1), np.ones(m - 1)], [-1, 1]) / 2
    if draw.rng.random() < 0.6:
        D = sp.eye(m) - sp.diags([np.ones(m - 1)], [-1])
    x, y = draw.rng.uniform(-1, 1, 2)
    wind = x * sp.kron(sp.eye(m), D if x > 0 else -D.T) + y * sp.kron(
        D if y > 0 else -D.T, sp.eye(m)
    )
    return grid_laplacian(m) / m + peclet / m * wind


@kind("hermitian", dtypes=COMPLEX)
def hermitian_indefinite(draw: Draw) -> Matrix:
    S = draw.sparse() + 1j * draw.sparse()
    return S + S.conj().T + sp.diags(draw.rng.standard_normal(draw.n) * 3)


@kind()
def skew_and_shift(draw: Draw) -> Matrix:
    S = draw.sparse(2.5)
    return S - S.T + draw.decades(-6, 1) * sp.eye(draw.n)


@kind("symmetric")
def saddle_point(draw: Draw) -> Matrix:
    """[[H, Cᵀ], [C, 0]] with H positive definite and scaled, and independent constraints."""
    m = max(2, round(0.75 * draw.n))
    k = max(1, draw.n - m)
    W = sp.random(m, m, 2 / m, random_state=draw.rng)
    H = W @ W.T + sp.diags(10 ** (draw.rng.uniform(-1, 1, m) * draw.rng.uniform(0, 4)))
    C = sp.lil_matrix(sp.random(k, m, min(1, 2 / m), random_state=draw.rng))
    places = np.sort(draw.rng.choice(m, min(k, m), replace=False))
    C[np.arange(k), places] = 2.0
    return sp.bmat([[H, C.T], [C, None]])


@kind("symmetric")
def interior_point(draw: Draw) -> Matrix:
    """A quasi-definite KKT matrix with barrier weights from 1e-8 to 1e8."""
    m = max(2, round(0.6 * draw.n))
    k = max(1, draw.n - m)
    H = sp.diags(10 ** draw.rng.uniform(-8, 8, m))
    C = sp.random(k, m, min(1, 3 / m), random_state=draw.rng)
    return sp.bmat([[H, C.T], [C, -draw.decades(-8, 0) * sp.eye(k)]])


@kind()
def circuit(draw: Draw) -> Matrix:
    """Modified nodal analysis: conductances of 1e-12 … 1e3, sources, and controlled sources."""
    m = max(3, round(0.8 * draw.n))
    count = 2 * m
    i, j = draw.rng.integers(0, m, (2, count))
    chain = np.arange(m - 1)
    edges = np.stack([np.append(i[i != j], chain), np.append(j[i != j], chain + 1)])
    G = weighted_laplacian(edges, 10 ** draw.rng.uniform(-12, 3, edges.shape[1]), m)
    G = G + sp.diags(np.append(1.0, np.zeros(m - 1)))
    gain = sp.random(m, m, 0.3 / m, random_state=draw.rng) * draw.decades(-3, 0)
    k = max(1, draw.n - m)
    B = sp.lil_matrix((m, k))
    B[draw.rng.choice(np.arange(1, m), min(k, m - 1), replace=False), np.arange(min(k, m - 1))] = 1
    B = sp.csr_matrix(B)[:, : min(k, m - 1)]
    return sp.bmat([[G + gain, B], [B.T, None]])


@kind()
def power_flow(draw: Draw) -> Matrix:
    """The Jacobian of the power flow equations of a random network, at a perturbed flat start."""
    m = max(3, draw.n // 2)
    tree = np.array([draw.rng.integers(0, i) for i in range(1, m)])
    extra = draw.rng.integers(0, m, (2, m // 3))
    edges = np.concatenate([np.stack([tree, np.arange(1, m)]), extra[:, extra[0] != extra[1]]], 1)
    y = 1 / (draw.rng.uniform(0.01, 0.1, edges.shape[1]) * (0.3 + 1j))
    Y = weighted_laplacian(edges, y, m)
    v = (1 + 0.03 * draw.rng.standard_normal(m)) * np.exp(0.1j * draw.rng.standard_normal(m))
    V, current = sp.diags(v), Y @ v
    unit = sp.diags(v / abs(v))
    by_angle = 1j * V @ (sp.diags(current) - Y @ V).conj()
    by_modulus = V @ (Y @ unit).conj() + sp.diags(current.conj()) @ unit
    J = sp.bmat([[by_angle.real, by_modulus.real], [by_angle.imag, by_modulus.imag]])
    keep = np.delete(np.arange(2 * m), [0, m])  # without the slack bus
    return sp.csr_matrix(J)[keep][:, keep]


@kind()
def discounted_markov(draw: Draw) -> Matrix:
    P = sp.csr_matrix(draw.zero_one(3) * draw.rng.random((draw.n, draw.n)))
    P = sp.diags(1 / np.asarray(P.sum(1)).ravel()) @ P
    return sp.eye(draw.n) - draw.choice(0.9, 0.99, 0.9999) * P
