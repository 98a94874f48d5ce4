"""The handles of cuDSS on a simulated GPU: streams, memory, threads, and the release of objects."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import simulated_gpu
import torch
from cudss_cases import GENERAL, SPD, check_solution, pattern, vector
from simulated_cudss import Csr, Cudss, DataObject, Handle

import sparse_solver as ss
from sparse_solver._engines.cudss import handle as _handle
from sparse_solver._engines.cudss import library as native
from sparse_solver._engines.registry import engine_named


def test_each_stream_has_a_handle(cudss: Cudss) -> None:
    P = pattern(SPD)
    kept = []
    for number in (0, 7, 0, 9):
        with simulated_gpu.module.stream(simulated_gpu.Stream(number=number)):
            kept += [P.factorize(SPD.values), P.factorize(SPD.values)]
            check_solution(SPD, kept[-1].solve(vector(SPD.n)))
    handles = [one for one in cudss.objects.values() if isinstance(one, Handle)]
    assert sorted(one.stream or 0 for one in handles) == [0, 7, 9]
    kept.clear()
    ss.clear_cache()
    assert cudss.live(Handle) == 0


def test_a_handle_that_cannot_be_set_up_is_destroyed(cudss: Cudss) -> None:
    cudss.fail["SetDeviceMemHandler"] = 6
    with pytest.raises(ss.EngineError):
        pattern(SPD).factorize(SPD.values)
    assert cudss.live(Handle) == 0


def test_the_threading_layer_may_fail(cudss: Cudss) -> None:
    library: Any = engine_named("cudss").analyze.__globals__["cudss_library"]()
    library.threading_layer = "/somewhere/libcudss_mtlayer_gomp.so.1"
    cudss.fail["SetThreadingLayer"] = 6
    check_solution(SPD, pattern(SPD).solve(SPD.values, vector(SPD.n)))
    assert not cudss.fail


def test_every_object_is_released(cudss: Cudss) -> None:
    before = len(simulated_gpu.module.allocated)
    P = pattern(SPD)
    F = [P.factorize(SPD.values * k) for k in (1, 2, 3)]
    G = pattern(GENERAL).factorize(GENERAL.values)
    assert len(simulated_gpu.module.allocated) > before
    del F, G
    gc.collect()
    assert cudss.live(DataObject) >= 2  # one per pattern waits for the next factorisation
    ss.clear_cache()
    del P
    gc.collect()
    ss.clear_cache()
    assert (cudss.live(DataObject), cudss.live(Csr)) == (0, 0)
    assert len(simulated_gpu.module.allocated) == before


def test_a_factor_released_inside_a_call_does_not_enter_the_library(
    cudss: Cudss, monkeypatch: pytest.MonkeyPatch
) -> None:
    P = pattern(SPD)
    doomed = [P.factorize(SPD.values), P.factorize(SPD.values)]
    allocate = simulated_gpu.module.caching_allocator_alloc

    def collecting(*arguments: Any) -> int:
        doomed.clear()
        return allocate(*arguments)

    monkeypatch.setattr(simulated_gpu.module, "caching_allocator_alloc", collecting)
    F = pattern(GENERAL).factorize(GENERAL.values)
    check_solution(GENERAL, F.solve(vector(GENERAL.n)))


def test_an_object_that_cannot_be_destroyed_does_not_disturb_later_calls(cudss: Cudss) -> None:
    def destroy() -> None:
        raise RuntimeError("the device is gone")

    _handle._dead.append(destroy)
    check_solution(SPD, pattern(SPD).solve(SPD.values, vector(SPD.n)))
    assert not _handle._dead


def test_an_error_says_that_memory_ran_out(cudss: Cudss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_gpu.Module, "out_of_memory", True)
    with pytest.raises(ss.EngineError, match=r"ALLOC_FAILED.*tried to allocate"):
        pattern(SPD).factorize(SPD.values)
    monkeypatch.setattr(simulated_gpu.Module, "out_of_memory", False)
    check_solution(SPD, pattern(SPD).solve(SPD.values, vector(SPD.n)))


@pytest.mark.parametrize("non_blocking", [False, True])
@pytest.mark.parametrize("status", [native.NOT_SUPPORTED, 5])
def test_memory_may_run_out_whatever_the_status_is(
    cudss: Cudss, monkeypatch: pytest.MonkeyPatch, status: int, non_blocking: bool
) -> None:
    cudss.out_of_memory = status
    P = pattern(SPD)
    kept = P.factorize(SPD.values, assume="spd")
    allocate, refused = simulated_gpu.module.caching_allocator_alloc, iter(range(1))

    def refuse(*arguments: Any) -> int:
        for _ in refused:
            raise torch.OutOfMemoryError("no memory")
        return allocate(*arguments)

    monkeypatch.setattr(simulated_gpu.module, "caching_allocator_alloc", refuse)
    x = P.solve(2 * SPD.values, vector(SPD.n), assume="spd", non_blocking=non_blocking)
    check_solution(SPD, x, 2)  # after idle memory was released
    check_solution(SPD, kept.solve(vector(SPD.n)))
    ss.synchronize()


FUNCTIONS = ["Create", "SetDeviceMemHandler", "ConfigCreate", "ConfigSet", "DataCreate", "Execute"]
FUNCTIONS += ["MatrixCreateCsr", "MatrixCreateDn", "SetStream", "DataGet", "MatrixSetValues"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_status_is_checked(cudss: Cudss, function: str) -> None:
    cudss.fail[function] = 6
    with pytest.raises(ss.EngineError, match=rf"cudss{function}\b.*INTERNAL_ERROR"):
        pattern(SPD).factorize(SPD.values, assume="spd")
    check_solution(SPD, pattern(SPD).solve(SPD.values, vector(SPD.n)))  # no harm is done


def test_threads_take_turns(cudss: Cudss) -> None:
    P, wrong = pattern(SPD), []

    def work(k: int) -> None:
        for _ in range(5):
            x = P.solve(SPD.values * k, vector(SPD.n), assume="spd")
            if not torch.allclose(k * (SPD.dense.cpu() @ x.cpu()), vector(SPD.n).cpu()):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
