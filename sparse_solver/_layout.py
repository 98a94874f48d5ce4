"""The arrangement of a structure's entries that an engine wants: everything, or one triangle.

Matrices are stored in full, or as one triangle (`stored` = "lower" or "upper") whose off-diagonal entries
stand for two. Engines want the `part` "full" or "upper", in CSR; the triangle with every diagonal entry present,
since PARDISO and QDLDL both insist on that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._structure import Structure, row_major, row_pointers


@dataclass(frozen=True)
class Layout:
    """CSR indices, and where each value comes from.

    `part` : "full" or "upper"
    `source` : (nnz,) position among the canonical values, -1 for a zero that is not stored; None: the identity.
    `mirrored` : (nnz,) whether the value is that of the opposite entry; None: nowhere.
    `has_gaps` : whether some are zeros that are not stored.
    """

    part: str
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
        """(n,) where the diagonal entries are in a triangle: each row of the upper one begins with its own."""
        return self.crow[:-1]

    def gather(self, canonical: Tensor, hermitian: bool) -> Tensor:
        """The values in this arrangement, from (canonical_nnz,) ones. Always a new tensor, never an alias."""
        if self.source is None:
            return canonical.clone()
        if canonical.numel() == 0:
            return canonical.new_zeros(self.nnz)
        values = canonical.index_select(0, self.source.clamp(min=0) if self.has_gaps else self.source)
        if self.has_gaps:
            values.masked_fill_(self.source < 0, 0)
        if hermitian and self.mirrored is not None and values.is_complex():
            values = torch.where(self.mirrored, values.conj().resolve_conj(), values)
        return values


def layout_of(structure: Structure, part: str, stored: str | None = None) -> Layout:
    """The `part` of a matrix whose entries are all stored (`stored` None) or only those of one triangle."""
    return structure.remember(("layout", part, stored), lambda: _arrange(structure, part, stored))


def _arrange(structure: Structure, part: str, stored: str | None) -> Layout:
    rows, cols = structure.canonical_rows, structure.col
    if part == "full" and stored is None:
        return Layout(part, rows, structure.crow, cols)
    source = torch.arange(structure.canonical_nnz, device=structure.device)
    mirrored = torch.zeros_like(source, dtype=torch.bool)
    if stored is not None:
        off = torch.nonzero(rows != cols).squeeze(-1)
        rows, cols = torch.cat((rows, cols[off])), torch.cat((cols, rows[off]))
        source = torch.cat((source, off))
        mirrored = torch.cat((mirrored, torch.ones_like(off, dtype=torch.bool)))
    if part != "full":
        kept = torch.nonzero(rows <= cols).squeeze(-1)
        missing = torch.nonzero(structure.diagonal < 0).squeeze(-1)
        rows, cols = torch.cat((rows[kept], missing)), torch.cat((cols[kept], missing))
        source = torch.cat((source[kept], torch.full_like(missing, -1)))
        mirrored = torch.cat((mirrored[kept], torch.zeros_like(missing, dtype=torch.bool)))
    order = row_major(rows, cols)
    rows, mirrored = rows[order], mirrored[order]
    return Layout(
        part,
        rows,
        row_pointers(rows, structure.shape[0]),
        cols[order],
        source[order],
        mirrored if bool(mirrored.any()) else None,
        has_gaps=bool((source < 0).any()),
    )
