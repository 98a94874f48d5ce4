"""The first questions to a GPU: is cuDSS there, are its numbers right, does it say what failed?"""

from __future__ import annotations

import gc
from typing import Any

import pytest
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
from problems import DTYPES, TOLERANCE, kinds_of

import sparse_solver as ss

CASES = [(kind, dtype) for dtype in DTYPES for kind in kinds_of(dtype)]
SIDE = 60 if HAS_GPU else 6  # of a grid; the simulation factors dense matrices
every = pytest.mark.parametrize(("kind", "dtype"), CASES, ids=str)


@needs_gpu
def test_cudss_is_loaded() -> None:
    found = ss.engines()["cudss"]
    assert found.missing is None, found.missing
    assert str(found).strip()


def test_a_solve_stays_on_the_gpu() -> None:
    p, b = on_gpu("spd"), vector(12)
    F = pattern(p).factorize(p.values, assume="spd")
    assert (F.info.engine, torch.device(F.info.device).type) == ("cudss", DEVICE.type)
    x = F.solve(b)
    assert x.device == DEVICE
    check_close(x, torch.linalg.solve(p.dense.cpu(), b.cpu()))


@every
@pytest.mark.parametrize("transpose", [False, True])
def test_solutions_and_gradients(kind: str, dtype: torch.dtype, transpose: bool) -> None:
    p = on_gpu(kind, dtype)
    values, b = p.values.requires_grad_(), vector(12, 3, dtype=dtype).requires_grad_()
    options: dict[str, Any] = {"assume": kind, "transpose": transpose}
    x = pattern(p).solve(values, b, **options)
    bars = torch.autograd.grad(x, (values, b), torch.ones_like(x))
    A = p.dense.cpu()
    A, right = (A.mT if transpose else A).requires_grad_(), b.detach().cpu().requires_grad_()
    expected = torch.linalg.solve(A, right)
    A_bar, b_bar = torch.autograd.grad(expected, (A, right), torch.ones_like(expected))
    at = (p.cols.cpu(), p.rows.cpu()) if transpose else (p.rows.cpu(), p.cols.cpu())
    digits = TOLERANCE[dtype]
    check_close(x, expected, digits)
    check_close(bars[0], A_bar[at], digits)
    check_close(bars[1], b_bar, digits)


@every
def test_a_batch(kind: str, dtype: torch.dtype) -> None:
    p, b = on_gpu(kind, dtype), vector(3, 12, 2, dtype=dtype)
    values = torch.stack((p.values, 2 * p.values, p.values / 4))
    dense = torch.stack((p.dense, 2 * p.dense, p.dense / 4)).cpu()
    x = pattern(p).solve(values, b, assume=kind)  # type: ignore[arg-type] # a str
    check_close(x, torch.linalg.solve(dense, b.cpu()), TOLERANCE[dtype])


def test_errors_say_what_is_wrong_with_the_matrix() -> None:
    spd, b = on_gpu("spd"), vector(12)
    P = pattern(spd)
    with pytest.raises(ss.NotPositiveDefiniteError):
        P.solve(-spd.values, b, assume="spd")
    with pytest.raises(ss.NonFiniteError, match=r"values\[0\] is nan"):
        P.solve(spd.values * torch.nan, b, assume="spd")
    Q, singular = laplacian(5, anchor=0.0)
    for kind in ("spd", "symmetric", "general"):
        with pytest.raises((ss.NotPositiveDefiniteError, ss.SingularMatrixError)):
            Q.solve(singular, vector(25), assume=kind)
    check_close(P.solve(spd.values, b, assume="spd"), torch.linalg.solve(spd.dense.cpu(), b.cpu()))


@pytest.mark.parametrize("kind", ["spd", "symmetric", "general"])
@pytest.mark.parametrize("engine", ["cudss", "cudss_hybrid"])
def test_a_larger_grid(kind: str, engine: str) -> None:
    P, values = laplacian(SIDE)
    b = vector(SIDE**2, 2)
    x = P.solve(values, b, assume=kind, engine=engine)  # type: ignore[arg-type] # a str
    A = torch.sparse_coo_tensor(torch.stack((P.rows, P.cols)), values.cpu(), P.shape)
    check_close(torch.sparse.mm(A, x.cpu()), b)


@pytest.mark.parametrize("kind", ["spd", "general"])
def test_deterministic_algorithms_repeat_every_bit(kind: str) -> None:
    P, values = laplacian(SIDE)
    b, results = vector(SIDE**2, 2), []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            leaf = values.clone().requires_grad_()
            x = P.solve(leaf, b, assume=kind)  # type: ignore[arg-type] # a str
            results.append((x.detach(), *torch.autograd.grad(x.sum(), leaf)))
    finally:
        torch.use_deterministic_algorithms(False)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first.cpu(), second.cpu())


def test_memory_is_given_back() -> None:
    P, values = laplacian(SIDE)
    b = vector(SIDE**2)
    P.solve(values, b, assume="spd")
    ss.clear_cache()
    gc.collect()
    before = gpu.memory_allocated(DEVICE)
    F = P.factorize(values, assume="spd")
    F.solve(b)
    assert gpu.memory_allocated(DEVICE) > before
    del F
    ss.clear_cache()
    gc.collect()
    # torch keeps a few small tensors of the pattern, its index maps.
    structure = sum(index.numel() * 8 for index in (P.rows, P.cols)) * 8 if HAS_GPU else 0
    assert gpu.memory_allocated(DEVICE) <= before + structure


@pytest.mark.parametrize("kind", ["spd", "general"])
def test_new_values_need_no_new_memory(kind: str) -> None:
    P, values = laplacian(SIDE)
    b, sizes = vector(SIDE**2).requires_grad_(), []
    for scale in range(1, 9):
        x = P.solve(values * scale, b, assume=kind)  # type: ignore[arg-type] # a str
        torch.autograd.grad(x.sum(), b)
        del x
        gc.collect()
        sizes.append(gpu.memory_allocated(DEVICE))
    assert max(sizes[2:]) == sizes[2]
