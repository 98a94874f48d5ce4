"""The improved two-level factorisation, which large matrices with little fill take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from problems import COMPLEX, REAL, generator, grid, laplacian_places, laplacian_values, problem

import sparse_solver as ss
from sparse_solver import _testing
from sparse_solver._engines.mkl import pardiso

pytestmark = pytest.mark.skipif(
    not ss.engines()["pardiso"].installed, reason="PARDISO is not installed"
)

CASES = [(kind, dtype) for kind in ("spd", "symmetric", "general") for dtype in REAL]
CASES += [("symmetric", dtype) for dtype in COMPLEX]


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pardiso, "_FEW_FLOPS", 0)  # else small matrices take one thread
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def is_improved(F: ss.Factorization) -> bool:
    improved: bool = _testing.engine_factors(F)[0]._place[0].is_improved  # type: ignore[attr-defined] # of PARDISO
    return improved


@pytest.mark.parametrize(("kind", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("transpose", [False, True])
def test_solutions_are_those_of_dense_torch(
    kind: str, dtype: torch.dtype, transpose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pardiso, "_MANY_ROWS", 1)
    ss.clear_cache()
    edges, n = grid(8)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    weights = torch.rand(edges.shape[1], dtype=dtype, generator=generator(0))
    values = laplacian_values(weights, n)
    if kind == "general":
        values[n : n + len(weights)] *= 0.5
    F = P.factorize(values, assume=kind, engine="pardiso")  # type: ignore[arg-type] # a plain string
    assert is_improved(F)
    dense = P.tensor(values).to_dense()
    A = dense.mT if transpose else dense
    for k in (1, 2, 7):
        b = torch.randn(n, k, dtype=dtype, generator=generator(k))
        torch.testing.assert_close(F.solve(b, transpose=transpose), torch.linalg.solve(A, b))
    torch.set_num_threads(1)  # the handle keeps its threads; others take another one
    b = torch.randn(n, dtype=dtype, generator=generator(9))
    torch.testing.assert_close(F.solve(b, transpose=transpose), torch.linalg.solve(A, b))
    assert not is_improved(P.factorize(values, assume=kind, engine="pardiso"))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("kind", ["spd", "hermitian", "general"])
def test_kinds_that_it_solves_wrongly_do_not_take_it(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pardiso, "_MANY_ROWS", 1)
    ss.clear_cache()
    p = problem(kind, dtype)
    P = ss.Pattern(p.rows, p.cols, p.shape)
    F = P.factorize(p.values, assume=p.kind, engine="pardiso")  # type: ignore[arg-type] # a plain string
    assert not is_improved(F)
    b = torch.randn(p.n, dtype=dtype, generator=generator(1))
    torch.testing.assert_close(F.solve(b, adjoint=True), torch.linalg.solve(p.dense.mH, b))


def test_bad_matrices_raise_what_they_raise_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    edges, n = grid(8)
    weights, b = torch.ones(edges.shape[1], dtype=torch.float64), torch.ones(n).double()
    singular, indefinite = (laplacian_values(weights, n, anchor=a) for a in (0.0, -0.3))
    negative = []
    for rows in (1, 2**40):
        monkeypatch.setattr(pardiso, "_MANY_ROWS", rows)
        ss.clear_cache()
        P = ss.Pattern(*laplacian_places(edges, n), (n, n))
        for assume in ("spd", "symmetric", "general"):
            with pytest.raises(ss.SingularMatrixError if assume != "spd" else ss.SparseSolverError):
                P.solve(singular, b, assume=assume, engine="pardiso")  # type: ignore[arg-type] # a plain string
        with pytest.raises(ss.NotPositiveDefiniteError):
            P.solve(indefinite, b, assume="spd", engine="pardiso")
        F = P.factorize(indefinite, assume="symmetric", engine="pardiso")
        assert is_improved(F) == (rows == 1)
        assert F.info.perturbed_pivots == 0
        negative.append(_testing.engine_factors(F)[0].negative_eigenvalues)
    assert negative[0] == negative[1] is not None
    assert negative[0] > 0


def test_a_pattern_whose_eigenvalues_were_counted_is_factored_by_the_method_that_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pardiso, "_MANY_ROWS", 1)
    ss.clear_cache()
    edges, n = grid(8)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n, anchor=-0.3)
    exact = int((torch.linalg.eigvalsh(P.tensor(values).to_dense()) < 0).sum())
    for expected in (True, False):
        F = P.factorize(values, assume="symmetric", engine="pardiso")
        assert is_improved(F) == expected
        for _ in range(2):
            assert _testing.engine_factors(F)[0].negative_eigenvalues == exact
        ones = torch.ones(n, dtype=torch.float64)
        torch.testing.assert_close(F.solve(ones), ones / -0.3)


@pytest.mark.parametrize(("sides", "expected"), [((130, 130), True), ((26, 26, 26), False)])
def test_it_is_taken_where_there_is_little_fill(sides: tuple[int, ...], expected: bool) -> None:
    n = torch.Size(sides).numel()
    node = torch.arange(n).reshape(sides)
    pairs = []
    for d in range(len(sides)):
        low, high = node.narrow(d, 0, sides[d] - 1), node.narrow(d, 1, sides[d] - 1)
        pairs.append(torch.stack((low.reshape(-1), high.reshape(-1))))
    edges = torch.cat(pairs, 1)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n)
    F = P.factorize(values, assume="spd", engine="pardiso")
    assert is_improved(F) == expected
    ones = torch.ones(n, dtype=torch.float64)  # whose Laplacian is zero
    torch.testing.assert_close(F.solve(ones), ones)
    assert F.info.analysis_seconds > 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("improved", [False, True])
def test_halves_make_a_whole(threads: int, improved: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pardiso, "_MANY_ROWS", 1 if improved else 2**40)
    torch.set_num_threads(threads)
    edges, n = grid(40)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    weights = torch.rand(edges.shape[1], dtype=torch.float64, generator=generator(0))
    F = P.factorize(laplacian_values(weights, n), assume="spd", engine="pardiso")
    assert is_improved(F) == (improved and threads > 1)
    b = torch.randn(n, 3, dtype=torch.float64, generator=generator(1))
    white = F.solve_factor(b, adjoint=True)
    torch.testing.assert_close(F.solve_factor(white), F.solve(b))
    torch.testing.assert_close(white.square().sum(), (b * F.solve(b)).sum())
