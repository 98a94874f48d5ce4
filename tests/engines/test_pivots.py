"""The pivots that engines tell, and the determinants of diagonal blocks that they give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_solver._engines.equilibrated_lu import EquilibratedSymbolic
from sparse_solver._engines.pivots import Pivots, find_determinants, read_pivots
from sparse_solver._engines.protocol import TellsPivots
from sparse_solver._engines.registry import direct_engines_on, engine_named
from sparse_solver._sparse.block_diagonal import repeat
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import Structure

ENGINES = direct_engines_on(torch.device("cpu"))
# Those that perturb pivots, or do not say which rows they exchange.
SILENT = {"pardiso", "rslab", "supernodal"}


def dense_structure(n: int) -> Structure:
    rows, cols = torch.cartesian_prod(torch.arange(n), torch.arange(n)).unbind(1)
    return Structure(rows, cols, (n, n))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("kind", ["general", "spd"])
@pytest.mark.parametrize("engine", ENGINES)
def test_each_diagonal_block_has_its_determinant(
    engine: str, kind: str, dtype: torch.dtype
) -> None:
    if not engine_named(engine).supports(kind, dtype):
        pytest.skip("the engine does not take this kind")
    n, count = 5, 7
    D = torch.randn(count, n, n, dtype=dtype)
    if kind == "spd":
        D = D @ D.mH + torch.eye(n)
    structure = repeat(dense_structure(n), count)
    symbolic = engine_named(engine).analyze(structure, kind, dtype, None)
    factor = symbolic.factor(Matrix(structure, D.reshape(-1)))
    assert isinstance(factor, TellsPivots) == (engine not in SILENT)
    if engine in SILENT:
        return
    phases, logarithms = find_determinants(factor.pivots(), count)
    sign, logabsdet = torch.linalg.slogdet(D)
    assert kind == "spd" or len(set(np.round(phases, 6))) > 1
    np.testing.assert_allclose(phases, sign, atol=1e-12)
    np.testing.assert_allclose(logarithms, logabsdet, atol=1e-12)
    whole = find_determinants(factor.pivots(), 1)
    np.testing.assert_allclose(whole[0], sign.prod(), atol=1e-12)
    np.testing.assert_allclose(whole[1], logabsdet.sum(), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32])
def test_the_scaling_of_the_equilibrated_matrix_is_undone(dtype: torch.dtype) -> None:
    n = 8
    D = torch.randn(n, n, dtype=dtype)
    sign, logabsdet = torch.linalg.slogdet(D.to(torch.promote_types(dtype, torch.float64)))
    rows, cols = 2.0 ** (9 * torch.arange(n) - 40), 2.0 ** (30 - 7 * torch.arange(n))
    structure = dense_structure(n)
    symbolic = EquilibratedSymbolic(structure, "general", dtype, None)
    factor = symbolic.factor(Matrix(structure, (D * rows[:, None] * cols).reshape(-1)))
    phases, logarithms = find_determinants(factor.pivots(), 1)
    np.testing.assert_allclose(phases, sign.reshape(1), atol=1e-12)
    scale = (rows.double().log() + cols.double().log()).sum()
    np.testing.assert_allclose(logarithms, (logabsdet + scale).reshape(1), rtol=1e-12)


@pytest.mark.parametrize("size", [5e-324, 1e-310, 1e-200, 1.0, 1e200, 1.7e308])
def test_pivots_of_extreme_sizes(size: float) -> None:
    at = np.arange(2)
    real = read_pivots(np.array([size, -size]), at, at)
    assert real.phases.tolist() == [1.0, -1.0]
    np.testing.assert_allclose(real.logarithms, np.log(size), rtol=1e-14, atol=1e-14)
    numbers = np.array([size * (1 - 1j), 1j * size])
    found = read_pivots(numbers, at, at)
    np.testing.assert_allclose(found.phases, [(1 - 1j) / np.sqrt(2), 1j], rtol=1e-15)
    np.testing.assert_allclose(found.logarithms - np.log(size), [np.log(2) / 2, 0], atol=1e-12)


def test_phases_of_many_pivots_have_modulus_one() -> None:
    n = 100_000
    angles = np.linspace(0, 1, n)
    at = np.arange(n)
    pivots = Pivots(np.exp(1j * angles) * (1 + 1e-10), np.zeros(n), at, at)
    phases, _ = find_determinants(pivots, 1)
    np.testing.assert_allclose(np.abs(phases), 1, rtol=1e-15)
    np.testing.assert_allclose(phases, np.exp(1j * angles.sum()), atol=1e-8)
