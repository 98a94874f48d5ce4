"""A factor in single precision of a matrix in double precision, which takes half the memory.

Solutions are as accurate as with a factor in double precision. Those of real positive definite
matrices are found by conjugate gradients, which the factor preconditions, and others by iterative
refinement, as `judge` judges them. Where single precision is not enough, a factor in double
precision follows.

Sources: A. Buttari, J. Dongarra, J. Kurzak, P. Luszczek, S. Tomov, "Using mixed precision for
sparse matrix computations to enhance the performance while achieving 64-bit accuracy", ACM Trans.
Math. Software 34, 2008. E. Carson, N. J. Higham, "Accelerating the solution of linear systems by
iterative refinement in three precisions", SIAM J. Sci. Comput. 40, 2018.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..._engines.analysis import Analysis, analyze
from ..._engines.iterate_or_factor import find_candidate
from ..._engines.protocol import Candidate, Factor, Kind, Symbolic, is_hermitian
from ..._sparse.matrix import Matrix
from ..._sparse.triangle import Arrangement
from ..._sparse.values import row_powers, single_of, to_double
from ...errors import ConvergenceError, EngineError, NotPositiveDefiniteError, SingularMatrixError

# Iterations of conjugate gradients with such a factor; where it helps, 4 to 16 are needed. Each
# takes one substitution, and a factorisation in double precision takes about as long as so many.
MOST_ITERATIONS = 50
_PROOF = "the pivots of the factor in single precision"


def analyze_in_single(
    matrix: Matrix, kind: Kind, triangle: str | None, engine: str | None
) -> Analysis:
    """The analysis of a matrix in double precision that is factored in single precision."""
    power = row_powers(matrix.canonical.unsqueeze(0)).view(1)
    rounded = matrix.rounded(single_of(matrix.dtype), power)
    analysis = analyze(rounded, kind, triangle, engine)
    found = find_candidate(matrix, triangle) if kind == "spd" else None
    candidate = None if found is None else found[1]
    symbolic = MixedSymbolic(analysis.symbolic, _Rounded(rounded, power, kind), candidate)
    return Analysis(symbolic, analysis.engine, analysis.reason, analysis.seconds)


class _Rounded(NamedTuple):
    """A matrix that was rounded: `matrix` is that times `power`, in single precision."""

    matrix: Matrix
    power: Tensor
    kind: Kind


class MixedSymbolic:
    """The analysis of one matrix, to factor it in single precision.

    symbolic : the analysis of the rounded matrix
    candidate : the matrix in double precision, to iterate with; None if that is not possible
    """

    def __init__(self, symbolic: Symbolic, rounded: _Rounded, candidate: Candidate | None):
        self._symbolic, self._rounded, self._candidate = symbolic, rounded, candidate
        way = "iterative refinement" if candidate is None else "conjugate gradients"
        self.method = f"{symbolic.method} in single precision with {way}"

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return self._symbolic.factor_nnz(self._rounded.matrix)

    def factor(self, matrix: Matrix) -> Factor:
        try:
            factor = self._symbolic.factor(self._rounded.matrix)
        except (NotPositiveDefiniteError, SingularMatrixError, EngineError) as error:
            message = f"single precision is not enough: {error}"
            raise ConvergenceError(message, iterations=0, residual=None) from error
        inverse = SingleInverse(factor, self._rounded.power, self.method)
        if self._candidate is not None:
            # Few iterations are needed also where solutions have to be judged one by one.
            preconditioned = self._candidate.precondition(inverse, MOST_ITERATIONS, True)
            return preconditioned.factor(matrix)
        hermitian = is_hermitian(self._rounded.kind, matrix.dtype)
        return RefinedFactor(inverse, factor, matrix.arrange(factor.arrangement, hermitian))

    def analyze_values(self, matrix: Matrix) -> MixedSymbolic | None:
        better = self._symbolic.analyze_values(self._rounded.matrix)
        if better is None:
            return None
        return MixedSymbolic(better, self._rounded, self._candidate)


class SingleInverse:
    """The inverse of a matrix by its factor in single precision; see `ApproximateInverse`.

    It preconditions only if the factor is that of a positive definite matrix, by Cholesky.
    """

    is_definite = True

    def __init__(self, factor: Factor, power: Tensor, method: str):
        self._factor, self._power, self.method = factor, power, method
        self.nnz, self.flops, self.memory_bytes = factor.nnz, factor.flops, factor.memory_bytes
        self.proof = _PROOF if factor.sound else None

    def apply(self, rhs: Tensor, transpose: bool = False) -> Tensor:
        powers = row_powers(rhs)
        scaled = (rhs * powers).to(single_of(rhs.dtype))
        x = to_double(self._factor.substitute(scaled, transpose))
        return x.mul_(self._power / powers)


class RefinedFactor:
    """A factor in single precision for systems in double precision, whose solutions are refined.

    values : in double precision
    """

    sound = False

    def __init__(self, inverse: SingleInverse, factor: Factor, values: Tensor):
        self._inverse, self.values = inverse, values
        self.arrangement: Arrangement = factor.arrangement
        self.perturbed_pivots = factor.perturbed_pivots
        self.negative_eigenvalues = factor.negative_eigenvalues
        self.nnz, self.flops = factor.nnz, factor.flops

    @property
    def memory_bytes(self) -> int | None:
        own = self._inverse.memory_bytes
        return None if own is None else own + self.values.nbytes

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        return self._inverse.apply(rhs, transpose)
