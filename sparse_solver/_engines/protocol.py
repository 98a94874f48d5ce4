"""What an engine is: analyse a pattern once, factor many values, solve many right-hand sides.

    Engine.analyze(structure, kind, ...) -> Symbolic.factor(matrix) -> Factor.substitute(rhs)

A file or folder beside this one implements it for one library. Vectors are the rows of a (k, n)
tensor, which is the column-major n-by-k array that these libraries read; a single vector needs no
copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from .._sparse.both_triangles import BothTriangles
from .._sparse.matrix import Matrix
from .._sparse.structure import Structure
from .._sparse.triangle import Arrangement
from ..errors import NotPositiveDefiniteError
from .pivots import Pivots

# What a matrix is taken for. "spd": symmetric (complex: Hermitian) positive definite; "symmetric":
# A = Aᵀ, also for complex values; "hermitian" occurs for complex values only.
Kind = Literal["spd", "symmetric", "hermitian", "general"]

# How supernodal engines factor them.
METHODS: dict[Kind, str] = {
    "spd": "Cholesky",
    "symmetric": "LDLᵀ",
    "hermitian": "LDLᴴ",
    "general": "LU",
}


def is_hermitian(kind: Kind, dtype: torch.dtype) -> bool:
    """Whether the opposite of an entry is its conjugate rather than the entry itself."""
    return dtype.is_complex and kind in ("spd", "hermitian")


@cache
def pivot_growth_in_doubt(dtype: torch.dtype) -> float:
    """The growth 1 / √d from which on a Cholesky pivot d may be a rounding error.

    Pivots are relative to their diagonal entries. A singular matrix rarely gives a pivot of zero: a
    pivot of some ε gives 1 / √ε. If the null vector is small at the last unknown, the last pivot is
    larger, but then an earlier one is small too: of 18,000 singular matrices, one in a hundred had
    no pivot below 10⁴ ε, and none only pivots above 5·10⁷ ε (single precision: 2·10⁴ ε). This limit
    is at d = 2·10⁸ ε (6·10⁴ ε). The pivots of other matrices are mostly of order one.
    """
    return float(0.1 * torch.finfo(dtype).eps ** -0.3)


def is_doubtful(smallest_pivot: float, dtype: torch.dtype) -> bool:
    """Whether a pivot of this size, relative to its diagonal entry, may be a rounding error."""
    return not smallest_pivot > pivot_growth_in_doubt(dtype) ** -2


def not_positive_definite(engine: str, method: str, row: int | None) -> NotPositiveDefiniteError:
    """The error for a pivot that is not positive, at the caller's `row` unless that is unknown."""
    place = "" if row is None else f" at row {row}"
    return NotPositiveDefiniteError(
        f"the matrix is not positive definite: {method} met a pivot that is not positive{place}; "
        f"assume='symmetric' (complex: 'hermitian') or 'auto' also factors indefinite matrices",
        row=row,
        engine=engine,
    )


class Versioned(Protocol):
    """A native library that reports its version."""

    version: str


@dataclass(frozen=True)
class Availability:
    """Whether an engine can be used on this machine.

    Attributes
    ----------
    version : str or None
        The version of the library; None if it is missing or does not report one.
    missing : str or None
        Why the engine cannot be used, with the ``pip install`` that helps, if one does on this
        machine; None if it can be used.
    instruction_set : str or None
        The instructions of the code that the library takes on this processor; None if it does not
        tell.

    Examples
    --------
    >>> import sparse_solver as ss
    >>> print(ss.Availability(missing="pip install qdldl"))
    not available: pip install qdldl
    """

    version: str | None = None
    missing: str | None = None
    instruction_set: str | None = None

    @property
    def installed(self) -> bool:
        """Whether the engine can be used."""
        return self.missing is None

    def __str__(self) -> str:
        if self.missing:
            return f"not available: {self.missing}"
        instructions = f", {self.instruction_set} instructions" if self.instruction_set else ""
        return (self.version or "unknown version") + instructions


def availability_of(library: Versioned | str) -> Availability:
    """The availability of an engine by its library, or by the reason why there is none."""
    if isinstance(library, str):
        return Availability(missing=library)
    return Availability(version=library.version)


