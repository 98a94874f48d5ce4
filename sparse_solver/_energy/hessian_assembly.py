"""Where the derivatives of a sum of small terms go: computed once for the indices of the terms.

Variables X (vertices,) or (vertices, dim) are numbered as X.reshape(-1) is. A term that reads `locals` vertices depends on
d = locals · dim of these numbers; its Hessian (d, d) adds to the matrix at all pairs of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._solve.pattern import Pattern
from .._sparse.structure import row_major, structure_of
from .._torch.tensor_cache import TensorCache


@dataclass(frozen=True)
class Stencil:
    """The pattern of the Hessian of a sum over some groups of terms, and the way to it.

    places : for each group (terms · d²,), where the entries of its terms' Hessians add to one triangle of the matrix
    halves : of the triangle's entries: ½ off the diagonal, where H_ab and H_ba of a term add to the same entry, and 1 on it
    expand : (nnz,) which of the triangle's entries each entry of the pattern is
    pattern : the matrix, both triangles, sorted, every place once; the diagonal is stored everywhere
    """

    places: tuple[Tensor, ...]
    halves: Tensor
    expand: Tensor
    pattern: Pattern

    def add(self, group: int, start: int, hessians: Tensor, total: Tensor) -> Tensor:
        """`total`, a triangle, plus the symmetric parts of the Hessians (t, d, d) of the terms of a group from `start` on."""
        each = hessians.shape[-1] ** 2
        places = self.places[group][start * each : (start + hessians.shape[0]) * each]
        return total.index_add(0, places, hessians.reshape(-1))

    def values(self, total: Tensor) -> Tensor:
        """The values of the pattern."""
        return (total * self.halves).index_select(0, self.expand)


# As many as there are structures to be remembered.
stencils: TensorCache[Stencil] = TensorCache(capacity=16)


def stencil_of(indices: tuple[Tensor, ...], shape: torch.Size) -> Stencil:
    """The stencil of terms that read the rows `indices` (terms, locals) int64, valid ones, of X (*shape,), group by group."""
    return stencils.find(("stencil", shape), indices, lambda *known: _build(known, shape))


def _build(indices: tuple[Tensor, ...], shape: torch.Size) -> Stencil:
    n, dim = math.prod(shape), math.prod(shape[1:])
    keys = []
    device = indices[0].device if indices else torch.device("cpu")
    for index in indices:
        number = (index.unsqueeze(-1) * dim + torch.arange(dim, device=device)).flatten(1)
        row, column = number.unsqueeze(-1), number.unsqueeze(-2)
        keys.append((torch.minimum(row, column) * n + torch.maximum(row, column)).reshape(-1))
    diagonal = torch.arange(n, device=device) * (n + 1)
    triangle, at = torch.unique(torch.cat((*keys, diagonal)), return_inverse=True)
    rows, cols = triangle // max(n, 1), triangle % max(n, 1)

    off = torch.nonzero(rows != cols).squeeze(-1)
    both_rows, both_cols = torch.cat((rows, cols[off])), torch.cat((cols, rows[off]))
    order = row_major(both_rows, both_cols)
    expand = torch.cat((torch.arange(len(rows), device=device), off))[order]
    # float32 holds both numbers exactly, and takes the dtype of what it is multiplied with.
    halves = torch.ones(len(rows), dtype=torch.float32, device=device)
    halves[off] = 0.5
    # int32 where it does: these are the largest of all arrays.
    small = torch.int32 if len(rows) < 2**31 else torch.int64
    places = at.to(small).split([*map(len, keys), n])[:-1]
    structure = structure_of(both_rows[order], both_cols[order], (n, n))
    return Stencil(places, halves, expand, Pattern._of(structure))
