"""Which engine is chosen, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import grid, laplacian_places, laplacian_values

import sparse_solver as ss
from sparse_solver._engines import registry as _engines
from sparse_solver._engines.protocol import Availability
from sparse_solver._engines.select import envelope_flops, is_close, predicted_flops, select
from sparse_solver._sparse.structure import Structure

ALL = {"pardiso", "qdldl", "superlu"}
WITHOUT_MKL = {"qdldl", "superlu", "rslab", "supernodal"}
F64, C128 = torch.float64, torch.complex128


@pytest.mark.parametrize(
    ("n", "kind", "dtype", "installed", "factor_nnz", "expected"),
    [
        (50, "spd", F64, ALL, None, "qdldl"),  # even a dense factor takes few operations
        (10**6, "spd", F64, ALL, 3 * 10**6, "qdldl"),  # a chain
        (10**4, "spd", torch.float32, ALL, 30_000, "qdldl"),
        (10**4, "spd", F64, ALL, 226_000, "pardiso"),  # a grid of 100²
        (27_000, "spd", F64, ALL, 4_160_000, "pardiso"),  # a grid of 30³
        (10**6, "spd", C128, ALL, 3 * 10**6, "pardiso"),
        (10**6, "general", F64, ALL, None, "pardiso"),
        (10**6, "symmetric", F64, ALL, None, "pardiso"),
        (10**6, "hermitian", C128, ALL, None, "pardiso"),
        (10**6, "spd", F64, {"qdldl", "superlu"}, 3 * 10**6, "qdldl"),
        (10**4, "spd", F64, {"qdldl", "superlu"}, 226_000, "qdldl"),
        (216_000, "spd", F64, {"qdldl", "superlu"}, 10**8, "superlu"),
        (10**6, "spd", F64, {"superlu"}, None, "superlu"),
        (10**6, "general", F64, {"qdldl", "superlu"}, None, "superlu"),
        (10**6, "spd", F64, {"qdldl"}, None, "qdldl"),
        # Where there is no MKL.
        (10**4, "spd", F64, {"superlu", "supernodal"}, None, "supernodal"),
        (10**4, "spd", torch.float32, {"supernodal"}, None, "supernodal"),
        (10**4, "spd", C128, {"superlu", "supernodal"}, None, "superlu"),
        (10**4, "symmetric", F64, {"superlu", "supernodal"}, None, "superlu"),
        (10**4, "spd", F64, ALL | {"supernodal"}, 226_000, "pardiso"),
        (216_000, "spd", F64, WITHOUT_MKL, 10**8, "supernodal"),
        (216_000, "spd", torch.float32, WITHOUT_MKL, 10**8, "supernodal"),
        (10**4, "spd", F64, WITHOUT_MKL, 343_000, "qdldl"),  # a grid of 100²
        (40_000, "spd", F64, WITHOUT_MKL, 1_560_000, "supernodal"),  # a grid of 200²
        (150, "spd", F64, WITHOUT_MKL, None, "qdldl"),
        (216_000, "spd", C128, WITHOUT_MKL, None, "superlu"),
        (10**3, "general", F64, WITHOUT_MKL, None, "rslab"),
        (10**4, "symmetric", torch.complex64, WITHOUT_MKL, None, "rslab"),
        (10**4, "hermitian", C128, WITHOUT_MKL, None, "rslab"),
        (100, "general", F64, WITHOUT_MKL | {"lapack"}, None, "lapack"),
        (10**4, "general", F64, ALL | WITHOUT_MKL, None, "pardiso"),
    ],
)
def test_the_choice(
    n: int,
    kind: str,
    dtype: torch.dtype,
    installed: set[str],
    factor_nnz: int | None,
    expected: str,
) -> None:
    choice = select(n, kind, dtype, installed, factor_nnz)  # type: ignore[arg-type] # a str
    assert choice is not None
    assert choice.engine == expected
    assert choice.reason
    assert not choice.provisional


def test_a_narrow_band_is_recognised() -> None:
    n, width = 10_000, 20
    i = torch.arange(n)
    rows, cols = (
        torch.cat([f(i, k) for k in range(width + 1)])
        for f in (lambda i, k: i[k:], lambda i, k: i[: n - k])
    )
    shuffle = torch.randperm(n)
    envelope = envelope_flops(Structure(shuffle[rows], shuffle[cols], (n, n)))
    assert envelope <= n * (2 * width + 1) ** 2
    choice = select(n, "spd", F64, ALL, factor_nnz=480_000, envelope=envelope)
    assert choice is not None
    assert choice.engine == "qdldl"
    assert is_close(n, 480_000, "pardiso")
    assert not is_close(64_000, 12_900_000, "pardiso")


@pytest.mark.parametrize(
    ("n", "kind", "per_column", "expected"),
    [
        (10**6, "general", 9.0, "superlu"),  # a ring
        (10**6, "symmetric", 9.0, "superlu"),
        (10**4, "general", 30.0, "superlu"),  # a grid of 4 × 2,500
        (10**4, "general", 400.0, "rslab"),  # a band of width 20
        (10**6, "hermitian", 1e5, "rslab"),
    ],
)
def test_long_and_narrow_bands_without_mkl(
    n: int, kind: Any, per_column: float, expected: str
) -> None:
    dtype = C128 if kind == "hermitian" else F64
    first = select(n, kind, dtype, WITHOUT_MKL)
    assert first is not None
    assert first.provisional
    choice = select(n, kind, dtype, WITHOUT_MKL, envelope=per_column * n)
    assert choice is not None
    assert choice.engine == expected
    assert not choice.provisional


def test_a_long_band_is_factored_by_superlu_where_there_is_no_mkl(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent(monkeypatch, "pardiso")
    if not ss.engines()["rslab"].installed:
        pytest.skip("rslab is not installed")
    n = 3000
    i = torch.arange(n)
    chain = torch.cat((i, i[1:])), torch.cat((i, i[:-1]))
    P = ss.Pattern(*chain, (n, n))
    values = torch.cat((torch.full((n,), 2.0, dtype=F64), torch.ones(n - 1, dtype=F64)))
    F = P.factorize(values, assume="general")
    assert F.info.engine == "superlu"
    assert "narrow band" in F.info.engine_reason
    edges, m = grid(60)
    Q = ss.Pattern(*laplacian_places(edges, m), (m, m))
    values = laplacian_values(torch.ones(edges.shape[1], dtype=F64), m)
    assert Q.factorize(values, assume="general").info.engine == "rslab"


def test_a_narrow_band_needs_no_analysis_that_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no MKL, the envelope decides first."""
    absent(monkeypatch, "pardiso")
    engine = _engines.engine_named("supernodal")
    if not ss.engines()["supernodal"].installed:
        pytest.skip("Numba is not installed")
    n, analyzed = 2000, []
    analyze = type(engine).analyze
    monkeypatch.setattr(
        type(engine), "analyze", lambda *given: analyzed.append(given) or analyze(*given)
    )
    chain = torch.stack((torch.arange(n - 1), torch.arange(1, n)))
    edges, m = grid(60)
    found = []
    for places, size in ((chain, n), (edges, m)):
        P = ss.Pattern(*laplacian_places(places, size), (size, size))
        values = laplacian_values(torch.ones(places.shape[1], dtype=F64), size)
        found.append((P.factorize(values, assume="spd").info.engine, len(analyzed)))
    # The fill of the grid is predicted by the engine that may be compiled for it.
    assert found == [("qdldl", 0), ("qdldl", 1)]


