"""Solves on a GPU that the host does not wait for, on several streams and threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import simulated_gpu
import torch
from gpu_cases import (
    DEVICE,
    HAS_GPU,
    check_close,
    gpu,
    laplacian,
    needs_gpu,
    on_gpu,
    pattern,
    vector,
)

import sparse_solver as ss

KINDS = ["spd", "symmetric", "general"]
each_kind = pytest.mark.parametrize("kind", KINDS)


@contextlib.contextmanager
def waiting_forbidden() -> Iterator[None]:
    """Fail where torch waits for the device."""
    if HAS_GPU:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    before = simulated_gpu.synchronisations()
    yield
    assert simulated_gpu.synchronisations() == before


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
def test_torch_does_not_wait(kind: str, dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    p = on_gpu(kind, dtype)
    P, options = pattern(p), {"assume": kind, "non_blocking": True}
    b = vector(12, 2, dtype=dtype).requires_grad_()
    values = p.values.expand(*batch, -1).contiguous().requires_grad_()
    ones = torch.ones(*batch, 12, 2, dtype=dtype, device=DEVICE)
    torch.autograd.grad(P.solve(values, b, **options), (values, b), ones)  # the analysis
    twice, there = (2 * values).detach().requires_grad_(), b.detach().clone().requires_grad_()
    with waiting_forbidden():
        x = P.solve(twice, there, **options)
        values_bar, b_bar = torch.autograd.grad(x, (twice, there), ones)
        y = P.solve(twice.detach(), there.detach(), transpose=True, **options)
    ss.synchronize()
    blocking = {"assume": kind}
    expected = P.solve(twice, there, **blocking)
    bars = torch.autograd.grad(expected, (twice, there), ones)
    digits = 1e-4 if dtype == torch.float32 else 1e-9
    check_close(x, expected, digits)
    check_close(values_bar, bars[0], digits)
    check_close(b_bar, bars[1], digits)
    check_close(y, P.solve(twice, there, transpose=True, **blocking), digits)


@needs_gpu
@each_kind
def test_the_host_returns_while_the_device_is_busy(kind: str) -> None:
    P, values = laplacian(60)
    b, options = vector(3600), {"assume": kind, "non_blocking": True}
    expected = P.solve(values, b, **options)
    ss.synchronize()
    torch.cuda._sleep(4_000_000_000)  # cycles, more than a second
    asleep = torch.cuda.Event()
    asleep.record()
    x = P.solve(values, b, **options)
    returned_early = not asleep.query()
    ss.synchronize()
    check_close(x, expected)
    assert returned_early


def test_errors_are_raised_later_and_solutions_are_nan() -> None:
    p, b = on_gpu("spd"), vector(12)
    P, options = pattern(p), {"assume": "spd", "non_blocking": True}
    nan_b = torch.where(torch.arange(12, device="cpu").to(DEVICE) == 3, torch.nan, b)
    Q, singular = laplacian(5, anchor=0.0)
    cases: list[tuple[Any, ss.Pattern, torch.Tensor, torch.Tensor]] = [
        (ss.NotPositiveDefiniteError, P, -p.values, b),
        (ss.NonFiniteError, P, p.values * torch.nan, b),
        (ss.NonFiniteError, P, p.values, nan_b),
        ((ss.NotPositiveDefiniteError, ss.SingularMatrixError), Q, singular, vector(25)),
    ]
    for error, pattern_of_case, values, right in cases:
        x = pattern_of_case.solve(values, right, **options)
        with pytest.raises(error):
            ss.synchronize()
        assert x.isnan().all().item()
        ss.synchronize()  # each is raised once
    x = P.solve(p.values, b, **options)
    ss.synchronize()
    check_close(x, torch.linalg.solve(p.dense.cpu(), b.cpu()))


@each_kind
@pytest.mark.parametrize("non_blocking", [False, True])
def test_a_factor_of_one_stream_serves_another(kind: str, non_blocking: bool) -> None:
    P, values = laplacian(60 if HAS_GPU else 5)
    n = P.shape[0]
    first, second = (gpu.Stream(device=DEVICE) if HAS_GPU else gpu.Stream(None, i) for i in (1, 2))
    results = []
    for scale in (1.0, 2.0, 3.0):
        scaled, b = scale * values, vector(n)
        for stream in (first, second):
            stream.wait_stream(gpu.current_stream(DEVICE))
        with gpu.stream(first):
            F = P.factorize(scaled, assume=kind, non_blocking=non_blocking)  # type: ignore[arg-type] # a str
            here = F.solve(b)
        with gpu.stream(second):
            there = F.solve(b)
        results.append((scale, b, here, there))
    for stream in (first, second):
        stream.synchronize()
    ss.synchronize()
    A = torch.sparse_coo_tensor(torch.stack((P.rows, P.cols)), values.cpu(), P.shape)
    for scale, b, here, there in results:
        for x in (here, there):
            check_close(scale * (A @ x.cpu()), b)
    ss.clear_cache()


def test_threads_share_a_pattern() -> None:
    P, values = laplacian(40 if HAS_GPU else 4)
    b = vector(P.shape[0])
    wrong: list[str] = []

    def work(seed: int) -> None:
        with gpu.stream(gpu.Stream(device=DEVICE) if HAS_GPU else gpu.Stream(None, seed)):
            for i in range(10):
                scale = 1.0 + seed + i
                leaf = (scale * values).requires_grad_()
                x = P.solve(leaf, scale * b, assume="spd")
                torch.autograd.grad(x.sum(), leaf)
                off = (x.detach() - expected).abs().max().item()
                if not off < 1e-8:
                    wrong.append(f"thread {seed}, solve {i}: off by {off}")

    expected = P.solve(values, b, assume="spd")
    largest = expected.abs().max().item()
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert largest > 0
    assert not wrong, wrong
    ss.clear_cache()
