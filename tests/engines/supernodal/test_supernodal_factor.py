"""The supernodal factor against dense NumPy, for all graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussian.gaussian_cases import CASES, grid, pattern_of

import sparse_solver as ss
from sparse_solver._engines.supernodal import symbolic as symbolic_module
from sparse_solver._engines.supernodal.factor import SupernodalFactor, analyze
from sparse_solver._sparse.structure import Structure

TOLERANCE = 1e-12  # relative, for condition numbers of at most 10⁴ between scaled entries


def factor_of(A):
    P, values = pattern_of(A)
    structure = P._structure
    symbolic = analyze(structure, None)
    entries = symbolic.arrangement.gather(structure.canonical(values), False).numpy()
    return SupernodalFactor(symbolic, entries)


def scale_of(inverse: np.ndarray) -> np.ndarray:
    """The sizes of the entries of an inverse, whatever the scaling: |z_ij| ≤ √(z_ii z_jj)."""
    root = np.sqrt(np.diag(inverse))
    return np.outer(root, root)


@pytest.fixture(params=CASES, scope="module")
def case(request):
    A = CASES[request.param]().tocsr()
    D = A.toarray()
    root = 1 / np.sqrt(np.diag(D))  # inverts a badly scaled matrix accurately
    inverse = root[:, None] * np.linalg.inv(root[:, None] * D * root) * root
    return factor_of(A), D, inverse


def test_the_pivots_give_the_determinant(case) -> None:
    factor, D, _ = case
    assert factor.log_pivots().sum() == pytest.approx(np.linalg.slogdet(D)[1], rel=TOLERANCE)


def test_the_selected_inverse(case) -> None:
    factor, _, inverse = case
    upper = factor.symbolic.arrangement
    rows, cols = upper.rows.numpy(), upper.col.numpy()
    error = np.abs(factor.invert() - inverse[rows, cols]) / scale_of(inverse)[rows, cols]
    assert error.max() < TOLERANCE


def test_the_derivative_of_the_selected_inverse(case) -> None:
    factor, D, inverse = case
    upper = factor.symbolic.arrangement
    rows, cols = upper.rows.numpy(), upper.col.numpy()
    root = np.sqrt(np.diag(D))
    direction = np.random.default_rng(0).standard_normal(len(rows)) * root[rows] * root[cols]
    V = np.zeros_like(inverse)
    V[rows, cols] = V[cols, rows] = direction
    expected = (-inverse @ V @ inverse)[rows, cols]
    scale = scale_of(inverse)[rows, cols]
    error = np.abs(factor.perturb_inverse(direction) - expected) / scale
    assert error.max() < TOLERANCE * np.abs(expected / scale).max()


@pytest.mark.parametrize("count", [0, 1, 2, 33])
def test_solutions(case, count: int) -> None:
    factor, D, inverse = case
    rhs = np.random.default_rng(0).standard_normal((count, len(D))) * np.sqrt(np.diag(D))
    error = np.abs(factor.apply(rhs, True, True) - rhs @ inverse) / np.sqrt(np.diag(inverse))
    assert error.max(initial=0) < 1e-10


def test_half_solves_make_samples_with_the_right_covariance(case) -> None:
    factor, _, inverse = case
    unit = np.eye(len(inverse))
    B = factor.apply(unit, False, True).T
    assert (np.abs(B @ B.T - inverse) / scale_of(inverse)).max() < TOLERANCE
    np.testing.assert_array_equal(factor.apply(unit, True, False).T != 0, B.T != 0)
    adjoint = factor.apply(unit, True, False).T
    assert np.abs(adjoint - B.T).max() <= 1e-13 * np.abs(B).max()


@pytest.mark.parametrize("count", [0, 1, 40])
def test_the_derivative_of_half_solves(case, count: int) -> None:
    """Of Σ gᵀ Bᵀ h, by reverse mode through a dense factorisation of the scaled matrix."""
    factor, D, _ = case
    root, order = np.sqrt(np.diag(D)), factor.symbolic.order
    g, h = np.random.default_rng(0).standard_normal((2, count, len(D)))
    h *= root
    halves = factor.apply(g, False, True), factor.apply(h, True, False)
    scaled = torch.from_numpy(D / np.outer(root, root)).requires_grad_()
    L = torch.linalg.cholesky(scaled[order][:, order])
    white, other = torch.from_numpy(g[:, order]), torch.from_numpy((h / root)[:, order])
    total = (torch.linalg.solve_triangular(L, other.mT, upper=False) * white.mT).sum()
    (gradient,) = torch.autograd.grad(total, scaled)
    upper = factor.symbolic.arrangement
    rows, cols = upper.rows.numpy(), upper.col.numpy()
    expected = ((gradient + gradient.mT) / 2).numpy()[rows, cols]
    found = factor.differentiate_half(g, *halves) * root[rows] * root[cols]
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    A, results = grid(13, 13, 13), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            factor = factor_of(A)
            assert len(factor.symbolic.tree.tasks) > 2
            assert len(factor.symbolic.tree.top) > 2
            entries = np.arange(1.0, 1 + factor.symbolic.arrangement.nnz)
            results.append((factor.log_pivots(), factor.invert(), factor.perturb_inverse(entries)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, other)


def test_uninitialised_memory_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    A = grid(13, 13, 13)
    factor = factor_of(A)
    expected, rhs = factor.invert(), np.ones((2, 13**3))
    gradient = factor.differentiate_half(rhs, rhs, rhs)
    empty, empty_like = np.empty, np.empty_like

    def poison(array: np.ndarray) -> np.ndarray:
        if array.dtype == np.float64:
            array.fill(np.nan)
        return array

    monkeypatch.setattr(np, "empty", lambda *given, **more: poison(empty(*given, **more)))
    monkeypatch.setattr(np, "empty_like", lambda *given, **more: poison(empty_like(*given, **more)))
    factor = factor_of(A)
    np.testing.assert_array_equal(factor.invert(), expected)
    assert np.isfinite(factor.perturb_inverse(np.ones(len(expected)))).all()
    np.testing.assert_array_equal(factor.differentiate_half(rhs, rhs, rhs), gradient)


@pytest.mark.parametrize("at", ["first", "last", "everywhere"])
@pytest.mark.parametrize("shape", [(5, 5), (13, 13, 13)])
def test_the_error_names_the_row_of_a_pivot_that_is_not_positive(at: str, shape) -> None:
    A = grid(*shape).tolil()
    symbolic = analyze(pattern_of(grid(*shape))[0]._structure, None)
    bad = {"first": symbolic.order[:1], "last": symbolic.order[-1:], "everywhere": symbolic.order}
    for row in bad[at]:
        A[row, row] = 1e-9
    with pytest.raises(ss.NotPositiveDefiniteError) as caught:
        factor_of(A.tocsr())
    assert caught.value.engine == "supernodal"
    row = caught.value.row
    if at == "last":
        assert row == bad[at][0]
    # The leading minors up to the row are positive, and the one with it is not.
    steps = list(symbolic.order)
    leading = symbolic.order[: steps.index(row) + 1]
    minor = A.toarray()[np.ix_(leading, leading)]
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(minor)
    if at != "everywhere":
        np.linalg.cholesky(minor[:-1, :-1])


def test_the_analysis_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    P, _ = pattern_of(grid(4, 4))
    structure = Structure(P.rows, P.cols, P.shape)
    first = analyze(structure, None)
    monkeypatch.setattr(symbolic_module, "order_rows", None)
    assert analyze(structure, None) is first
