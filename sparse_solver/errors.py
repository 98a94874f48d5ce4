"""Everything that `sparse_solver` raises on purpose.

All are `SparseSolverError`s; each is also the built-in (or `torch.linalg`) error that a caller would
expect, so that ``except ValueError`` and ``except torch.linalg.LinAlgError`` keep working. What a
handler may want to act on (a row, an engine, a hint) is an attribute, not only text.

>>> import torch, sparse_solver as ss
>>> A = torch.tensor([[1.0, 0.0], [0.0, -1.0]]).to_sparse()
>>> try:
...     ss.solve(A, torch.ones(2), assume="spd")
... except ss.NotPositiveDefiniteError as error:
...     error.row
1
"""

from __future__ import annotations

from typing import Any

from torch.linalg import LinAlgError  # type: ignore[attr-defined]


class SparseSolverError(Exception):
    """Base of all errors of this package. Keyword arguments become attributes."""

    def __init__(self, message: str = "", **data: Any):
        # `BaseException.__new__` has stored the message; torch.compile cannot trace a super().__init__ of exceptions.
        self.__dict__.update(data)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process boundaries (DataLoader workers), with their data.
        return (type(self), self.args, self.__dict__)

    def __getattr__(self, name: str) -> Any:
        # The data differ from one raise to the next; tell type checkers that any name may be there.
        raise AttributeError(f"{type(self).__name__} carries no {name!r}")


class ShapeError(SparseSolverError, ValueError):
    """Shapes do not fit each other, or a matrix that must be square is not."""


class DtypeError(SparseSolverError, TypeError):
    """A dtype that cannot be solved with, or two that differ."""


class DeviceError(SparseSolverError, ValueError):
    """Tensors on different devices, or on one that no engine serves."""


class LayoutError(SparseSolverError, TypeError):
    """Not a tensor of the layout that was expected (sparse COO, CSR or CSC)."""


class IndexRangeError(SparseSolverError, IndexError):
    """An index lies outside the matrix (`index`, of the entry number `entry`), or index tensors are malformed."""

    entry: int | None = None
    index: int | None = None


class OptionError(SparseSolverError, ValueError):
    """An option has a value that does not exist, or that contradicts another one."""


class TriangleError(SparseSolverError, ValueError):
    """An entry (`row`, `col`) lies outside the triangle that ``triangle=`` names."""


class NonFiniteError(SparseSolverError, ValueError):
    """NaN or infinity in the values or the right-hand side (`argument`, and the entry or row, `index`)."""

    argument: str | None = None
    index: int | None = None


class NotSymmetricError(SparseSolverError, ValueError):
    """A symmetric method was asked for, and the values are not symmetric (`row`, `col`, `difference`)."""


class NotPositiveDefiniteError(SparseSolverError, LinAlgError):
    """Cholesky met a pivot that is not positive (`row`, in the caller's numbering; `engine`)."""

    row: int | None = None
    engine: str | None = None


class SingularMatrixError(SparseSolverError, LinAlgError):
    """The matrix is structurally or numerically singular (`engine`; `row` where one row is to blame)."""

    row: int | None = None
    engine: str | None = None


class RedundantConstraintsError(SparseSolverError, LinAlgError):
    """Constraints of a minimisation depend on each other (`rows` of C), so that the multipliers are not determined."""

    rows: tuple[int, ...] = ()


class InfeasibleConstraintsError(SparseSolverError, ValueError):
    """Constraints of a minimisation contradict each other (`rows` of C): no x satisfies all of them."""

    rows: tuple[int, ...] = ()


class ConvergenceError(SparseSolverError, RuntimeError):
    """Newton's method did not find a solution (`x`: the last iterate; `report`: a `Report`, with the reason)."""


class ValueChangedError(SparseSolverError, RuntimeError):
    """What a derivative needs was changed in place before it was computed."""


class CollectiveError(SparseSolverError, RuntimeError):
    """Ranks of a distributed solve made different calls (`calls`, by rank), or something unexpected failed on one of them."""

    calls: tuple[str, ...] = ()


class EngineUnavailableError(SparseSolverError, RuntimeError):
    """The engine is not installed on this machine (`engine`, `hint`: what to install)."""


class EngineUnsupportedError(SparseSolverError, NotImplementedError):
    """The engine exists, but cannot do this kind of matrix, dtype or device (`engine`)."""


class EngineError(SparseSolverError, RuntimeError):
    """The native library failed (`engine`, `code`): `out_of_memory`, or a defect to be reported."""

    out_of_memory: bool = False


class TransformError(SparseSolverError, NotImplementedError):
    """A derivative that torch would silently get wrong on this path; the message names the one to take."""