@pytest.mark.parametrize(
    ("missing", "expected"), [(["pardiso"], "qdldl"), (["pardiso", "qdldl"], "superlu")]
)
def test_an_engine_that_cannot_be_loaded_is_not_chosen(
    missing: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        absent(monkeypatch, name)
    engine = _engines.engine_named("supernodal")
    if not ss.engines()["supernodal"].installed:
        pytest.skip("Numba is not installed")

    def fail(*given: object) -> None:
        raise ss.EngineUnavailableError("Numba does not know this NumPy", engine="supernodal")

    monkeypatch.setattr(type(engine), "analyze", fail)
    edges, n = grid(60)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    values = laplacian_values(torch.ones(edges.shape[1], dtype=F64), n)
    F = P.factorize(values, assume="spd")
    assert F.info.engine == expected
    torch.testing.assert_close(F.solve(torch.ones(n, dtype=F64)), torch.ones(n, dtype=F64))
    with pytest.raises(ss.EngineUnavailableError, match="does not know"):
        P.factorize(values, assume="spd", engine="supernodal")


def test_the_envelope_is_counted() -> None:
    # 0–1–2 in a path and 3 alone: two columns of two entries, and two of one
    rows, cols = torch.tensor([[0, 1, 2, 3, 1, 2], [0, 1, 2, 3, 0, 1]])
    structure = Structure(rows, cols, (4, 4))
    assert envelope_flops(structure) == 4 + 4 + 1 + 1


def test_a_choice_without_the_fill_is_provisional() -> None:
    loops_and_superlu = {"qdldl", "superlu"}
    for installed, predicting in (
        (ALL, "pardiso"),
        (loops_and_superlu, "superlu"),
        (WITHOUT_MKL, "supernodal"),
    ):
        choice = select(10**6, "spd", F64, installed)
        assert choice is not None
        assert choice.provisional
        assert choice.engine == predicting
    assert select(10, "general", F64, {"qdldl"}) is None
    assert select(10, "spd", F64, set()) is None


def test_predicted_flops_are_a_lower_bound() -> None:
    columns = torch.tensor([3, 5, 2, 1])
    assert predicted_flops(4, int(columns.sum())) <= int((columns**2).sum())
    assert predicted_flops(7, 7) == 7
    assert predicted_flops(0, 0) == 0


def absent(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    found = {
        name: Availability(missing=f"pip install {name}") if name in missing else availability
        for name, availability in _engines.available_engines().items()
    }
    monkeypatch.setattr(_engines, "available_engines", lambda: found)
    for name in missing:
        engine = _engines.engine_named(name)
        monkeypatch.setattr(type(engine), "availability", lambda self, name=name: found[name])


@pytest.mark.parametrize(
    "missing",
    [
        (),
        ("pardiso",),
        ("qdldl",),
        ("pardiso", "qdldl"),
        ("pardiso", "rslab"),
        ("pardiso", "rslab", "supernodal"),
    ],
    ids=str,
)
@pytest.mark.parametrize("m", [4, 60])
def test_every_combination_of_engines_solves(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], m: int
) -> None:
    absent(monkeypatch, *missing)
    edges, n = grid(m)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    values = laplacian_values(torch.rand(edges.shape[1], dtype=F64) + 0.1, n)
    for assume in ("auto", "spd", "symmetric", "general"):
        F = P.factorize(values, assume=assume)  # type: ignore[arg-type] # a str
        assert F.info.engine not in missing
        torch.testing.assert_close(F.solve(torch.ones(n, dtype=F64)), torch.ones(n, dtype=F64))


def test_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, *ALL, *WITHOUT_MKL)
    P = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))
    values, b = torch.ones(2), torch.ones(2)
    with pytest.raises(ss.EngineUnavailableError, match="pip install pardiso") as caught:
        P.solve(values, b)
    assert "pip install superlu" in caught.value.hint
    with pytest.raises(ss.EngineUnavailableError, match="pip install qdldl") as caught:
        P.solve(values, b, assume="spd", engine="qdldl")
    assert caught.value.engine == "qdldl"


def test_values_that_cannot_be_factored_do_not_settle_the_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SuperLU finds the fill by factoring; if that fails, the next values decide."""
    absent(monkeypatch, "pardiso", "supernodal")
    edges, n = grid(20)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    values = laplacian_values(torch.ones(edges.shape[1], dtype=F64), n)
    indefinite = laplacian_values(-torch.ones(edges.shape[1], dtype=F64), n, anchor=9.0)
    assert P.factorize(indefinite).info.assume in ("spd", "symmetric")
    if ss.engines()["qdldl"].installed:
        assert P.factorize(values).info.engine == "qdldl"
