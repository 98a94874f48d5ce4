"""SuperLU, which SciPy contains: LU with partial pivoting for every dtype and on every platform.

It has no separate analysis, so the fill is found by factoring once. For symmetric positive definite
matrices, the ordering is one of A + Aᵀ, and the pivots are taken from the diagonal: their signs
show whether the matrix is positive definite.

Source: X. S. Li, "An overview of SuperLU: algorithms, implementation, and user interface", ACM
Trans. Math. Softw. 31, 2005; scipy.sparse.linalg.splu.
"""

from __future__ import annotations

from functools import cache

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
from .pivots import Pivots, read_pivots
from .protocol import Availability, Kind, is_doubtful, is_hermitian, not_positive_definite
from .superlu_memory import Decomposition

_SPD_METHOD = "LU without row exchanges"
_SPD_OPTIONS = {
    "permc_spec": "MMD_AT_PLUS_A",
    "diag_pivot_thresh": 0.0,
    "options": {"SymmetricMode": True, "Equil": False},
}
_LU_OPTIONS = {"permc_spec": "COLAMD", "diag_pivot_thresh": 1.0}


class SuperluSymbolic:
    """The pattern in SuperLU's integers. The rows of A are the columns of Aᵀ, which is factored."""

    def __init__(self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None):
        self._kind, self.shape = kind, structure.shape
        self.is_hermitian = is_hermitian(kind, dtype)
        self.method = _SPD_METHOD if kind == "spd" else "LU with partial pivoting"
        arrangement = self.arrangement = arrangement_of(structure, "full", triangle)
        if max(structure.shape[0], arrangement.nnz) > np.iinfo(np.intc).max:
            message = "SuperLU counts in 32-bit integers, which are too few for this matrix"
            raise EngineUnsupportedError(f"{message}; choose another engine", engine="superlu")
        self._col = arrangement.col.to(torch.int32).numpy()
        self._crow = arrangement.crow.to(torch.int32).numpy()

    def factor_nnz(self, matrix: Matrix) -> int | None:
        try:
            found = self.factor(matrix).nnz
            return None if found is None else (found + self.shape[0]) // 2
        except (NotPositiveDefiniteError, SingularMatrixError):
            return None

    def factor(self, matrix: Matrix) -> SuperluFactor:
        values = matrix.arrange(self.arrangement, self.is_hermitian)
        return SuperluFactor(self.decompose(values), self.arrangement, values, self._kind == "spd")

    def decompose(self, values: Tensor) -> Decomposition:
        """Factor the matrix that has these values in the arrangement."""
        from scipy.sparse import csc_matrix
        from scipy.sparse.csgraph import structural_rank

        transposed = csc_matrix((values.numpy(), self._col, self._crow), shape=self.shape)
        spd = self._kind == "spd"
        try:
            return Decomposition(transposed, _SPD_OPTIONS if spd else _LU_OPTIONS)
        except MemoryError as error:
            message = "SuperLU ran out of memory"
            raise EngineError(message, engine="superlu", code=None, out_of_memory=True) from error
        except RuntimeError as error:
            if "singular" not in str(error) and structural_rank(transposed) == self.shape[0]:
                message = f"SuperLU failed: {error}"
                raise EngineError(message, engine="superlu", code=None) from error
            if spd:  # a positive definite matrix cannot be singular; the row is not known
                raise not_positive_definite("superlu", _SPD_METHOD, None) from error
            message = "SuperLU met a zero pivot: the matrix is singular"
            raise SingularMatrixError(message, engine="superlu") from error

    def analyze_values(self, matrix: Matrix) -> None:
        return None


class SuperluFactor:
    flops: int | None = None
    perturbed_pivots: int | None = 0

    def __init__(
        self, decomposition: Decomposition, arrangement: Arrangement, values: Tensor, spd: bool
    ):
        self.decomposition, self.arrangement, self.values = decomposition, arrangement, values
        self.negative_eigenvalues: int | None = 0 if spd else None
        self.nnz: int | None = decomposition.nnz
        self.memory_bytes: int | None = decomposition.nnz * (values.element_size() + 4)
        self.sound = spd and not is_doubtful(self._find_smallest_pivot(), values.dtype)

    def _find_smallest_pivot(self) -> float:
        """The smallest pivot relative to its diagonal entry; raise unless all are positive."""
        pivots = self.decomposition.pivots().real
        (perm_r, perm_c), arrangement = self.decomposition.permutations(), self.arrangement
        row_of_pivot, bad = np.argsort(perm_c), ~(pivots > 0)
        if bad.any() or not np.array_equal(perm_r, perm_c):
            row = int(row_of_pivot[np.argmax(bad)]) if bad.any() else None
            raise not_positive_definite("superlu", _SPD_METHOD, row)
        diagonal = self.values[arrangement.rows == arrangement.col].numpy().real
        return float((pivots / diagonal[row_of_pivot]).min())

    def pivots(self) -> Pivots:
        perm_r, perm_c = self.decomposition.permutations()
        # The rows of the decomposed matrix are the columns of A.
        return read_pivots(self.decomposition.pivots(), np.argsort(perm_c), np.argsort(perm_r))

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        return self.decomposition.substitute(rhs, transpose)


class Superlu:
    name = "superlu"
    device_types: tuple[str, ...] = ("cpu",)

    def availability(self) -> Availability:
        return scipy_availability()

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return dtype in DTYPES

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> SuperluSymbolic:
        return SuperluSymbolic(structure, kind, dtype, triangle)


@cache
def scipy_availability() -> Availability:
    """The availability of the engines whose library is a part of SciPy."""
    try:
        import scipy
    except ImportError as error:
        return Availability(missing=f"{error}; pip install scipy")
    return Availability(version=f"SciPy {scipy.__version__}")


ENGINE = Superlu()
