"""The order in which the rows of a symmetric pattern are eliminated with little fill."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._sparse.structure import Structure
from .._sparse.triangle import Arrangement, arrangement_of
from .protocol import Engine, OrdersRows

_ListEngines = Callable[[], list[Engine]]
_listings: list[_ListEngines] = []


def register_engines(list_engines: _ListEngines) -> None:
    """Let `order_rows` ask these engines; some of them import this file."""
    _listings[:] = [list_engines]


def order_rows(structure: Structure, triangle: str | None) -> tuple[Tensor, str]:
    """(n,) the row at each step of the elimination, and how the order was found, in words.

    Nested dissection leaves the least fill: by an engine that has it, or by METIS, if `pymetis` is
    installed. Else the order is that of an engine for matrices with little fill, or at last
    reverse Cuthill–McKee. Equal blocks on the diagonal have the order of one of them, so that half
    solves with a matrix do not depend on the batch that it is in.
    """
    block, copies = structure.block
    if copies > 1:
        order, how = order_rows(block, triangle)
        return (len(order) * torch.arange(copies).unsqueeze(1) + order).reshape(-1), how
    arrangement, n = arrangement_of(structure, "upper", triangle), structure.shape[0]
    if n < 2:
        return torch.arange(n), "the only order"
    engines = [engine for list_engines in _listings for engine in list_engines()]
    able = [e for e in engines if isinstance(e, OrdersRows) and e.availability().installed]
    for engine in able:
        if engine.dissects:
            return engine.order_rows(arrangement, n), engine.ordering
    if importlib.util.find_spec("pymetis") is not None:
        return _order_by_metis(arrangement, n), "nested dissection by METIS"
    for engine in able:
        return engine.order_rows(arrangement, n), engine.ordering
    return _order_by_band(arrangement, n), "reverse Cuthill–McKee"


def _order_by_metis(arrangement: Arrangement, n: int) -> Tensor:
    import pymetis

    both = _both_triangles(arrangement, n)
    order, _ = pymetis.nested_dissection(pymetis.CSRAdjacency(both.indptr, both.indices))
    return torch.as_tensor(np.asarray(order), dtype=torch.int64)


def _order_by_band(arrangement: Arrangement, n: int) -> Tensor:
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    order = reverse_cuthill_mckee(_both_triangles(arrangement, n), symmetric_mode=True)
    return torch.as_tensor(order.astype(np.int64))


def _both_triangles(arrangement: Arrangement, n: int) -> Any:
    """The pattern of the whole matrix without the diagonal, in CSR."""
    from scipy.sparse import csr_matrix

    off = (arrangement.rows != arrangement.col).numpy()
    i, j = arrangement.rows.numpy()[off], arrangement.col.numpy()[off]
    ones = np.ones(2 * len(i), dtype=np.int8)
    places = np.concatenate((i, j)), np.concatenate((j, i))
    return csr_matrix((ones, places), shape=(n, n))
