"""Differentiable direct solves with sparse matrices for PyTorch: x = A(w)⁻¹ b, with gradients to A's entries and b."""

from ._deferred import check_deferred
from ._engines import Availability
from ._factorization import Factorization, Info
from ._find_root import find_root
from ._functional import clear_cache, engines, factorize, solve
from ._indexed_sum import IndexedSum
from ._legacy import SparseSolver
from ._minimize import minimize
from ._pattern import Pattern
from ._quadratic import Multipliers, QuadraticProgram, minimize_quadratic
from ._report import Iteration, Report
from ._version import __version__
from .errors import (
    CollectiveError,
    ConvergenceError,
    DeviceError,
    DtypeError,
    EngineError,
    EngineUnavailableError,
    EngineUnsupportedError,
    IndexRangeError,
    InfeasibleConstraintsError,
    LayoutError,
    NonFiniteError,
    NotPositiveDefiniteError,
    NotSymmetricError,
    OptionError,
    RedundantConstraintsError,
    ShapeError,
    SingularMatrixError,
    SparseSolverError,
    TransformError,
    TriangleError,
    ValueChangedError,
)

__all__ = [
    "Availability",
    "CollectiveError",
    "ConvergenceError",
    "DeviceError",
    "DtypeError",
    "EngineError",
    "EngineUnavailableError",
    "EngineUnsupportedError",
    "Factorization",
    "IndexRangeError",
    "IndexedSum",
    "InfeasibleConstraintsError",
    "Info",
    "Iteration",
    "LayoutError",
    "Multipliers",
    "NonFiniteError",
    "NotPositiveDefiniteError",
    "NotSymmetricError",
    "OptionError",
    "Pattern",
    "QuadraticProgram",
    "RedundantConstraintsError",
    "Report",
    "ShapeError",
    "SingularMatrixError",
    "SparseSolver",
    "SparseSolverError",
    "TransformError",
    "TriangleError",
    "ValueChangedError",
    "__version__",
    "check_deferred",
    "clear_cache",
    "engines",
    "factorize",
    "find_root",
    "minimize",
    "minimize_quadratic",
    "solve",
]
