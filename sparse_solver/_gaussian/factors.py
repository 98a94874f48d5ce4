"""The supernodal factors of one matrix or of a batch of them, made at the first call."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._engines.supernodal.library import load
from .._factor.factors import Factors
from .._factor.options import Options, Triangle
from .._factor.problem import Problem
from .._factor.symmetry import check_triangle, choose_kinds
from .._sparse.block_diagonal import split_batch
from .._sparse.kernels import Places
from .._sparse.matrix import Matrix
from .._sparse.structure import Structure
from .._sparse.triangle import arrangement_of
from .._sparse.values import probe_vector, to_double
from .._torch.modes import materialize
from ..errors import SparseSolverError
from .entries import Entries, entries_of


class _Part(NamedTuple):
    """A factor, and the slice of the batch that it serves."""

    factor: Any
    batch: slice


class InverseFactors:
    """The supernodal factors for one tensor of values.

    Methods take plain tensors on the CPU: `values` (nnz,), or (B, nnz) for a batch, of one dtype,
    and give results in double precision. The `upper` numbers (..., entries.count) are those of the
    upper triangle.

    compare : whether each call compares its values with the factored ones
    """

    def __init__(self, structure: Structure, triangle: Triangle | None, compare: bool = False):
        self._structure, self._compare = structure, compare
        self.triangle, self._options = triangle, Options("spd", triangle)
        self._parts: list[_Part] | None = None
        self._values: Tensor | None = None
        self._batched: InverseFactors | None = None

    @property
    def problem(self) -> Problem:
        """The solves with these matrices."""
        return Problem(self._structure, self._options)

    @property
    def entries(self) -> Entries:
        """The stored entries of one matrix."""
        return entries_of(self._structure, self.triangle)

    @property
    def n(self) -> int:
        """The rows of one matrix."""
        return self._structure.shape[0]

    @property
    def upper_places(self) -> Places:
        """Where the upper entries of one matrix stand."""
        upper = arrangement_of(self._structure, "upper", self.triangle)
        return Places(upper.rows, upper.col, "symmetric")

    @property
    def is_half(self) -> bool:
        """Whether one triangle is stored, so that an entry off the diagonal stands for two."""
        return self.triangle is not None

    def batched(self) -> InverseFactors:
        """The factors for the values that `vmap` makes of these, shared by all passes."""
        if self._batched is None:
            self._batched = InverseFactors(self._structure, self.triangle, compare=True)
        return self._batched

    def prepare(self, values: Tensor) -> list[_Part]:
        """Factor, unless that is done."""
        is_known = self._values is None or torch.equal(self._values, values)
        if self._parts is None or not is_known:
            plain = materialize(values).contiguous()
            self._parts = self._factor(plain.view(values.shape[:-1].numel(), values.shape[-1]))
            self._values = plain.clone() if self._compare else None
        return self._parts

    def sum_log_pivots(self, values: Tensor) -> Tensor:
        """(...) the log-determinants."""
        n, determinants = self.n, _new_double(values.shape[:-1])
        flat = determinants.view(-1)
        for factor, batch in self.prepare(values):
            pivots = torch.from_numpy(factor.log_pivots())
            flat[batch] = pivots.view(batch.stop - batch.start, n).sum(-1)
        return determinants

    def invert(self, values: Tensor) -> Tensor:
        """(..., count) the upper entries of the inverses."""
        shape = *values.shape[:-1], self.entries.count
        inverses = _new_double(shape)
        flat = inverses.view(-1, self.entries.count) if inverses.numel() else inverses
        for factor, batch in self.prepare(values):
            flat[batch] = torch.from_numpy(factor.invert()).view(-1, self.entries.count)
        return inverses

    def perturb_inverse(self, values: Tensor, upper: Tensor) -> Tensor:
        """The upper entries of -A⁻¹ V A⁻¹, for any number of V (..., m, count) for each matrix."""
        changes = _new_double(upper.shape)
        if upper.numel() == 0:
            return changes
        matrices = values.shape[:-1].numel()
        directions = to_double(materialize(upper)).reshape(matrices, -1, self.entries.count)
        flat = changes.view(directions.shape)
        for factor, batch in self.prepare(values):
            for k in range(directions.shape[1]):
                direction = directions[batch, k].reshape(-1).numpy()
                change = torch.from_numpy(factor.perturb_inverse(direction))
                flat[batch, k] = change.view(-1, self.entries.count)
        return changes

    def _factor(self, matrices: Tensor) -> list[_Part]:
        parts: list[_Part] = []
        if self.n == 0 or len(matrices) == 0:
            return parts
        for batch, block in split_batch(self._structure, len(matrices)):
            chosen = matrices[batch]
            try:
                parts.append(_Part(self._factor_block(block, chosen.reshape(-1)), batch))
            except SparseSolverError:
                if len(chosen) == 1:
                    raise
                # One of the blocks will show what is wrong with it.
                for at, matrix in enumerate(chosen, batch.start):
                    factor = self._factor_block(self._structure, matrix)
                    parts.append(_Part(factor, slice(at, at + 1)))
        return parts

    def _factor_block(self, structure: Structure, values: Tensor) -> Any:
        """Factor a matrix that may consist of several blocks."""
        options, matrix = self._options, Matrix(structure, values)
        check_triangle(structure, options.triangle)
        choose_kinds(matrix, options)
        matrix.check_finite()
        supernodal = load()
        symbolic = supernodal.analyze(structure, options.triangle)
        upper = to_double(matrix.arrange(symbolic.arrangement, hermitian=False))
        factor = supernodal.SupernodalFactor(symbolic, upper.numpy())
        if factor.is_doubtful:  # the rules for solutions judge whether the matrix is singular
            solver = Factors(Problem(structure, options))
            probe = probe_vector(structure.shape[0], torch.float64, 0.0)
            solver.apply_inverse(to_double(values), probe, False, True)
        return factor


def _new_double(shape: Any) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)
