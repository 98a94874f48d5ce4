"""SuperLU as SciPy ships it: LU with partial pivoting, every dtype, on every platform.

It has no separate analysis, so the fill is learned by factoring once. Symmetric positive definite matrices keep
their symmetry: the ordering is one of A + Aᵀ and pivots are taken from the diagonal, whose signs tell definiteness.
Source: X. S. Li, "An overview of SuperLU: algorithms, implementation, and user interface", 2005; scipy.sparse.linalg.splu.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._sparse.matrix import Matrix
from .._sparse.structure import Structure
from .._sparse.triangle import Arrangement, arrangement_of
from .._sparse.values import DTYPES
from ..errors import (
    EngineError,
    EngineUnsupportedError,
    NotPositiveDefiniteError,
    SingularMatrixError,
)
from .protocol import Availability, Kind, is_doubtful, is_hermitian, not_positive_definite


class SuperluSymbolic:
    def __init__(self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None):
        self._kind, self._dtype = kind, dtype
        self.arrangement = arrangement_of(structure, "full", triangle)
        if max(structure.shape[0], self.arrangement.nnz) > np.iinfo(np.intc).max:
            raise EngineUnsupportedError(
                "SuperLU counts in 32-bit integers, too few for this matrix", engine="superlu"
            )
        # Rows of A are columns of Aᵀ: SuperLU reads columns, so it factors Aᵀ and solves with its transpose.
        self._crow, self._col = (
            self.arrangement.crow.to(torch.int32).numpy(),
            self.arrangement.col.to(torch.int32).numpy(),
        )
        self._shape = structure.shape

    def factor_nnz(self, matrix: Matrix) -> int | None:
        try:
            return (self.factor(matrix).nnz + self._shape[0]) // 2
        except (NotPositiveDefiniteError, SingularMatrixError):
            return None

    def factor(self, matrix: Matrix) -> SuperluFactor:
        from scipy.sparse import csc_matrix
        from scipy.sparse.csgraph import structural_rank
        from scipy.sparse.linalg import splu

        values = matrix.arrange(self.arrangement, is_hermitian(self._kind, self._dtype))
        transposed = csc_matrix((values.numpy(), self._col, self._crow), shape=self._shape)
        spd = self._kind == "spd"
        options = {"SymmetricMode": True, "Equil": False} if spd else {}
        try:
            decomposed = splu(
                transposed,
                permc_spec="MMD_AT_PLUS_A" if spd else "COLAMD",
                diag_pivot_thresh=0.0 if spd else 1.0,
                options=options,
            )
        except RuntimeError as error:
            if "singular" not in str(error) and structural_rank(transposed) == self._shape[0]:
                raise EngineError(
                    f"SuperLU failed: {error}", engine="superlu", code=None
                ) from error
            if spd:  # the message does not say where, and a definite matrix cannot be singular
                raise not_positive_definite("superlu", "LU without row exchanges", None) from error
            raise SingularMatrixError(
                "SuperLU met a zero pivot: the matrix is singular", engine="superlu"
            ) from error
        return SuperluFactor(decomposed, self.arrangement, values, spd)

    def analyze_values(self, matrix: Matrix) -> None:
        return None


class SuperluFactor:
    flops: int | None = None
    perturbed_pivots: int | None = 0
    stable = True  # partial pivoting; for definite matrices the diagonal is as good

    def __init__(self, decomposed: Any, arrangement: Arrangement, values: Tensor, spd: bool):
        self._decomposed, self.arrangement, self.values = decomposed, arrangement, values
        self.negative_eigenvalues: int | None = 0 if spd else None
        self.nnz: int = int(decomposed.nnz)
        self.memory_bytes: int | None = self.nnz * (values.element_size() + 4)
        upper = decomposed.U
        pivots = upper.diagonal()
        if not spd:
            self.doubtful = is_doubtful(
                float(np.abs(pivots).min() / np.abs(upper.data).max()), values.dtype
            )
            return
        row_of_pivot = np.argsort(decomposed.perm_c)
        bad = ~(pivots.real > 0)
        if bad.any() or not np.array_equal(decomposed.perm_r, decomposed.perm_c):
            row = int(row_of_pivot[np.argmax(bad)]) if bad.any() else None
            raise not_positive_definite("superlu", "LU without row exchanges", row)
        diagonal = values[arrangement.rows == arrangement.col].numpy().real
        self.doubtful = is_doubtful(
            float((pivots.real / diagonal[row_of_pivot]).min()), values.dtype
        )

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        # Factored was Aᵀ. SuperLU takes the n-by-k array by columns, which is what the rows of `rhs` are.
        x = self._decomposed.solve(rhs.numpy().T, trans="N" if transpose else "T")
        return torch.from_numpy(np.ascontiguousarray(x.T))


class Superlu:
    name = "superlu"
    device_types = ("cpu",)

    @staticmethod
    @cache
    def _availability() -> Availability:
        try:
            import scipy

            return Availability(version=f"SciPy {scipy.__version__}")
        except ImportError as error:
            return Availability(missing=f"{error}; pip install scipy")

    def availability(self) -> Availability:
        return self._availability()

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return dtype in DTYPES

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> SuperluSymbolic:
        return SuperluSymbolic(structure, kind, dtype, triangle)


ENGINE = Superlu()
