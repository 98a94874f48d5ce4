"""QDLDL: LDLᵀ by simple loops after an AMD ordering, the fastest method where fill is little.

It takes real symmetric positive definite matrices and computes in float64, for float32 too. The C
functions of the library in the `qdldl` package are called directly, because the package's Python
classes keep one factorisation each, do not say whether it succeeded, and hold Python's global
lock. Only the ordering comes from them.

Source: B. Stellato, G. Banjac, P. Goulart, A. Bemporad and S. Boyd, "OSQP: an operator splitting
solver for quadratic programs", Math. Prog. Comp. 12, 2020; the header qdldl.h.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from ctypes import c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from .._sparse.both_triangles import BothTriangles
from .._sparse.matrix import Matrix
from .._sparse.structure import Structure, row_major, row_pointers
from .._sparse.triangle import Arrangement, arrangement_of
from .._sparse.values import new_numbers, permute_columns
from .._torch.modes import outside_transforms
from .free_memory import check_memory
from .pivots import Pivots, read_pivots
from .protocol import Availability, Kind, is_doubtful, not_positive_definite


class _Library:
    """The C functions, with their argument types; pointers are to 64-bit integers and doubles."""

    def __init__(self) -> None:
        import qdldl

        library = ctypes.CDLL(qdldl.__file__)
        self.etree, self.factor = library.QDLDL_etree, library.QDLDL_factor
        self.solve = library.QDLDL_solve
        self.forward, self.backward = library.QDLDL_Lsolve, library.QDLDL_Ltsolve
        # n; Ap, Ai, work, Lnz, etree
        self.etree.argtypes, self.etree.restype = (c_int64, *[c_void_p] * 5), c_int64
        # n; Ap, Ai, Ax, Lp, Li, Lx, D, Dinv, Lnz, etree; work arrays of bytes, integers, doubles
        self.factor.argtypes, self.factor.restype = (c_int64, *[c_void_p] * 13), c_int64
        # n; Lp, Li, Lx, Dinv, x
        self.solve.argtypes, self.solve.restype = (c_int64, *[c_void_p] * 5), None
        # n; Lp, Li, Lx, x
        for half in (self.forward, self.backward):
            half.argtypes, half.restype = (c_int64, *[c_void_p] * 4), None
        self._make_solver = qdldl.Solver

    def order(self, arrangement: Arrangement, n: int) -> Tensor:
        """The AMD ordering (n,) of a matrix in the arrangement "upper"."""
        from scipy.sparse import csr_matrix

        # The constructor also factors, which cannot fail for the identity.
        identity = (arrangement.rows == arrangement.col).double().numpy()
        indices = arrangement.col.numpy(), arrangement.crow.numpy()
        upper = csr_matrix((identity, *indices), shape=(n, n)).tocsc()
        return torch.from_numpy(self._make_solver(upper, upper=True).factors()[2]).to(torch.int64)


@cache
def _library() -> _Library | str:
    """The library, or the reason why there is none."""
    try:
        library = _Library()
    except ImportError as error:
        return f"{error}; pip install qdldl"
    except (OSError, AttributeError) as error:
        return f"this build of the qdldl package hides its C functions ({error})"
    # Only a solve shows whether the library was built with the number types that are used here.
    with outside_transforms():
        structure = Structure(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), (2, 2))
        matrix = Matrix(structure, torch.tensor([4.0, 1.0, 3.0], dtype=torch.float64))
        factor = QdldlSymbolic(library, structure, "upper").factor(matrix)
        x = factor.substitute(torch.tensor([[6.0, 7.0]], dtype=torch.float64), False)
        solved = torch.allclose(x, torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    return library if solved else "this build of the qdldl package uses other number types"


class QdldlSymbolic:
    """The AMD ordering of a pattern, and its elimination tree.

    order : (n,) the row at each step of the elimination
    gathers : (1, n) the order, and the step of each row
    source : where each value of the reordered matrix is in the arrangement
    at_diagonal : (n,) where the diagonal is in the reordered matrix
    Ap, Ai : the upper triangle of the reordered matrix by columns
    Lp, Li : the pattern of L; every factorisation writes the same numbers, so all of them share it
    """

    method = "LDLᵀ without exchanges"

    def __init__(self, library: _Library, structure: Structure, triangle: str | None):
        self.library, self.n = library, structure.shape[0]
        self.arrangement = arrangement_of(structure, "upper", triangle)
        self.order = library.order(self.arrangement, self.n)
        step = torch.empty_like(self.order)
        step[self.order] = torch.arange(self.n)
        i, j = step[self.arrangement.rows], step[self.arrangement.col]
        # The upper triangle by columns is the lower triangle by rows.
        low, high = torch.minimum(i, j), torch.maximum(i, j)
        self.source = row_major(high, low)
        self.Ap, self.Ai = row_pointers(high[self.source], self.n), low[self.source]
        self.at_diagonal = self.Ap[1:] - 1
        self.Lnz, self.etree, work = torch.empty((3, self.n), dtype=torch.int64)
        arrays = (self.Ap, self.Ai, work, self.Lnz, self.etree)
        below = library.etree(self.n, *(array.data_ptr() for array in arrays))
        assert below >= 0, "the arrangement is an upper triangle with its whole diagonal"
        check_memory("qdldl", 2 * below, torch.int64)  # the rows of L, and its entries
        self.Lp, self.Li = (torch.empty(k, dtype=torch.int64) for k in (self.n + 1, below))
        self.nnz: int = below + self.n
        self.flops = int(((self.Lnz + 1) ** 2).sum())
        self.gathers = self.order.unsqueeze(0), step.unsqueeze(0)
        # Addresses for the calls, found once: for a small system that takes as long as a call.
        self.pattern = self.n, self.Ap.data_ptr(), self.Ai.data_ptr()
        self.L_pattern = self.Lp.data_ptr(), self.Li.data_ptr()
        self.tree = self.Lnz.data_ptr(), self.etree.data_ptr()

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return self.nnz

    def factor(self, matrix: Matrix) -> QdldlFactor:
        values = matrix.arrange(self.arrangement, hermitian=False)
        upper = values.index_select(0, self.source)
        return QdldlFactor(self, upper, upper.index_select(0, self.at_diagonal))

    def reorder(self, triangles: BothTriangles) -> BothTriangles:
        return triangles.reorder(self.source, self.at_diagonal)

    def factor_upper(self, upper: Tensor, diagonal: Tensor) -> QdldlFactor:
        return QdldlFactor(self, upper, diagonal)

    def analyze_values(self, matrix: Matrix) -> None:
        return None


class QdldlFactor:
    perturbed_pivots: int | None = 0
    negative_eigenvalues: int | None = 0
    has_halves = True

    def __init__(self, symbolic: QdldlSymbolic, reordered: Tensor, diagonal: Tensor):
        self._symbolic, self._reordered, self._dtype = symbolic, reordered, reordered.dtype
        pivots = self._eliminate()
        # An entry that is not a number makes a pivot that is none, and an infinite one this ratio.
        self.sound = not is_doubtful((pivots / diagonal).min().item(), self._dtype)

    @property
    def arrangement(self) -> Arrangement:
        return self._symbolic.arrangement

    @property
    def nnz(self) -> int | None:
        return self._symbolic.nnz

    @property
    def flops(self) -> int | None:
        return self._symbolic.flops

    @property
    def memory_bytes(self) -> int | None:
        return 8 * (self._symbolic.nnz + self._symbolic.n)

    @property
    def values(self) -> Tensor:
        values = torch.empty_like(self._reordered)
        return values.index_copy_(0, self._symbolic.source, self._reordered)

    def _eliminate(self) -> Tensor:
        """Compute L and D, and return the diagonal of D; raise unless it is positive."""
        symbolic, n = self._symbolic, self._symbolic.n
        below = symbolic.nnz - n
        check_memory("qdldl", below, torch.float64)
        reordered = self._reordered.to(torch.float64)
        # L, D and its inverse, which the factor keeps, and work arrays of doubles; then 3 n
        # integers and n bytes.
        self._numbers = new_numbers(reordered, below + 3 * n)
        integers = new_numbers(symbolic.order, 4 * n)
        at, at_integers = self._numbers.data_ptr(), integers.data_ptr()
        at_pivots = at + 8 * below
        L = *symbolic.L_pattern, at
        positive = symbolic.library.factor(
            *(*symbolic.pattern, reordered.data_ptr(), *L, at_pivots, at_pivots + 8 * n),
            *(*symbolic.tree, at_integers + 24 * n, at_integers, at_pivots + 16 * n),
        )
        pivots = self._diagonal_of_D()
        if positive != n:  # -1 if it stopped at a pivot of zero
            bad = ~(pivots > 0) if positive >= 0 else pivots == 0
            row = int(symbolic.order[int(torch.nonzero(bad)[0])])
            raise not_positive_definite("qdldl", "LDLᵀ", row)
        self._solve_arguments = (n, *L, at_pivots + 8 * n)
        return pivots

    def pivots(self) -> Pivots:
        order = self._symbolic.order.numpy()
        return read_pivots(self._diagonal_of_D().numpy(), order, order)

    def _diagonal_of_D(self) -> Tensor:
        """(n,) a view of where the library stores it."""
        below = self._symbolic.nnz - self._symbolic.n
        found: Tensor = self._numbers[below : below + self._symbolic.n]
        return found

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        order, step = self._symbolic.gathers
        solve, n = self._symbolic.library.solve, self._symbolic.n
        x = permute_columns(rhs, order).to(torch.float64)
        first = x.data_ptr()
        for at in range(first, first + 8 * x.numel(), 8 * n):
            solve(*self._solve_arguments, at)
        return permute_columns(x, step).to(self._dtype)

    def substitute_half(self, rhs: Tensor, adjoint: bool) -> Tensor:
        (order, step), library, n = self._symbolic.gathers, self._symbolic.library, self._symbolic.n
        x = permute_columns(rhs, order).to(torch.float64)
        roots = self._diagonal_of_D().rsqrt()  # inverted
        x = x if adjoint else x * roots
        substitute = library.forward if adjoint else library.backward
        L = self._solve_arguments[:4]
        first = x.data_ptr()
        for at in range(first, first + 8 * x.numel(), 8 * n):
            substitute(*L, at)
        return permute_columns(x * roots if adjoint else x, step).to(self._dtype)


class Qdldl:
    name = "qdldl"
    device_types: tuple[str, ...] = ("cpu",)
    ordering, dissects = "approximate minimum degree", False

    def availability(self) -> Availability:
        return _availability()

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return kind == "spd" and dtype in (torch.float32, torch.float64)

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> QdldlSymbolic:
        library = _library()
        assert isinstance(library, _Library)  # an engine that is not available analyses nothing
        return QdldlSymbolic(library, structure, triangle)

    def order_rows(self, arrangement: Arrangement, n: int) -> Tensor:
        library = _library()
        assert isinstance(library, _Library)  # an engine that is not available orders nothing
        return library.order(arrangement, n)


@cache
def _availability() -> Availability:
    library = _library()
    if isinstance(library, str):
        return Availability(missing=library)
    return Availability(version=importlib.metadata.version("qdldl"))


ENGINE = Qdldl()
