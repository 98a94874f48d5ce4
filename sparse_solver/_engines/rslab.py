"""rslab: supernodal LU and LDLᵀ in Rust, with wheels for machines for which there is no MKL.

Both exchange rows within blocks of columns only. A pivot below √ε, in the equilibrated matrix, is
enlarged to that: otherwise a third of the good indefinite matrices would be refused. Refinement
removes the error, or solutions show that another factorisation is needed. Where the pattern alone
does not give a good one, `analyze_values` gives LU with rows that are matched by the values. Real
positive definite matrices are factored as LDLᵀ too, whose signs show whether they are.

The threads of rslab do not survive a fork: most calls of a forked child would wait for them for
ever. A child of a process that has used rslab factors by SuperLU.

Source: M. Rother, rslab, https://github.com/milanofthe/rslab.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._sparse.matrix import Matrix
from .._sparse.structure import Structure, find_row_major_order, row_pointers
from .._sparse.triangle import Arrangement, Coverage, arrangement_of
from .._sparse.values import DTYPES
from .._torch.fork_safe_lock import ForkSafeLock
from .._torch.modes import outside_transforms
from ..errors import EngineError, SingularMatrixError
from .free_memory import check_memory
from .mkl.library import Library
from .mkl.library import library as mkl_library
from .protocol import (
    METHODS,
    Availability,
    Factor,
    Kind,
    Symbolic,
    is_hermitian,
    not_positive_definite,
)
from .superlu import SuperluSymbolic

_is_used = False  # by this process, or by a parent of it
_is_forked = False  # since a parent has used it


def _after_fork() -> None:
    global _is_forked
    _is_forked = _is_used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class RslabSymbolic:
    """An analysis of a pattern.

    match : the matrix to match rows with columns by; None for an analysis of the pattern alone
    """

    def __init__(
        self,
        structure: Structure,
        kind: Kind,
        dtype: torch.dtype,
        triangle: str | None,
        match: Matrix | None = None,
    ):
        # Not the structure itself, which remembers this object.
        self._kind, self._dtype, self._request = kind, dtype, (kind, dtype, triangle)
        is_symmetric = kind in ("symmetric", "spd")
        self._is_matched, self._is_ldlt = match is not None, is_symmetric and match is None
        matching = " with matching" if self._is_matched else ""
        self.method = METHODS["symmetric" if self._is_ldlt else "general"] + matching
        coverage: Coverage = "upper" if self._is_ldlt else "full"
        self.arrangement = arrangement_of(structure, coverage, triangle)
        rows, cols = self.arrangement.rows, self.arrangement.col
        if self._is_ldlt:  # the rows of the upper triangle are the columns of the lower one
            rows, cols = cols, rows
        # rslab reads one column after the other.
        self._order = find_row_major_order(cols, rows)
        if self._order is not None:
            rows, cols = rows[self._order], cols[self._order]
        ones = torch.ones(self.arrangement.nnz, dtype=dtype)
        data = ones if match is None else self._in_columns(self._arrange(match))
        self._analysis = _analyze(rows, cols, data, structure.shape[0], self._is_ldlt)

    def _arrange(self, matrix: Matrix) -> Tensor:
        return matrix.arrange(self.arrangement, is_hermitian(self._kind, self._dtype))

    def _in_columns(self, values: Tensor) -> Tensor:
        return values if self._order is None else values.index_select(0, self._order)

    def factor_nnz(self, matrix: Matrix) -> int | None:
        nnz: int = self._analysis.factor_nnz
        return nnz if self._is_ldlt else (nnz + self._analysis.n) // 2

    def factor(self, matrix: Matrix) -> Factor:
        if _is_forked:
            return SuperluSymbolic(matrix.structure, *self._request).factor(matrix)
        check_memory("rslab", self._analysis.factor_nnz, self._dtype)
        values = self._arrange(matrix)
        data, floor = self._in_columns(values).numpy(), torch.finfo(self._dtype).eps ** 0.5
        threads = torch.get_num_threads()
        found = _call(self._analysis.factor, data, threads=threads, preconditioner=floor)
        factor = RslabFactor(found, self.arrangement, values)
        if self._kind == "spd":
            factor.check_definite()
        return factor

    def analyze_values(self, matrix: Matrix) -> Symbolic | None:
        if self._is_matched or self._kind == "spd" or _is_forked:
            return None
        return RslabSymbolic(matrix.structure, *self._request, match=matrix)


class RslabFactor:
    flops: int | None = None
    sound = False  # LU and LDLᵀ exchange rows within blocks only

    def __init__(self, factor: Any, arrangement: Arrangement, values: Tensor):
        self._factor, self.arrangement, self.values = factor, arrangement, values
        self.nnz: int | None = factor.factor_nnz
        self.memory_bytes: int | None = factor.factor_nnz * values.element_size()
        self.perturbed_pivots: int | None = factor.n_perturbed
        is_counted = not (self._is_lu or values.is_complex() or factor.n_perturbed)
        self.negative_eigenvalues: int | None = factor.inertia[1] if is_counted else None
        self._of_child: Factor | None = None
        self._lock = ForkSafeLock()

    def check_definite(self) -> None:
        """Raise unless the factor is that of a positive definite matrix."""
        if self.perturbed_pivots:
            message = "rslab met pivots that are too small to tell their signs"
            raise SingularMatrixError(message, engine="rslab")
        if self.negative_eigenvalues:
            raise not_positive_definite("rslab", METHODS["symmetric"], None)

    @property
    def _is_lu(self) -> bool:
        return self.arrangement.coverage == "full"

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        if _is_forked:
            return self._factor_again().substitute(rhs, transpose)
        b, factor = rhs.numpy(), self._factor
        if transpose and self._is_lu:
            return torch.from_numpy(np.stack([_call(factor.solve_transpose, row) for row in b]))
        if len(b) == 1:
            return torch.from_numpy(_call(factor.solve, b[0])[None])
        x = _call(factor.solve_many, np.ascontiguousarray(b.T))
        return torch.from_numpy(np.ascontiguousarray(x.T))

    def _factor_again(self) -> Factor:
        """The factor by SuperLU, in a forked child."""
        with self._lock, outside_transforms():
            if self._of_child is None:
                n, dtype = len(self.arrangement.crow) - 1, self.values.dtype
                structure = Structure(self.arrangement.rows, self.arrangement.col, (n, n))
                kind: Kind = "general" if self._is_lu else "symmetric"
                symbolic = SuperluSymbolic(structure, kind, dtype, None if self._is_lu else "upper")
                self._of_child = symbolic.factor(Matrix(structure, self.values))
        return self._of_child


def _analyze(rows: Tensor, cols: Tensor, data: Tensor, n: int, is_ldlt: bool) -> Any:
    """The analysis of a matrix whose columns come one after the other."""
    import rslab
    from scipy.sparse import csc_matrix

    pointers = row_pointers(cols, n)
    matrix = csc_matrix((data.numpy(), rows.numpy(), pointers.numpy()), shape=(n, n))
    path = "ldlt" if is_ldlt else "lu"
    return _call(rslab.analyze, matrix, path=path, threads=torch.get_num_threads())


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call rslab, and raise its errors as typed ones."""
    global _is_used
    _is_used = True
    try:
        return function(*arguments, **options)
    except MemoryError as error:
        message = "rslab ran out of memory"
        raise EngineError(message, engine="rslab", code=None, out_of_memory=True) from error
    except RuntimeError as error:
        message = f"rslab could not factor the matrix: {error}"
        raise SingularMatrixError(message, engine="rslab") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # that is how a failure in Rust is raised
            raise
        raise EngineError(f"rslab failed: {error}", engine="rslab", code=None) from None


class Rslab:
    name = "rslab"
    device_types: tuple[str, ...] = ("cpu",)

    def availability(self) -> Availability:
        return _availability()

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        # LU does not tell the signs of Hermitian matrices, and there is no LDLᴴ.
        return dtype in DTYPES and not (kind == "spd" and dtype.is_complex)

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> Symbolic:
        if _is_forked:
            return SuperluSymbolic(structure, kind, dtype, triangle)
        return RslabSymbolic(structure, kind, dtype, triangle)


@cache
def _availability() -> Availability:
    try:
        import rslab
    except ImportError as error:
        has_mkl = isinstance(mkl_library(), Library)  # with which nothing is faster by rslab
        advice = "it is for machines without MKL" if has_mkl else "pip install rslab"
        return Availability(missing=f"{error}; {advice}")
    if "RLA_LOG" not in os.environ:
        # Its warnings about singular matrices, for which errors are raised here, go to stderr.
        rslab.set_log_level("error")
    return Availability(version=rslab.__version__)


ENGINE = Rslab()