class Sizes(Protocol):
    """What a factorisation costs, as far as that is known.

    nnz : entries of the factor or factors
    flops : floating-point operations of this factorisation
    memory_bytes : the memory of what the factorisation keeps
    """

    @property
    def nnz(self) -> int | None: ...
    @property
    def flops(self) -> int | None: ...
    @property
    def memory_bytes(self) -> int | None: ...


class Factor(Sizes, Protocol):
    """One numeric factorisation on the device of the matrix.

    It owns its memory, which is released with the object.

    arrangement, values : a private copy of the matrix that was factored, to form residuals with
    perturbed_pivots : pivots that were too small and were enlarged
    negative_eigenvalues : how many a symmetric or Hermitian matrix has
    sound : whether the pivots alone show that all solutions are good: those of a positive definite
        matrix, none of which may be a rounding error of its diagonal entry
    """

    perturbed_pivots: int | None
    sound: bool

    @property
    def arrangement(self) -> Arrangement: ...
    @property
    def values(self) -> Tensor: ...
    @property
    def negative_eigenvalues(self) -> int | None: ...

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        """Apply A⁻¹ or A⁻ᵀ to the rows of the contiguous (k, n) `rhs`, k ≥ 1, in a new tensor."""


class Symbolic(Protocol):
    """The analysis of a pattern: ordering, elimination tree, places of the fill.

    method : how it factors, in words
    """

    method: str

    def factor_nnz(self, matrix: Matrix) -> int | None:
        """The predicted entries of a Cholesky factor; an engine may have to factor the matrix."""

    def factor(self, matrix: Matrix) -> Factor:
        """Factor the matrix, whose values are finite.

        Raises NotPositiveDefiniteError (kind "spd") or SingularMatrixError.
        """

    def analyze_values(self, matrix: Matrix) -> Symbolic | None:
        """A more robust analysis, which uses these values; None if there is none."""


@runtime_checkable
class UpperSymbolic(Protocol):
    """An analysis that takes positive definite matrices whose entries were not looked at."""

    def reorder(self, triangles: BothTriangles) -> BothTriangles:
        """The triangles of the structure, in the order in which the values are wanted."""

    def factor_upper(self, upper: Tensor, diagonal: Tensor) -> Factor:
        """Factor a matrix by its upper triangle, in that order; `diagonal` is part of it.

        The factor is `sound` only if all entries are numbers and the diagonal is positive. Raises
        as `factor` does.
        """


class DenseFactor(Factor, Protocol):
    """A factor of the dense array `dense`, (n, n)."""

    @property
    def dense(self) -> Any: ...

    def substitute_columns(self, rhs: Any, transpose: bool) -> Any:
        """Apply A⁻¹ or A⁻ᵀ to an array (n,) or (n, k), in a new array of double precision."""


@runtime_checkable
class DenseSymbolic(Protocol):
    """An analysis that takes dense NumPy arrays of double precision."""

    dtype: torch.dtype

    def factor_dense(self, dense: Any) -> DenseFactor:
        """Factor an array that is stored by columns; raises as `factor` does."""


@runtime_checkable
class NonBlockingSymbolic(Protocol):
    """An analysis on a device that can factor without synchronising the host."""

    def factor_non_blocking(self, matrix: Matrix) -> Factor:
        """Factor any values; raise nothing about them, and report nothing about the factor."""


class Engine(Protocol):
    """A library that factors sparse matrices.

    device_types : the types of devices whose matrices it takes
    """

    name: str
    device_types: tuple[str, ...]

    def availability(self) -> Availability:
        """Look for the library, and load it the first time."""

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        """Whether it factors matrices of this kind and dtype."""

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> Symbolic:
        """Analyse a structure that holds the whole matrix, or one `triangle` of it."""


@runtime_checkable
class Iterative(Protocol):
    """An engine, or an analysis of one, that iterates instead of factoring.

    Its factors are `IterativeFactor`s. They raise ConvergenceError where a direct method would be
    needed, at `Symbolic.factor` or for a right-hand side.
    """

    is_iterative: bool


