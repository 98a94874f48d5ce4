"""Threads, forks, interrupts, and the number of threads of OpenBLAS."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import CFUNCTYPE, POINTER, c_double, c_int32, c_int64, c_void_p, cast

import numpy as np
import pytest
import torch
from gaussian.gaussian_cases import grid, pattern_of
from numba import njit

import sparse_solver as ss
from sparse_solver._engines.supernodal import (
    analysis_kernels,
    blas,
    elimination,
    inversion,
    library,
    perturbation,
    reverse_cholesky,
    substitution,
    threads,
)
from sparse_solver._engines.supernodal.primitives import STOP, call


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


@njit
def _call(routine, width):
    call(routine, width, (np.int32(-5), 2.5))


@pytest.mark.parametrize(("width", "kind"), [(np.int32(0), c_int32), (np.int64(0), c_int64)])
def test_integers_have_the_width_that_the_library_reads(width, kind) -> None:
    read = []

    @CFUNCTYPE(None, POINTER(kind), POINTER(c_double))
    def routine(number, other) -> None:
        read.extend((number[0], other[0]))

    _call(cast(routine, c_void_p).value, width)
    assert read == [-5, 2.5]


def test_the_first_use_says_what_is_compiled_and_later_ones_do_not(
    run_python: Callable[..., str], tmp_path
) -> None:
    script = """
import io, sys
import numpy as np
from sparse_solver._engines.supernodal.analysis_kernels import find_tree
from sparse_solver._engines.supernodal.compilation import compile_entry, digest
sys.stderr, later = io.StringIO(), compile_entry(find_tree.py_func)
for kernel in (find_tree, later): kernel(np.zeros(2, dtype=int), np.zeros(0, dtype=int), digest())
print(sys.stderr.getvalue().count("Numba compiles"), len(later.stats.cache_hits))
"""
    assert run_python(script, NUMBA_CACHE_DIR=str(tmp_path / "compiled")).split() == ["1", "1"]


def _use_all_kernels() -> None:
    P, values = pattern_of(grid(3, 3))
    values.requires_grad_()
    (inverse,) = torch.autograd.grad(P.logdet(values), values, create_graph=True)
    inverse.sum().backward()
    P.solve_factor(values, torch.ones(9, 2).double()).sum().backward()


def test_every_kernel_can_be_kept() -> None:
    """Loading from the cache gives None where a function could not be kept."""
    _use_all_kernels()
    kernels = [value for module in (
                   analysis_kernels, elimination, inversion, perturbation, reverse_cholesky,
                   substitution)
               for value in vars(module).values() if hasattr(value, "signatures")]  # fmt: skip
    kept = {id(kernel): kernel for kernel in kernels if kernel.targetoptions.get("nogil")}
    entries = [kernel for kernel in kept.values() if kernel._cache.cache_path is not None]
    assert len(entries) == 13
    for kernel in entries:
        assert kernel.signatures
        for signature in kernel.signatures:
            assert kernel._cache.load_overload(signature, kernel.targetctx) is not None


def test_without_numba_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    package = library.__package__
    for name in [name for name in sys.modules if name.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules[package], "factor")
    monkeypatch.setitem(sys.modules, "numba", None)
    P = ss.Pattern(torch.arange(3), torch.arange(3), (3, 3))
    with pytest.raises(ss.EngineUnavailableError) as caught:
        P.logdet(torch.ones(3))
    assert caught.value.hint == 'pip install "sparse-solver[gaussian]"'
    assert "numba" in str(caught.value)
