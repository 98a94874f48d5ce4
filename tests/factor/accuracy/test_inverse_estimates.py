"""Estimates of norms of |A⁻¹| d, condition numbers, and null vectors, against dense torch."""

from __future__ import annotations

import pytest
import torch
from problems import COMPLEX, REAL, generator
from torch import Tensor

from sparse_solver._engines.analysis import analyze
from sparse_solver._engines.protocol import Factor
from sparse_solver._factor.accuracy.inverse_estimates import Inverse
from sparse_solver._factor.accuracy.systems import Systems
from sparse_solver._factor.ladder.ladder import products_of
from sparse_solver._factor.options import Options
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import Structure
from sparse_solver._testing import installed_engines

SMALL = 1e-2 / torch.finfo(torch.float64).eps


def factor_dense(
    dense: Tensor, blocks: int = 1, engine: str | None = None
) -> tuple[Systems, Factor]:
    """The systems of a matrix, and its factor by LU."""
    at = dense.nonzero().T
    structure = Structure(at[0], at[1], (len(dense), len(dense)))
    matrix, options = Matrix(structure, dense[at[0], at[1]]), Options("general")
    factor = analyze(matrix, "general", None, engine).symbolic.factor(matrix)
    products = products_of(factor, matrix, options, "general")
    return Systems(products, len(dense), blocks, dense.dtype, torch.device("cpu")), factor


def random_matrix(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    g = generator(seed)
    dense = torch.randn(n, n, dtype=dtype, generator=g) * (torch.rand(n, n, generator=g) < 4 / n)
    return dense + torch.diag(1 + torch.rand(n, generator=g)).to(dtype)


@pytest.mark.parametrize("dtype", REAL + COMPLEX, ids=str)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("engine", installed_engines("general"))
def test_norms_are_bounded_from_below_and_mostly_reached(
    dtype: torch.dtype, transpose: bool, engine: str
) -> None:
    reached = 0
    for seed in range(20):
        dense = random_matrix(30, dtype, seed)
        inverse = Inverse(*factor_dense(dense, engine=engine), SMALL)
        weights = torch.rand(2, 30, dtype=torch.float64, generator=generator(seed)) + 0.1
        units = torch.rand(1, 30, dtype=torch.float64, generator=generator(seed)) + 0.1
        A = dense.mT if transpose else dense
        exact = (weights @ torch.linalg.inv(A.to(torch.complex128)).abs().mT / units).amax(1)
        found = inverse.estimate(weights, transpose, units)
        assert bool((found <= 1.001 * exact).all())
        assert bool((found >= exact / 5).all())
        reached += int((found >= 0.999 * exact).sum())
    assert reached >= 20  # of 40


def test_each_block_has_a_norm_of_its_own() -> None:
    parts = [random_matrix(20, torch.float64, seed) * scale for seed, scale in ((1, 1.0), (2, 1e3))]
    inverse = Inverse(*factor_dense(torch.block_diag(*parts), blocks=2), SMALL)
    weights, units = torch.ones(1, 40, dtype=torch.float64), torch.ones(1, 40, dtype=torch.float64)
    exact = torch.stack([torch.linalg.inv(part).abs().sum(1).amax() for part in parts])
    found = inverse.estimate(weights, False, units)
    assert found.shape == (2,)
    assert bool(((found <= 1.001 * exact) & (found >= exact / 5)).all())


@pytest.mark.parametrize("transpose", [False, True])
def test_the_condition_number_does_not_depend_on_scales(transpose: bool) -> None:
    dense = random_matrix(40, torch.float64, 3)
    moduli = torch.linalg.inv(dense).abs() @ dense.abs()
    radius = float(torch.linalg.eigvals(moduli).abs().max())
    for spread in (0, 4, 30):
        g = generator(spread)
        rows, cols = (10 ** (spread * (torch.rand(40, generator=g).double() - 0.5)) for _ in "rc")
        inverse = Inverse(*factor_dense(rows.unsqueeze(1) * dense * cols), SMALL)
        condition = float(inverse.find_conditioning(transpose).condition)
        assert radius / 2 < condition < 1e6 * radius  # far below 1 / ε, whatever the scales


@pytest.mark.parametrize("dtype", REAL + COMPLEX, ids=str)
def test_null_vectors_are_found_with_a_factor_of_another_matrix(dtype: torch.dtype) -> None:
    dense = random_matrix(30, dtype, 5)
    dense[7] = dense[3] + dense[4]
    eps = torch.finfo(dtype).eps
    systems, _ = factor_dense(dense, engine="superlu")
    _, nearby = factor_dense(dense + 1e-3 * eps**0.5 * torch.eye(30, dtype=dtype))
    inverse = Inverse(systems, nearby, SMALL)
    assert inverse.find_null_vector(systems.probe().to(dtype), 4 * eps) <= 4 * eps
    systems, factor = factor_dense(random_matrix(30, dtype, 6))
    assert (
        Inverse(systems, factor, SMALL).find_null_vector(systems.probe().to(dtype), 4 * eps) > 1e-3
    )
