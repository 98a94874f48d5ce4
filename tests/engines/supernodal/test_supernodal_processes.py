"""Threads, forks, interrupts, and the number of threads of OpenBLAS."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from gaussian.gaussian_cases import grid, pattern_of

from sparse_solver._engines.supernodal import blas, elimination, threads
from sparse_solver._engines.supernodal.factor import SupernodalFactor, analyze
from sparse_solver._engines.supernodal.primitives import STOP


@pytest.fixture(scope="module")
def problem():
    return pattern_of(grid(13, 13, 13))


def test_factorisations_in_four_threads_at_once(problem) -> None:
    P, values = problem
    expected = P.logdet(values)
    inverse = P.selected_inverse(values)

    def work(scale: float) -> None:
        given = (scale * values).requires_grad_()
        determinant = P.logdet(given)
        torch.testing.assert_close(determinant, expected + P.shape[0] * np.log(scale))
        determinant.backward()
        torch.testing.assert_close(given.grad, inverse / scale)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, np.linspace(1, 2, 12)))


def test_threads_that_share_a_factor(problem) -> None:
    P, values = problem
    F = P.factorize(values, assume="spd")
    F.logdet()
    with ThreadPoolExecutor(4) as pool:
        diagonals = list(pool.map(lambda _: F.inverse_diagonal(), range(8)))
    for diagonal in diagonals:
        assert torch.equal(diagonal, diagonals[0])


def _work_in_child(queue, P, values, F) -> None:
    queue.put((float(F.logdet()), float(F.inverse_diagonal().sum()), float(P.logdet(2 * values))))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_uses_factors_of_its_parent_and_makes_its_own(problem) -> None:
    P, values = problem
    F = P.factorize(values, assume="spd")
    expected = float(F.logdet()), float(F.inverse_diagonal().sum()), float(P.logdet(2 * values))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [
        context.Process(target=_work_in_child, args=(queue, P, values, F)) for _ in range(2)
    ]
    for child in children:
        child.start()
    found = [queue.get(timeout=120) for _ in children]
    for child in children:
        child.join(timeout=120)
        assert child.exitcode == 0
    assert found == [expected, expected]


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_an_interrupt_leaves_nothing_broken(problem) -> None:
    P, values = problem
    expected = P.logdet(values)
    assert threading.current_thread() is threading.main_thread()
    before = blas._thread_functions()[0]() if blas._thread_functions() else 1
    running, raised = threading.active_count(), 0
    for delay in np.linspace(1e-4, 2e-2, 25):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, delay)
        try:
            P.logdet(values)
        except KeyboardInterrupt:
            raised += 1
        finally:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                raised += 1
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert raised > 0
    assert P.logdet(values) == expected
    assert threading.active_count() == running
    if blas._thread_functions():
        assert blas._thread_functions()[0]() == before
    assert blas._users.count == 0


def test_an_error_in_one_thread_stops_the_others() -> None:
    seen = []

    def kernel(sync, thread, count) -> None:
        if thread == 0:
            raise ZeroDivisionError
        while not sync[STOP]:
            pass
        seen.append(thread)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ZeroDivisionError):
            threads.run_together(kernel, (), True)
    finally:
        torch.set_num_threads(before)
    assert sorted(seen) == [1, 2]


def test_where_no_thread_can_be_started_the_caller_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self) -> None:
        raise RuntimeError("can't start new thread")

    calls = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    threads.run_together(lambda sync, thread, count: calls.append((thread, count)), (), True)
    assert calls == [(0, 1)]


@pytest.mark.skipif(blas._thread_functions() is None, reason="SciPy's BLAS is not OpenBLAS")
def test_openblas_has_one_thread_while_a_kernel_runs() -> None:
    get, set_to = blas._thread_functions()
    before = get()
    set_to(2)
    try:
        with blas.one_thread():
            assert get() == 1
            with blas.one_thread():
                assert get() == 1
            assert get() == 1
        assert get() == 2
    finally:
        set_to(before)


def test_integers_of_64_bits_reach_the_library(problem) -> None:
    """A library with wide integers reads eight bytes where these tests' library reads four."""
    P, values = problem
    structure = P._structure
    symbolic = analyze(structure, None)
    entries = symbolic.arrangement.gather(structure.canonical(values), False).numpy()
    wide = (np.int64(0), *blas.blas_table()[1:])
    panels, memory = np.empty(symbolic.panel_size), np.empty(symbolic.update_size)
    failures = np.zeros(len(symbolic.tree.tasks), dtype=np.int64)
    given = symbolic.tree, panels, memory, entries, wide, failures
    threads.run_together(elimination.factor, given, False)
    expected = SupernodalFactor(symbolic, entries)
    np.testing.assert_array_equal(panels[symbolic.pivots_at], expected._panels[symbolic.pivots_at])


def test_the_first_use_says_what_is_compiled_and_later_ones_do_not(
    run_python: Callable[..., str], tmp_path
) -> None:
    script = """
import io, sys, torch, sparse_solver as ss
sys.stderr = io.StringIO()
P = ss.Pattern(torch.arange(3), torch.arange(3), (3, 3))
P.logdet(torch.ones(3)); P.logdet(torch.ones(3))
print(sys.stderr.getvalue().count("Numba compiles"))
"""
    folder = tmp_path / "compiled"
    assert run_python(script, NUMBA_CACHE_DIR=str(folder)).split() == ["1"]
    assert run_python(script, NUMBA_CACHE_DIR=str(folder)).split() == ["0"]


def test_without_numba_the_error_says_what_to_install(run_python: Callable[..., str]) -> None:
    script = """
import sys; sys.modules["numba"] = None
import torch, sparse_solver as ss
P = ss.Pattern(torch.arange(3), torch.arange(3), (3, 3))
try: P.logdet(torch.ones(3))
except ss.EngineUnavailableError as error: print(error.hint)
"""
    assert "sparse-solver[gaussian]" in run_python(script)
