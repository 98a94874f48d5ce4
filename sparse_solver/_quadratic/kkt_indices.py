"""Where the entries of a KKT matrix come from, and which of them belong to fixed entries of x."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .._sparse.index_checks import check_device, select_indices
from .._sparse.kernels import Places, apply
from .._sparse.structure import Structure, structure_of
from .._sparse.submatrix import Submatrix, remove_rows
from .._torch.modes import outside_transforms, synchronize_stream

T = TypeVar("T")


class Entries(NamedTuple):
    """Some entries of a matrix: their positions among the stored values, and their places."""

    positions: Tensor
    rows: Tensor
    cols: Tensor

    def apply(self, values: Tensor, x: Tensor, mirror: str | None) -> Tensor:
        """The product of the matrix that has only these entries with the rows of `x`."""
        places = Places(self.rows, self.cols, mirror)
        return apply(values.index_select(-1, self.positions), x, places)

    def to(self, device: torch.device) -> Entries:
        return Entries(*(indices.to(device) for indices in self))


class FixedEntries(NamedTuple):
    """The fixed entries of x.

    indices : (p,) which entries of x are fixed, in the caller's order
    coupling : the entries of the matrix that multiply fixed entries in the rows of free ones
    reaction : the entries of the matrix in the rows of fixed entries
    """

    indices: Tensor
    coupling: Entries
    reaction: Entries

    def to(self, device: torch.device) -> FixedEntries:
        coupling, reaction = self.coupling.to(device), self.reaction.to(device)
        return FixedEntries(self.indices.to(device), coupling, reaction)


@dataclass(frozen=True, eq=False)
class KktIndices:
    """The indices of a KKT matrix, on one device.

    structure : of the KKT matrix, or of the triangle of it that is stored
    submatrix : the rows and columns of free entries and constraints; None if no entry is fixed
    fixed : the fixed entries; None if no entry is fixed
    """

    structure: Structure
    submatrix: Submatrix | None = None
    fixed: FixedEntries | None = None
    _copies: dict[torch.device, KktIndices] = field(default_factory=dict)

    @property
    def fixed_count(self) -> int:
        return 0 if self.fixed is None else self.fixed.indices.numel()

    def on(self, device: torch.device) -> KktIndices:
        """The indices on another device, which are copied there once."""
        if device == self.structure.device:
            return self
        if torch.compiler.is_compiling():  # the compiled solve moves the structure itself
            return replace(self, fixed=None if self.fixed is None else self.fixed.to(device))
        if device not in self._copies:
            with outside_transforms():
                self._copies[device] = self._copy_to(device)
                synchronize_stream(device)  # other streams will read the copies
        return self._copies[device]

    def _copy_to(self, device: torch.device) -> KktIndices:
        structure = self.structure.on(device)
        if self.submatrix is None or self.fixed is None:
            return KktIndices(structure)
        submatrix = remove_rows(structure, self.submatrix.removed.to(device))
        return KktIndices(structure, submatrix, self.fixed.to(device))


def find_indices(
    Q: Structure, C: Structure | None, fixed: Tensor | None, triangle: str | None
) -> KktIndices:
    """The indices of [[Q, Cᴴ], [C, 0]], on the device of Q.

    Raises IndexRangeError, ShapeError or DeviceError for an invalid selection `fixed`.
    """
    with outside_transforms():
        structure = _join_structures(Q, C, triangle)
        if fixed is None:
            return KktIndices(structure)
        if isinstance(fixed, Tensor):
            check_device(fixed)
        chosen = select_indices("fixed", fixed, Q.shape[0], "entries", "x").to(Q.device)
        submatrix = remove_rows(structure, chosen.sort()[0])
        return KktIndices(structure, submatrix, _find_fixed_entries(structure, chosen, triangle))


def _join_structures(Q: Structure, C: Structure | None, triangle: str | None) -> Structure:
    """The structure of the KKT matrix, with the entries of `join_values`."""
    if C is None:
        return Q
    n, m = Q.shape[0], C.shape[0]
    C = C.on(Q.device)
    below = C.rows + n, C.cols
    parts = _select_stored(below, below[::-1], triangle)
    rows = torch.cat((Q.rows, *(part[0] for part in parts)))
    cols = torch.cat((Q.cols, *(part[1] for part in parts)))
    return structure_of(rows, cols, (n + m, n + m))


def join_values(Q_values: Tensor, C_values: Tensor, triangle: str | None) -> Tensor:
    """The values of the KKT matrix: those of Q, of C, and if both triangles are stored, of Cᴴ."""
    stored = _select_stored(C_values, C_values.conj().resolve_conj(), triangle)
    return torch.cat((Q_values, *stored), -1)


def _select_stored(below: T, right: T, triangle: str | None) -> list[T]:
    """What is stored, of something about C, below Q, and about Cᴴ, to the right of Q."""
    pairs = (below, "upper"), (right, "lower")
    return [part for part, other in pairs if triangle != other]


def _find_fixed_entries(
    structure: Structure, indices: Tensor, triangle: str | None
) -> FixedEntries:
    is_fixed = torch.zeros(structure.shape[0], dtype=torch.bool, device=structure.device)
    is_fixed[indices] = True
    from_fixed, to_fixed = is_fixed[structure.cols], is_fixed[structure.rows]
    if triangle is None:
        masks = from_fixed & ~to_fixed, to_fixed
    else:  # each entry off the diagonal stands for two
        masks = from_fixed ^ to_fixed, from_fixed | to_fixed
    coupling, reaction = (_select_entries(structure, mask) for mask in masks)
    return FixedEntries(indices, coupling, reaction)


def _select_entries(structure: Structure, mask: Tensor) -> Entries:
    positions = torch.nonzero(mask).squeeze(-1)
    return Entries(positions, structure.rows[positions], structure.cols[positions])
