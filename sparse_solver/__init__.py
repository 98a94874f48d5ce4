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
from ._gaussian import slogdet as _slogdet  # noqa: F401 - what `Pattern.slogdet` calls
from ._gaussian import symmetric_inverse as _inverse  # noqa: F401 - what `Pattern.logdet` calls
from ._gaussian.fields import divergence as _divergence  # noqa: F401 - which torch.distributions calls
from ._gaussian.fields.gaussian_field import GaussianField
from ._optimize.find_root import find_root
from ._optimize.minimize import minimize
from ._optimize.report import Iteration, Report
from ._quadratic.program import Multipliers, QuadraticProgram, minimize_quadratic
from ._solve.factorization import Factorization
from ._solve.functional import SparseSolver, clear_cache, engines, factorize, solve
from ._solve.info import Info
from ._solve.pattern import Pattern
from .errors import *  # noqa: F403 - the errors, which errors.__all__ lists
from .errors import __all__ as _error_names

__version__ = "0.2.0"

__all__ = [
    "Availability",
    "Energy",
    "Factorization",
    "GaussianField",
    "IndexedSum",
    "Info",
    "Iteration",
    "Multipliers",
    "Pattern",
    "QuadraticProgram",
    "Report",
    "RestrictedEnergy",
    "SparseSolver",
    "__version__",
    "clear_cache",
    "engines",
    "factorize",
    "find_root",
    "minimize",
    "minimize_quadratic",
    "solve",
    "synchronize",
    *_error_names,
]
