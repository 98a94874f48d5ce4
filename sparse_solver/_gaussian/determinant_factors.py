"""The factors that determinants of one matrix, or of a batch of matrices, are computed with.

The pivots of the factorisation that solves give the determinant, if its engine tells them. PARDISO
does not: it exchanges rows within its blocks and does not say which, so that the sign is unknown,
and of its 2-by-2 pivots it reports the diagonal only. Of a positive definite matrix, the supernodal
factor gives the determinant and the inverse then, if Numba is installed; of other matrices, LU
with partial pivoting gives the determinant, and solves with unit vectors give the inverse.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._factor.determinants import determinants_of, with_pivots
from .._factor.factors import Factors
from .._factor.problem import Problem
from .._sparse.block_diagonal import count_matrices
from .._torch.modes import materialize
from .factors import can_invert
from .symmetric_inverse import SymmetricInverse


class _Found(NamedTuple):
    """What is known about the matrices with these values.

    phases, logarithms : (..., blocks) of the determinants
    inverse : their inverses by the supernodal factor; None if not all are positive definite, or if
        Numba is not installed
    """

    values: Tensor
    phases: Tensor
    logarithms: Tensor
    inverse: SymmetricInverse | None


class DeterminantFactors:
    """The factors for one tensor of values, made at the first call.

    Methods take plain tensors on the CPU in double precision: `values` (nnz,), or (B, nnz) for a
    batch.

    solver : the factors that solve
    compare : whether each call compares its values with the factored ones
    """

    def __init__(self, problem: Problem, max_solves: int, solver: Factors, compare: bool = False):
        self.problem, self.max_solves, self.solver = problem, max_solves, solver
        structure, self._compare = problem.structure, compare
        self.blocks = 1 if structure.batch_shape is None else count_matrices(structure)
        self._found: _Found | None = None
        self._batched: DeterminantFactors | None = None

    @property
    def n(self) -> int:
        """The rows of one matrix; those of different patterns are solved with together."""
        shape = self.problem.structure.batch_shape or self.problem.structure.shape
        return shape[-1]

    def batched(self) -> DeterminantFactors:
        """The factors for the values that `vmap` makes of these, shared by all passes."""
        if self._batched is None:
            given = self.problem, self.max_solves, self.solver.batched()
            self._batched = DeterminantFactors(*given, compare=True)
        return self._batched

    def find(self, values: Tensor) -> _Found:
        """Factor, unless that is done."""
        found = self._found
        if found is None or (self._compare and not torch.equal(found.values, values)):
            found = self._found = self._compute(materialize(values).contiguous())
        return found

    def _compute(self, values: Tensor) -> _Found:
        problem, shape = self.problem, (*values.shape[:-1], self.blocks)
        kept = values.clone() if self._compare else values
        inverse = self._invert(values) if self._is_surely_definite else None
        if inverse is None:
            self.solver.prepare(values)
            found = self._read_pivots(self.solver, values)
            is_definite = self.solver.are_definite(values)
            inverse = self._invert(values) if is_definite else None
            if found is None and inverse is None:
                other = Factors(with_pivots(problem, is_definite))
                other.prepare(values)
                found = self._read_pivots(other, values)
            if found is not None:
                phases, logarithms = (numbers.view(shape) for numbers in found)
                return _Found(kept, phases, logarithms, inverse)
        assert inverse is not None
        logarithms = inverse.logdet().view(shape)
        return _Found(kept, values.new_ones(shape), logarithms, inverse)

    @property
    def _is_surely_definite(self) -> bool:
        """Whether a factorisation is not needed to see whether the matrices are definite."""
        return self.problem.options.assume == "spd" and self.solver.parts is None

    def _read_pivots(self, factors: Factors, values: Tensor) -> tuple[Tensor, Tensor] | None:
        count, blocks = values.shape[:-1].numel(), self.blocks
        if values.dim() == 1:  # where the factors are those of the blocks
            count, blocks = blocks, count
        return determinants_of(factors.parts or (), count, blocks, values.dtype)

    def _invert(self, values: Tensor) -> SymmetricInverse | None:
        """The inverses of positive definite matrices; None if Numba is not installed."""
        if not can_invert():
            return None
        options = self.problem.options
        given = self.problem.structure, values, options.triangle, self.max_solves
        return SymmetricInverse(*given)
