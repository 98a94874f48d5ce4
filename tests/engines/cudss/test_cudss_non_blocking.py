"""Solves with non_blocking=True on a simulated GPU, and the errors that they raise later."""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import Any

import pytest
import simulated_gpu
import torch
from cudss_cases import (
    DEVICE,
    GENERAL,
    SPD,
    check_solution,
    indefinite,
    pattern,
    solve_non_blocking,
    vector,
)
from problems import TOLERANCE, problem, rhs
from simulated_cudss import Cudss, DataObject

import sparse_solver as ss
from sparse_solver._engines.cudss import library as native
from sparse_solver._engines.cudss.library import Phase
from sparse_solver._factor import pending_errors


@pytest.fixture
def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    """No work of the device finishes until the host waits for it."""
    monkeypatch.setattr(simulated_gpu.Module, "finished", False)


CASES = [(kind, torch.float64) for kind in ("spd", "symmetric", "general")]
CASES += [("spd", torch.float32), ("hermitian", torch.complex64), ("general", torch.complex64)]


@pytest.mark.usefixtures("_late")
@pytest.mark.parametrize(("kind", "dtype"), CASES, ids=str)
def test_the_host_does_not_wait(cudss: Cudss, kind: str, dtype: torch.dtype) -> None:
    p = problem(kind, dtype).to(DEVICE)
    b, P = rhs(p.n, 2, dtype=dtype).to(DEVICE).requires_grad_(), pattern(p)
    # The first solve makes the analysis and the index maps.
    torch.autograd.grad(solve_non_blocking(p, p.values, b, P), b, torch.ones_like(b))
    before = simulated_gpu.synchronisations()
    values = (2 * p.values).requires_grad_()
    x = solve_non_blocking(p, values, b, P)
    bars = torch.autograd.grad(x, (values, b), torch.ones_like(x))
    y = solve_non_blocking(p, values.detach(), b.detach(), P, transpose=True)
    assert simulated_gpu.synchronisations() == before
    ss.synchronize()
    close = partial(torch.testing.assert_close, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    dense = 2 * p.dense.cpu()
    close(x.detach().cpu(), torch.linalg.solve(dense, b.detach().cpu()))
    close(y.cpu(), torch.linalg.solve(dense.mT, b.detach().cpu()))
    expected = pattern(p).solve(values, b, assume=p.kind, engine="superlu")  # type: ignore[arg-type] # a str
    others = torch.autograd.grad(expected, (values, b), torch.ones_like(x))
    for mine, other in zip(bars, others, strict=True):
        close(mine.cpu(), other.cpu())


@pytest.mark.usefixtures("_late")
def test_a_workspace_is_released_when_the_device_has_finished(cudss: Cudss) -> None:
    """Of two factors, one leaves its workspace for the next factorisation."""
    P, b = pattern(SPD), vector(SPD.n)
    factors = [P.factorize(k * SPD.values, assume="spd", non_blocking=True) for k in (1, 2)]
    for factor in factors:
        factor.solve(b)
    assert cudss.live(DataObject) == 2
    del factor, factors
    assert cudss.live(DataObject) == 1
    assert not cudss.violations


@pytest.mark.usefixtures("_late")
def test_errors_are_raised_later_and_solutions_are_nan(cudss: Cudss) -> None:
    n, good, b = SPD.n, SPD.values, vector(SPD.n)
    asymmetric = good.clone()
    asymmetric[1] += 1.0
    nan_b = torch.where(torch.arange(n).to(DEVICE) == 3, torch.nan, b)
    not_spd = ss.NotPositiveDefiniteError
    cases = [
        (ss.NonFiniteError, "values are not finite", good * torch.nan, b),
        (ss.NotSymmetricError, "not symmetric", asymmetric, b),
        (not_spd, "a diagonal entry is not positive", -good, b),
        (not_spd, "or it is singular", indefinite(0.1), b),
        (ss.NonFiniteError, "b is not finite", good, nan_b),
    ]
    for error, words, values, right in cases:
        x = solve_non_blocking(SPD, values, right)
        assert x.cpu().isnan().all()
        with pytest.raises(error, match=words):
            ss.synchronize()
        ss.synchronize()  # each is raised once
    zeros = torch.zeros_like(GENERAL.values)
    assert solve_non_blocking(GENERAL, zeros, vector(GENERAL.n)).cpu().isnan().all()
    with pytest.raises(ss.SingularMatrixError, match="singular to working precision"):
        ss.synchronize()


def test_an_error_is_raised_by_the_next_non_blocking_solve(cudss: Cudss) -> None:
    solve_non_blocking(SPD, -SPD.values, vector(SPD.n))
    with pytest.raises(ss.NotPositiveDefiniteError):
        solve_non_blocking(SPD, SPD.values, vector(SPD.n))
    ss.synchronize()


def test_the_good_systems_of_a_batch_are_solved(cudss: Cudss) -> None:
    values, b = torch.stack((SPD.values, -SPD.values, 3 * SPD.values)), vector(3, SPD.n, 2)
    x = solve_non_blocking(SPD, values, b).cpu()
    assert x[1].isnan().all()
    torch.testing.assert_close(x[2], torch.linalg.solve(3 * SPD.dense.cpu(), b.cpu()[2]))
    assert x[0].isfinite().all()
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.synchronize()


def test_options_that_contradict_non_blocking() -> None:
    p = problem("spd", torch.float64)
    b = rhs(p.n, dtype=torch.float64)
    with pytest.raises(ss.OptionError, match="pass assume="):
        pattern(p).solve(p.values, b, non_blocking=True)
    with pytest.raises(ss.OptionError, match="non_blocking='later'"):
        pattern(p).solve(p.values, b, assume="spd", non_blocking="later")  # type: ignore[arg-type] # on purpose
    with pytest.raises(ss.NotPositiveDefiniteError):  # the CPU raises at once
        pattern(p).solve(-p.values, b, assume="spd", non_blocking=True)


@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_rows_are_not_matched_by_bad_values(cudss: Cudss, bad: float) -> None:
    P = pattern(GENERAL)
    solve_non_blocking(GENERAL, GENERAL.values * bad, vector(GENERAL.n), P)
    with pytest.raises((ss.NonFiniteError, ss.SingularMatrixError)):
        ss.synchronize()
    assert not cudss.matched
    for factor in (1.0, 3.0):
        x = solve_non_blocking(GENERAL, GENERAL.values * factor, vector(GENERAL.n), P)
        check_solution(GENERAL, x, factor)
    ss.synchronize()
    assert len(cudss.matched) == 1


def test_rows_are_not_matched_by_a_zero_matrix_in_a_batch(cudss: Cudss) -> None:
    P, v, b = pattern(GENERAL), GENERAL.values, vector(2, GENERAL.n, 1)
    solve_non_blocking(GENERAL, torch.stack((v, 0 * v)), b, P)
    with pytest.raises(ss.SingularMatrixError):
        ss.synchronize()
    x = solve_non_blocking(GENERAL, torch.stack((v, v)), b, P)
    ss.synchronize()
    torch.testing.assert_close(x[1].cpu(), torch.linalg.solve(GENERAL.dense.cpu(), b[1].cpu()))


def test_a_matching_that_fails_is_tried_again_by_the_next_solve(cudss: Cudss) -> None:
    cudss.refuse = lambda phase, number: 5 if (phase, number) == (Phase.ANALYSIS, 2) else 0
    P = pattern(GENERAL)
    solve_non_blocking(GENERAL, GENERAL.values, vector(GENERAL.n), P)  # exchanges no rows
    with pytest.raises(ss.SingularMatrixError, match="or too badly scaled"):
        ss.synchronize()
    check_solution(GENERAL, solve_non_blocking(GENERAL, GENERAL.values, vector(GENERAL.n), P))
    ss.synchronize()


@pytest.mark.parametrize("status", [4, 5])
def test_a_matching_that_always_fails_is_given_up(cudss: Cudss, status: int) -> None:
    p, b = SPD, vector(SPD.n)  # which needs none
    cudss.refuse = lambda phase, number: status if phase == Phase.ANALYSIS and number > 1 else 0
    P = pattern(p)
    for _ in range(2):
        P.solve(p.values, b, assume="general", non_blocking=True)
    phases, before = len(cudss.phases), simulated_gpu.synchronisations()
    P.solve(p.values, b, assume="general", non_blocking=True)
    assert Phase.ANALYSIS not in [phase for phase, _ in cudss.phases[phases:]]
    assert simulated_gpu.synchronisations() == before
    ss.synchronize()


def test_no_memory_for_a_matching_is_not_a_singular_matrix(cudss: Cudss) -> None:
    status = native.ALLOC_FAILED
    cudss.refuse = lambda phase, number: status if phase == Phase.ANALYSIS and number > 1 else 0
    with pytest.raises(ss.EngineError, match="ALLOC_FAILED") as caught:
        solve_non_blocking(GENERAL, GENERAL.values, vector(GENERAL.n))
    assert caught.value.out_of_memory


@pytest.mark.parametrize("is_factored", [False, True])
def test_a_graph_does_not_record_factors(
    cudss: Cudss, monkeypatch: pytest.MonkeyPatch, is_factored: bool
) -> None:
    """Its replays would use the memory of a factor that may be gone."""
    P, b = pattern(SPD), vector(SPD.n)
    F = P.factorize(SPD.values, assume="spd", non_blocking=True)
    F.solve(b)
    phases = len(cudss.phases)
    monkeypatch.setattr(simulated_gpu.Module, "capturing", True)
    with pytest.raises(ss.EngineUnsupportedError, match="CUDA graph"):
        F.solve(b) if is_factored else solve_non_blocking(SPD, SPD.values, b, P)
    assert len(cudss.phases) == phases
    monkeypatch.setattr(simulated_gpu.Module, "capturing", False)
    check_solution(SPD, solve_non_blocking(SPD, SPD.values, b, P))
    ss.synchronize()


def test_a_status_for_a_pivot_is_raised_later_too(cudss: Cudss) -> None:
    cudss.fails_early = True
    assert solve_non_blocking(SPD, indefinite(0.3), vector(SPD.n)).cpu().isnan().all()
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.synchronize()


def test_a_thread_that_waits_does_not_miss_an_error(
    cudss: Cudss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile another thread checks whether the solve has finished."""
    asked, here = threading.Event(), threading.get_ident()

    def query(self: object) -> bool:
        if threading.get_ident() != here:
            asked.set()
            threading.Event().wait(0.2)
            return False
        return True

    solve_non_blocking(SPD, -SPD.values, vector(SPD.n))
    monkeypatch.setattr(simulated_gpu.Event, "query", query)
    thread = threading.Thread(target=pending_errors.raise_finished)
    thread.start()
    asked.wait()
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.synchronize()
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_leaves_pending_errors_alone(cudss: Cudss) -> None:
    solve_non_blocking(SPD, SPD.values, vector(SPD.n))
    child = os.fork()
    if child == 0:
        os._exit(0 if not pending_errors._pending and len(pending_errors._abandoned) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(pending_errors._pending) == 1
    ss.synchronize()


def test_synchronize_does_not_wait_for_later_solves(
    cudss: Cudss, monkeypatch: pytest.MonkeyPatch
) -> None:
    P = pattern(SPD)
    solve_non_blocking(SPD, SPD.values, vector(SPD.n), P)
    error, more = pending_errors._Pending.error, iter(range(3))

    def submitting(pending: Any) -> Any:
        for _ in more:
            solve_non_blocking(SPD, SPD.values, vector(SPD.n), P)
            break
        return error(pending)

    monkeypatch.setattr(pending_errors._Pending, "error", submitting)
    monkeypatch.setattr(simulated_gpu.Module, "finished", False)
    ss.synchronize()
    assert len(pending_errors._pending) == 1
    monkeypatch.undo()
    ss.synchronize()
