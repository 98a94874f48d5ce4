"""Everything about a linear system besides its values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .._engines.registry import iterates
from .._sparse.index_checks import check_square
from .._sparse.kernels import Places
from .._sparse.structure import Structure
from .._sparse.submatrix import Submatrix, remove_rows
from ..errors import OptionError, ShapeError
from .ladder.preconditioner import Preconditioner
from .options import Options


@dataclass(frozen=True)
class Problem:
    """Everything about a linear system besides its values and right-hand sides.

    submatrix : the rows and columns that take part in the solve; None for all of them
    purpose : what the matrix is factored for, the name of a `Purpose`
    preconditioner : an approximate inverse to iterate with instead of factoring
    """

    structure: Structure
    options: Options
    submatrix: Submatrix | None = None
    purpose: str = "solve"
    preconditioner: Preconditioner | None = None

    # What was found out for some dtype; it stays true, since nothing of a problem changes.
    _known: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def check(self, dtype: torch.dtype) -> None:
        """Raise unless the matrix is square and the options fit each other and this dtype."""
        if dtype not in self._known:
            check_square(self.structure.shape)
            self.options.check(dtype)
            if self.preconditioner is not None:
                self._check_preconditioner(self.preconditioner, dtype)
            self._known[dtype] = True

    def _check_preconditioner(self, preconditioner: Preconditioner, dtype: torch.dtype) -> None:
        structure, options = self.structure, self.options
        n = (structure.batch_shape or structure.shape)[-1]
        if preconditioner.order != n:
            raise ShapeError(
                f"the preconditioner has {preconditioner.order} rows, the matrix has {n}; expected "
                f"a factorisation of a matrix of the same size"
            )
        if dtype.is_complex or options.assume not in ("auto", "spd"):
            what = f"dtype {dtype}" if dtype.is_complex else f"assume={options.assume!r}"
            raise OptionError(
                f"preconditioner= is for real positive definite matrices, which {what} is not: "
                f"omit preconditioner="
            )
        if options.engine is not None and not iterates(options.engine):
            raise OptionError(
                f"the engine {options.engine!r} factors the matrix, and needs no preconditioner=: "
                f"omit one of them"
            )
        if options.non_blocking or options.precision == "mixed":
            other = "non_blocking=True" if options.non_blocking else "precision='mixed'"
            raise OptionError(f"preconditioner= and {other} exclude each other: omit one of them")

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
