"""What an engine is: analyse a pattern once, factor many values, solve many right-hand sides.

    Engine.analyze(structure, kind, ...) -> Symbolic.factor(values) -> Factor.solve(rhs, transpose)

A file beside this one implements it for one library; `sparse_solver._engines` lists the files.
To the caller, vectors are the rows of a (k, n) tensor: that is the column-major n-by-k array that these
libraries read, and a single vector needs no copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from .._layout import Layout
from .._matrix import Matrix
from .._plain import finish, plainly
from .._structure import Structure
from ..errors import NotPositiveDefiniteError

# What a matrix is known to be. "spd": symmetric (complex: Hermitian) positive definite.
# "symmetric" is A = Aᵀ, also for complex values; "hermitian" occurs for complex values only.
Kind = Literal["spd", "symmetric", "hermitian", "general"]

CPU = torch.device("cpu")

# What can be solved with; an engine may take fewer.
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def is_hermitian(kind: Kind, dtype: torch.dtype) -> bool:
    """Whether the opposite of an entry is its conjugate rather than the entry itself."""
    return dtype.is_complex and kind in ("spd", "hermitian")


def not_positive_definite(engine: str, method: str, row: int | None) -> NotPositiveDefiniteError:
    """The error for a pivot that is not positive, at the caller's `row` where the engine knows it."""
    place = "" if row is None else f" at row {row}"
    return NotPositiveDefiniteError(
        f"the matrix is not positive definite: {method} met a pivot that is not positive{place}; "
        f"assume='symmetric' (complex: 'hermitian') or 'auto' factors indefinite matrices, too",
        row=row,
        engine=engine,
    )


def is_doubtful(smallest_pivot: float, dtype: torch.dtype) -> bool:
    """Whether a pivot of this size, relative to its diagonal entry, may be a rounding error.

    Singular matrices rarely give a zero pivot, mostly up to 600 ε (seen on Laplacians of 10⁴ unknowns).
    """
    return not smallest_pivot > 1e4 * torch.finfo(dtype).eps


@lru_cache(maxsize=8)
def scattered(n: int, dtype: torch.dtype, mean: float, device: torch.device = CPU, start: int = 0) -> Tensor:
    """(1, n) scattered numbers between mean − 1 and mean + 1, always the same ones: those from number `start` on.

    vmap forbids torch's generators where this may be called.
    """
    with plainly():
        i = torch.arange(start + 1, start + n + 1, dtype=torch.float64)
        numbers = (2 * torch.frac(i * i * 0.6180339887498949) - (1 - mean)).unsqueeze(0).to(device, dtype)
        finish(device)  # other streams will find them
        return numbers


class Versioned(Protocol):
    version: str


@dataclass(frozen=True)
class Availability:
    """Whether an engine can be used here: its `version`, or why it is `missing` and what to install."""

    version: str | None = None
    missing: str | None = None

    @classmethod
    def of(cls, library: Versioned | str) -> Availability:
        """That of an engine by its library, or by why there is none."""
        return cls(missing=library) if isinstance(library, str) else cls(version=library.version)

    @property
    def installed(self) -> bool:
        return self.missing is None

    def __str__(self) -> str:
        return self.version or "unknown version" if self.installed else f"not available: {self.missing}"


class Factor(Protocol):
    """One numeric factorisation, on the device of the matrix. Owns its memory, which is released with the object."""

    layout: Layout  # the arrangement of the matrix that was factored, and
    values: Tensor  # its values there: a private copy, by which residuals are formed
    nnz: int | None  # entries of the factor(s)
    flops: int | None  # floating-point operations of this factorisation
    memory_bytes: int | None
    perturbed_pivots: int | None
    negative_eigenvalues: int | None  # of a symmetric or Hermitian matrix
    # Whether the method is backward stable for its kind of matrix, so that residuals need not be looked at.
    stable: bool
    # Whether pivots are so small beside the diagonal entries that they came from (LU: beside the largest entry) that the
    # matrix may be singular, or nothing is known about them.
    doubtful: bool

    def solve(self, rhs: Tensor, transpose: bool) -> Tensor:
        """A⁻¹ or A⁻ᵀ applied to the rows of the contiguous (k, n) `rhs`, k ≥ 1, n ≥ 1, in a new tensor."""


class Symbolic(Protocol):
    """The analysis of a pattern: orderings, elimination tree, where the fill is."""

    def factor_nnz(self, matrix: Matrix) -> int | None:
        """The entries of a Cholesky factor; an engine that can only learn them by factoring uses these values."""

    def factor(self, matrix: Matrix) -> Factor:
        """Factor the matrix, whose values are finite.

        Raises NotPositiveDefiniteError (kind "spd") or SingularMatrixError.
        """

    def retry(self, matrix: Matrix) -> Symbolic | None:
        """A slower analysis that looks at these values, for when pivots had to be perturbed; None: no better one."""


@runtime_checkable
class FactorsAhead(Protocol):
    """A symbolic analysis on a device for which nobody needs to wait."""

    def factor_ahead(self, matrix: Matrix) -> Factor:
        """Like `Symbolic.factor`, of values that are whatever they are; nothing is raised, nor told about the factor."""


class Engine(Protocol):
    """A library that factors sparse matrices."""

    name: str
    device_types: tuple[str, ...]  # where the matrices that it takes lie

    def availability(self) -> Availability:
        """Looks for the library (loading it, the first time)."""

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool: ...

    def analyze(self, structure: Structure, kind: Kind, dtype: torch.dtype, stored: str | None) -> Symbolic:
        """`stored`: "lower" or "upper" if the structure holds only that triangle, else None."""


@runtime_checkable
class KeepsMemory(Protocol):
    """Something that keeps memory of dead factors for those to come: an engine, or a part of one."""

    def release_idle(self) -> None: ...
