"""The products by which residuals are formed, against dense torch."""

from __future__ import annotations

import pytest
import torch
from problems import DTYPES, TOLERANCE, problem

from sparse_solver._sparse.matvec import Products, product_indices
from sparse_solver._sparse.structure import Structure
from sparse_solver._sparse.triangle import Coverage, arrangement_of


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
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(products.apply(x, transpose), x @ A.mT, **tolerance)
    moduli = products.apply_modulus(x, transpose)
    torch.testing.assert_close(moduli, x.abs() @ A.abs().mT, **tolerance)


@pytest.mark.parametrize(("kind", "coverage"), CASES)
def test_the_largest_modulus_in_each_column(kind: str, coverage: Coverage) -> None:
    products, dense = products_of(kind, torch.complex128, coverage)
    torch.testing.assert_close(products.column_moduli(), dense.abs().amax(0))
