"""The factorisations of one matrix or of a batch of them, made at the first solve."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from .._engines.protocol import SolvesHalf
from .._engines.registry import solves_on, why_missing
from .._sparse.block_diagonal import (
    count_matrices,
    join_batch,
    join_matrices,
    split_batch,
    split_joined,
    unjoin_batch,
)
from .._sparse.matrix import Matrix
from .._sparse.structure import Structure
from .._sparse.submatrix import Submatrix
from .._sparse.values import CPU, raise_non_finite
from .._torch.modes import materialize
from ..errors import NonFiniteError, NotSymmetricError, SparseSolverError
from .accuracy.checked_factor import BlockInDoubt, InverseOperator
from .ladder.symmetry import check_symmetry, check_triangle
from .non_blocking import factor_non_blocking
from .pending_errors import raise_finished
from .problem import Problem
from .purposes import purpose_named

_WHOLE = slice(0, 1)  # of a batch of one matrix


class BatchFactor(NamedTuple):
    """A factorisation, and the slice of the batch that it serves."""

    factor: InverseOperator
    batch: slice


@cache
def _warn_of_host(device_type: str) -> None:
    """Warn once a process that a GPU is left idle."""
    warnings.warn(
        f"systems on {device_type} are solved by the CPU, and values, right-hand sides and "
        f"solutions are copied between them: no engine solves there "
        f"({why_missing(torch.device(device_type))})",
        stacklevel=2,
    )


class Factors:
    """The factorisations for one tensor of values, made at the first call that needs them.

    All methods take plain (untransformed) tensors: `values` (nnz,) and `rhs` (k, n), or (B, nnz)
    and (B, k, n). Matrices of a batch with different patterns are the blocks of one matrix. Where
    no engine takes tensors on their device, a twin on the host does the work.

    compare : whether each call compares its values with the factored ones
    """

    def __init__(self, problem: Problem, compare: bool = False):
        self.problem, self._compare = problem, compare
        # Whether values (nnz,) are those of one matrix, all rows of which take part.
        self._is_plain = problem.submatrix is None and problem.structure.batch_shape is None
        self._parts: list[BatchFactor] | None = None
        self._values: Tensor | None = None
        self._batched: Factors | None = None
        self._on_host: Factors | None = None
        device, engine = problem.structure.device, problem.options.engine
        if device != CPU and not solves_on(device, engine):
            if engine is None:
                _warn_of_host(device.type)
            self._on_host = Factors(problem.on(CPU), compare)

    @property
    def parts(self) -> list[BatchFactor] | None:
        """The factorisations, once they are made."""
        return self._parts if self._on_host is None else self._on_host.parts

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return (self._on_host or self).problem.structure.device

    def are_definite(self, values: Tensor) -> bool:
        """Whether the factorisations of these values show that all matrices are positive definite.

        Cholesky's do; those by LU, and with pivots that are not positive, do not.
        """
        self.prepare(values)
        factors = [factor for factor, _ in self.parts or ()]
        return all(
            factor.record.kind == "spd"
            and factor.factor is not None
            and factor.factor.negative_eigenvalues == 0
            for factor in factors
        )

    def prepare(self, values: Tensor) -> None:
        """Factor, unless that is done; later calls use these values, however they are changed.

        Small matrices of a batch are factored together, as block-diagonal ones.
        """
        if self._on_host is not None:
            if self.parts is None or self._compare:  # else the values are not used
                self._on_host.prepare(values.detach().cpu())
            return
        if self._parts is not None and (self._values is None or torch.equal(self._values, values)):
            return
        self._raise_pending()
        problem, values = self.problem, materialize(values).contiguous()
        purpose, options = purpose_named(problem.purpose), problem.options
        non_blocking = options.non_blocking and problem.structure.device != CPU
        factor: Callable[..., InverseOperator] = purpose.factor
        if non_blocking:
            factor = factor_non_blocking
        elif problem.preconditioner is not None:
            factor = partial(factor, preconditioner=problem.preconditioner)
        try:
            if self._is_plain and values.dim() == 1:
                parts = [BatchFactor(factor(problem.structure, values, options), _WHOLE)]
            else:
                parts = self._factor_blocks(values, factor, non_blocking)
        except (NonFiniteError, NotSymmetricError) as error:
            if isinstance(error, NonFiniteError) and self._has_blocks(values):
                raise_non_finite("values", values)  # with the number that the caller knows
            purpose.explain(error, problem.structure, _as_batch(values))
            raise
        self._parts, self._values = parts, values.clone() if self._compare else None

    def apply_inverse(self, values: Tensor, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """Apply A⁻¹ or A⁻ᵀ to the rows of `rhs`; see `CheckedFactor.apply_inverse`."""
        if self._on_host is not None:
            if self.parts is None or self._compare:  # else the values are not used
                values = values.detach().cpu()
            x = self._on_host.apply_inverse(values, rhs.detach().cpu(), transpose, strict)
            return x.to(rhs.device)
        self._raise_pending()
        self.prepare(values)
        assert self._parts is not None
        rhs, submatrix = materialize(rhs).contiguous(), self.problem.submatrix
        if self._is_plain and values.dim() == 1:
            return self._parts[0].factor.apply_inverse(rhs, transpose, strict)
        if self._has_blocks(values):
            each = unjoin_batch(rhs, count_matrices(self.problem.structure))
            return join_batch(self._apply_to_batch(each, transpose, strict))
        reduced = rhs if submatrix is None else rhs.index_select(-1, submatrix.rows)
        if values.dim() == 1:
            x = self._parts[0].factor.apply_inverse(reduced, transpose, strict)
        else:
            x = self._apply_to_batch(reduced, transpose, strict)
        return x if submatrix is None else torch.zeros_like(rhs).index_copy_(-1, submatrix.rows, x)

    def apply_half(self, values: Tensor, rhs: Tensor, adjoint: bool) -> Tensor | None:
        """Apply B or Bᴴ, with B Bᴴ = A⁻¹; None where the factors have no such halves."""
        if self._on_host is not None:
            x = self._on_host.apply_half(values.detach().cpu(), rhs.detach().cpu(), adjoint)
            return None if x is None else x.to(rhs.device)
        self._raise_pending()
        self.prepare(values)
        assert self._parts is not None
        structure, rhs = self.problem.structure, materialize(rhs).contiguous()
        has_blocks = self._has_blocks(values)
        each = unjoin_batch(rhs, count_matrices(structure)) if has_blocks else rhs
        each = each.unsqueeze(0) if each.dim() == 2 else each
        x = torch.empty_like(each)
        if x.numel() == 0:
            return torch.empty_like(rhs)
        for part, batch in self._parts:
            factor = part.factor
            if not (isinstance(factor, SolvesHalf) and factor.has_halves):
                return None
            joined = factor.substitute_half(join_batch(each[batch]), adjoint)
            x[batch] = unjoin_batch(joined, batch.stop - batch.start)
        return join_batch(x) if has_blocks else x.view(rhs.shape)

    def _apply_to_batch(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """Apply the inverse of each matrix of a batch to the rows of its part of `rhs`."""
        assert self._parts is not None
        x = torch.empty_like(rhs)
        for factor, batch in self._parts:
            joined = factor.apply_inverse(join_batch(rhs[batch]), transpose, strict)
            x[batch] = unjoin_batch(joined, batch.stop - batch.start)
        return x

    def _raise_pending(self) -> None:
        """Raise the error of an earlier non-blocking solve."""
        if self.problem.options.non_blocking:
            raise_finished()

    def _factor_blocks(
        self, values: Tensor, factor: Callable[..., InverseOperator], non_blocking: bool
    ) -> list[BatchFactor]:
        """Factor the matrices of a batch."""
        structure, reduced = self._reduce(values)
        is_batch = values.dim() > 1 or self._has_blocks(values)
        joined = list(join_matrices(structure, reduced))
        parts: list[BatchFactor] = []
        while joined:
            batch, block, chosen = joined.pop(0)
            count = batch.stop - batch.start
            try:
                made = factor(block, chosen, self.problem.options, count)
                parts.append(BatchFactor(made, batch))
            except (SparseSolverError, BlockInDoubt) as error:
                if count == 1 and is_batch:
                    error.args = (f"matrix {batch.start} of the batch: {error}",)
                if count == 1 or non_blocking:
                    raise
                # One of the blocks will show what is wrong with it.
                joined = [*split_joined(batch, block, chosen), *joined]
        return parts

    def _has_blocks(self, values: Tensor) -> bool:
        """Whether these are the values of a batch of matrices with different patterns."""
        return self.problem.structure.batch_shape is not None and values.dim() == 1

    def _reduce(self, values: Tensor) -> tuple[Structure, Tensor]:
        """The structure and the values of the rows that take part in the solve."""
        submatrix = self.problem.submatrix
        if self._has_blocks(values):
            return self.problem.structure, values
        matrices = _as_batch(values)
        if submatrix is None:
            return self.problem.structure, matrices
        self._check_rest(submatrix, matrices)
        return submatrix.structure, matrices.index_select(-1, submatrix.entries)

    def _check_rest(self, submatrix: Submatrix, matrices: Tensor) -> None:
        """Check the entries that an engine does not see: triangle, finite values, symmetry."""
        options = self.problem.options
        check_triangle(self.problem.structure, options.triangle)
        if submatrix.rest.nnz == 0:
            return
        rest = matrices.index_select(-1, submatrix.rest_entries)
        for batch, block in split_batch(submatrix.rest, rest.shape[0]):
            matrix = Matrix(block, rest[batch].reshape(-1))
            matrix.check_finite()
            if options.assume not in ("auto", "general"):
                check_symmetry(matrix, options)

    def batched(self) -> Factors:
        """The factors for the values that `vmap` makes of these, shared by all passes.

        Under nested transforms, only their equality proves that two tensors of values are the same.
        """
        if self._batched is None:
            self._batched = Factors(self.problem, compare=True)
        return self._batched


def _as_batch(values: Tensor) -> Tensor:
    """(batch, nnz) contiguous values of one matrix or of many."""
    return values.view(math.prod(values.shape[:-1]), values.shape[-1])
