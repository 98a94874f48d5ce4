"""Threads, forks, memory, and the end of the process."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from problems import laplacian, laplacian_values
from torch import Tensor

import sparse_solver as ss
from sparse_solver._engines.mkl import handle
from sparse_solver._sparse.structure import Structure
from sparse_solver._testing import installed_engines

ENGINES = installed_engines("spd")
# What a dense factorisation takes for 3,600 rows would say nothing more about memory or threads.
DENSE = ("lapack",)


def side_of(engine: str, side: int) -> int:
    """The side of the grid whose Laplacian an engine factors."""
    return min(side, 16) if engine in DENSE else side


def test_solves_from_four_threads_at_once() -> None:
    P, edges, n = laplacian(40)
    ones = torch.ones(n, dtype=torch.float64)

    def work(seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for _ in range(8):
            weights = torch.rand(edges.shape[1], dtype=torch.float64, generator=g) + 0.1
            weights.requires_grad_()
            # (c I + L) 1 = c 1, whatever the weights, so that their gradient is zero
            anchor = 1.0 + seed
            x = P.solve(
                laplacian_values(weights, n, anchor), ones, engine=ENGINES[seed % len(ENGINES)]
            )
            torch.testing.assert_close(x, ones / anchor)
            x.sum().backward()
            torch.testing.assert_close(weights.grad, torch.zeros_like(weights), atol=1e-9, rtol=0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))


class Solving(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, P: ss.Pattern, edges: Tensor, n: int):
        self.P, self.edges, self.n = P, edges, n
        ones = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n)
        self.inherited = [P.factorize(ones, engine=engine) for engine in ENGINES]

    def __len__(self) -> int:
        return 2 * len(ENGINES)

    def __getitem__(self, i: int) -> Tensor:
        values = laplacian_values(
            torch.rand(self.edges.shape[1], dtype=torch.float64) + 0.1, self.n
        ).requires_grad_()
        x = self.P.solve(
            values, torch.ones(self.n, dtype=torch.float64), engine=ENGINES[i % len(ENGINES)]
        )
        x.sum().backward()
        y = self.inherited[i % len(ENGINES)].solve(torch.ones(self.n, 2, dtype=torch.float64))
        torch.testing.assert_close(y, torch.ones_like(y))
        return x.detach()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_solve_inside_of_a_forked_dataloader_worker(run_python: Callable[..., str]) -> None:
    """In a process without a GPU: after a backward pass on one, a child cannot run another."""
    script = "import test_processes as test; test.solve_in_workers(); print('done')"
    assert run_python(script, CUDA_VISIBLE_DEVICES="").strip() == "done"


def solve_in_workers() -> None:
    P, edges, n = laplacian(40)
    dataset = Solving(P, edges, n)
    for i in range(len(ENGINES)):
        dataset[i]  # the parent has analysed, factored and solved, with all its threads
    loader = torch.utils.data.DataLoader(
        dataset, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for x in loader:
        torch.testing.assert_close(x, torch.ones(1, n, dtype=torch.float64))
    torch.testing.assert_close(
        dataset[0], torch.ones(n, dtype=torch.float64)
    )  # and the parent still can


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_while_another_thread_works_on_a_structure() -> None:
    """A lock that some thread holds at the fork stays locked in the child, unless it is renewed."""
    held, release = threading.Event(), threading.Event()
    structure = ss.Pattern(torch.arange(3), torch.arange(3), (3, 3))._structure

    def take_long(structure: Structure) -> bool:
        held.set()
        return release.wait(30)

    def work() -> None:
        structure.remember(take_long)

    thread = threading.Thread(target=work)
    thread.start()
    assert held.wait(10)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        x = ss.solve(torch.eye(3).to_sparse(), torch.ones(3))
        structure.transpose_map  # noqa: B018
        os._exit(0 if torch.equal(x, torch.ones(3)) else 1)
    release.set()
    thread.join()
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        pytest.fail("the child hangs")
    assert status == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_thousand_solves_do_not_grow_memory(engine: str) -> None:
    P, edges, n = laplacian(side_of(engine, 30))
    b = torch.ones(n, dtype=torch.float64)

    def step(k: int) -> None:
        values = laplacian_values(
            torch.rand(edges.shape[1], dtype=torch.float64) + 0.1, n
        ).requires_grad_()
        x = P.solve(values, b, engine=engine)
        if k % 2:
            x.sum().backward()

    for k in range(100):
        step(k)
    before = resident_bytes()
    for k in range(1000):
        step(k)
    factor = P.factorize(
        laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n), engine=engine
    )
    info = factor.info
    size = info.memory_bytes if info.factor_nnz is None else 8 * info.factor_nnz
    assert size is not None
    assert resident_bytes() - before < 50 * size  # fifty factors of the thousand


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_hundred_live_factors_and_their_release(
    engine: str, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handle, "_IDLE_BYTES", 0)
    P, edges, n = laplacian(side_of(engine, 60))
    b = torch.ones(n, dtype=torch.float64)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n).requires_grad_()
    P.solve(values, b, engine=engine)
    counts.clear()
    before = resident_bytes()
    solutions = [P.solve(values * k, b * k, engine=engine) for k in range(1, 101)]
    grown = resident_bytes() - before
    torch.stack(solutions).sum().backward()
    for x in solutions:
        torch.testing.assert_close(x, b)
    assert counts["analyze"] == 0
    del solutions, x
    gc.collect()
    assert resident_bytes() - before < grown / 2


def resident_bytes() -> int:
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later is not in use
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("width", [8, 60])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_number_of_threads_may_change_between_solves(engine: str, width: int) -> None:
    """PARDISO gives wrong numbers, without an error, with other threads than in the analysis."""
    P, edges, n = laplacian(side_of(engine, width))
    b = torch.ones(3, n, dtype=torch.float64).mT
    values = laplacian_values(torch.rand(edges.shape[1], dtype=torch.float64) + 0.1, n)
    before = torch.get_num_threads()
    try:
        for kind in ("spd", "symmetric", "general"):
            if engine not in installed_engines(kind):
                continue
            for threads in (2, 1, 2, 3, 1):
                torch.set_num_threads(threads)
                F = P.factorize(values, assume=kind, engine=engine)  # type: ignore[arg-type]
                torch.set_num_threads(3 - min(threads, 2))
                torch.testing.assert_close(F.solve(b), b)
    finally:
        torch.set_num_threads(before)


def test_at_exit_nothing_crashes(run_python: Callable[..., str]) -> None:
    script = textwrap.dedent(
        """
        import sys, torch, sparse_solver as ss
        n = 50
        A = (torch.eye(n, dtype=torch.float64) * 2).to_sparse().requires_grad_()
        kept = [ss.factorize(A, engine=e) for e in sys.argv[1:]]
        x = ss.solve(A, torch.ones(n, dtype=torch.float64))
        """
    )
    run_python(script, *ENGINES)
