"""The products by which residuals are formed, against dense torch."""

from __future__ import annotations

import pytest
import torch
from problems import DTYPES, problem

from sparse_solver._sparse.matvec import Products, ScipyIndices, product_indices
from sparse_solver._sparse.structure import Structure
from sparse_solver._sparse.triangle import Coverage, arrangement_of
from sparse_solver._sparse.values import to_double


def products_of(kind: str, dtype: torch.dtype, coverage: Coverage) -> tuple[Products, torch.Tensor]:
    p = problem(kind, dtype)
    structure = Structure(p.rows, p.cols, p.shape)
    arrangement = arrangement_of(structure, coverage)
    values = arrangement.gather(structure.canonical(p.values), False)
    hermitian = kind == "hermitian" or (kind == "spd" and dtype.is_complex)
    indices = product_indices(structure, coverage, None)
    return Products(arrangement, values, lambda: indices, hermitian), p.dense


CASES = [("general", "full")]
CASES += [(kind, part) for kind in ("spd", "symmetric", "hermitian") for part in ("full", "upper")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "coverage"), CASES)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("transpose", [False, True])
def test_products_are_those_of_the_matrix(
    dtype: torch.dtype, kind: str, coverage: Coverage, k: int, transpose: bool
) -> None:
    products, dense = products_of(kind, dtype, coverage)
    A = dense.mT if transpose else dense
    x = torch.randn(k, A.shape[0], dtype=dtype)
    A, double = to_double(A), to_double(x)
    product = products.apply(x, transpose)
    assert product.dtype == double.dtype  # in which residuals of single precision have digits left
    torch.testing.assert_close(product, double @ A.mT)
    torch.testing.assert_close(products.apply_modulus(x, transpose), double.abs() @ A.abs().mT)


@pytest.mark.parametrize(("kind", "coverage"), CASES)
@pytest.mark.parametrize("of_columns", [False, True])
def test_the_largest_modulus_in_each_line(kind: str, coverage: Coverage, of_columns: bool) -> None:
    products, dense = products_of(kind, torch.complex128, coverage)
    moduli = dense.abs().mT if of_columns else dense.abs()
    torch.testing.assert_close(products.line_moduli(None, of_columns), moduli.amax(1))
    divisors = torch.rand(len(dense), dtype=torch.float64) + 0.1
    torch.testing.assert_close(
        products.line_moduli(divisors, of_columns), (moduli / divisors).amax(1)
    )


@pytest.mark.parametrize("coverage", ["full", "upper"])
def test_logarithms_recover_scales_of_rows_and_columns(coverage: Coverage) -> None:
    n = 30
    i, j = torch.triu_indices(n, n)
    rows, cols = (torch.cat((i, j[i < j])), torch.cat((j, i[i < j])))
    structure = Structure(rows, cols, (n, n))
    exponents = torch.linspace(-300, 300, n, dtype=torch.float64)
    values = torch.exp2(exponents[rows] + exponents[cols])
    if coverage == "full":  # another scale of the rows, and an entry that is zero
        values = torch.where((rows == 1) & (cols == 2), 0, values * torch.exp2(-3.0 * rows))
    arrangement = arrangement_of(structure, coverage)
    indices = product_indices(structure, coverage, None)
    of_engine = arrangement.gather(structure.canonical(values), False)
    row_logs, col_logs = Products(arrangement, of_engine, lambda: indices, False).find_logarithms()
    scaled = values.log2() + row_logs[rows] + col_logs[cols]
    assert float(scaled[values > 0].abs().max()) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("k", [0, 1, 3])
def test_rows_of_a_matrix_that_others_hold_the_rest_of(dtype: torch.dtype, k: int) -> None:
    A = torch.randn(2, 5, dtype=dtype) * (torch.rand(2, 5) < 0.6)
    rows, cols = torch.nonzero(torch.ones(2, 5)).unbind(1)
    structure = Structure(rows, cols, (2, 5))
    indices = ScipyIndices(arrangement_of(structure, "full"), (2, 5))
    for matrix, transpose in ((A, False), (A.mT, True)):
        x = torch.randn(k, matrix.shape[1], dtype=dtype)
        torch.testing.assert_close(indices.multiply(A.reshape(-1), x, transpose), x @ matrix.mT)
