"""The last resort: LU of the equilibrated matrix, in double precision."""

from __future__ import annotations

import pytest
import torch
from problems import DTYPES, generator, problem

from sparse_solver._engines.equilibrated_lu import EquilibratedSymbolic
from sparse_solver._engines.protocol import Kind
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import Structure
from sparse_solver._sparse.values import to_double


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["spd", "symmetric", "hermitian", "general"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("spread", [0, 30])
def test_every_kind_and_scale(dtype: torch.dtype, kind: Kind, transpose: bool, spread: int) -> None:
    p = problem(kind, dtype)
    scale = 10 ** (spread * (torch.rand(p.n, generator=generator(2)).double() - 0.5))
    values = to_double(p.values) * scale[p.rows] * scale[p.cols]
    if spread and dtype in (torch.float32, torch.complex64):
        values = values.to(dtype)
    structure = Structure(p.rows, p.cols, p.shape)
    dense = torch.zeros(p.shape, dtype=to_double(values).dtype)
    dense[p.rows, p.cols] = to_double(values)
    factor = EquilibratedSymbolic(structure, kind, values.dtype, None).factor(
        Matrix(structure, values)
    )
    A = dense.mT if transpose else dense
    x = torch.randn(2, p.n, dtype=dense.dtype) / scale
    found = factor.substitute((x @ A.mT).contiguous(), transpose)
    assert found.dtype == dense.dtype
    torch.testing.assert_close(found * scale, x * scale, rtol=1e-8, atol=1e-8)


def test_subnormal_entries() -> None:
    structure = Structure(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), (2, 2))
    values = torch.tensor([1e-310, 1e-312, 3e-311], dtype=torch.float64)
    symbolic = EquilibratedSymbolic(structure, "general", torch.float64, None)
    factor = symbolic.factor(Matrix(structure, values))
    b = torch.stack((values[0], values[1] + values[2])).unsqueeze(0)
    torch.testing.assert_close(
        factor.substitute(b, False), torch.ones(1, 2).double(), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("size", "b"), [(1e-307, 5.0), (1e300, 1e300), (1e-310, 1e-4)])
def test_solutions_near_the_largest_number(size: float, b: float, transpose: bool) -> None:
    g, n = generator(4), 9
    spread = 2.0 ** torch.linspace(-3, 3, n, dtype=torch.float64)
    dense = torch.randn(n, n, generator=g, dtype=torch.float64) + 6 * torch.eye(n)
    A = dense * spread * spread.flip(0).unsqueeze(1)
    at = dense.nonzero().T
    structure = Structure(at[0], at[1], (n, n))
    values = (A * size)[at[0], at[1]]
    factor = EquilibratedSymbolic(structure, "general", torch.float64, None).factor(
        Matrix(structure, values)
    )
    rhs = torch.full((2, n), b, dtype=torch.float64)
    found = factor.substitute(rhs, transpose)
    exact = torch.linalg.solve(A.mT if transpose else A, torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(found * (size / b), exact.expand(2, n), rtol=1e-5, atol=0)
