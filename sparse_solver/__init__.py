"""Differentiable direct solves with sparse matrices for PyTorch: x = A(w)⁻¹ b, with gradients to A's entries and b."""

from ._engines import Availability
from ._factorization import Factorization, Info
from ._functional import clear_cache, engines, factorize, solve
from ._legacy import SparseSolver
from ._pattern import Pattern
from ._quadratic import Multipliers, QuadraticProgram, minimize_quadratic
from ._version import __version__
from .errors import (
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
)

__all__ = [
    "Availability",
    "DeviceError",
    "DtypeError",
    "EngineError",
    "EngineUnavailableError",
    "EngineUnsupportedError",
    "Factorization",
    "IndexRangeError",
    "InfeasibleConstraintsError",
    "Info",
    "LayoutError",
    "Multipliers",
    "NonFiniteError",
    "NotPositiveDefiniteError",
    "NotSymmetricError",
    "OptionError",
    "Pattern",
    "QuadraticProgram",
    "RedundantConstraintsError",
    "ShapeError",
    "SingularMatrixError",
    "SparseSolver",
    "SparseSolverError",
    "TransformError",
    "TriangleError",
    "__version__",
    "clear_cache",
    "engines",
    "factorize",
    "minimize_quadratic",
    "solve",
]
