"""One matrix: values on a structure, and what an engine needs to know about them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NonFiniteError
from .both_triangles import agree, both_triangles_of
from .structure import Structure
from .triangle import Arrangement, arrangement_of
from .values import largest_modulus, raise_non_finite


class Matrix:
    """The matrix with the plain, contiguous `values` (nnz,) in the caller's order."""

    def __init__(self, structure: Structure, values: Tensor):
        self.structure, self.values, self.dtype = structure, values, values.dtype
        self._canonical: Tensor | None = None
        self._triangles: tuple[Tensor, Tensor] | None = None
        # The upper triangle, once `match_triangles` has found that the lower one agrees with it.
        self._upper: Tensor | None = None
        self._diagonal: Tensor | None = None
        self._largest: float | None = None

    @property
    def canonical(self) -> Tensor:
        """(canonical_nnz,) the values in canonical order, duplicates summed."""
        if self._canonical is None:
            self._canonical = self.structure.canonical(self.values)
        return self._canonical

    def rounded(self, dtype: torch.dtype, power: Tensor) -> Matrix:
        """The matrix times `power` in another dtype; duplicates are summed before that."""
        rounded = Matrix(self.structure, (self.values * power).to(dtype))
        if self.structure.has_duplicates:
            rounded._canonical = (self.canonical * power).to(dtype)
        return rounded

    def match_triangles(self, conjugate: bool) -> bool:
        """Compare both triangles, and keep the upper one if the lower is its exact transpose.

        Then the methods below read the upper triangle only, which saves a pass over the values.
        False does not mean that the matrix is not symmetric up to rounding errors. With
        `conjugate`, the lower triangle is compared with the conjugate transpose.
        """
        triangles = both_triangles_of(self.structure) if self.values.numel() else None
        if triangles is None:
            return False
        if self._triangles is None:
            self._triangles = triangles.fill(self.values)
        self._upper = self._triangles[0] if agree(*self._triangles, conjugate) else None
        return self._upper is not None

    @property
    def is_mirrored(self) -> bool:
        """Whether `match_triangles` has found that one triangle is the transpose of the other."""
        return self._upper is not None

    def check_finite(self) -> float:
        """Raise NonFiniteError if an entry is NaN or infinite; return the largest modulus."""
        if self._largest is None:
            entries = self.canonical if self._upper is None else self._upper
            largest = largest_modulus(entries) if entries.numel() else 0.0
            if not largest < float("inf"):
                raise_non_finite("values", self.values)
                raise NonFiniteError(
                    "values are too large: the modulus or the sum of some is infinite",
                    argument="values",
                    index=None,
                )
            self._largest = largest
        return self._largest

    @property
    def diagonal(self) -> Tensor:
        """(n,) the diagonal; zero where it is not stored."""
        if self._diagonal is None:
            if self._upper is None:
                self._diagonal = self.structure.diagonal_of(self.canonical)
            else:
                at = arrangement_of(self.structure, "upper").at_diagonal
                self._diagonal = self._upper.index_select(0, at)
        return self._diagonal

    def arrange(self, arrangement: Arrangement, hermitian: bool) -> Tensor:
        """The values as an engine wants them: to be read only, never an alias of the caller's."""
        if self._upper is not None and arrangement is arrangement_of(self.structure, "upper"):
            return self._upper
        return arrangement.gather(self.canonical, hermitian)
