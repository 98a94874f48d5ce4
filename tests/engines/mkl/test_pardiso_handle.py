"""The handles of PARDISO: their slots, and the memory of released factors."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from pardiso_cases import DOUBLE, engine_factor, grid_pattern, random_values
from problems import laplacian_values

import sparse_solver as ss
from sparse_solver._engines.mkl import handle as _handle
from sparse_solver._engines.protocol import Kind

pytestmark = pytest.mark.skipif(
    not ss.engines()["pardiso"].installed, reason="PARDISO is not installed"
)


def available_slots(handle: _handle.Handle) -> int:
    return len(handle._free) + len(handle._idle)


def test_more_living_factors_than_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_handle, "_FACTORS_PER_HANDLE", 4)
    P, n, edges = grid_pattern(8)
    b = torch.ones(n, dtype=DOUBLE)
    factorizations = [
        P.factorize(random_values(n, edges, anchor=k), engine="pardiso") for k in range(1, 11)
    ]
    for k, F in enumerate(factorizations, 1):
        torch.testing.assert_close(F.solve(b), b / k)
    symbolic = engine_factor(factorizations[0])._symbolic
    assert len(symbolic._handles) == 3
    del factorizations, F
    assert sum(map(available_slots, symbolic._handles)) == 12  # all of them
    P.factorize(random_values(n, edges), engine="pardiso")
    assert len(symbolic._handles) == 3


def test_a_factorisation_that_fails_gives_its_slot_back() -> None:
    P, n, edges = grid_pattern(8)
    weights = torch.ones(edges, dtype=DOUBLE)
    F = P.factorize(laplacian_values(weights, n), assume="spd", engine="pardiso")
    handle = engine_factor(F)._place[0]
    available = available_slots(handle)
    bad = laplacian_values(-weights, n, anchor=5)
    for _ in range(3):
        with pytest.raises(ss.NotPositiveDefiniteError):
            P.factorize(bad, assume="spd", engine="pardiso")
    assert available_slots(handle) == available
    torch.testing.assert_close(F.solve(torch.ones(n).double()), torch.ones(n).double())


def test_memory_of_released_factors_is_used_again_and_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    P, n, edges = grid_pattern(10)
    values, b = random_values(n, edges), torch.ones(n, dtype=DOUBLE)
    handle, slot = engine_factor(P.factorize(values, assume="spd", engine="pardiso"))._place
    assert handle._idle == [slot]
    alive = [P.factorize(k * values, assume="spd", engine="pardiso") for k in (1, 2, 3)]
    assert engine_factor(alive[0])._place == (handle, slot)
    assert handle._idle == []
    monkeypatch.setattr(_handle, "_IDLE_BYTES", 2 * 8 * (alive[0].info.factor_nnz or 0))
    last = P.factorize(4 * values, assume="spd", engine="pardiso")
    del alive
    assert len(handle._idle) == 2
    torch.testing.assert_close(last.solve(4 * b), P.solve(values, b))


def test_few_handles_keep_idle_memory_until_the_cache_is_cleared() -> None:
    P, n, edges = grid_pattern(10)
    values, handles = random_values(n, edges), []
    for dtype in (torch.float32, DOUBLE):
        for assume in get_args(Kind):
            if assume != "hermitian":
                F = P.factorize(values.to(dtype), assume=assume, engine="pardiso")
                handles.append(engine_factor(F)._place[0])
                del F
    assert [len(handle._idle) for handle in handles] == [0, 0, 1, 1, 1, 1]
    ss.clear_cache()
    assert [len(handle._idle) for handle in handles] == [0] * 6
    torch.testing.assert_close(P.solve(values, torch.ones(n).double()), torch.ones(n).double())


@pytest.mark.parametrize("kind", get_args(Kind))
def test_small_systems_take_one_thread(kind: Kind) -> None:
    before = torch.get_num_threads()
    try:
        for width, expected in ((12, 1), (100, 2)):
            P, n, edges = grid_pattern(width)
            values, b = random_values(n, edges), torch.ones(n, dtype=DOUBLE)
            torch.set_num_threads(2)
            F = P.factorize(values, assume=kind, engine="pardiso")
            handle = engine_factor(F)._place[0]
            assert handle.threads == expected
            torch.set_num_threads(1)
            torch.testing.assert_close(F.solve(b), b)
            one = P.factorize(values, assume=kind, engine="pardiso")
            assert engine_factor(one)._place[0].threads == 1
            assert (engine_factor(one)._place[0] is handle) == (expected == 1)
    finally:
        torch.set_num_threads(before)
