"""The product A(v) x and its adjoint, by their definitions, and torch's kernel for the adjoint."""

from __future__ import annotations

import pytest
import torch
from problems import COMPLEX, DTYPES, rhs

import sparse_solver as ss
from sparse_solver._sparse import kernels
from sparse_solver._sparse.kernels import Places, apply, apply_adjoint
from sparse_solver._sparse.structure import Structure

N, NNZ, K = 5, 9, 3


@pytest.mark.parametrize("mirror", [None, "symmetric", "hermitian"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("k", [1, K])
def test_apply_is_the_matrix_and_apply_adjoint_its_adjoint(
    mirror: str | None, transposed: bool, batch: tuple[int, ...], k: int
) -> None:
    g = torch.Generator().manual_seed(0)
    rows, cols = torch.randint(0, N, (2, NNZ), generator=g)
    values = rhs(*batch, NNZ, dtype=torch.complex128)
    x, lam = (rhs(*batch, k, N, dtype=torch.complex128, seed=seed) for seed in (1, 2))

    A = torch.zeros(*batch, N, N, dtype=torch.complex128)
    for e in range(NNZ):
        A[..., rows[e], cols[e]] += values[..., e]
        if mirror is not None and rows[e] != cols[e]:
            mirrored = values[..., e].conj() if mirror == "hermitian" else values[..., e]
            A[..., cols[e], rows[e]] += mirrored
    A = A.mT if transposed else A
    places = Places(rows, cols, mirror).of(transposed)
    torch.testing.assert_close(apply(values, x, places), x @ A.mT)

    # <λ, A(v) x> = <apply_adjoint(λ, x), v> with <a, b> = Re Σ conj(a) b
    left = (lam.conj() * apply(values, x, places)).sum().real
    right = (apply_adjoint(lam, x, places).conj() * values).sum().real
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mirror", [None, "symmetric", "hermitian"])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("transpose", [False, True])
def test_the_kernel_and_the_formula_agree(
    dtype: torch.dtype, mirror: str | None, k: int, transpose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Derivatives of derivatives use the formula; where nothing is recorded, the kernel is used."""
    monkeypatch.setattr(kernels, "_SMALL", 0)
    # Entry (3, 1) is stored twice.
    rows, cols = torch.tensor([3, 0, 2, 3, 1, 3, 2]), torch.tensor([1, 0, 2, 3, 0, 1, 0])
    structure = Structure(rows, cols, (4, 4))
    lam, x = torch.randn(2, k, 4, dtype=dtype)
    formula = apply_adjoint(lam, x, Places(rows, cols, mirror).of(transpose), -1.0)
    calls, kernel = [], torch.sparse.sampled_addmm

    def sampled_addmm(*arguments: object, **options: object) -> torch.Tensor:
        calls.append(arguments)
        return kernel(*arguments, **options)

    monkeypatch.setattr(torch.sparse, "sampled_addmm", sampled_addmm)
    with torch.no_grad():
        found = apply_adjoint(lam, x, Places(rows, cols, mirror, structure).of(transpose), -1.0)
    assert len(calls) == (1 if mirror is None else 2)
    torch.testing.assert_close(found, formula)


@pytest.mark.parametrize("dtype", [torch.float64, *COMPLEX], ids=str)
def test_the_kernel_works_block_by_block(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_BLOCK", 8)  # two columns of four
    rows, cols = torch.arange(4).repeat(2), torch.tensor([0, 1, 2, 3, 1, 2, 3, 0])
    places = Places(rows, cols, None, Structure(rows, cols, (4, 4)))
    left, right = torch.randn(2, 5, 4, dtype=dtype)
    with torch.no_grad():
        found = apply_adjoint(left, right, places, 2.0)
    torch.testing.assert_close(found, 2 * (left.mT @ right.conj())[rows, cols])


def test_gradients_where_something_overflows_are_not_made_up() -> None:
    values = torch.tensor([1e-200, 1.0], dtype=torch.float64, requires_grad=True)
    P = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))
    x = P.solve(values, torch.tensor([1e-50, 1.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(x.sum(), values)
    assert gradient[0].isinf()
    assert gradient[1] == -1
