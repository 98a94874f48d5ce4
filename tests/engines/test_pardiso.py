"""What is particular to PARDISO: finding the library, its slots, and its threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import grid, laplacian_places, laplacian_values

import sparse_solver as ss
from sparse_solver._engines.mkl import handle as _handle
from sparse_solver._engines.mkl import library as mkl
from sparse_solver._engines.mkl import pardiso

needs_pardiso = pytest.mark.skipif(
    not ss.engines()["pardiso"].installed, reason="PARDISO is not installed"
)
CHECK = "import sparse_solver as ss, torch; print(ss.engines()['pardiso'].missing); " "ss.solve(torch.eye(3).to_sparse(), torch.ones(3)); ss.solve(torch.eye(3).to_sparse(), torch.ones(3), assume='general')"  # fmt: skip


def report(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_library_that_cannot_be_loaded_is_reported_and_done_without() -> None:
    found = report(SPARSE_SOLVER_MKL="/nowhere/libmkl_rt.so")
    assert "SPARSE_SOLVER_MKL=/nowhere/libmkl_rt.so cannot be loaded" in found


@needs_pardiso
def test_the_library_can_be_named() -> None:
    library = mkl.library()
    assert isinstance(library, mkl.Library)
    assert report(SPARSE_SOLVER_MKL=library.path) == "None"


def test_another_library_is_not_taken_for_mkl() -> None:
    other = torch.__path__[0] + "/lib/libc10.so"
    if not os.path.exists(other):
        pytest.skip("no such library here")
    assert "cannot be loaded" in report(SPARSE_SOLVER_MKL=other)


@needs_pardiso
def test_more_live_factors_than_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_handle, "_FACTORS_PER_HANDLE", 4)
    edges, n = grid(8)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    b = torch.ones(n, dtype=torch.float64)
    factorizations = [
        P.factorize(
            laplacian_values(torch.rand(edges.shape[1], dtype=torch.float64), n, k),
            engine="pardiso",
        )
        for k in range(1, 11)
    ]
    for k, F in enumerate(factorizations, 1):
        torch.testing.assert_close(F.solve(b), b / k)
    symbolic = factorizations[0]._factors.made[0][0].trusted.factor._symbolic  # type: ignore[index, union-attr]
    assert len(symbolic._handles) == 3
    del factorizations, F
    assert (
        sum(len(handle._free) + len(handle._idle) for handle in symbolic._handles) == 12
    )  # all of them
    P.factorize(
        laplacian_values(torch.rand(edges.shape[1], dtype=torch.float64), n), engine="pardiso"
    )
    assert len(symbolic._handles) == 3


@needs_pardiso
@pytest.mark.parametrize(
    "scale", [1.0, 1e-30]
)  # the careful method reserves the pivots of all its slots at once
def test_a_million_unknowns(scale: float) -> None:
    n = 1_000_000
    i = torch.arange(n)
    P = ss.Pattern(torch.cat((i, i[:-1])), torch.cat((i, i[1:])), (n, n))
    values = torch.cat((torch.full((n,), 2.0), torch.full((n - 1,), -1e-3))).double() * scale
    b = torch.full((n,), 2.0 - 2e-3).double() * scale
    x = P.solve(values, b, assume="spd", triangle="upper", engine="pardiso")
    torch.testing.assert_close(x[n // 4 : -n // 4], torch.ones_like(x[n // 4 : -n // 4]))


@needs_pardiso
def test_a_failed_factorisation_gives_its_slot_back() -> None:
    edges, n = grid(8)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    good = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n)
    F = P.factorize(good, assume="spd", engine="pardiso")
    handle = F._factors.made[0][0].trusted.factor._place[0]  # type: ignore[index, union-attr]
    free = len(handle._free) + len(handle._idle)
    bad = laplacian_values(-torch.ones(edges.shape[1], dtype=torch.float64), n, anchor=5)
    for _ in range(3):
        with pytest.raises(ss.NotPositiveDefiniteError):
            P.factorize(bad, assume="spd", engine="pardiso")
    assert len(handle._free) + len(handle._idle) == free
    torch.testing.assert_close(F.solve(torch.ones(n).double()), torch.ones(n).double())


@needs_pardiso
def test_the_threads_of_other_mkl_users_are_left_alone() -> None:
    library = mkl.library()
    assert isinstance(library, mkl.Library)
    before = library.set_threads(1)
    try:
        ss.factorize(torch.eye(4).to_sparse(), assume="general", engine="pardiso").solve(
            torch.ones(4)
        )
        assert library.set_threads(1) == 1
    finally:
        library.set_threads(before)


def factor_of(F: ss.Factorization) -> pardiso.PardisoFactor:
    return F._factors.made[0][0].trusted.factor  # type: ignore[index, union-attr, return-value]


@needs_pardiso
def test_small_pivots_are_noticed() -> None:
    """An anchor α leaves a last pivot of about α: from about √ε on, the matrix is looked at more closely."""
    edges, n = grid(30)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    for anchor, doubtful in ((1.0, False), (1e-4, False), (1e-13, True)):
        values = laplacian_values(
            0.5 + torch.rand(edges.shape[1], dtype=torch.float64), n, anchor=anchor
        )
        assert factor_of(P.factorize(values, assume="spd", engine="pardiso")).doubtful == doubtful


@needs_pardiso
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_what_the_fast_cholesky_gives_up_on(dtype: torch.dtype) -> None:
    """It refuses pivots below an absolute bound; the scale of a row must not decide whether a matrix is definite."""
    edges, n = grid(20)
    rows, cols = laplacian_places(edges, n)
    P = ss.Pattern(rows, cols, (n, n))
    weights = 0.5 + torch.rand(edges.shape[1], dtype=torch.float64)
    plain = laplacian_values(weights, n).to(dtype)
    A = P.tensor(plain).to_dense()
    factor = factor_of(P.factorize(plain, assume="spd", engine="pardiso"))
    assert not factor._symbolic.careful
    scale = torch.ones(n, dtype=dtype)
    scale[[0, 57, n - 1]] = 1e-12
    scaled = plain * scale[rows] * scale[cols]
    F = P.factorize(scaled, assume="spd", engine="pardiso")
    assert factor_of(F)._symbolic.careful
    b = torch.ones(n, dtype=dtype)
    torch.testing.assert_close(F.solve(scale * b) * scale, torch.linalg.solve(A, b))
    # ... and the others are not disturbed
    torch.testing.assert_close(
        P.solve(plain, b, assume="spd", engine="pardiso"), torch.linalg.solve(A, b)
    )


@needs_pardiso
@pytest.mark.parametrize("shape", ["chain", "grid"])
def test_the_fast_cholesky_does_not_pass_over_negative_pivots(shape: str) -> None:
    """It has been seen to return NaN without an error."""
    for seed in range(40):
        torch.manual_seed(seed)
        n = 20 * (seed + 1)
        if shape == "chain":
            i = torch.arange(n)
            edges = torch.stack((i[:-1], i[1:]))
        else:
            edges, n = grid(4 + seed)
        rows, cols = laplacian_places(edges, n)
        values = laplacian_values(0.5 + torch.rand(edges.shape[1], dtype=torch.float64), n)
        bad = int(torch.randint(0, n, (1,)))
        values[torch.nonzero((rows == bad) & (cols == bad))[0]] -= (
            0.9 * values[(rows == bad) & (cols == bad)].sum()
        )
        with pytest.raises(ss.NotPositiveDefiniteError) as caught:
            ss.Pattern(rows, cols, (n, n)).solve(
                values, torch.ones(n).double(), assume="spd", engine="pardiso"
            )
        assert caught.value.row is not None


@needs_pardiso
def test_memory_of_dead_factors_is_used_again_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    edges, n = grid(10)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    values = laplacian_values(torch.rand(edges.shape[1], dtype=torch.float64), n)
    b = torch.ones(n, dtype=torch.float64)
    handle, slot = factor_of(P.factorize(values, assume="spd", engine="pardiso"))._place
    assert handle._idle == [slot]
    alive = [P.factorize(k * values, assume="spd", engine="pardiso") for k in (1, 2, 3)]
    assert factor_of(alive[0])._place == (handle, slot)
    assert handle._idle == []
    monkeypatch.setattr(_handle, "_IDLE_BYTES", 2 * 8 * (alive[0].info.factor_nnz or 0))
    last = P.factorize(4 * values, assume="spd", engine="pardiso")
    del alive
    assert len(handle._idle) == 2
    torch.testing.assert_close(last.solve(4 * b), P.solve(values, b))


@needs_pardiso
def test_idle_memory_is_that_of_few_handles_and_given_back() -> None:
    edges, n = grid(10)
    ss.clear_cache()
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    values = laplacian_values(torch.rand(edges.shape[1], dtype=torch.float64), n)
    handles = []
    for dtype in (torch.float32, torch.float64):
        for assume in ("spd", "symmetric", "general"):
            F = P.factorize(values.to(dtype), assume=assume, engine="pardiso")  # type: ignore[arg-type]
            handles.append(factor_of(F)._place[0])
            del F
    assert [len(handle._idle) for handle in handles] == [0, 0, 1, 1, 1, 1]
    ss.clear_cache()
    assert [len(handle._idle) for handle in handles] == [0] * 6
    torch.testing.assert_close(P.solve(values, torch.ones(n).double()), torch.ones(n).double())


@needs_pardiso
def test_singular_hermitian_matrices_do_not_write_past_arrays() -> None:
    # With 2-by-2 pivots they do, if one is perturbed; only a process of its own may find that out.
    script = """
import torch, sparse_solver as ss
for dtype in (torch.complex64, torch.complex128):
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        n, m = 5 + 2 * seed, 2 + seed
        C = torch.randn(m, n, dtype=dtype, generator=g) * (torch.rand(m, n, generator=g) < 4 / n)
        C[-1] = C[0] + C[1]
        K = torch.cat((torch.cat((torch.eye(n), C.mH), 1), torch.cat((C, torch.zeros(m, m)), 1)))
        K = (K + 1e-30 * torch.eye(n + m)).to_sparse()
        for factor in (1, 2):
            try:
                ss.solve(factor * K, torch.ones(n + m, dtype=dtype), assume="hermitian", engine="pardiso")
            except (ss.SingularMatrixError, ss.EngineError):
                pass
"""
    # glibc's checks of the heap, which abort at the first damage.
    checked = {"MALLOC_CHECK_": "3", "MKL_DISABLE_FAST_MM": "1"}
    library = next(iter(sorted(Path("/lib").glob("*-linux-gnu/libc_malloc_debug.so.0"))), None)
    if library is not None:
        checked["LD_PRELOAD"] = str(library)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | checked,
    )
    assert done.returncode == 0, done.stderr
