"""The sign of curvature where the scales of unknowns and constraints hide it."""

from __future__ import annotations

import pytest
import torch
from problems import grid, laplacian_places, laplacian_values
from quadratic_cases import DOUBLE, FIXED, dense_minimum, diagonal
from torch import Tensor

import sparse_solver as ss


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
def test_negative_curvature_beside_large_numbers_is_seen(dtype: torch.dtype) -> None:
    b = torch.ones(5, dtype=dtype)
    C = torch.tensor([[1, 0, 0, 1, 0], [1, 0, 1, 0, 0]], dtype=dtype).to_sparse()
    for large in (1.0, 1e13):
        with pytest.raises(ss.NotPositiveDefiniteError, match="null space"):
            ss.minimize_quadratic(diagonal([0, 0, 0, 0, large], dtype, (0, 1, -1.0)), b, C=C)
    C = torch.eye(6, dtype=dtype)[[4]].to_sparse()
    with pytest.raises(ss.NotPositiveDefiniteError, match="null space"):
        ss.minimize_quadratic(
            diagonal([1e4, -1e-9, 1e-3, 1e-3, 1, 1], dtype), torch.ones(6, dtype=dtype), C=C
        )
    with pytest.raises(ss.NotPositiveDefiniteError, match="row 1") as caught:
        ss.minimize_quadratic(diagonal([1e13, -1, 1, 1], dtype), b[:4])
    assert caught.value.row == 1


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
@pytest.mark.parametrize("scale", [1e-150, 1e-4, 1e4, 1e150])
def test_constraints_hold_negative_curvature_in_all_units(dtype: torch.dtype, scale: float) -> None:
    C = torch.tensor([[scale, 0, 0, 0], [0, 0, 1, 1]], dtype=dtype)
    Q, b, d = (
        diagonal([-1, 1, 1, 1], dtype),
        torch.ones(4, dtype=dtype),
        torch.tensor([2 * scale, 2], dtype=dtype),
    )
    x = ss.minimize_quadratic(Q, b, C=C.to_sparse(), d=d)
    torch.testing.assert_close(x, torch.tensor([2, 1, 1, 1], dtype=dtype))


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
def test_random_changes_of_units_change_nothing(dtype: torch.dtype) -> None:
    def root(size: int, g: torch.Generator) -> Tensor:
        return 10.0 ** torch.randint(-4, 5, (size,), generator=g).to(torch.float64)

    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        n, m = 8, 3
        C = torch.randn(m, n, dtype=dtype, generator=g)
        Z = torch.linalg.svd(C)[2][m:].mH
        R = torch.randn(n, n, dtype=dtype, generator=g)
        Q = R @ R.mH / n + torch.eye(n, dtype=dtype)
        Q = Q - 5 * C.mH @ C  # indefinite, but not on the null space
        if is_saddle := seed % 2 == 1:
            Q = Q - 4 * torch.linalg.eigvalsh(Z.mH @ Q @ Z)[0] * torch.outer(
                Z[:, 0], Z[:, 0].conj()
            )
            is_saddle = bool(torch.linalg.eigvalsh(Z.mH @ Q @ Z)[0] < 0)
        if torch.linalg.eigvalsh(Z.mH @ Q @ Z).abs().min() < 1e-2:
            continue
        b, d = torch.randn(n, dtype=dtype, generator=g), torch.randn(m, dtype=dtype, generator=g)
        s, t = root(n, g), root(m, g)
        scaled = s.unsqueeze(1) * ((Q + Q.mH) / 2) * s
        arguments = (scaled.to_sparse(), s * b)
        more = {"C": (t.unsqueeze(1) * C * s).to_sparse(), "d": t * d}
        if is_saddle:
            with pytest.raises(ss.NotPositiveDefiniteError):
                ss.minimize_quadratic(*arguments, **more)
            continue
        x = s * ss.minimize_quadratic(*arguments, **more)
        expected = dense_minimum(Q, b, FIXED[:0], b[:0], C, d)[0]
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)


def test_where_the_matching_of_the_engine_fails() -> None:
    Q = diagonal([1.0, 1e-8, 3e-4, 2e6, 200.0, 1e6, 2e-6, 2e6, 3.0], torch.float64)
    C = torch.zeros(3, 9, dtype=torch.float64)
    C[0, 1], C[1, 7], C[2, 5] = 1e-4, 1e3, 1e3
    b = torch.ones(9, dtype=torch.float64)
    x = ss.minimize_quadratic(Q, b, C=C.to_sparse())
    expected = b / Q.to_dense().diagonal()
    expected[[1, 7, 5]] = 0
    torch.testing.assert_close(x, expected)


def test_a_complex_laplacian_with_a_shift_and_a_mean() -> None:
    edges, n = grid(20)
    rows, cols = laplacian_places(edges, n)
    weights = torch.ones(edges.shape[1], dtype=torch.complex128)
    i = torch.arange(n)
    program = ss.QuadraticProgram(ss.Pattern(rows, cols, (n, n)), C=ss.Pattern(0 * i, i, (1, n)))
    ones = torch.ones(n, dtype=torch.complex128)
    for shift, error in (
        (-1e-3, None),
        (-0.1, ss.NotPositiveDefiniteError),
    ):  # the second eigenvalue is 0.025
        values = laplacian_values(weights, n, anchor=shift)
        if error is None:
            assert program.solve(values, ones * i, C_values=ones).isfinite().all()
            continue
        with pytest.raises(error):
            program.solve(values, ones * i, C_values=ones)
