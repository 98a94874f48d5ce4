"""Residual products, and the two ways to the gradient of the values, against dense torch."""

from __future__ import annotations

import warnings

import pytest
import torch
from problems import COMPLEX, DTYPES, TOLERANCE, problem
from torch import Tensor

import sparse_solver as ss
from sparse_solver._sparse import kernels as _rules
from sparse_solver._sparse.kernels import Places, apply_adjoint
from sparse_solver._sparse.matvec import Products
from sparse_solver._sparse.triangle import arrangement_of


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["spd", "symmetric", "hermitian", "general"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("transpose", [False, True])
def test_products_are_those_of_the_matrix(
    dtype: torch.dtype, kind: str, k: int, transpose: bool
) -> None:
    p = problem(kind, dtype)
    structure = ss.Pattern(p.rows, p.cols, p.shape)._structure
    x = torch.randn(k, p.n, dtype=dtype)
    A = p.dense.mT if transpose else p.dense
    hermitian = kind == "hermitian" or (kind == "spd" and dtype.is_complex)
    for part in ("full",) if kind == "general" else ("full", "upper"):
        layout = arrangement_of(structure, part)
        products = Products(
            structure, None, layout, layout.gather(structure.canonical(p.values), False), hermitian
        )
        tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        torch.testing.assert_close(products.apply(x, transpose), x @ A.mT, **tolerance)
        torch.testing.assert_close(
            products.magnitude(x, transpose), x.abs() @ A.abs().mT, **tolerance
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mirror", [None, "symmetric", "hermitian"])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("transpose", [False, True])
def test_the_kernel_and_the_formula_agree(
    dtype: torch.dtype, mirror: str | None, k: int, transpose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The formula is what derivatives of derivatives use; the kernel is taken where nothing is recorded."""
    monkeypatch.setattr(_rules, "_SMALL", 0)
    rows, cols = (
        torch.tensor([3, 0, 2, 3, 1, 3, 2]),
        torch.tensor([1, 0, 2, 3, 0, 1, 0]),
    )  # (3, 1) twice
    structure = ss.Pattern(rows, cols, (4, 4))._structure
    lam, x = torch.randn(k, 4, dtype=dtype), torch.randn(k, 4, dtype=dtype)
    formula = apply_adjoint(lam, x, Places(rows, cols, mirror).of(transpose), -1.0)
    calls = []
    kernel = type(structure).sampled_product
    monkeypatch.setattr(
        type(structure), "sampled_product", lambda *a: calls.append(1) or kernel(*a)
    )  # type: ignore[func-returns-value]
    with torch.no_grad():
        found = apply_adjoint(lam, x, Places(rows, cols, mirror, structure).of(transpose), -1.0)
    assert len(calls) == (1 if mirror is None else 2)
    torch.testing.assert_close(found, formula)


@pytest.mark.parametrize("dtype", [torch.float64, *COMPLEX], ids=str)
def test_the_kernel_works_block_by_block(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparse_solver._sparse.kernels._BLOCK", 8)  # two columns of four
    rows, cols = torch.arange(4).repeat(2), torch.tensor([0, 1, 2, 3, 1, 2, 3, 0])
    structure = ss.Pattern(rows, cols, (4, 4))._structure
    left, right = torch.randn(5, 4, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    torch.testing.assert_close(
        structure.sampled_product(left, right, 2.0), 2 * (left.mT @ right)[rows, cols]
    )


def test_nothing_is_said_about_tensors_that_the_user_does_not_see() -> None:
    """torch warns about its CSR tensors, once a process; in a new one, since here it has done so."""
    import subprocess
    import sys

    code = (
        "import torch, sparse_solver as ss\n"
        "P = ss.Pattern(torch.arange(3), torch.arange(3), (3, 3))\n"
        "P.solve(torch.ones(3, requires_grad=True), torch.ones(3, 2)).sum().backward()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_gradients_where_something_overflows_are_not_made_up() -> None:
    values = torch.tensor([1e-200, 1.0], dtype=torch.float64, requires_grad=True)
    P = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))
    with warnings.catch_warnings():
        x = P.solve(values, torch.tensor([1e-50, 1.0], dtype=torch.float64))
        gradient: Tensor = torch.autograd.grad(x.sum(), values)[0]
    assert gradient[0].isinf()
    assert gradient[1] == -1
