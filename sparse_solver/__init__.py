"""Differentiable solves with sparse matrices for PyTorch: x = A(w)⁻¹ b.

Gradients flow to the stored entries of A and to b. Start with `Pattern` or `solve`; `factorize`
keeps a factor, `minimize_quadratic` adds constraints, and `IndexedSum` with `minimize` does
nonlinear problems. `sparse_solver.distributed` solves over MPI.
"""

from ._energy.energy import Energy
from ._energy.indexed_sum import IndexedSum
from ._energy.restricted_energy import RestrictedEnergy
from ._engines.protocol import Availability
from ._factor.pending_errors import synchronize
from ._optimize.find_root import find_root
from ._optimize.minimize import minimize
from ._optimize.report import Iteration, Report
from ._quadratic.program import Multipliers, QuadraticProgram, minimize_quadratic
from ._solve.factorization import Factorization, Info
from ._solve.functional import SparseSolver, clear_cache, engines, factorize, solve
from ._solve.pattern import Pattern
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

__version__ = "0.1.0"

__all__ = [
    "Availability",
    "CollectiveError",
    "ConvergenceError",
    "DeviceError",
    "DtypeError",
    "Energy",
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
    "RestrictedEnergy",
    "ShapeError",
    "SingularMatrixError",
    "SparseSolver",
    "SparseSolverError",
    "TransformError",
    "TriangleError",
    "ValueChangedError",
    "__version__",
    "clear_cache",
    "engines",
    "factorize",
    "find_root",
    "minimize",
    "minimize_quadratic",
    "solve",
    "synchronize",
]
