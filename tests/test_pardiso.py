"""What is particular to PARDISO: finding the library, its slots, and its threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from problems import grid, laplacian_places, laplacian_values

import sparse_solver as ss
from sparse_solver._engines import pardiso

needs_pardiso = pytest.mark.skipif(not ss.engines()["pardiso"].installed, reason="PARDISO is not installed")
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
    library = pardiso._library()
    assert isinstance(library, pardiso._Library)
    assert report(SPARSE_SOLVER_MKL=library.path) == "None"


def test_another_library_is_not_taken_for_mkl() -> None:
    other = torch.__path__[0] + "/lib/libc10.so"
    if not os.path.exists(other):
        pytest.skip("no such library here")
    assert "cannot be loaded" in report(SPARSE_SOLVER_MKL=other)


@needs_pardiso
def test_more_live_factors_than_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pardiso, "_PIVOTS_PER_HANDLE", 1)  # as few slots as there may be
    edges, n = grid(8)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    b = torch.ones(n, dtype=torch.float64)
    factorizations = [
        P.factorize(laplacian_values(torch.rand(edges.shape[1], dtype=torch.float64), n, k), engine="pardiso")
        for k in range(1, 11)
    ]
    for k, F in enumerate(factorizations, 1):
        torch.testing.assert_close(F.solve(b), b / k)
    symbolic = factorizations[0]._factors.made[0].trusted.factor._symbolic  # type: ignore[index, union-attr]
    assert len(symbolic._handles) == 3
    del factorizations, F
    assert sum(len(handle._free) for handle in symbolic._handles) == 12  # all of them
    P.factorize(laplacian_values(torch.rand(edges.shape[1], dtype=torch.float64), n), engine="pardiso")
    assert len(symbolic._handles) == 3


@needs_pardiso
def test_a_million_unknowns() -> None:
    """The pivots of all slots are reserved at once: too many, and the analysis runs out of memory."""
    n = 1_000_000
    i = torch.arange(n)
    P = ss.Pattern(torch.cat((i, i[:-1])), torch.cat((i, i[1:])), (n, n))
    values = torch.cat((torch.full((n,), 2.0), torch.full((n - 1,), -1e-3))).double()
    b = torch.full((n,), 2.0 - 2e-3).double()
    x = P.solve(values, b, assume="spd", triangle="upper", engine="pardiso")
    torch.testing.assert_close(x[n // 4 : -n // 4], torch.ones_like(x[n // 4 : -n // 4]))


@needs_pardiso
def test_a_failed_factorisation_gives_its_slot_back() -> None:
    edges, n = grid(8)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    good = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n)
    F = P.factorize(good, assume="spd", engine="pardiso")
    handle = F._factors.made[0].trusted.factor._place[0]  # type: ignore[index, union-attr]
    free = len(handle._free)
    bad = laplacian_values(-torch.ones(edges.shape[1], dtype=torch.float64), n, anchor=5)
    for _ in range(3):
        with pytest.raises(ss.NotPositiveDefiniteError):
            P.factorize(bad, assume="spd", engine="pardiso")
    assert len(handle._free) == free
    torch.testing.assert_close(F.solve(torch.ones(n).double()), torch.ones(n).double())


@needs_pardiso
def test_the_threads_of_other_mkl_users_are_left_alone() -> None:
    library = pardiso._library()
    assert isinstance(library, pardiso._Library)
    before = library.set_threads(1)
    try:
        ss.factorize(torch.eye(4).to_sparse(), assume="general", engine="pardiso").solve(torch.ones(4))
        assert library.set_threads(1) == 1
    finally:
        library.set_threads(before)


@needs_pardiso
def test_pivots_are_those_of_the_factor() -> None:
    """They come from a function that is wrong, or crashes, unless it is called at the right moment."""
    edges, n = grid(10)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    kept = []
    for k in range(1, 30):
        values = laplacian_values(torch.rand(edges.shape[1], dtype=torch.float64), n, anchor=1.0 / k)
        F = P.factorize(values, assume="spd", engine="pardiso")
        factor = F._factors.made[0].trusted.factor  # type: ignore[index, union-attr]
        dense = P.tensor(values).to_dense()
        least = (1 / (torch.linalg.inv(dense).diagonal() * dense.diagonal())).min()
        # the last pivot is 1 / (A⁻¹)_nn for whichever row comes last, the others are larger
        assert least * 0.999 <= factor.smallest_pivot <= 1
        if k % 3:
            kept.append(F)
        if k % 7 == 0:
            kept.clear()
