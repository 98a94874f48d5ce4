"""Orders of elimination by every means that there is."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from gaussian.gaussian_cases import CASES, grid, pattern_of

from sparse_solver._engines import ordering
from sparse_solver._engines.ordering import order_rows
from sparse_solver._engines.protocol import OrdersRows
from sparse_solver._engines.registry import engine_named, engine_names
from sparse_solver._engines.supernodal import symbolic as symbolic_module
from sparse_solver._engines.supernodal.factor import analyze
from sparse_solver._sparse.block_diagonal import repeat
from sparse_solver._sparse.structure import Structure
from sparse_solver._sparse.triangle import arrangement_of

HAS_METIS = importlib.util.find_spec("pymetis") is not None
ENGINES = {
    name: engine_named(name)
    for name in engine_names()
    if isinstance(engine_named(name), OrdersRows) and engine_named(name).availability().installed
}
WAYS = {name: engine.order_rows for name, engine in ENGINES.items()}
WAYS["band"] = ordering._order_by_band
if HAS_METIS:
    WAYS["metis"] = ordering._order_by_metis


def structure_of(A) -> Structure:
    P, _ = pattern_of(A)
    return Structure(P.rows, P.cols, P.shape)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_every_row_is_eliminated_once(case: str, way: str) -> None:
    structure = structure_of(CASES[case]().tocsr())
    n = structure.shape[0]
    order = WAYS[way](arrangement_of(structure, "upper"), n)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(n))


@pytest.mark.parametrize("way", WAYS)
def test_the_order_is_not_its_inverse(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An inverse permutation would have far more fill."""
    A, flops = grid(30, 30), []
    for change in (lambda order: order, torch.argsort):
        order = change(WAYS[way](arrangement_of(structure_of(A), "upper"), 900))
        monkeypatch.setattr(symbolic_module, "order_rows", lambda *_, order=order: (order, way))
        flops.append(analyze(structure_of(A), None).flops)
    assert flops[0] < 0.7 * flops[1]


def test_equal_blocks_have_the_order_of_one() -> None:
    one = structure_of(grid(5, 5))
    order, how = order_rows(one, None)
    expected = torch.cat((order, 25 + order, 50 + order))
    found, how_again = order_rows(repeat(one, 3), None)
    assert torch.equal(found, expected)
    assert how_again == how


def test_the_best_way_is_taken() -> None:
    order, how = order_rows(structure_of(grid(5, 5)), None)
    assert sorted(order.tolist()) == list(range(25))
    dissecting = [engine.ordering for engine in ENGINES.values() if engine.dissects]
    expected = [*dissecting, *(["nested dissection by METIS"] if HAS_METIS else [])]
    expected += [engine.ordering for engine in ENGINES.values()]
    assert how == [*expected, "reverse Cuthill–McKee"][0]


def test_without_any_library_the_band_is_made_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordering, "_listings", [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    order, how = order_rows(structure_of(grid(5, 5)), None)
    assert how == "reverse Cuthill–McKee"
    assert sorted(order.tolist()) == list(range(25))


def test_trivial_orders() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    assert order_rows(Structure(empty, empty, (0, 0)), None)[0].shape == (0,)
    one = torch.zeros(1, dtype=torch.int64)
    assert order_rows(Structure(one, one, (1, 1)), None)[0].tolist() == [0]
