"""The two formulas, by their definitions."""

from __future__ import annotations

import pytest
import torch
from problems import rhs

from sparse_solver._sparse.kernels import Places, apply, apply_adjoint

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
    x, lam = (
        rhs(*batch, k, N, dtype=torch.complex128, seed=1),
        rhs(*batch, k, N, dtype=torch.complex128, seed=2),
    )

    A = torch.zeros(*batch, N, N, dtype=torch.complex128)
    for e in range(NNZ):
        A[..., rows[e], cols[e]] += values[..., e]
        if mirror is not None and rows[e] != cols[e]:
            A[..., cols[e], rows[e]] += (
                values[..., e].conj() if mirror == "hermitian" else values[..., e]
            )
    A = A.mT if transposed else A
    places = Places(rows, cols, mirror)
    places = places.transposed() if transposed else places
    torch.testing.assert_close(apply(values, x, places), x @ A.mT)

    # <λ, A(v) x> = <apply_adjoint(λ, x), v> with <a, b> = Re Σ conj(a) b
    left = (lam.conj() * apply(values, x, places)).sum().real
    right = (apply_adjoint(lam, x, places).conj() * values).sum().real
    torch.testing.assert_close(left, right)
