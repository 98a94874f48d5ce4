"""The errors that `sparse_solver` raises.

Each error is a `SparseSolverError`, and also the built-in error (or `torch.linalg.LinAlgError`)
that a caller would expect, so that ``except ValueError`` works. Data that a handler may need, such
as a row or the name of an engine, are attributes of the error.

Examples
--------
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

from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # missing in torch's stubs

__all__ = [
    "CollectiveError",
    "ConvergenceError",
    "DerivativeError",
    "DeviceError",
    "DtypeError",
    "EngineError",
    "EngineUnavailableError",
    "EngineUnsupportedError",
    "IndexRangeError",
    "InfeasibleConstraintsError",
    "LayoutError",
    "MemoryLimitError",
    "NonFiniteError",
    "NotPositiveDefiniteError",
    "NotSymmetricError",
    "OptionError",
    "RedundantConstraintsError",
    "ShapeError",
    "SingularMatrixError",
    "SparseSolverError",
    "TransformError",
    "TriangleError",
    "ValueChangedError",
]


class SparseSolverError(Exception):
    """The base class of all errors of this package.

    Parameters
    ----------
    message : str
        What was passed, what was expected, and what to do.
    **data
        The attributes of the error.
    """

    def __init__(self, message: str = "", **data: Any):
        # `BaseException.__new__` stores the message. torch.compile traces this, though neither
        # super().__init__ nor, in torch 2.11, self.__dict__.update.
        for name, value in data.items():
            setattr(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling keeps the data, for instance between a DataLoader's workers and its process.
        return (type(self), self.args, self.__dict__)

    def __getattr__(self, name: str) -> Any:
        # The attributes depend on the error; this method tells type checkers that they may exist.
        raise AttributeError(f"{type(self).__name__} carries no {name!r}")


class ShapeError(SparseSolverError, ValueError):
    """Shapes do not fit each other, or a matrix that must be square is not."""


class DtypeError(SparseSolverError, TypeError):
    """A dtype is not supported, or two dtypes differ."""


class DeviceError(SparseSolverError, ValueError):
    """Tensors are on different devices, or on a device for which there is no engine."""


class LayoutError(SparseSolverError, TypeError):
    """An argument is not a tensor of the expected layout, such as sparse COO, CSR or CSC."""


class IndexRangeError(SparseSolverError, IndexError):
    """An index lies outside the matrix, or index tensors are malformed.

    Attributes
    ----------
    entry : int or None
        The position of the entry among all entries.
    index : int or None
        The index that lies outside.
    """

    entry: int | None = None
    index: int | None = None


class OptionError(SparseSolverError, ValueError):
    """An option has a value that does not exist, or that contradicts another option."""


class TriangleError(SparseSolverError, ValueError):
    """An entry lies outside the triangle that ``triangle=`` names.

    Attributes
    ----------
    row, col : int or None
        The place of the entry.
    """

    row: int | None = None
    col: int | None = None


class NonFiniteError(SparseSolverError, ValueError):
    """An argument or a result contains NaN or infinity.

    Attributes
    ----------
    argument : str or None
        The name of the argument, for example "values" or "b".
    index : int or None
        The position of the entry in the argument.
    """

    argument: str | None = None
    index: int | None = None


class NotSymmetricError(SparseSolverError, ValueError):
    """A symmetric method was requested, and the values are not symmetric.

    Attributes
    ----------
    row, col : int or None
        The place of the entry that differs most from its opposite.
    difference : float or None
        The difference of both entries.
    """

    row: int | None = None
    col: int | None = None
    difference: float | None = None


class NotPositiveDefiniteError(SparseSolverError, LinAlgError):
    """A pivot of a Cholesky factorisation is not positive.

    Attributes
    ----------
    row : int or None
        The row of the pivot, in the caller's numbering.
    engine : str or None
        The engine that factored.
    """

    row: int | None = None
    engine: str | None = None


class SingularMatrixError(SparseSolverError, LinAlgError):
    """The matrix is singular, structurally or to working precision.

    It is also raised where a matrix is regular, but so ill-conditioned that the largest entries of
    a solution have no correct digit.

    Attributes
    ----------
    row : int or None
        The row that makes the matrix singular, if there is a single one.
    engine : str or None
        The engine that factored; None if the structure already is singular.
    """

    row: int | None = None
    engine: str | None = None


class RedundantConstraintsError(SparseSolverError, LinAlgError):
    """Constraints of a minimisation depend on each other: their multipliers are not unique.

    Attributes
    ----------
    rows : tuple of int
        The rows of C that depend on each other.
    """

    rows: tuple[int, ...] = ()


class InfeasibleConstraintsError(SparseSolverError, ValueError):
    """Constraints of a minimisation contradict each other: no x satisfies all of them.

    Attributes
    ----------
    rows : tuple of int
        The rows of C that contradict each other.
    """

    rows: tuple[int, ...] = ()


class ConvergenceError(SparseSolverError, RuntimeError):
    """Newton's method found no solution, or conjugate gradients no accurate one.

    Attributes
    ----------
    x : Tensor or None
        The last iterate of Newton's method; None for conjugate gradients.
    report : Report or None
        The iterations of Newton's method, and the reason why they ended.
    iterations : int or None
        The iterations of conjugate gradients.
    residual : float or None
        The largest backward error that they reached; None if there was no right-hand side yet.
    """

    x: Any = None
    report: Any = None
    iterations: int | None = None
    residual: float | None = None


class DerivativeError(SparseSolverError, ValueError):
    """A Jacobian is not the derivative of its residual, or a Hessian not that of its gradient.

    Attributes
    ----------
    row : int or None
        The row of the entry that differs most; None if the pattern lacks the entry.
    col : int or None
        The column of the entry.
    difference : float or None
        By how much the entry differs; without a row, a scattered combination of its column.
    """

    row: int | None = None
    col: int | None = None
    difference: float | None = None


class ValueChangedError(SparseSolverError, RuntimeError):
    """A value that a derivative needs was changed in place before the derivative was computed."""


class CollectiveError(SparseSolverError, RuntimeError):
    """Ranks of a distributed solve made different calls, or one of them failed unexpectedly.

    Attributes
    ----------
    calls : tuple of str
        The call that each rank made.
    """

    calls: tuple[str, ...] = ()


class EngineUnavailableError(SparseSolverError, RuntimeError):
    """The engine cannot be used on this machine.

    Attributes
    ----------
    engine : str or None
        The engine.
    hint : str or None
        Why the engine cannot be used, and what to install.
    """

    engine: str | None = None
    hint: str | None = None


class EngineUnsupportedError(SparseSolverError, NotImplementedError):
    """The engine cannot solve with this kind of matrix, or with this dtype or device.

    Attributes
    ----------
    engine : str or None
        The engine.
    """

    engine: str | None = None


class EngineError(SparseSolverError, RuntimeError):
    """A native library failed, or no method factors the matrix accurately.

    Attributes
    ----------
    engine : str or None
        The engine.
    code : int or None
        The error code of the library.
    out_of_memory : bool
        Whether there was not enough memory. Other failures of a library are defects, to be
        reported.
    """

    engine: str | None = None
    code: int | None = None
    out_of_memory: bool = False


class MemoryLimitError(SparseSolverError, MemoryError):
    """A factor would need more memory than is free.

    Attributes
    ----------
    engine : str or None
        The engine.
    needed_bytes, free_bytes : int or None
        The memory that the factor needs, by the prediction of the analysis, and the memory that
        this process may still use.
    """

    engine: str | None = None
    needed_bytes: int | None = None
    free_bytes: int | None = None


class TransformError(SparseSolverError, NotImplementedError):
    """Torch would compute this wrongly, or cannot transform it; the message names another way."""
