"""The entries as an engine wants them: all, or the upper triangle."""

from __future__ import annotations

import pytest
import torch
from problems import problem

from sparse_solver._sparse.structure import Structure
from sparse_solver._sparse.triangle import Coverage, arrangement_of


@pytest.mark.parametrize("coverage", ["full", "upper"])
@pytest.mark.parametrize("triangle", [None, "lower", "upper"])
@pytest.mark.parametrize("kind", ["symmetric", "hermitian"])
def test_arrangements(coverage: Coverage, triangle: str | None, kind: str) -> None:
    p = problem(kind, torch.complex128)
    dense = p.dense.clone()
    dense[2, 2] = 0  # not stored, but an engine's triangle needs it
    rows, cols = dense.nonzero().T
    if triangle is not None:
        kept = rows >= cols if triangle == "lower" else rows <= cols
        rows, cols = rows[kept], cols[kept]
    order = torch.randperm(rows.numel())
    rows, cols = rows[order], cols[order]
    structure = Structure(rows, cols, p.shape)
    found = arrangement_of(structure, coverage, triangle)
    assert arrangement_of(structure, coverage, triangle) is found
    values = found.gather(structure.canonical(dense[rows, cols]), hermitian=kind == "hermitian")
    filled = torch.zeros_like(dense).index_put((found.rows, found.col), values, accumulate=True)
    assert torch.equal(filled, {"full": dense, "upper": dense.triu()}[coverage])
    assert torch.equal(found.rows, torch.repeat_interleave(found.crow.diff()))
    inside_rows = found.crow[1:-1]
    increasing = found.col.diff() > 0
    increasing[inside_rows[(inside_rows > 0) & (inside_rows < found.nnz)] - 1] = True
    assert increasing.all()
    if coverage == "upper":
        assert torch.equal(found.col[found.at_diagonal], torch.arange(p.n))


def test_the_values_of_an_arrangement_are_never_an_alias() -> None:
    structure = Structure(torch.arange(3), torch.arange(3), (3, 3))
    canonical = torch.ones(3)
    arrangement_of(structure, "full").gather(canonical, False).zero_()
    assert torch.equal(canonical, torch.ones(3))


def test_an_empty_triangle_has_a_diagonal_of_zeros() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    found = arrangement_of(Structure(nothing, nothing, (2, 2)), "upper", "lower")
    assert torch.equal(found.gather(torch.zeros(0), False), torch.zeros(2))
