"""Singular, nearly singular, indefinite and badly scaled matrices: an accurate solution or a typed error."""

from __future__ import annotations

import pytest
import torch
from counting import count, installed
from problems import generator, grid, laplacian_places, laplacian_values, rhs
from torch import Tensor

import sparse_solver as ss

SYMMETRIC = installed("symmetric")
GENERAL = installed("general")
CASES = [(engine, assume) for assume in ("auto", "spd", "symmetric", "general") for engine in installed(assume if assume != "auto" else "spd")]  # fmt: skip
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
    for k in range(10):
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
    """Inverse iteration finds the null vector, which is zero in the other component only up to rounding errors."""
    edges, n = grid(5)
    P = ss.Pattern(*laplacian_places(torch.cat((edges, edges + n), 1), 2 * n), (2 * n, 2 * n))
    for seed in range(10):
        weights = 0.5 + torch.rand(
            2 * edges.shape[1], dtype=torch.float64, generator=generator(seed)
        )
        values = laplacian_values(weights, 2 * n)
        values[:n] = 0.0 if first else 1.0
        values[n : 2 * n] = 1.0 if first else 0.0
        with pytest.raises(
            (ss.SingularMatrixError, ss.NotPositiveDefiniteError, ss.EngineUnsupportedError)
        ):
            P.solve(values, torch.ones(2 * n).double(), assume=assume, engine=engine)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", installed("spd"))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_no_laplacian_slips_through(engine: str, dtype: torch.dtype) -> None:
    """Right-hand sides that the null vector is orthogonal to give solutions of ordinary size; what gives a singular
    matrix away are its pivots, of which each engine has its own way to know."""
    for n in [*range(60, 100), *range(190, 230)]:  # rings with equal weights
        i = torch.arange(n)
        edges = torch.stack((i, (i + 1) % n))
        refuses(edges, torch.ones(n, dtype=dtype), n, engine)
    for seed in range(300):
        g, n = generator(seed), 60
        edges = torch.randint(0, n, (2, 6 * n), generator=g)
        edges = torch.cat(
            (
                edges[:, edges[0] != edges[1]],
                torch.stack((torch.arange(n - 1), torch.arange(1, n))),
            ),
            1,
        )
        refuses(edges, torch.rand(edges.shape[1], dtype=dtype, generator=g) + 0.1, n, engine)


def refuses(edges: Tensor, weights: Tensor, n: int, engine: str) -> None:
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    b = torch.randn(n, dtype=weights.dtype, generator=generator(n))
    with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError)):
        P.solve(laplacian_values(weights, n, anchor=0.0), b - b.mean(), assume="spd", engine=engine)


def test_a_pivot_that_is_not_a_number() -> None:
    P = ss.Pattern(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (2, 2))
    values = torch.tensor([1e-310, 0.0, 0.0, 1.0], dtype=torch.float64)
    for engine in installed("spd"):
        try:
            x = P.solve(values, torch.ones(2).double(), assume="spd", engine=engine)
            assert x[1] == 1
        except ss.SparseSolverError:
            pass


@pytest.mark.parametrize("engine", installed("spd"))
@pytest.mark.parametrize("n", [1, 2, 7, 400, 3000])
def test_the_row_that_is_not_positive_definite(engine: str, n: int) -> None:
    """One negative diagonal entry on a chain: whatever the ordering, its own pivot is the negative one."""
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


