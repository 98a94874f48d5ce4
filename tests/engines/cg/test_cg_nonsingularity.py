"""Which matrices are proved not to be singular, by what, and the errors for the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import grid, laplacian_places, laplacian_values, rhs
from torch import Tensor

import sparse_solver as ss
from sparse_solver._engines.cg.nonsingularity import smallest_ritz_value

F64 = torch.float64


def laplacian(anchor: float) -> Tensor:
    edges, n = grid(8)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    return P.tensor(laplacian_values(torch.ones(edges.shape[1], dtype=F64), n, anchor))


def factorize(A: Tensor) -> ss.Factorization:
    A = A if A.layout != torch.strided else A.to_sparse()
    return ss.factorize(A, assume="spd", engine="cg")


def proof_of(A: Tensor) -> tuple[str, float]:
    """The words of the proof, and the bound of the smallest eigenvalue."""
    words = factorize(A).info.proof
    assert words is not None
    return words, float(words.split("below ")[1])


def smallest(A: Tensor) -> float:
    dense = A.to_dense()
    roots = dense.diagonal().sqrt()
    return float(torch.linalg.eigvalsh(dense / roots / roots[:, None])[0])


def grounded(rows: int = 8) -> Tensor:
    """A Laplacian with a fixed vertex in a corner: an M-matrix with margins of zero."""
    return laplacian(0.0).to_dense()[1:, 1:]


def test_each_proof_bounds_the_smallest_eigenvalue_from_below() -> None:
    words, bound = proof_of(laplacian(0.5))
    assert words.startswith("diagonally dominant")
    assert 0 < bound <= 1.1 * smallest(laplacian(0.5))
    words, bound = proof_of(grounded())
    assert words.startswith("A v > 0")
    assert 1e-4 < bound <= 1.1 * smallest(grounded())
    random = torch.randn(40, 60, dtype=F64, generator=torch.Generator().manual_seed(0))
    words, bound = proof_of(random @ random.mT)
    assert words.startswith("Ritz")
    assert bound == pytest.approx(smallest(random @ random.mT), rel=0.06)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
@pytest.mark.parametrize("consistent", [True, False])
def test_a_laplacian_without_an_anchor(consistent: bool, scale: float) -> None:
    """Iterations would converge for the first, and pass a backward error for the second."""
    A = laplacian(0.0) * scale
    b = rhs(64, dtype=F64)
    b = b - b.mean() if consistent else b
    with pytest.raises(ss.SingularMatrixError, match="anchor") as caught:
        ss.solve(A, b * scale, assume="spd", engine="cg")
    assert caught.value.engine == "cg"


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_shift_that_is_almost_nothing(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    A = laplacian(1e-3 * eps).to(dtype)
    with pytest.raises(ss.SingularMatrixError):
        ss.solve(A, torch.ones(64, dtype=dtype), assume="spd", engine="cg")
    with pytest.raises(ss.SingularMatrixError):
        ss.solve(laplacian(1e-17), torch.ones(64, dtype=F64), assume="spd", engine="cg")


def test_a_shift_that_leaves_a_digit_is_solved_or_refused() -> None:
    A, b = laplacian(1e-12), torch.ones(64, dtype=F64)
    try:
        x = ss.solve(A, b, assume="spd", engine="cg")
    except (ss.SingularMatrixError, ss.ConvergenceError):
        return
    torch.testing.assert_close(x, b * 1e12, rtol=0.1, atol=0)


@pytest.mark.parametrize("shift", [1e-6, 0.1, 3.0])
def test_indefinite_matrices(shift: float) -> None:
    A = laplacian(0.0).to_dense() - shift * torch.eye(64, dtype=F64)
    A.diagonal().clamp_(min=0.1)
    assert smallest(A) < 0
    with pytest.raises(ss.NotPositiveDefiniteError) as caught:
        factorize(A)
    assert caught.value.engine == "cg"
    assert caught.value.row is None


def test_entries_that_exceed_the_diagonal_by_far() -> None:
    A = torch.tensor([[1e200, 1e220], [1e220, 1e200]], dtype=F64)
    with pytest.raises(ss.NotPositiveDefiniteError):
        factorize(A)


def test_one_singular_component_among_good_ones() -> None:
    good, free = laplacian(1.0).to_dense(), laplacian(0.0).to_dense()
    with pytest.raises(ss.SingularMatrixError):
        factorize(torch.block_diag(good, free, good))
    assert proof_of(torch.block_diag(good, grounded(), good))[0].startswith("A v > 0")


def test_ritz_values_are_the_eigenvalues_after_as_many_iterations_as_unknowns() -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((6, 6))
    A = A @ A.T
    r, p, steps, ratios = (b := rng.standard_normal(6)), b.copy(), [], []
    for _ in range(6):
        q = A @ p
        alpha = (r @ r) / (p @ q)
        new = r - alpha * q
        beta = (new @ new) / (r @ r)
        steps.append(alpha)
        ratios.append(beta)
        r, p = new, new + beta * p
    expected = np.linalg.eigvalsh(A)[0]
    found = smallest_ritz_value(np.array(steps), np.array(ratios), 0.0)
    assert found == pytest.approx(expected, 1e-6)
    steps[3] = -1.0
    assert smallest_ritz_value(np.array(steps), np.array(ratios), 0.0) < 0
    assert smallest_ritz_value(np.array([0.5]), np.array([0.0]), 0.0) == 2.0
