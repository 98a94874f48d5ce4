"""QDLDL: LDLᵀ by simple loops after an AMD ordering; nothing is faster where there is little fill.

Real symmetric positive definite matrices; it works in float64, and float32 goes through that. The `qdldl` package brings
the C library, whose functions are called here directly: its Python classes keep one factorisation each, hide whether it
succeeded, and hold Python's global lock. Only the ordering is asked of them.
Source: B. Stellato et al., "OSQP: an operator splitting solver for quadratic programs", 2020; qdldl.h.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from ctypes import c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from .._sparse.matrix import Matrix
from .._sparse.structure import Structure, row_major, row_pointers
from .._sparse.triangle import Arrangement, arrangement_of
from .._torch.modes import outside_transforms
from .protocol import Availability, Kind, is_doubtful, not_positive_definite


class _Library:
    """The C functions, with their argument types; pointers are to 64-bit integers and to doubles."""

    def __init__(self) -> None:
        import qdldl

        library = ctypes.CDLL(qdldl.__file__)
        self.etree, self.factor, self.solve = (
            library.QDLDL_etree,
            library.QDLDL_factor,
            library.QDLDL_solve,
        )
        #                     n        Ap        Ai        work      Lnz       etree
        self.etree.argtypes = [c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]
        #                      n, then Ap, Ai, Ax, Lp, Li, Lx, D, Dinv, Lnz, etree, and work of bytes, integers, doubles
        self.factor.argtypes = [c_int64, *[c_void_p] * 13]
        #                     n        Lp        Li        Lx        Dinv      x
        self.solve.argtypes = [c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]
        self.etree.restype, self.factor.restype, self.solve.restype = c_int64, c_int64, None
        self.new_solver = qdldl.Solver

    def ordering(self, arrangement: Arrangement, n: int) -> Tensor:
        """The AMD ordering (n,) of a matrix whose upper triangle, with all of the diagonal, is given."""
        from scipy.sparse import csr_matrix

        # The constructor factors what it is given: the identity cannot fail.
        identity = (arrangement.rows == arrangement.col).double().numpy()
        matrix = csr_matrix(
            (identity, arrangement.col.numpy(), arrangement.crow.numpy()), shape=(n, n)
        ).tocsc()
        return torch.from_numpy(self.new_solver(matrix, upper=True).factors()[2]).to(torch.int64)


@cache
def _library() -> _Library | str:
    """The library, or why there is none."""
    try:
        library = _Library()
    except ImportError as error:
        return f"{error}; pip install qdldl"
    except (OSError, AttributeError) as error:
        return f"this build of the qdldl package hides its C functions ({error})"
    # Nothing but a try tells whether it was built with the same kinds of numbers.
    with outside_transforms():
        structure = Structure(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), (2, 2))
        matrix = Matrix(structure, torch.tensor([4.0, 1.0, 3.0], dtype=torch.float64))
        factor = QdldlSymbolic(library, structure, "upper").factor(matrix)
        x = factor.substitute(torch.tensor([[6.0, 7.0]], dtype=torch.float64), False)
    if not torch.allclose(x, torch.tensor([[1.0, 2.0]], dtype=torch.float64)):
        return "this build of the qdldl package calculates with other kinds of numbers"
    return library


class QdldlSymbolic:
    def __init__(self, library: _Library, structure: Structure, triangle: str | None):
        self.library, self.n = library, structure.shape[0]
        self.arrangement = arrangement_of(structure, "upper", triangle)
        self.order = library.ordering(self.arrangement, self.n)
        self.inverse = torch.empty_like(self.order)
        self.inverse[self.order] = torch.arange(self.n)
        # The reordered matrix: its upper triangle by columns is its lower triangle by rows.
        i, j = self.inverse[self.arrangement.rows], self.inverse[self.arrangement.col]
        low, high = torch.minimum(i, j), torch.maximum(i, j)
        self.source = row_major(high, low)  # among the values in the arrangement
        self.Ap, self.Ai = row_pointers(high[self.source], self.n), low[self.source]
        self.Lnz, self.etree = torch.empty((2, self.n), dtype=torch.int64)
        work = torch.empty_like(self.Lnz)
        below = library.etree(
            self.n, *(t.data_ptr() for t in (self.Ap, self.Ai, work, self.Lnz, self.etree))
        )
        assert below >= 0, "the diagonal and the upper triangle are there"
        # Each factorisation finds the same places and writes them again; so they are shared.
        self.Lp, self.Li = (
            torch.empty(self.n + 1, dtype=torch.int64),
            torch.empty(below, dtype=torch.int64),
        )
        self.nnz: int = below + self.n
        self.flops = int(((self.Lnz + 1) ** 2).sum())
        self.at_diagonal = self.arrangement.at_diagonal[self.order]
        self.pattern = (self.n, self.Ap.data_ptr(), self.Ai.data_ptr())
        self.tree = (self.Lnz.data_ptr(), self.etree.data_ptr())

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return self.nnz

    def factor(self, matrix: Matrix) -> QdldlFactor:
        return QdldlFactor(self, matrix.arrange(self.arrangement, hermitian=False))

    def analyze_values(self, matrix: Matrix) -> None:
        return None


class QdldlFactor:
    perturbed_pivots: int | None = 0
    negative_eigenvalues: int | None = 0
    stable = True

    def __init__(self, symbolic: QdldlSymbolic, values: Tensor):
        self._symbolic, self.values, self.arrangement = symbolic, values, symbolic.arrangement
        n, self.nnz, self.flops = symbolic.n, symbolic.nnz, symbolic.flops
        self.memory_bytes = 8 * (symbolic.nnz + n)
        ordered = values.index_select(0, symbolic.source).to(torch.float64)
        self._L = ordered.new_empty(symbolic.nnz - n)
        pivots, self._inverse_pivots, work = ordered.new_empty((3, n))
        integers = ordered.new_empty(4 * n, dtype=torch.int64)  # three numbers and a byte a row
        address = integers.data_ptr()
        positive = symbolic.library.factor(
            *symbolic.pattern, ordered.data_ptr(), symbolic.Lp.data_ptr(), symbolic.Li.data_ptr(), self._L.data_ptr(),
            pivots.data_ptr(), self._inverse_pivots.data_ptr(), *symbolic.tree, address + 24 * n, address, work.data_ptr(),
        )  # fmt: skip
        if positive != n:  # −1: it stopped at a pivot of zero
            bad = int(torch.nonzero(~(pivots > 0) if positive >= 0 else pivots == 0)[0])
            raise not_positive_definite("qdldl", "LDLᵀ", int(symbolic.order[bad]))
        diagonal = values.index_select(0, symbolic.at_diagonal)
        self.doubtful = is_doubtful(float((pivots / diagonal).min()), values.dtype)
        self._factor = (
            n, symbolic.Lp.data_ptr(), symbolic.Li.data_ptr(), self._L.data_ptr(), self._inverse_pivots.data_ptr(),
        )  # fmt: skip

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        x = torch.empty_like(rhs)
        for b, row in zip(rhs, x, strict=True):  # which index_select takes far faster than a matrix
            ordered = b.index_select(0, self._symbolic.order).to(torch.float64)
            self._symbolic.library.solve(*self._factor, ordered.data_ptr())
            row.copy_(ordered.index_select(0, self._symbolic.inverse))
        return x


class Qdldl:
    name = "qdldl"
    device_types = ("cpu",)

    @staticmethod
    @cache
    def _availability() -> Availability:
        library = _library()
        if isinstance(library, str):
            return Availability(missing=library)
        return Availability(version=importlib.metadata.version("qdldl"))

    def availability(self) -> Availability:
        return self._availability()

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return kind == "spd" and dtype in (torch.float32, torch.float64)

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> QdldlSymbolic:
        library = _library()
        assert isinstance(
            library, _Library
        )  # nothing is analysed by an engine that is not available
        return QdldlSymbolic(library, structure, triangle)


ENGINE = Qdldl()
