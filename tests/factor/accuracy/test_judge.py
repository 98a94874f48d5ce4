"""Singular, indefinite and badly scaled matrices: an accurate solution or a typed error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import generator, grid, laplacian_places, laplacian_values, rhs
from torch import Tensor

import sparse_solver as ss
from sparse_solver._testing import installed_engines as installed
from tests.contract.matrix_kinds import KINDS, make_matrix
from tests.contract.reference import is_exactly_singular
from tests.contract.verdicts import to_torch

SYMMETRIC = installed("symmetric")
GENERAL = installed("general")
ASSUMPTIONS = {"auto": "spd", "spd": "spd", "symmetric": "symmetric", "general": "general"}
CASES = [(engine, assume) for assume, kind in ASSUMPTIONS.items() for engine in installed(kind)]  # type: ignore[arg-type]
NAMES = [f"{engine}-{assume}" for engine, assume in CASES]


def coo(dense: Tensor) -> Tensor:
    return dense.to_sparse()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("engine", "assume"), CASES, ids=NAMES)
def test_laplacians_without_an_anchor_are_refused(
    engine: str, assume: str, dtype: torch.dtype
) -> None:
    """Half of them pass a Cholesky factorisation with a pivot that is a positive rounding error."""
    edges, n = grid(25)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    b = rhs(n, dtype=dtype)
    for k in range(5):
        weights = torch.rand(edges.shape[1], dtype=dtype) + 0.1
        for right in (b, b - b.mean()):  # inconsistent and, up to rounding, consistent
            with pytest.raises(
                (ss.SingularMatrixError, ss.NotPositiveDefiniteError, ss.EngineUnsupportedError)
            ):
                P.solve(
                    laplacian_values(weights, n, anchor=0.0), right, assume=assume, engine=engine
                )  # type: ignore[arg-type]
        weak = 1e-3 if dtype == torch.float32 else 1e-8
        values = laplacian_values(weights, n, anchor=weak)
        x = P.solve(values, weak * torch.ones(n, dtype=dtype), assume=assume, engine=engine)  # type: ignore[arg-type]
        tolerance = 100 * torch.finfo(dtype).eps / weak
        torch.testing.assert_close(
            x, torch.ones_like(x), atol=tolerance, rtol=tolerance, msg=f"matrix {k}"
        )


@pytest.mark.parametrize("engine", GENERAL)
@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 1.0], [1.0, 1.0]],
        [[0.0, 1.0], [0.0, 1.0]],
        [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]],
        [[2.0, 0.0], [0.0, 0.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 2.0]],
    ],
)
@pytest.mark.parametrize("assume", ["auto", "general"])
@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_small_singular_matrices(
    engine: str, rows: list[list[float]], assume: str, scale: float
) -> None:
    dense = torch.tensor(rows, dtype=torch.float64) * scale
    n = dense.shape[0]
    everywhere = torch.ones(n, n).nonzero().T
    P = ss.Pattern(everywhere[0], everywhere[1], (n, n))
    for b in (torch.arange(1.0, n + 1, dtype=torch.float64), dense.sum(1)):
        with pytest.raises(ss.SingularMatrixError):
            P.solve(dense.reshape(-1), b, assume=assume, engine=engine)  # type: ignore[arg-type]


def test_structurally_singular_matrices_are_named_as_such() -> None:
    with pytest.raises(ss.SingularMatrixError, match="row 1 has no stored entry") as caught:
        ss.solve(coo(torch.tensor([[1.0, 1.0], [0.0, 0.0]])), torch.ones(2))
    assert caught.value.row == 1
    with pytest.raises(ss.SingularMatrixError, match="column 0 has no stored entry"):
        ss.solve(coo(torch.tensor([[0.0, 1.0], [0.0, 2.0]])), torch.ones(2))
    triangle = coo(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 0.0, 1.0]]))
    with pytest.raises(ss.SingularMatrixError, match="row 1 has no stored entry"):
        ss.solve(triangle, torch.ones(3), assume="symmetric", triangle="lower")
    # Rows 0 and 1 share their only column, though no row or column is empty.
    hidden = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    for engine in GENERAL:
        with pytest.raises(ss.SingularMatrixError) as caught:
            ss.solve(coo(hidden), torch.ones(3), engine=engine)


@pytest.mark.parametrize(("engine", "assume"), CASES, ids=NAMES)
@pytest.mark.parametrize("first", [True, False])
def test_one_component_without_an_anchor_is_enough(engine: str, assume: str, first: bool) -> None:
    """The null vector is zero in the other component, but inverse iteration leaves noise there."""
    edges, n = grid(5)
    P = ss.Pattern(*laplacian_places(torch.cat((edges, edges + n), 1), 2 * n), (2 * n, 2 * n))
    for seed in range(10):
        weights = 0.5 + torch.rand(
            2 * edges.shape[1], dtype=torch.float64, generator=generator(seed)
        )
        values = laplacian_values(weights, 2 * n)
        ones = torch.ones(2 * n, dtype=torch.float64)
        torch.testing.assert_close(P.solve(values, ones, assume=assume, engine=engine), ones)  # type: ignore[arg-type]
        values[:n] = 0.0 if first else 1.0
        values[n : 2 * n] = 1.0 if first else 0.0
        with pytest.raises(
            (ss.SingularMatrixError, ss.NotPositiveDefiniteError, ss.EngineUnsupportedError)
        ):
            P.solve(values, ones, assume=assume, engine=engine)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", installed("spd"))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_no_laplacian_slips_through(engine: str, dtype: torch.dtype) -> None:
    """Right-hand sides that the null vector is orthogonal to give solutions of ordinary size.

    Only the pivots show that the matrix is singular, and each engine reports them in its own way.
    """
    for n in [*range(60, 100, 2), *range(191, 231, 2)]:  # rings with equal weights
        i = torch.arange(n)
        edges = torch.stack((i, (i + 1) % n))
        refuses(edges, torch.ones(1, n, dtype=dtype), n, engine)
    for seed in range(20):
        g, n = generator(seed), 60
        edges = torch.randint(0, n, (2, 6 * n), generator=g)
        edges = torch.cat(
            (
                edges[:, edges[0] != edges[1]],
                torch.stack((torch.arange(n - 1), torch.arange(1, n))),
            ),
            1,
        )
        weights = torch.rand(5, edges.shape[1], dtype=dtype, generator=g) + 0.1
        refuses(edges, weights, n, engine)


def refuses(edges: Tensor, weights: Tensor, n: int, engine: str) -> None:
    """Whether an engine refuses the Laplacians of one graph with each row of `weights`."""
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    b = torch.randn(n, dtype=weights.dtype, generator=generator(n))
    for each in weights:
        values = laplacian_values(each, n, anchor=0.0)
        with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError)):
            P.solve(values, b - b.mean(), assume="spd", engine=engine)


@pytest.mark.parametrize("engine", GENERAL)
def test_badly_scaled_rows_and_columns_do_not_make_a_matrix_singular(engine: str) -> None:
    g = torch.Generator().manual_seed(0)
    n = 200
    dense = torch.eye(n).double() + 0.3 * torch.randn(n, n, generator=g).double() * (
        torch.rand(n, n, generator=g) < 3 / n
    )
    left, right = (10 ** (16 * torch.rand(n, generator=g).double() - 8) for _ in "lr")
    expected = rhs(n, dtype=torch.float64)
    A = left.unsqueeze(1) * dense * right
    x = ss.solve(coo(A), A @ (expected / right), engine=engine)
    torch.testing.assert_close(right * x, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("engine", SYMMETRIC)
@pytest.mark.parametrize("assume", ["auto", "symmetric", "general"])
def test_saddle_points(engine: str, assume: str) -> None:
    """Zero diagonal blocks, and a weak leading one that needs pivoting."""
    g = torch.Generator().manual_seed(0)
    n, m = 120, 40
    C = torch.eye(m, n).double() + torch.randn(m, n, generator=g).double() * (
        torch.rand(m, n, generator=g) < 0.05
    )
    B = torch.randn(n, n, generator=g).double() * (torch.rand(n, n, generator=g) < 0.03)
    for weight in (1.0, 1e-8):
        Q = weight * (torch.eye(n).double() + B @ B.T)
        K = torch.cat((torch.cat((Q, C.T), 1), torch.cat((C, torch.zeros(m, m).double()), 1)))
        expected = rhs(n + m, dtype=torch.float64)
        x = ss.solve(coo(K), K @ expected, assume=assume, engine=engine)  # type: ignore[arg-type]
        assert (K @ (x - expected)).abs().max() < 1e-9 * K.abs().max()


def test_ill_conditioned_is_not_singular() -> None:
    n = 12
    i = torch.arange(1, n + 1).double()
    hilbert = 1 / (i.unsqueeze(1) + i - 1) + 1e-12 * torch.eye(n).double()  # condition about 1e12
    expected = torch.ones(n).double()
    for engine in installed("spd"):
        for assume in ("auto", "spd"):
            x = ss.solve(coo(hilbert), hilbert @ expected, assume=assume, engine=engine)  # type: ignore[arg-type]
            assert (hilbert @ (x - expected)).abs().max() < 1e-13


def test_solutions_that_overflow() -> None:
    A = coo(torch.diag(torch.tensor([1e-300, 1.0], dtype=torch.float64)))
    with pytest.raises(ss.NonFiniteError, match="too large"):
        ss.solve(A, torch.tensor([1e300, 1.0], dtype=torch.float64))
    with pytest.raises(ss.NonFiniteError, match="too large"):
        ss.Pattern(torch.zeros(2).long(), torch.zeros(2).long(), (1, 1)).solve(
            torch.full((2,), 1e308, dtype=torch.float64), torch.ones(1).double()
        )


@pytest.mark.parametrize("engine", installed("spd"))
@pytest.mark.parametrize("n", [1, 2, 7, 400, 3000])
def test_the_row_that_is_not_positive_definite(engine: str, n: int) -> None:
    """A chain with one negative diagonal entry has one negative pivot, in any ordering."""
    i = torch.arange(n)
    rows = torch.cat((i, i[:-1], i[1:]))
    cols = torch.cat((i, i[1:], i[:-1]))
    bad = n // 3
    values = torch.cat((torch.full((n,), 3.0), -torch.ones(2 * (n - 1)))).double()
    P = ss.Pattern(rows, cols, (n, n))
    values[bad] = 0.1  # positive, but far too small
    if n > 2:
        with pytest.raises(ss.NotPositiveDefiniteError) as caught:
            P.solve(values, torch.ones(n).double(), assume="spd", engine=engine)
        assert caught.value.engine == engine
        if caught.value.row is not None:
            assert abs(caught.value.row - bad) <= 1
    values[bad] = -5
    with pytest.raises(ss.NotPositiveDefiniteError, match=f"row {bad} is -5") as caught:
        P.solve(values, torch.ones(n).double(), assume="spd", engine=engine)
    assert caught.value.row == bad


@pytest.mark.parametrize("engine", installed("spd"))
def test_a_pivot_whose_reciprocal_overflows(engine: str) -> None:
    P = ss.Pattern(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (2, 2))
    values = torch.tensor([1e-310, 0.0, 0.0, 1.0], dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    if engine == "qdldl":  # it divides by the first pivot, whose reciprocal overflows
        with pytest.raises(ss.NotPositiveDefiniteError) as caught:
            P.solve(values, ones, assume="spd", engine=engine)
        assert (caught.value.engine, caught.value.row) == (engine, 1)  # where NaN arrives
    else:
        with pytest.raises(ss.NonFiniteError, match="too large"):
            P.solve(values, ones, assume="spd", engine=engine)
        x = P.solve(values, values[[0, 3]], assume="spd", engine=engine)
        torch.testing.assert_close(x, ones)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("engine", [None, *GENERAL])
def test_solutions_of_the_transpose_whose_unknowns_have_very_different_sizes(
    engine: str | None, dtype: torch.dtype
) -> None:
    """A companion matrix raises no doubt, but small rows of its transpose matter most."""
    n = 20
    A = np.eye(n, k=-1)
    A[0] = -np.poly(np.arange(1, n + 1))[1:]
    A = A.astype(np.float32 if dtype == torch.float32 else np.float64)
    b = (A @ np.random.default_rng(0).standard_normal(n)).astype(A.dtype)
    T = torch.from_numpy(A).to_sparse()
    x = ss.solve(T, torch.from_numpy(b), transpose=True, engine=engine)
    # x₀ from the last equation, then the others one by one
    first = b[-1].astype(float) / A[0, -1]
    truth = np.array([first, *(b[:-1] - A[0, :-1].astype(float) * first)])
    assert np.abs(x.double().numpy() - truth).max() <= 1e-5 * np.abs(truth).max()


@pytest.mark.parametrize("engine", [None, *GENERAL])
def test_singular_blocks_whose_last_pivot_is_a_large_rounding_error(engine: str | None) -> None:
    """Bounds with the factor of such a matrix may look as if half a digit were right."""
    A, _ = make_matrix(KINDS["block_triangular_singular"], 43, 1018888697, "float64")
    assert is_exactly_singular(A)
    b = torch.eye(43, dtype=torch.float64)
    with pytest.raises(ss.SingularMatrixError):
        ss.solve(to_torch(A, None), b[0], engine=engine)
