"""LAPACK, which SciPy contains: dense LU and Cholesky, the fastest for small matrices.

Below some hundred rows, operations on zeros cost less than what sparse methods spend on avoiding
them. LU exchanges rows, so that it is accurate where sparse methods have to perturb pivots. All is
computed in double precision, for single precision matrices too.

Source: E. Anderson et al., "LAPACK Users' Guide", 3rd ed., SIAM 1999: ?getrf, ?getrs, ?potrf,
?potrs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .._sparse.dense import Array, assemble_dense
from .._sparse.matrix import Matrix
from .._sparse.structure import Structure
from .._sparse.triangle import Arrangement, arrangement_of
from .._sparse.values import DTYPES, to_double
from ..errors import EngineUnsupportedError, SingularMatrixError
from .pivots import Pivots, read_pivots
from .protocol import Availability, Kind, is_doubtful, is_hermitian, not_positive_definite
from .superlu import scipy_availability

# With more rows, a dense matrix takes more than two gibibytes.
_MOST_ROWS = 2**14


class _Library:
    """The routines for real or for complex numbers of double precision."""

    def __init__(self, is_complex: bool):
        from scipy.linalg import get_lapack_funcs

        names = ("getrf", "getrs", "potrf", "potrs")
        found = get_lapack_funcs(names, dtype=np.complex128 if is_complex else np.float64)
        self.getrf, self.getrs, self.potrf, self.potrs = found


library = cache(_Library)


class LapackSymbolic:
    """Where the entries of an arrangement are in a dense matrix that is stored by columns."""

    def __init__(self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None):
        n = self.n = structure.shape[0]
        if n > _MOST_ROWS:
            message = f"LAPACK would store {n}² numbers; choose an engine for sparse matrices"
            raise EngineUnsupportedError(message, engine="lapack")
        self.kind, self.dtype = kind, dtype
        self.method = "dense Cholesky" if kind == "spd" else "dense LU with partial pivoting"
        self.arrangement = arrangement_of(structure, "full", triangle)
        self.places = self.arrangement.col * n + self.arrangement.rows
        self.library = library(dtype.is_complex)

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return self.n * (self.n + 1) // 2

    def factor(self, matrix: Matrix) -> LapackFactor:
        values = matrix.arrange(self.arrangement, is_hermitian(self.kind, self.dtype))
        return LapackFactor(self, assemble_dense(self.n, self.places.numpy(), values.numpy()))

    def factor_dense(self, dense: Array) -> LapackFactor:
        return LapackFactor(self, dense)

    def analyze_values(self, matrix: Matrix) -> None:
        return None


class LapackFactor:
    """A dense factor of the matrix `dense`, which is kept."""

    perturbed_pivots: int | None = 0

    def __init__(self, symbolic: LapackSymbolic, dense: Array):
        self._symbolic, self.dense, self._is_spd = symbolic, dense, symbolic.kind == "spd"
        self.negative_eigenvalues: int | None = 0 if self._is_spd else None
        self.sound = False
        self._library = symbolic.library
        if self._is_spd:
            self._factor, info = self._library.potrf(dense, lower=1, clean=0)
            if info:
                raise not_positive_definite("lapack", "Cholesky", info - 1)
            pivots = self._factor.diagonal().real ** 2 / dense.diagonal().real
            self.sound = not is_doubtful(float(pivots.min()), symbolic.dtype)
        else:
            self._factor, self._exchanges, info = self._library.getrf(dense)
            if info:
                message = "LAPACK met a zero pivot: the matrix is singular"
                raise SingularMatrixError(message, engine="lapack")

    @property
    def arrangement(self) -> Arrangement:
        return self._symbolic.arrangement

    @property
    def values(self) -> Tensor:
        entries = torch.from_numpy(self.dense.T.reshape(-1))
        return entries.index_select(0, self._symbolic.places).to(self._symbolic.dtype)

    @property
    def nnz(self) -> int | None:
        n = self._symbolic.n
        return n * (n + 1) // 2 if self._is_spd else n * n

    @property
    def flops(self) -> int | None:
        return (1 if self._is_spd else 2) * self._symbolic.n**3 // 3

    @property
    def memory_bytes(self) -> int | None:
        return int(self._factor.nbytes + self.dense.nbytes)

    def pivots(self) -> Pivots:
        diagonal, at = self._factor.diagonal(), np.arange(self._symbolic.n)
        if self._is_spd:  # L Lᴴ, whose pivots are the squares, which may overflow
            roots = read_pivots(diagonal.real, at, at)
            return replace(roots, logarithms=2 * roots.logarithms)
        rows = at.copy()
        for step, row in enumerate(self._exchanges.tolist()):
            rows[step], rows[row] = rows[row], rows[step]
        return read_pivots(diagonal, rows, at)

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        x = self._substitute(to_double(rhs).numpy().T, transpose)
        return torch.from_numpy(x.T).to(rhs.dtype)

    def substitute_columns(self, rhs: Array, transpose: bool) -> Array:
        return self._substitute(rhs, transpose)

    def _substitute(self, rhs: Array, transpose: bool) -> Array:
        if not self._is_spd:
            trans = int(transpose)
            x, _ = self._library.getrs(self._factor, self._exchanges, rhs, trans=trans)
        elif transpose and self._symbolic.dtype.is_complex:  # Aᵀ = conj(A)
            x = self._substitute(rhs.conj(), False).conj()
        else:
            x, _ = self._library.potrs(self._factor, rhs, lower=1)
        return x


class Lapack:
    name = "lapack"
    device_types: tuple[str, ...] = ("cpu",)

    def availability(self) -> Availability:
        return scipy_availability()

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return dtype in DTYPES

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> LapackSymbolic:
        return LapackSymbolic(structure, kind, dtype, triangle)


ENGINE = Lapack()
