"""PARDISO: small and negative pivots, scales, and large systems."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pardiso_cases import DOUBLE, engine_factor, grid_pattern, random_values
from problems import grid, laplacian_places, laplacian_values, rhs

import sparse_solver as ss

pytestmark = pytest.mark.skipif(
    not ss.engines()["pardiso"].installed, reason="PARDISO is not installed"
)


# The careful method, which serves small values, reserves the pivots of all its slots at once.
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_a_million_unknowns(scale: float) -> None:
    n = 1_000_000
    i = torch.arange(n)
    P = ss.Pattern(torch.cat((i, i[:-1])), torch.cat((i, i[1:])), (n, n))
    values = torch.cat((torch.full((n,), 2.0), torch.full((n - 1,), -1e-3))).double() * scale
    b = torch.full((n,), 2.0 - 2e-3).double() * scale
    x = P.solve(values, b, assume="spd", triangle="upper", engine="pardiso")
    torch.testing.assert_close(x[n // 4 : -n // 4], torch.ones_like(x[n // 4 : -n // 4]))


def test_factors_with_small_pivots_are_not_sound() -> None:
    """An anchor α leaves a last pivot of about α, which may be wrong from about √ε on."""
    P, n, edges = grid_pattern(30)
    for anchor, sound in ((1.0, True), (1e-4, True), (1e-13, False)):
        F = P.factorize(random_values(n, edges, anchor, 0.5), assume="spd", engine="pardiso")
        assert engine_factor(F).sound == sound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_badly_scaled_rows_are_factored_by_the_careful_method(dtype: torch.dtype) -> None:
    """The fast method refuses pivots below an absolute bound, whatever the scale of their rows."""
    P, n, edges = grid_pattern(20)
    plain = random_values(n, edges, least=0.5).to(dtype)
    A = P.tensor(plain).to_dense()
    factor = engine_factor(P.factorize(plain, assume="spd", engine="pardiso"))
    assert factor._symbolic.careful == dtype.is_complex
    scale = torch.ones(n, dtype=dtype)
    scale[[0, 57, n - 1]] = 1e-12
    F = P.factorize(plain * scale[P.rows] * scale[P.cols], assume="spd", engine="pardiso")
    assert engine_factor(F)._symbolic.careful
    b = torch.ones(n, dtype=dtype)
    expected = torch.linalg.solve(A, b)
    torch.testing.assert_close(F.solve(scale * b) * scale, expected)
    # Other values are still solved with.
    torch.testing.assert_close(P.solve(plain, b, assume="spd", engine="pardiso"), expected)


@pytest.mark.parametrize("dtype", [DOUBLE, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", ["chain", "grid"])
def test_negative_pivots_are_not_passed_over(shape: str, dtype: torch.dtype) -> None:
    """The fast method has been seen to return NaN or take imaginary roots without an error."""
    for seed in range(40):
        torch.manual_seed(seed)
        n = 20 * (seed + 1)
        if shape == "chain":
            i = torch.arange(n)
            edges = torch.stack((i[:-1], i[1:]))
        else:
            edges, n = grid(4 + seed)
        rows, cols = laplacian_places(edges, n)
        values = laplacian_values(0.5 + torch.rand(edges.shape[1], dtype=DOUBLE), n)
        bad = int(torch.randint(0, n, (1,)))
        at = (rows == bad) & (cols == bad)
        values[torch.nonzero(at)[0]] -= 0.9 * values[at].sum()
        P, b = ss.Pattern(rows, cols, (n, n)), torch.ones(n, dtype=dtype)
        with pytest.raises(ss.NotPositiveDefiniteError) as caught:
            P.solve(values.to(dtype), b, assume="spd", engine="pardiso")
        assert caught.value.row is not None


# With 2-by-2 pivots MKL writes past its arrays if one is perturbed, which a test can only observe
# from outside the process.
SCRIPT = """
import torch, sparse_solver as ss
for dtype in (torch.complex64, torch.complex128):
    for seed in range(40):
        g = torch.Generator().manual_seed(seed)
        n, m = 5 + 2 * seed, 2 + seed
        C = torch.randn(m, n, dtype=dtype, generator=g) * (torch.rand(m, n, generator=g) < 4 / n)
        C[-1] = C[0] + C[1]
        K = torch.cat((torch.cat((torch.eye(n), C.mH), 1), torch.cat((C, torch.zeros(m, m)), 1)))
        K, b = (K + 1e-30 * torch.eye(n + m)).to_sparse(), torch.ones(n + m, dtype=dtype)
        for factor in (1, 2):
            try:
                ss.solve(factor * K, b, assume="hermitian", engine="pardiso")
            except (ss.SingularMatrixError, ss.EngineError):
                pass
"""


def test_singular_hermitian_matrices_do_not_write_past_arrays() -> None:
    # glibc's checks of the heap, which abort at the first damage.
    checks = {"MALLOC_CHECK_": "3", "MKL_DISABLE_FAST_MM": "1"}
    library = next(iter(sorted(Path("/lib").glob("*-linux-gnu/libc_malloc_debug.so.0"))), None)
    if library is not None:
        checks["LD_PRELOAD"] = str(library)
    command, variables = [sys.executable, "-c", SCRIPT], os.environ | checks
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("power", [0.4, 0.5, 0.6, 0.9])
def test_large_entries_beside_pivots_of_zero(dtype: torch.dtype, power: float) -> None:
    """MKL's LDLᴴ of such Hermitian matrices ends the process where squares overflow."""
    n, scale = 300, torch.finfo(dtype).max ** power
    general = torch.randn(n, n, dtype=dtype) * (torch.rand(n, n) < 0.02)
    dense = (general + general.mH) / 4
    pairs = torch.arange(n), torch.arange(n).roll(n // 2)
    dense[pairs] += 4 * (dense[pairs] == 0)  # so that it is regular, though few are on the diagonal
    A, b = dense.to_sparse(), rhs(n, dtype=dtype)
    x = ss.solve(scale * A, scale * b, assume="hermitian", engine="pardiso")
    torch.testing.assert_close(x, torch.linalg.solve(dense, b), rtol=1e-3, atol=1e-3)
