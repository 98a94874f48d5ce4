"""The canonical form of a structure, its maps, and how it is found again."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import Tensor

from sparse_solver._sparse.structure import (
    Structure,
    find_empty_line,
    find_outside,
    find_places,
    find_row_major_order,
    structure_at,
    structure_of,
    structure_of_compressed,
)


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


def test_positions_beyond_63_bits() -> None:
    n = 2**40
    rows, cols = torch.tensor([5, n - 1, 5, n - 1]), torch.tensor([n - 1, 0, 3, 0])
    order = find_row_major_order(rows, cols)
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
    # Another key, though equal in content.
    assert structure_of(rows.int(), cols.int(), (9, 9), accepted) is not first
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


def test_the_maps_to_and_from_canonical_order_are_left_out_where_they_are_the_identity() -> None:
    ordered = Structure(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), (2, 2))
    assert ordered.position is None
    values = torch.randn(3)
    assert ordered.canonical(values) is values
    assert ordered.label(1) == 1
    assert ordered.on(torch.device("cpu")) is ordered


def test_empty_lines_and_entries_outside_of_a_triangle() -> None:
    structure = Structure(torch.tensor([0, 2]), torch.tensor([0, 0]), (3, 3))
    assert find_empty_line(structure, None) == ("row", 1)
    assert find_empty_line(structure, "lower") == ("row", 1)
    assert find_outside(structure, "lower") is None
    assert find_outside(structure, "upper") == (2, 0)
    chain = Structure(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), (3, 3))
    assert find_empty_line(chain, None) == ("column", 2)
    assert find_empty_line(chain, "lower") is None


def test_places_that_are_not_there_are_not_found() -> None:
    places = torch.tensor([[0, 1, 2], [0, 1, 2]])
    wanted = torch.tensor([[2, 0, 0], [2, 1, 0]])
    assert find_places(places, wanted).tolist() == [2, -1, 0]


def test_what_is_remembered_dies_with_its_structure() -> None:
    structure = Structure(torch.tensor([0]), torch.tensor([0]), (1, 1))
    alive = weakref.ref(structure.remember(_Built))
    assert structure.remember(_Built) is alive()
    gc.disable()
    try:
        del structure
        assert alive() is None
    finally:
        gc.enable()


class _Built:
    def __init__(self, structure: Structure) -> None:
        """What is remembered holds no reference to the structure."""


def test_what_is_remembered_is_built_once_by_many_threads() -> None:
    structure = Structure(torch.tensor([0]), torch.tensor([0]), (1, 1))
    built, barrier = [], threading.Barrier(8)

    def build(structure: Structure, number: int) -> int:
        built.append(number)
        return number

    def ask() -> None:
        barrier.wait()
        assert structure.remember(build, 5) == 5

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [5]
    assert structure.remember(build, 6) == 6  # other arguments


def test_places_whose_numbers_exceed_63_bits() -> None:
    big = 2**40
    places = torch.tensor([[5, big, 0], [big, 3, 0]])
    wanted = torch.tensor([[big, 0, 1, 5], [3, 0, 1, big]])
    assert find_places(places, wanted).tolist() == [1, 2, -1, 0]
    nothing = torch.empty(2, 0, dtype=torch.int64)
    assert find_places(nothing, wanted).tolist() == [-1] * 4
    assert find_places(places, nothing).tolist() == []
