"""The entries that an engine wants, in CSR: all of them, or the upper triangle.

A structure stores a matrix in full, or one triangle (`triangle` is "lower" or "upper") whose
off-diagonal entries stand for two. An engine wants the `coverage` "full" or "upper"; an upper
triangle holds every diagonal entry, on which PARDISO and QDLDL both insist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .structure import Structure, find_row_major_order, row_pointers

Coverage = Literal["full", "upper"]


@dataclass(frozen=True)
class Arrangement:
    """CSR indices for an engine, and where each value comes from.

    source : (nnz,) the canonical position of each value, -1 for a zero that is not stored; None
        for the identity
    mirrored : (nnz,) whether the value is that of the opposite entry; None if none is
    has_gaps : whether some values are zeros that are not stored
    """

    coverage: Coverage
    rows: Tensor
    crow: Tensor
    col: Tensor
    source: Tensor | None = None
    mirrored: Tensor | None = None
    has_gaps: bool = False

    @property
    def nnz(self) -> int:
        return self.col.numel()

    @property
    def at_diagonal(self) -> Tensor:
        """(n,) the positions of the diagonal entries in an upper triangle, first in each row."""
        return self.crow[:-1]

    def gather(self, canonical: Tensor, hermitian: bool) -> Tensor:
        """Put canonical values in this arrangement; always in a new tensor."""
        if self.source is None:
            return canonical.clone()
        if canonical.numel() == 0:
            return canonical.new_zeros(self.nnz)
        source = self.source.clamp(min=0) if self.has_gaps else self.source
        values = canonical.index_select(0, source)
        if self.has_gaps:
            values.masked_fill_(self.source < 0, 0)
        if hermitian and self.mirrored is not None and values.is_complex():
            values = torch.where(self.mirrored, values.conj().resolve_conj(), values)
        return values


def arrangement_of(
    structure: Structure, coverage: Coverage, triangle: str | None = None
) -> Arrangement:
    """The arrangement of a matrix of which all entries are stored, or only one `triangle`."""
    return structure.remember(_arrange, coverage, triangle)


def _arrange(structure: Structure, coverage: Coverage, triangle: str | None) -> Arrangement:
    rows, cols = structure.canonical_rows, structure.col
    if coverage == "full" and triangle is None:
        return Arrangement(coverage, rows, structure.crow, cols)
    source = torch.arange(structure.canonical_nnz, device=structure.device)
    mirrored = torch.zeros_like(source, dtype=torch.bool)
    if triangle is not None:
        off = torch.nonzero(rows != cols).squeeze(-1)
        rows, cols = torch.cat((rows, cols[off])), torch.cat((cols, rows[off]))
        source = torch.cat((source, off))
        mirrored = torch.cat((mirrored, torch.ones_like(off, dtype=torch.bool)))
    if coverage == "upper":
        kept = torch.nonzero(rows <= cols).squeeze(-1)
        missing = torch.nonzero(structure.diagonal < 0).squeeze(-1)
        rows, cols = torch.cat((rows[kept], missing)), torch.cat((cols[kept], missing))
        source = torch.cat((source[kept], torch.full_like(missing, -1)))
        mirrored = torch.cat((mirrored[kept], torch.zeros_like(missing, dtype=torch.bool)))
    order = find_row_major_order(rows, cols)
    if order is not None:
        rows, cols, source, mirrored = (line[order] for line in (rows, cols, source, mirrored))
    crow, has_gaps = row_pointers(rows, structure.shape[0]), bool((source < 0).any())
    opposite = mirrored if bool(mirrored.any()) else None
    return Arrangement(coverage, rows, crow, cols, source, opposite, has_gaps)
