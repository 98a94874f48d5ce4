"""The workspaces of cuDSS on a simulated GPU: analyses used again, and idle memory."""

from __future__ import annotations

import gc

import pytest
import simulated_gpu
import torch
from cudss_cases import (
    GENERAL,
    SPD,
    check_solution,
    cycle,
    indefinite,
    laplacian,
    pattern,
    solve_non_blocking,
    vector,
)
from simulated_cudss import Cudss, DataObject, Dense

import sparse_solver as ss
from sparse_solver._engines.cudss import library as native
from sparse_solver._engines.cudss.library import Phase
from sparse_solver._engines.registry import engine_named
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import structure_of


def phases(cudss: Cudss) -> list[Phase]:
    return [phase for phase, _ in cudss.phases]


def test_the_analysis_is_used_again(cudss: Cudss) -> None:
    P, b = pattern(SPD), vector(SPD.n)
    for factor in (1.0, 2.0, 3.0):
        values = (SPD.values * factor).requires_grad_()
        P.solve(values, b, assume="spd").sum().backward()
    again = [Phase.REFACTORIZATION, Phase.REFACTORIZATION]
    expected = [Phase.ANALYSIS, Phase.FACTORIZATION, *again]
    assert [phase for phase in phases(cudss) if phase != Phase.SOLVE] == expected


def test_two_living_factors_have_a_workspace_each(cudss: Cudss) -> None:
    P, b = pattern(SPD), vector(SPD.n)
    first, second = P.factorize(SPD.values), P.factorize(2 * SPD.values)
    torch.testing.assert_close(first.solve(b).cpu(), 2 * second.solve(b).cpu())
    check_solution(SPD, first.solve(b))
    assert cudss.live(DataObject) == 2


def test_a_factorisation_does_not_start_from_one_that_failed(cudss: Cudss) -> None:
    P = pattern(SPD)
    solve_non_blocking(SPD, indefinite(0.3), vector(SPD.n), P)
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.synchronize()
    check_solution(SPD, solve_non_blocking(SPD, SPD.values, vector(SPD.n), P))
    assert Phase.REFACTORIZATION not in phases(cudss)


def test_idle_memory_is_released_for_new_factors(cudss: Cudss) -> None:
    kept = pattern(GENERAL).factorize(GENERAL.values)
    F = pattern(SPD).factorize(SPD.values, assume="spd")
    del F
    cudss.fail["Execute"] = native.ALLOC_FAILED
    check_solution(SPD, pattern(SPD).solve(SPD.values, vector(SPD.n), assume="spd"))
    assert phases(cudss).count(Phase.ANALYSIS) >= 3
    check_solution(GENERAL, kept.solve(vector(GENERAL.n)))


@pytest.mark.parametrize("non_blocking", [False, True])
@pytest.mark.parametrize("phase", [Phase.ANALYSIS, Phase.FACTORIZATION, Phase.SOLVE])
def test_idle_memory_is_released_for_every_phase(
    cudss: Cudss, non_blocking: bool, phase: Phase
) -> None:
    pattern(GENERAL).factorize(GENERAL.values)
    refused = []

    def refuse(now: Phase, number: int) -> int:
        if now != phase or refused:
            return 0
        refused.append(cudss.live(DataObject))
        return native.ALLOC_FAILED

    cudss.refuse = refuse
    b = vector(SPD.n)
    x = pattern(SPD).solve(SPD.values, b, assume="spd", non_blocking=non_blocking)
    check_solution(SPD, x)
    ss.synchronize()
    assert len(refused) == 1
    assert cudss.live(DataObject) < refused[0] + (phase != Phase.SOLVE)


def test_few_patterns_keep_idle_memory(cudss: Cudss) -> None:
    """A factor that is released later than the idle memory of its pattern leaves none either."""
    cases = [laplacian(m) for m in range(3, 10)]
    P, values = cases[0]
    oldest = P.factorize(values, assume="spd")
    for P, values in cases[1:]:
        P.factorize(values, assume="spd")
    assert cudss.live(DataObject) == 5
    del oldest
    assert cudss.live(DataObject) == 4
    ss.clear_cache()
    assert cudss.live(DataObject) == 0


def test_each_workspace_has_a_limit_of_its_own(
    cudss: Cudss, monkeypatch: pytest.MonkeyPatch
) -> None:
    P, kept = pattern(SPD), []
    for gigabytes in (1, 2):
        monkeypatch.setattr(
            simulated_gpu.Module, "mem_get_info", lambda *_, free=gigabytes: (free * 2**30, 2**40)
        )
        kept.append(P.factorize(SPD.values, engine="cudss_hybrid", assume="spd"))
    del kept[0]
    P.factorize(SPD.values, engine="cudss_hybrid", assume="spd")  # in the memory of the first
    first, second, third = (limit for _, limit in cudss.factored)
    assert first == third < second


def test_a_factor_of_another_stream_is_waited_for_and_kept(
    cudss: Cudss, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[int, int]] = []
    record = lambda self, stream: kept.append((id(self), stream.cuda_stream))  # noqa: E731
    monkeypatch.setattr(simulated_gpu.SimulatedTensor, "record_stream", record)
    structure, side = structure_of(SPD.rows, SPD.cols, SPD.shape), simulated_gpu.Stream(number=7)
    symbolic = engine_named("cudss").analyze(structure, "spd", torch.float64, None)
    symbolic.factor(Matrix(structure, SPD.values))  # leaves an idle workspace on stream 0
    with simulated_gpu.module.stream(side):
        factor = symbolic.factor_non_blocking(Matrix(structure, SPD.values))  # type: ignore[attr-defined] # of a GPU
    assert (id(factor._workspace._values), 0) in kept
    check_solution(SPD, factor.substitute(vector(1, SPD.n), False)[0])
    assert {(id(factor.values), 0), (id(factor._scales), 0)} <= set(kept)


def test_descriptors_are_kept_one_by_one(cudss: Cudss) -> None:
    made = cudss.made_before_failing = [1]
    with pytest.raises(ss.EngineError, match="cudssMatrixCreateDn"):
        pattern(SPD).factorize(SPD.values, assume="spd")
    assert made == [0]
    ss.clear_cache()
    assert cudss.live(Dense) == 0


def test_an_analysis_that_failed_keeps_nothing(cudss: Cudss) -> None:
    cudss.refuse = lambda phase, number: 5 if phase == Phase.ANALYSIS and number > 1 else 0
    P, values = cycle()
    gc.collect()
    gc.disable()
    try:
        assert P.factorize(values, assume="general").info.engine == "superlu"
        ss.clear_cache()
        assert cudss.live(DataObject) == 0
    finally:
        gc.enable()