def test_auto_tells_what_it_took_the_matrix_for() -> None:
    def became(rows: list[list[complex]], dtype: torch.dtype = torch.float64) -> str:
        info = ss.factorize(coo(torch.tensor(rows, dtype=dtype))).info
        assert info.assume_reason
        return info.assume

    assert became([[2, 1], [1, 2]]) == "spd"
    assert became([[1, 2], [2, 1]]) == "symmetric"  # positive diagonal, but indefinite
    assert became([[-2, 1], [1, 2]]) == "symmetric"
    assert became([[0, 1], [1, 0]]) == "symmetric"
    assert became([[2, 1], [0, 2]]) == "general"
    assert became([[2, 1j], [-1j, 2]], torch.complex128) == "spd"
    assert became([[1, 2j], [-2j, 1]], torch.complex128) == "hermitian"
    assert became([[1 + 1j, 2j], [2j, 1]], torch.complex128) == "symmetric"
    assert became([[1 + 1j, 2j], [-2j, 1]], torch.complex128) == "general"
    A = coo(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    assert "not positive definite" in ss.factorize(A).info.assume_reason
    lower = coo(torch.tensor([[1.0, 0.0], [2.0, 1.0]]))
    assert ss.factorize(lower, triangle="lower").info.assume == "symmetric"


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


@pytest.mark.skipif("pardiso" not in SYMMETRIC, reason="about PARDISO's second kind of analysis")
def test_a_better_analysis_is_made_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 61  # every pivot that the first ordering takes from this is tiny
    i = torch.arange(n)
    rows, cols = torch.cat((i, i, (i + 1) % n)), torch.cat((i, (i + 1) % n, i))
    values = torch.cat((torch.full((n,), 1e-14), torch.ones(2 * n))).double()
    values[n] = 3.0
    P = ss.Pattern(rows, cols, (n, n))
    dense = P.tensor(values).to_dense()
    counts = count(monkeypatch)
    for k in range(4):
        b = rhs(n, dtype=torch.float64, seed=k)
        x = P.solve(values * (k + 1), b, assume="general", engine="pardiso")
        torch.testing.assert_close(x, torch.linalg.solve(dense * (k + 1), b), rtol=1e-8, atol=1e-8)
    assert counts["factor"] == 5  # twice for the first values, then once


def test_ill_conditioned_is_not_singular() -> None:
    n = 12
    i = torch.arange(1, n + 1).double()
    hilbert = 1 / (i.unsqueeze(1) + i - 1) + 1e-12 * torch.eye(n).double()  # condition about 1e12
    expected = torch.ones(n).double()
    for engine in installed("spd"):
        for assume in ("auto", "spd"):
            x = ss.solve(coo(hilbert), hilbert @ expected, assume=assume, engine=engine)  # type: ignore[arg-type]
            assert (hilbert @ (x - expected)).abs().max() < 1e-13


def test_symmetric_up_to_rounding_is_symmetric() -> None:
    g = torch.Generator().manual_seed(0)
    n = 40
    B = torch.randn(n, n, generator=g).double()
    A = B @ B.T + n * torch.eye(n).double()
    A = A * (1 + 1e-15 * torch.randn(n, n, generator=g).double())
    assert not torch.equal(A, A.T)
    assert ss.factorize(coo(A)).info.assume == "spd"
    # ... on the scale of the entries concerned, not of the largest one
    mixed = torch.tensor([[1e20, 0.0, 0.0], [0.0, 1.0, 0.2], [0.0, 0.3, 1.0]]).double()
    assert ss.factorize(coo(mixed)).info.assume == "general"
    with pytest.raises(ss.NotSymmetricError):
        ss.solve(coo(mixed), torch.ones(3).double(), assume="spd")


def test_hermitian_needs_a_real_diagonal() -> None:
    A = torch.tensor([[1 + 1e-3j, 0], [0, 1]], dtype=torch.complex128)
    for options in ({}, {"triangle": "lower"}):
        with pytest.raises(ss.NotSymmetricError):
            ss.solve(coo(A), torch.ones(2, dtype=torch.complex128), assume="hermitian", **options)  # type: ignore[arg-type]


def test_solutions_that_overflow() -> None:
    A = coo(torch.diag(torch.tensor([1e-300, 1.0], dtype=torch.float64)))
    with pytest.raises(ss.NonFiniteError, match="too large"):
        ss.solve(A, torch.tensor([1e300, 1.0], dtype=torch.float64))
    with pytest.raises(ss.NonFiniteError, match="too large"):
        ss.Pattern(torch.zeros(2).long(), torch.zeros(2).long(), (1, 1)).solve(
            torch.full((2,), 1e308, dtype=torch.float64), torch.ones(1).double()
        )
