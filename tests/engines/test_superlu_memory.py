"""Decompositions of SuperLU are released by the thread that made them."""

from __future__ import annotations

import gc
import os
import platform
import threading

import pytest
import torch

import sparse_solver as ss

LEAK = """
import ctypes, gc, threading, torch, sparse_solver as ss
n = 40_000
i = torch.arange(n)
P = ss.Pattern(torch.cat([i, i[1:], i[:-1]]), torch.cat([i, i[:-1], i[1:]]), (n, n))
values = torch.cat([torch.full((n,), 2.5), -torch.ones(2 * n - 2)]).double()
keep = {}

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but was kept for later use
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

for k in range(100):
    make = lambda: keep.update(F=P.factorize(values, assume="general", engine="superlu"))
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if k == 30:
        before = resident()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads /proc, and trims the heap")
def test_factors_of_many_threads_leave_no_memory_behind(run_python) -> None:  # type: ignore[no-untyped-def] # a fixture
    """SciPy lost more than two megabytes a factor: 160 of 70 factors."""
    assert float(run_python(LEAK, MALLOC_ARENA_MAX="1")) < 60


def test_one_thread_makes_decompositions_as_long_as_one_is_enough() -> None:
    A = (torch.eye(5) + torch.diag(torch.ones(4), 1)).double().to_sparse()
    for _ in range(5):
        ss.solve(A, torch.ones(5).double(), assume="general", engine="superlu")
    names = [thread.name for thread in threading.enumerate()]
    assert 1 <= names.count("SuperLU") <= 3


def test_factors_may_be_released_inside_of_a_garbage_collection() -> None:
    A = (torch.eye(5) + torch.diag(torch.ones(4), 1)).double().to_sparse()

    class Cycle:
        pass

    for _ in range(20):
        cycle = Cycle()
        cycle.own = cycle, ss.factorize(A, assume="general", engine="superlu")  # type: ignore[attr-defined]
        del cycle
        gc.collect()
    x = ss.solve(A, torch.ones(5).double(), assume="general", engine="superlu")
    assert x.isfinite().all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_factors_and_releases(run_python) -> None:  # type: ignore[no-untyped-def] # a fixture
    script = """
import os, torch, sparse_solver as ss
A = (torch.eye(5) + torch.diag(torch.ones(4), 1)).double().to_sparse()
F = ss.factorize(A, assume="general", engine="superlu")
pid = os.fork()
if pid == 0:
    F.solve(torch.ones(5).double())
    del F
    ss.solve(A, torch.ones(5).double(), assume="general", engine="superlu")
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_python(script).strip() == "7"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_python_prepares_a_forked_child_completely(run_python) -> None:  # type: ignore[no-untyped-def] # a fixture
    """An error that SciPy's table leaves behind would stop what follows it in the child."""
    script = """
import os, threading, torch, sparse_solver as ss
A = (torch.eye(5) + torch.diag(torch.ones(4), 1)).double().to_sparse()
F = ss.factorize(A, assume="general", engine="superlu")
assert threading.active_count() == 2  # SuperLU has a thread of its own
pid = os.fork()
if pid == 0:
    os._exit(10 + threading.active_count())
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run_python(script).strip() == "11"
