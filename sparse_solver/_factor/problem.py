"""Everything about a linear system besides its values."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

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

    def places(self, dtype: torch.dtype) -> Places:
        """Where the entries stand, for the derivatives."""
        structure = self.structure
        return Places(structure.rows, structure.cols, self.options.mirror(dtype), structure)

    def on(self, device: torch.device) -> Problem:
        """The same problem with its indices on another device."""
        structure, submatrix = self.structure.on(device), self.submatrix
        if submatrix is not None:
            submatrix = remove_rows(structure, submatrix.removed.to(device))
        return replace(self, structure=structure, submatrix=submatrix)
