"""Factors are released on all ranks together, and later factorisations use their memory."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from problems import grid, laplacian_places, laplacian_values, problem, rhs
from shares import COMM, Share, whole

from sparse_solver import distributed
from sparse_solver._factor.accuracy.judge import Judge, Verdict
from sparse_solver.distributed import _mkl_cluster as _cluster
from sparse_solver.distributed._collective import Group


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The phases that the solver runs from here on."""
    Share(problem("spd", torch.float64)).pattern.release_idle()
    found: list[int] = []
    original = _cluster.Handle._call

    def noted(self: _cluster.Handle, phase: int, *args: object) -> int:
        found.append(phase)
        return original(self, phase, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(_cluster.Handle, "_call", noted)
    return found


def live() -> int:
    handles = _cluster.Handles.of(Group.of(None))
    return len(handles._live) + len(handles._idle)


def test_the_analysis_is_made_once(phases: list[int]) -> None:
    share = Share(problem("spd", torch.float64, n=30))
    b = share.of(rhs(30, dtype=torch.float64))
    for scale in (1.0, 2.0, 3.0):
        values = (scale * share.values).requires_grad_()
        share.pattern.solve(values, b).sum().backward()
        del values
    assert phases.count(_cluster.ANALYSIS) == 1
    assert phases.count(_cluster.FACTORIZATION) == 3


def test_matching_is_remembered(phases: list[int]) -> None:
    p = problem("general", torch.float64, n=30)
    dense = p.dense.roll(3, 1)  # nothing on the diagonal to begin with
    rows, cols = dense.nonzero().T
    share = Share(type(p)("general", dense, rows, cols, dense[rows, cols]))
    b = rhs(30, dtype=torch.float64)
    for _ in range(4):
        x = share.pattern.solve(share.values, share.of(b))
        torch.testing.assert_close(whole(x), torch.linalg.solve(dense, b))
    assert phases.count(_cluster.FACTORIZATION) <= 5
    assert phases.count(_cluster.ANALYSIS) <= 2


@pytest.mark.parametrize(("dtype", "analyses"), [(torch.float64, 3), (torch.complex64, 2)])
def test_lu_is_the_last_resort(
    phases: list[int], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, analyses: int
) -> None:
    """Where LDLᵀ is not accurate; the second time, LDLᵀ is not tried again."""
    p = problem("symmetric", dtype, n=30)
    share, b = Share(p), rhs(30, dtype=dtype)
    original = Judge.examine

    def examine(self: Judge) -> Verdict:
        self.verdict = Verdict.UNUSABLE
        return original(self) if self.factor.arrangement.coverage == "full" else self.verdict

    monkeypatch.setattr(Judge, "examine", examine)
    for _ in range(2):
        x = share.pattern.solve(share.values, share.of(b), assume="symmetric")
        torch.testing.assert_close(whole(x), torch.linalg.solve(p.dense, b), rtol=1e-4, atol=1e-4)
        assert phases.count(_cluster.ANALYSIS) == analyses
    assert phases.count(_cluster.FACTORIZATION) == analyses + 1


def test_a_factor_that_one_rank_still_holds_is_not_used_again(phases: list[int]) -> None:
    share = Share(problem("spd", torch.float64, n=30))
    b = rhs(30, dtype=torch.float64)
    held = share.pattern.factorize(share.values)
    kept = [held] if COMM.rank == 0 else []
    del held
    for scale in (1.0, 2.0):
        x = share.pattern.solve(scale * share.values, share.of(b))
        torch.testing.assert_close(whole(x), torch.linalg.solve(share.problem.dense, b) / scale)
    assert phases.count(_cluster.ANALYSIS) == 2
    kept.clear()
    first, second = (share.pattern.factorize(share.values) for _ in range(2))
    assert phases.count(_cluster.ANALYSIS) == 2
    torch.testing.assert_close(whole(first.solve(share.of(b))), whole(second.solve(share.of(b))))


def test_factors_die_without_the_garbage_collector() -> None:
    share = Share(problem("general", torch.float64, n=30))
    b = share.of(rhs(30, dtype=torch.float64))
    gc.collect()
    gc.disable()
    try:
        F = share.pattern.factorize(share.values.requires_grad_())
        factor = weakref.ref(F._factor.factor)
        F.solve(b).sum().backward()
        del F
        assert factor() is None
        singular = Share(problem("spd", torch.float64, n=30))
        before = live()
        for _ in range(8):
            try:
                singular.pattern.solve(-singular.values, b, assume="symmetric")
                singular.pattern.solve(torch.ones_like(singular.values), b)
            except ArithmeticError:
                raise
            except Exception:
                pass
        assert live() <= before + _cluster._MAX_IDLE + 1
    finally:
        gc.enable()


def test_idle_memory_is_released() -> None:
    share = Share(problem("spd", torch.float64, n=30))
    for n in (30, 31, 32, 33, 34, 35, 36):
        other = Share(problem("spd", torch.float64, n=n))
        other.pattern.solve(other.values, other.of(rhs(n, dtype=torch.float64)))
    gc.collect()
    share.pattern.release_idle()
    handles = _cluster.Handles.of(Group.of(None))
    assert handles._idle == []
    assert handles._live == {}


def test_two_hundred_steps() -> None:
    """Memory does not grow after a few steps, on any rank."""
    edges, n = grid(40)
    rows, cols = laplacian_places(edges, n)
    block = distributed.partition((n, n))
    mine = (rows >= block.start) & (rows < block.stop)
    P = distributed.Pattern(rows[mine], cols[mine], (n, n))
    b = torch.ones(len(block), dtype=torch.float64)
    w = torch.ones(edges.shape[1], dtype=torch.float64, requires_grad=True)
    sizes = []
    for step in range(200):
        values = laplacian_values(distributed.replicate(w), n)[mine]
        (w_bar,) = torch.autograd.grad(
            distributed.all_sum(P.solve(values, b, assume="spd").square().sum()), w
        )
        with torch.no_grad():
            w.sub_(w_bar, alpha=1e-3 / float(w_bar.abs().max()))
        if step in (50, 199):
            gc.collect()
            sizes.append(resident())
    assert sizes[1] - sizes[0] < 8 << 20, sizes


def resident() -> int:
    """Bytes of memory of this process."""
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096
