"""What conjugate gradients would cost for a matrix, and iterating until a budget is used up."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..._sparse.matrix import Matrix
from ...errors import ConvergenceError, NotPositiveDefiniteError, SingularMatrixError
from ..protocol import ApproximateInverse
from .factor import CgFactor, Prepared
from .iteration import TARGET
from .nonsingularity import find_margin

METHOD = "conjugate gradients with the diagonal as preconditioner"

# The bytes that an iteration moves: CSR values and indices, and the vectors. What the operations of
# torch take for themselves, however short the vectors are, counts as bytes, too.
_FIXED_BYTES, _BYTES_PER_ENTRY, _BYTES_PER_ROW = 3e6, 12.0, 100.0
_NEARLY_SINGULAR = "the matrix is nearly singular"
# Rows of a Laplacian sum to zero up to rounding errors.
_ROUNDED_MARGIN = 1e-10


class CgCandidate:
    """A matrix that conjugate gradients may be tried for; see `protocol.Candidate`."""

    def __init__(self, prepared: Prepared):
        self._prepared = prepared
        margin = find_margin(prepared.matrix, prepared.row_sums)
        self.is_dominant = margin > -_ROUNDED_MARGIN
        self.iteration_bound = bound_iterations(margin, torch.finfo(prepared.values.dtype).eps)
        self.iteration_cost = iteration_cost(prepared.matrix.n, prepared.values.numel())

    def limit(self, budget: int) -> CgAttempt:
        return CgAttempt(self._prepared, budget)

    def precondition(
        self, inverse: ApproximateInverse, limit: int | None, takes_doubtful: bool
    ) -> CgPreconditioned:
        return CgPreconditioned(self._prepared, inverse, limit, takes_doubtful)


class _OfOneMatrix:
    """What analyses of one matrix that iterate have in common."""

    is_iterative = True

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return None

    def analyze_values(self, matrix: Matrix) -> None:
        return None


class CgAttempt(_OfOneMatrix):
    """The analysis of one matrix, which is iterated with at most `budget` times in all."""

    method = METHOD

    def __init__(self, prepared: Prepared, budget: int):
        self._prepared, self.budget = prepared, budget

    def factor(self, matrix: Matrix) -> CgFactor:
        factor = _make_factor(self._prepared, budget=self.budget)
        if not factor.sound:
            raise _not_safe(_NEARLY_SINGULAR)
        return factor


class CgPreconditioned(_OfOneMatrix):
    """The analysis of one matrix, to iterate with by means of an approximate inverse."""

    def __init__(
        self,
        prepared: Prepared,
        inverse: ApproximateInverse,
        limit: int | None,
        takes_doubtful: bool,
    ):
        self._prepared, self._inverse, self._limit = prepared, inverse, limit
        self._takes_doubtful = takes_doubtful
        self.method = inverse.method

    def factor(self, matrix: Matrix) -> CgFactor:
        if self._limit is None:
            return CgFactor(self._prepared, inverse=self._inverse)
        factor = _make_factor(self._prepared, limit=self._limit, inverse=self._inverse)
        if not (factor.is_regular or self._takes_doubtful):
            raise _not_safe(_NEARLY_SINGULAR)
        return factor


def _make_factor(prepared: Prepared, **options: Any) -> CgFactor:
    """The factor of a positive definite matrix; else ConvergenceError, as factoring shows more."""
    try:
        return CgFactor(prepared, **options)
    except (SingularMatrixError, NotPositiveDefiniteError) as error:
        raise _not_safe(str(error)) from error


def _not_safe(why: str) -> ConvergenceError:
    """The error for a matrix that is better factored."""
    message = f"conjugate gradients were given up: {why}"
    return ConvergenceError(message, iterations=0, residual=None)


def bound_iterations(margin: float, eps: float) -> float:
    """The most iterations of a solve for a matrix with this margin of diagonal dominance δ.

    The condition number of D^-½ A D^-½ is at most κ = (2 − δ) / δ, and ‖r‖ ≤ 2 √κ ρ^k ‖b‖ after k
    iterations, with ρ = (√κ − 1) / (√κ + 1) ≤ exp(−2 / √κ).

    >>> round(bound_iterations(0.5, 2.0**-52))
    33
    """
    if margin <= 0:
        return math.inf
    root = math.sqrt((2 - margin) / margin)
    return root / 2 * math.log(2 * root / (TARGET * eps))


def iteration_cost(n: int, nnz: int) -> float:
    """The cost of an iteration with n unknowns and nnz entries, in bytes moved.

    >>> iteration_cost(1_000_000, 7_000_000)
    187000000.0
    """
    return _FIXED_BYTES + _BYTES_PER_ENTRY * nnz + _BYTES_PER_ROW * n
