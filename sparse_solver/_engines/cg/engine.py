"""Conjugate gradients as an engine: real symmetric positive definite matrices, on any device.

Nothing is factored. `Symbolic.factor` proves that the matrix is not singular, and
`Factor.substitute` iterates. There are no tolerances to choose: a solution is as accurate as that
of a direct method, or there is none. The method is the right one where factors have much fill and
the matrix is well conditioned: random graphs, and large grids in three dimensions.

Source: M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems",
J. Res. Nat. Bur. Standards 49, 1952.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..._sparse.matrix import Matrix
from ..._sparse.structure import Structure
from ..._sparse.triangle import Arrangement, arrangement_of
from ..._sparse.values import is_finite, row_moduli, scaling_power, to_double
from ...errors import ConvergenceError
from ..protocol import Availability, Kind
from .iteration import DOUBLE_EPS, TARGET, Goal, Solution, solve
from .nonsingularity import Proof, find_proof
from .products import SymmetricMatrix

# The most iterations for n unknowns: without rounding errors n are enough. Where so many would take
# longer than a direct method in any case, it is a multiple of √n, as on grids in two dimensions.
_FEW, _PER_UNKNOWN = 200, 30
_MANY, _PER_ROOT = 10_000, 40
# ‖r‖ / ‖b‖ where the proof is weak, so that each solution is judged once more.
_LEAST_CONSISTENCY = 1.0


def most_iterations(n: int) -> int:
    """The most iterations for systems of n unknowns."""
    return min(_FEW + _PER_UNKNOWN * n, _MANY + _PER_ROOT * math.isqrt(n))


class CgSymbolic:
    """Index arrays of the whole matrix, which products are fastest with."""

    method = "conjugate gradients with the diagonal as preconditioner"
    is_iterative = True

    def __init__(self, structure: Structure, dtype: torch.dtype, triangle: str | None):
        arrangement = self.arrangement = arrangement_of(structure, "full", triangle)
        self.blocks = structure.block[1]
        fits = max(arrangement.nnz, structure.shape[0]) <= torch.iinfo(torch.int32).max
        index = torch.int32 if fits else torch.int64
        crow, col = arrangement.crow.to(index), arrangement.col.to(index)
        self.indices = crow, col, arrangement.rows
        self.longest = int(crow.diff().amax())  # entries of a row
        self.at_diagonal = torch.nonzero(arrangement.rows == arrangement.col).squeeze(-1)

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return None

    def factor(self, matrix: Matrix) -> CgFactor:
        return CgFactor(self, matrix.arrange(self.arrangement, hermitian=False))

    def analyze_values(self, matrix: Matrix) -> None:
        return None


class CgFactor:
    """A matrix that was proved to be positive definite, to solve with by iterating."""

    perturbed_pivots: int | None = None
    nnz: int | None = None
    flops: int | None = None

    def __init__(self, symbolic: CgSymbolic, values: Tensor):
        self._symbolic, self.values = symbolic, values
        where, sizes = (symbolic.indices, symbolic.at_diagonal), (symbolic.blocks, symbolic.longest)
        matrix = self._matrix = SymmetricMatrix(*where, to_double(values), *sizes)
        row_sums = matrix.row_sums() * matrix.inverse_diagonal
        self._norm = _norms(matrix, row_sums)
        limit = most_iterations(matrix.order)
        found = find_proof(matrix, self._norm, row_sums, limit)
        if found is None:
            raise ConvergenceError(
                f"conjugate gradients did not show within {limit} iterations that the matrix "
                f"is not singular: it is too ill-conditioned for them; use an engine that factors, "
                f"or engine=None",
                iterations=limit,
                residual=None,
            )
        self._proof: Proof = found
        eps = torch.finfo(values.dtype).eps
        self.sound = found.is_strong(eps)
        self.negative_eigenvalues: int | None = 0 if self.sound else None
        if self.sound:
            self._goal = Goal(eps, math.sqrt(eps), limit)
        else:  # what doubtful solutions are judged by has to be more accurate than they are
            self._goal = Goal(DOUBLE_EPS, _LEAST_CONSISTENCY, limit)
        self._latest: Solution | None = None

    @property
    def arrangement(self) -> Arrangement:
        return self._symbolic.arrangement

    @property
    def memory_bytes(self) -> int | None:
        matrix, values = self._matrix, self.values
        own = values.nbytes + 2 * matrix.diagonal.nbytes
        return own if matrix.values is values else own + matrix.values.nbytes

    @property
    def proof(self) -> str:
        """What shows that the matrix is not singular."""
        least = self._proof.eigenvalue
        return f"{self._proof.reason}; after scaling, no eigenvalue is below {least:.0e}"

    @property
    def iterations(self) -> int | None:
        """The iterations of the latest solve."""
        return None if self._latest is None else self._latest.iterations

    @property
    def backward_error(self) -> float | None:
        """The largest backward error of the latest solve."""
        return None if self._latest is None else self._latest.error

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        if not is_finite(rhs):  # its solution is not finite, either; the other ones are wanted
            finite = torch.isfinite(rhs).all(-1, keepdim=True)
            x = self.substitute(torch.where(finite, rhs, 0), transpose)
            return torch.where(finite, x, math.nan)
        matrix = self._matrix
        b = to_double(rhs)
        scale = _powers(matrix, b)
        b = (matrix.split(b) * scale).view_as(b)
        if matrix.units is None:
            solution = solve(matrix, self._norm, b, self._goal)
            x = matrix.split(solution.x) / scale
        else:
            b = b * matrix.units
            again = _powers(matrix, b)
            b = (matrix.split(b) * again).view_as(b)
            solution = solve(matrix, self._norm, b, self._goal)
            scaled = (matrix.split(solution.x) / again).view_as(b) * matrix.units
            x = matrix.split(scaled) / scale
        self._latest = solution._replace(x=b.new_empty(0))
        if not solution.accepted:
            raise _not_converged(solution, self._goal)
        return x.view_as(b).to(rhs.dtype)


def _powers(matrix: SymmetricMatrix, b: Tensor) -> Tensor:
    """(systems, 1) powers of two that bring the largest entries of the systems near one."""
    return scaling_power(row_moduli(matrix.split(b))).unsqueeze(-1)


def _norms(matrix: SymmetricMatrix, row_sums: Tensor) -> Tensor:
    """(blocks,) bounds of the norm of D^-½ A D^-½: the row sums of that, or those of D⁻¹ A."""
    norm = matrix.split(row_sums).amax(-1)
    if float(norm.amax()) <= 2:  # diagonally dominant, so that there is no much better bound
        return norm
    roots = matrix.inverse_diagonal.sqrt()
    return torch.minimum(norm, matrix.split(matrix.row_sums(roots) * roots).amax(-1))


def _not_converged(solution: Solution, goal: Goal) -> ConvergenceError:
    """The error for a right-hand side whose solution is not accurate."""
    return ConvergenceError(
        f"conjugate gradients ended after {solution.iterations} iterations with a backward error "
        f"of {solution.error:.1e}, where {TARGET * goal.eps:.1e} is needed: the matrix is too "
        f"ill-conditioned for them; use an engine that factors, or engine=None",
        iterations=solution.iterations,
        residual=solution.error,
    )


class Cg:
    name = "cg"
    device_types: tuple[str, ...] = ("cpu", "cuda")
    is_iterative = True

    def availability(self) -> Availability:
        return Availability(version=torch.__version__)

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return kind == "spd" and dtype in (torch.float32, torch.float64)

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> CgSymbolic:
        return CgSymbolic(structure, dtype, triangle)


ENGINE = Cg()
