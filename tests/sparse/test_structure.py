from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from problems import problem
from torch import Tensor

from sparse_solver._sparse.structure import (
    Structure,
    _row_major_order,
    _structures,
    structure_at,
    structure_of,
    structure_of_compressed,
)
from sparse_solver._sparse.triangle import arrangement_of
from sparse_solver._torch.tensor_cache import TensorCache


def accepted(rows: Tensor, cols: Tensor) -> None:
    """Indices that are known to be good."""


def random_places(n: int, nnz: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, n, (nnz,), generator=g), torch.randint(0, n, (nnz,), generator=g)


@pytest.mark.parametrize("seed", range(20))
def test_canonical_form_and_its_maps(seed: int) -> None:
    n = 1 + seed % 7
    rows, cols = random_places(n, 3 * seed, seed)
    values = torch.randn(3 * seed, dtype=torch.complex128)
    structure = Structure(rows, cols, (n, n))
    dense = torch.zeros(n, n, dtype=torch.complex128).index_put(
        (rows, cols), values, accumulate=True
    )
    stored = torch.zeros(n, n).index_put((rows, cols), torch.ones(3 * seed)) > 0

    r, c = structure.canonical_rows, structure.col
    assert torch.equal(torch.stack((r, c)), stored.nonzero().T)
    canonical = structure.canonical(values)
    torch.testing.assert_close(canonical, dense[r, c])
    assert structure.crow.tolist() == [int((r < i).sum()) for i in range(n + 1)]
    assert structure.has_duplicates == (r.numel() < rows.numel())
    batch = torch.stack((values, 2 * values))
    torch.testing.assert_close(structure.canonical(batch), torch.stack((canonical, 2 * canonical)))

    for k, there in enumerate(structure.transpose_map.tolist()):
        if there < 0:
            assert not stored[c[k], r[k]]
        else:
            assert (int(r[there]), int(c[there])) == (int(c[k]), int(r[k]))
    torch.testing.assert_close(structure.diagonal_of(canonical), dense.diagonal())


@pytest.mark.parametrize("part", ["full", "upper"])
@pytest.mark.parametrize("stored", [None, "lower", "upper"])
@pytest.mark.parametrize("kind", ["symmetric", "hermitian"])
def test_layouts(part: str, stored: str | None, kind: str) -> None:
    p = problem(kind, torch.complex128)
    dense = p.dense.clone()
    dense[2, 2] = 0  # not stored, but an engine's triangle needs it
    rows, cols = dense.nonzero().T
    if stored is not None:
        kept = rows >= cols if stored == "lower" else rows <= cols
        rows, cols = rows[kept], cols[kept]
    order = torch.randperm(rows.numel())
    structure = Structure(rows[order], cols[order], p.shape)
    layout = arrangement_of(structure, part, stored)
    values = layout.gather(
        structure.canonical(dense[rows[order], cols[order]]), hermitian=kind == "hermitian"
    )
    found = torch.zeros_like(dense).index_put((layout.rows, layout.col), values, accumulate=True)
    expected = {"full": dense, "upper": dense.triu()}[part]
    assert torch.equal(found, expected)
    assert torch.equal(layout.rows, torch.repeat_interleave(layout.crow.diff()))
    inside_rows = layout.crow[1:-1]
    increasing = layout.col.diff() > 0
    increasing[inside_rows[(inside_rows > 0) & (inside_rows < layout.nnz)] - 1] = True
    assert increasing.all()
    if part != "full":
        assert ((layout.rows == layout.col).sum() == p.n).item()


def test_positions_beyond_63_bits() -> None:
    n = 2**40
    rows, cols = torch.tensor([5, n - 1, 5, n - 1]), torch.tensor([n - 1, 0, 3, 0])
    order = _row_major_order(rows, cols)
    assert order is not None
    assert order.tolist() == [2, 0, 1, 3]


def test_equal_indices_find_the_same_structure() -> None:
    rows, cols = random_places(9, 30, 0)
    first = structure_of(rows, cols, (9, 9), accepted)
    assert structure_of(rows.clone(), cols.clone(), (9, 9), accepted) is first
    changed = cols.clone()
    changed[17] = (changed[17] + 1) % 9
    assert structure_of(rows, changed, (9, 9), accepted) is not first
    assert structure_of(rows, cols, (10, 10), accepted) is not first
    assert (
        structure_of(rows.int(), cols.int(), (9, 9), accepted) is not first
    )  # another key, though equal in content
    assert structure_at(first.rows, first.cols, (9, 9)) is first
    assert structure_at(first.rows.clone(), first.cols.clone(), (9, 9)) is first
    assert structure_at(first.rows[1:], first.cols[1:], (9, 9)) is not first


def test_compressed_indices() -> None:
    rows, cols = torch.tensor([0, 0, 2]), torch.tensor([1, 0, 2])
    csr = structure_of_compressed("csr", torch.tensor([0, 2, 2, 3]), cols, (3, 3), accepted)
    assert torch.equal(csr.rows, rows)
    assert torch.equal(csr.cols, cols)
    csc = structure_of_compressed("csc", torch.tensor([0, 2, 2, 3]), cols, (3, 3), accepted)
    assert torch.equal(csc.cols, rows)
    assert torch.equal(csc.rows, cols)


def test_the_cache_is_bounded_and_can_be_cleared() -> None:
    small: TensorCache[Structure] = TensorCache(capacity=3)
    made = []

    def find(k: int) -> Structure:
        indices = (torch.tensor([k]), torch.tensor([0]))
        return small.find(
            "coo", indices, lambda *i: made.append(k) or Structure(*i, (10, 10)), accepted
        )  # type: ignore[func-returns-value]

    for k in (0, 1, 2, 0, 3):  # 0 is used again, so 1 goes
        find(k)
    assert len(small) == 3
    find(0), find(2), find(3)
    assert made == [0, 1, 2, 3]
    find(1)
    assert made == [0, 1, 2, 3, 1]
    alive = weakref.ref(find(1))
    small.clear()
    gc.collect()
    assert alive() is None
    assert cache.capacity > 1


def test_what_is_remembered_is_built_once_by_many_threads() -> None:
    structure = Structure(torch.tensor([0]), torch.tensor([0]), (1, 1))
    built, barrier = [], threading.Barrier(8)

    def ask() -> None:
        barrier.wait()
        structure.remember("key", lambda: built.append(1))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]
