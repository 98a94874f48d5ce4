"""The supernodal factors of one matrix or of a batch of them, made at the first call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._engines.protocol import not_positive_definite
from .._engines.supernodal.library import load
from .._factor.factors import Factors
from .._factor.ladder.symmetry import check_triangle, choose_kinds
from .._factor.options import Options, Triangle
from .._factor.problem import Problem
from .._sparse.block_diagonal import join_batch, split_batch, unjoin_batch
from .._sparse.kernels import Places
from .._sparse.matrix import Matrix
from .._sparse.structure import Structure
from .._sparse.triangle import arrangement_of
from .._sparse.values import CPU, probe_vector, to_double
from .._torch.modes import materialize
from ..errors import (
    EngineUnavailableError,
    NonFiniteError,
    NotPositiveDefiniteError,
    NotSymmetricError,
    SingularMatrixError,
    TriangleError,
)
from .entries import Entries, entries_of, weigh
from .real_form import to_complex

# What is wrong with values.
_OF_VALUES = (
    NonFiniteError,
    NotPositiveDefiniteError,
    NotSymmetricError,
    SingularMatrixError,
    TriangleError,
)


class _Part(NamedTuple):
    """A factor, and the slice of the batch that it serves."""

    factor: Any
    batch: slice


@dataclass(frozen=True)
class Matrices:
    """What all matrices are that differ in their values only.

    structure : the real matrix that is factored
    triangle : the triangle that is stored, if it is only one
    given : the matrix that the caller gave
    is_real_form : whether `structure` is the real form of a Hermitian matrix `given`
    blocks : how many matrices are on the diagonal of `given`
    max_solves : the most solves that a derivative may take
    """

    structure: Structure
    triangle: Triangle | None
    given: Structure
    is_real_form: bool
    blocks: int
    max_solves: int


class InverseFactors:
    """The supernodal factors for one tensor of values.

    Methods take plain tensors on the CPU: `values` (nnz,), or (B, nnz) for a batch, of one dtype,
    and give results in double precision. The `upper` numbers (..., entries.count) are those of the
    upper triangle.

    compare : whether each call compares its values with the factored ones
    """

    def __init__(self, matrices: Matrices, compare: bool = False):
        self._matrices, self._compare = matrices, compare
        self.structure, self._options = matrices.structure, Options("spd", matrices.triangle)
        self.triangle, self.blocks = matrices.triangle, matrices.blocks
        self.max_solves = matrices.max_solves
        self._parts: list[_Part] | None = None
        self._values: Tensor | None = None
        self._batched: InverseFactors | None = None

    @property
    def problem(self) -> Problem:
        """The solves with these matrices."""
        return Problem(self.structure, self._options)

    @property
    def entries(self) -> Entries:
        """The stored entries of one matrix."""
        return entries_of(self.structure, self.triangle)

    @property
    def n(self) -> int:
        """The rows of one matrix."""
        return self.structure.shape[0]

    @property
    def upper_places(self) -> Places:
        """Where the upper entries of one matrix stand."""
        upper = arrangement_of(self.structure, "upper", self.triangle)
        return Places(upper.rows, upper.col, "symmetric")

    @property
    def is_half(self) -> bool:
        """Whether one triangle is stored, so that an entry off the diagonal stands for two."""
        return self.triangle is not None

    def batched(self) -> InverseFactors:
        """The factors for the values that `vmap` makes of these, shared by all passes."""
        if self._batched is None:
            self._batched = InverseFactors(self._matrices, compare=True)
        return self._batched

    def prepare(self, values: Tensor) -> list[_Part]:
        """Factor, unless that is done."""
        is_known = self._values is None or torch.equal(self._values, values)
        if self._parts is None or not is_known:
            plain = materialize(values).contiguous()
            try:
                self._parts = self._factor(plain.view(values.shape[:-1].numel(), values.shape[-1]))
            except _OF_VALUES:
                self._judge(plain)  # whose error has the number of the matrix, and the caller's row
                raise
            if any(part.factor.is_doubtful for part in self._parts):
                self._judge(plain)
            self._values = plain.clone() if self._compare else None
        return self._parts

    def sum_log_pivots(self, values: Tensor) -> Tensor:
        """(..., blocks) the log-determinants."""
        determinants = _new_double((*values.shape[:-1], self.blocks))
        for factor, batch in self.prepare(values):
            pivots = torch.from_numpy(factor.log_pivots())
            flat = determinants.view(-1, self.blocks)
            flat[batch] = pivots.view(batch.stop - batch.start, self.blocks, -1).sum(-1)
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

    def apply_half(self, values: Tensor, rhs: Tensor, adjoint: bool) -> Tensor:
        """B or Bᵀ, with B Bᵀ = A⁻¹, applied to the rows (k, n), or (B, k, n), of `rhs`."""
        shape = values.shape[:-1].numel(), *rhs.shape[-2:]
        each = to_double(materialize(rhs)).reshape(shape)
        x = torch.empty_like(each)
        for factor, batch in self.prepare(values):
            joined = factor.apply(join_batch(each[batch]).numpy(), adjoint, not adjoint)
            x[batch] = unjoin_batch(torch.from_numpy(joined), batch.stop - batch.start)
        return x.view(rhs.shape)

    def differentiate_half(self, values: Tensor, g: Tensor, Bg: Tensor, Bh: Tensor) -> Tensor:
        """The gradient of Σ gᵀ Bᵀ h in the stored entries, of the dtype of `values`.

        g, Bg, Bh : rows (..., k, n), or (B, ..., k, n); there is one gradient for each of the
            further dimensions
        """
        matrices, own = values.shape[:-1].numel(), values.dim() - 1
        more, (k, n), count = g.shape[own:-2], g.shape[-2:], self.entries.count
        upper = _new_double((matrices, more.numel(), count))
        if g.numel() > 0:
            shape = matrices, more.numel(), k, n
            rows = [to_double(materialize(each)).reshape(shape) for each in (g, Bg, Bh)]
            for factor, batch in self.prepare(values):
                for j in range(more.numel()):
                    joined = [join_batch(each[batch, j]).numpy() for each in rows]
                    gradient = torch.from_numpy(factor.differentiate_half(*joined))
                    upper[batch, j] = gradient.view(-1, count)
        stored = self.entries.unfold(upper.view(*values.shape[:-1], *more, count))
        weight = 2 if self.is_half else 1
        return weigh(stored, self.entries.on_diagonal, weight).to(values.dtype)

    def _factor(self, matrices: Tensor) -> list[_Part]:
        """Factor all matrices, several of them together."""
        parts: list[_Part] = []
        if self.n == 0 or len(matrices) == 0:
            return parts
        supernodal = load()
        if self._matrices.is_real_form:
            self._check_given(to_complex(matrices))
        for batch, structure in split_batch(self.structure, len(matrices)):
            matrix = Matrix(structure, matrices[batch].reshape(-1))
            check_triangle(structure, self.triangle)
            choose_kinds(matrix, self._options)
            matrix.check_finite()
            symbolic = supernodal.analyze(structure, self.triangle)
            upper = to_double(matrix.arrange(symbolic.arrangement, hermitian=False))
            try:
                parts.append(_Part(supernodal.SupernodalFactor(symbolic, upper.numpy()), batch))
            except NotPositiveDefiniteError as error:
                raise self._with_row_of_caller(error, structure) from None
        return parts

    def _check_given(self, matrices: Tensor) -> None:
        """Raise unless the matrices are Hermitian; imaginary parts cancel in the real form."""
        for batch, structure in split_batch(self._matrices.given, len(matrices)):
            matrix = Matrix(structure, matrices[batch].reshape(-1))
            check_triangle(structure, self.triangle)
            choose_kinds(matrix, self._options)

    def _with_row_of_caller(
        self, error: NotPositiveDefiniteError, structure: Structure
    ) -> NotPositiveDefiniteError:
        """The error with the row in its own matrix, where several were factored together."""
        assert error.row is not None
        assert error.engine is not None
        rows = self._matrices.given.shape[0] // self.blocks
        return not_positive_definite(error.engine, "Cholesky", structure.label(error.row) % rows)

    def _judge(self, values: Tensor) -> None:
        """Raise what a solve with these matrices raises, if it does; it judges each by itself."""
        structure = self._matrices.given
        given = to_complex(values) if self._matrices.is_real_form else values
        n = structure.shape[0]
        probe = probe_vector(n, given.dtype, 0.0).expand(*values.shape[:-1], 1, n)
        Factors(Problem(structure, self._options)).apply_inverse(given, probe, False, True)


def _new_double(shape: Any) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=CPU)


def can_invert() -> bool:
    """Whether there are supernodal factors here, for which Numba must be installed."""
    try:
        load()
    except EngineUnavailableError:
        return False
    return True
