"""The assembly of a sparse Hessian from those of small terms: index maps, computed once.

Variables X (vertices,) or (vertices, dim) are numbered in the order of X.reshape(-1). A term that
reads `locals` vertices depends on d = locals · dim of these numbers; its Hessian (d, d) is added to
the matrix at all pairs of them.
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
class HessianAssembly:
    """The pattern of the Hessian of a sum over some groups of terms, and the index maps to it.

    Hessians are added up in one triangle of the matrix, which is then expanded.

    places : for each group (terms · d²,), to which entries of the triangle the Hessians are added
    weights : factors of the entries of the triangle: 1 on the diagonal and ½ off it, where the
        entries ab and ba of a Hessian are added to the same entry
    expand : (nnz,) which entry of the triangle each entry of the pattern is
    pattern : the matrix, both triangles, sorted, without duplicates, with the whole diagonal
    """

    places: tuple[Tensor, ...]
    weights: Tensor
    expand: Tensor
    pattern: Pattern

    def add(self, group: int, start: int, hessians: Tensor, triangle: Tensor) -> Tensor:
        """`triangle` plus the Hessians (t, d, d) of the terms of a group from `start` on."""
        each = hessians.shape[-1] ** 2
        places = self.places[group][start * each : (start + hessians.shape[0]) * each]
        return triangle.index_add(0, places, hessians.reshape(-1))

    def expand_triangle(self, triangle: Tensor) -> Tensor:
        """(nnz,) the values of the pattern."""
        return (triangle * self.weights).index_select(0, self.expand)


_assemblies: TensorCache[HessianAssembly] = TensorCache()


def find_assembly(indices: tuple[Tensor, ...], shape: torch.Size) -> HessianAssembly:
    """The assembly for X of this shape and terms that read its rows `indices`, group by group.

    Each group is (terms, locals) int64, and within the range of X.
    """
    return _assemblies.find(shape, indices, lambda *known: _build_assembly(known, shape))


def _build_assembly(indices: tuple[Tensor, ...], shape: torch.Size) -> HessianAssembly:
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
    # float32 represents both factors exactly, and products take the dtype of the Hessians.
    weights = torch.ones(len(rows), dtype=torch.float32, device=device)
    weights[off] = 0.5
    # The places are the largest of all arrays, hence int32 where that suffices.
    small = torch.int32 if len(rows) < 2**31 else torch.int64
    places = at.to(small).split([*map(len, keys), n])[:-1]
    structure = structure_of(both_rows[order], both_cols[order], (n, n))
    return HessianAssembly(places, weights, expand, Pattern._of(structure))