class ApproximateInverse(Sizes, Protocol):
    """An approximation of A⁻¹, which conjugate gradients are preconditioned by.

    Its sizes are those of what belongs to it, and not to the caller.

    method : what it is and what it is used for, in words
    proof : what shows that A is positive definite, which need not be proved then; or None
    is_definite : whether it is known to be positive definite
    """

    method: str

    @property
    def proof(self) -> str | None: ...
    @property
    def is_definite(self) -> bool: ...

    def apply(self, rhs: Tensor) -> Tensor:
        """Apply it to the rows of (k, n) vectors in double precision, in a new tensor.

        Raises ConvergenceError where that fails.
        """


class Candidate(Protocol):
    """A matrix that may be iterated with, for as long as that is cheaper than to factor it.

    iteration_bound : the most iterations of a solve, as far as the values show; else infinity
    iteration_cost : that of an iteration for one right-hand side, in bytes moved
    is_dominant : whether the values suggest that the matrix can be proved not to be singular
    """

    iteration_bound: float
    iteration_cost: float
    is_dominant: bool

    def limit(self, budget: int) -> Symbolic:
        """The analysis of this matrix, whose factor iterates at most so often in all its solves.

        All right-hand sides count. Where more is needed, or the matrix is not certainly positive
        definite, ConvergenceError is raised.
        """

    def precondition(
        self, inverse: ApproximateInverse, limit: int | None, takes_doubtful: bool
    ) -> Symbolic:
        """The analysis of this matrix, to iterate at most so often in each solve.

        Where more is needed, or the matrix is not certainly positive definite, ConvergenceError is
        raised. Without a limit, no other method follows, and matrices that are singular or not
        positive definite are refused with the error that fits. `takes_doubtful` says whether nearly
        singular ones are taken; to judge their solutions takes dozens of solves.
        """


@runtime_checkable
class IterativeSymbolic(Iterative, Protocol):
    """An analysis of an engine that iterates."""

    def examine(self, matrix: Matrix) -> Candidate:
        """What it would cost to iterate with this matrix, whose diagonal is positive."""


@runtime_checkable
class IterativeFactor(Protocol):
    """What the factors of an iterative engine tell in addition.

    iterations : those of the latest solve; None before the first one
    backward_error : the largest one of the latest solve
    proof : what shows that the matrix is not singular
    """

    @property
    def iterations(self) -> int | None: ...
    @property
    def backward_error(self) -> float | None: ...
    @property
    def proof(self) -> str: ...


@runtime_checkable
class SolvesHalf(Protocol):
    """A factor that may apply one half of the inverse of a positive definite matrix.

    With P A Pᵀ = L Lᴴ that is B = Pᵀ L⁻ᴴ P, so that B Bᴴ = A⁻¹. Blocks on the diagonal of A have
    their own blocks in B.

    has_halves : whether this factor can, which may depend on the kind of the matrix
    """

    @property
    def has_halves(self) -> bool: ...

    def substitute_half(self, rhs: Tensor, adjoint: bool) -> Tensor:
        """Apply B or Bᴴ to the rows of the contiguous (k, n) `rhs`, k ≥ 1, in a new tensor."""


@runtime_checkable
class TellsPivots(Protocol):
    """A factor of the matrix itself, without perturbations, that tells its pivots."""

    def pivots(self) -> Pivots:
        """The pivots, and where they stand in the matrix; scalings are undone."""


@runtime_checkable
class OrdersRows(Protocol):
    """An engine that tells the order in which it eliminates rows.

    ordering : how it finds the order, in words
    dissects : whether that is nested dissection
    """

    ordering: str
    dissects: bool

    def availability(self) -> Availability: ...

    def order_rows(self, arrangement: Arrangement, n: int) -> Tensor:
        """(n,) the row at each step of the elimination of a matrix in the arrangement "upper"."""


@runtime_checkable
class Compiled(Protocol):
    """An engine that compiles when it is first used; a default only once it has, or without MKL."""

    @property
    def is_ready(self) -> bool:
        """Whether it was compiled in this process already."""


@runtime_checkable
class KeepsMemory(Protocol):
    """An engine, or an object of one, that keeps the memory of released factors for new ones."""

    def release_idle(self) -> None:
        """Release that memory."""
