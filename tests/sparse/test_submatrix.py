"""Principal submatrices, against dense ones."""

from __future__ import annotations

import torch
from problems import problem

from sparse_solver._sparse.structure import Structure
from sparse_solver._sparse.submatrix import remove_rows


def test_a_submatrix_and_the_rest_make_the_matrix() -> None:
    p = problem("general", torch.float64)
    order = torch.randperm(p.values.numel())
    structure = Structure(p.rows[order], p.cols[order], p.shape)
    values, removed = p.values[order], torch.tensor([2, 9])
    found = remove_rows(structure, removed)
    kept = torch.tensor([i for i in range(p.n) if i not in (2, 9)])
    assert torch.equal(found.rows, kept)
    reduced = torch.zeros(10, 10, dtype=torch.float64)
    reduced[found.structure.rows, found.structure.cols] = values[found.entries]
    assert torch.equal(reduced, p.dense[kept][:, kept])
    assert [found.structure.label(row) for row in range(10)] == kept.tolist()

    rest = torch.zeros(p.shape, dtype=torch.float64)
    rest[found.rest.rows, found.rest.cols] = values[found.rest_entries]
    inside = torch.zeros(p.shape, dtype=torch.bool)
    inside[kept.unsqueeze(1), kept] = True
    inside &= ~torch.eye(p.n, dtype=torch.bool)
    assert torch.equal(rest, p.dense.masked_fill(inside, 0))


def test_labels_are_those_of_the_first_matrix() -> None:
    i = torch.arange(5)
    once = remove_rows(Structure(i, i, (5, 5)), torch.tensor([0])).structure
    twice = remove_rows(once, torch.tensor([1])).structure
    assert [twice.label(row) for row in range(3)] == [1, 3, 4]


def test_equal_selections_give_one_submatrix() -> None:
    i = torch.arange(5)
    structure = Structure(i, i, (5, 5))
    first = remove_rows(structure, torch.tensor([1, 2]))
    assert remove_rows(structure, torch.tensor([1, 2])) is first
    assert remove_rows(structure, torch.tensor([1, 3])) is not first
    assert remove_rows(structure, torch.tensor([], dtype=torch.int64)).structure.nnz == 5
