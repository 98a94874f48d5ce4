"""Everything about a linear system besides its values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .._sparse.index_checks import check_square
from .._sparse.kernels import Places
from .._sparse.structure import Structure
from .._sparse.submatrix import Submatrix, remove_rows
from .options import Options


@dataclass(frozen=True)
class Problem:
    """Everything about a linear system besides its values and right-hand sides.

    submatrix : the rows and columns that take part in the solve; None for all of them
    method : the name of the `Method` that factors the matrix; see `methods`
    """

    structure: Structure
    options: Options
    submatrix: Submatrix | None = None
    method: str = "solve"

    # What was found out for some dtype; it stays true, since nothing of a problem changes.
    _known: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def check(self, dtype: torch.dtype) -> None:
        """Raise unless the matrix is square and the options fit each other and this dtype."""
        if dtype not in self._known:
            check_square(self.structure.shape)
            self.options.check(dtype)
            self._known[dtype] = True

    def places(self, dtype: torch.dtype, transpose: bool) -> Places:
        """Where the entries of A, or of Aᵀ, stand, for the derivatives."""
        key = dtype, transpose
        if key not in self._known:
            structure, mirror = self.structure, self.options.mirror(dtype)
            places = Places(structure.rows, structure.cols, mirror, structure)
            self._known[key] = places.of(transpose)
        found: Places = self._known[key]
        return found

    def on(self, device: torch.device) -> Problem:
        """The same problem with its indices on another device."""
        structure, submatrix = self.structure.on(device), self.submatrix
        if submatrix is not None:
            submatrix = remove_rows(structure, submatrix.removed.to(device))
        return replace(self, structure=structure, submatrix=submatrix)
