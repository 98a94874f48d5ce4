"""Principal submatrices: what is left of a matrix without some rows and the same columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .._torch.tensor_cache import TensorCache
from .structure import Structure


@dataclass(frozen=True)
class Submatrix:
    """Some rows of a matrix and the same columns, its principal submatrix.

    structure, entries, rows : the structure of the submatrix, and which entries and rows of the
        whole matrix it consists of
    removed : the rows of the whole matrix that are not in it
    rest, rest_entries : the entries of the whole matrix that are not in it, and the diagonal, in
        the numbering of the whole matrix
    """

    structure: Structure
    entries: Tensor
    rows: Tensor
    removed: Tensor
    rest: Structure
    rest_entries: Tensor


def remove_rows(structure: Structure, removed: Tensor) -> Submatrix:
    """Leave out the rows and columns `removed` (k,), which are valid, sorted and distinct."""
    return structure.remember(_new_cache).find((), (removed,), partial(_reduce, structure))


def _new_cache(structure: Structure) -> TensorCache[Submatrix]:
    """A cache for the submatrices of one structure that were used last."""
    return TensorCache()


def _reduce(structure: Structure, removed: Tensor) -> Submatrix:
    rows, cols = structure.rows, structure.cols
    kept = torch.ones(structure.shape[0], dtype=torch.bool, device=structure.device)
    kept[removed] = False
    number, at = kept.cumsum(0) - 1, torch.nonzero(kept).squeeze(-1)
    inside = kept[rows] & kept[cols]
    entries = torch.nonzero(inside).squeeze(-1)
    rest = torch.nonzero(~inside | (rows == cols)).squeeze(-1)
    labels = at if structure.labels is None else structure.labels[at]
    shape = (at.numel(), at.numel())
    reduced = Structure(number[rows[entries]], number[cols[entries]], shape, labels)
    others = Structure(rows[rest], cols[rest], structure.shape)
    return Submatrix(reduced, entries, at, removed, others, rest)
