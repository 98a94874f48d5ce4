"""The factors of one matrix or of a batch of them, and who owns them.

A factor lives exactly as long as somebody may still solve with it: a `Factorization`, or a node of an autograd
graph. The latter holds it through a *token*, a tiny tensor whose memory owns the `Factors` object and that the node
saves like any other tensor: it is freed with the node's buffers, after a backward that does not retain the graph,
however long the caller keeps the loss around.
"""

from __future__ import annotations

import itertools
import math
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from . import _engines
from ._blocks import blocks_of, joined, parted
from ._deferred import DeferredNumeric, raise_finished
from ._kinds import Options, check_symmetry, check_triangle
from ._matrix import Matrix
from ._numeric import Doubtful, Numeric
from ._plain import resolved
from ._rules import Places
from ._saddle import Minimization, refuse_non_finite
from ._structure import Part, Structure
from .errors import NonFiniteError, SparseSolverError


@dataclass(frozen=True)
class Problem:
    """Everything about a matrix besides its values.

    `part` : what is left of the matrix where some rows take, with their columns, no part in the solve; see `_rules`. None:
    all of it.
    """

    structure: Structure
    options: Options
    part: Part | None = None

    def places(self, dtype: torch.dtype) -> Places:
        return Places(self.structure.rows, self.structure.cols, self.options.mirror(dtype), self.structure)

    def on_host(self) -> Problem:
        """The same in the memory of the CPU."""
        structure = self.structure.on(_engines.CPU)
        return Problem(structure, self.options, self.part and structure.without(self.part.removed.cpu()))


@cache
def _warn_of_host(device_type: str) -> None:
    """Tells once a process that a GPU is left idle."""
    warnings.warn(
        f"systems on {device_type} are solved by the CPU, and values, right-hand sides and solutions are copied to and fro: "
        f"no engine solves there ({_engines.why_missing(torch.device(device_type))})",
        stacklevel=2,
    )


class Factors:
    """The numeric factorisations for one tensor of values, made at the first call that needs them.

    All methods take plain (untransformed) tensors: `values` (nnz,) and `rhs` (k, n), or (B, nnz) and (B, k, n).
    Where no engine takes tensors on their device, there is a twin on the host that does the work.
    """

    def __init__(self, problem: Problem, compare: bool = False):
        self.problem = problem
        self._made: list[tuple[Numeric | DeferredNumeric, slice]] | None = (
            None  # with the part of the batch that each is for
        )
        self._compare = compare
        self._values: Tensor | None = None
        self._batched: Factors | None = None
        self._on_host: Factors | None = None
        device, engine = problem.structure.device, problem.options.engine
        if device != _engines.CPU and not _engines.solves_on(device, engine):
            if engine is None:
                _warn_of_host(device.type)
            self._on_host = Factors(problem.on_host(), compare)

    @property
    def made(self) -> list[tuple[Numeric | DeferredNumeric, slice]] | None:
        """The factorisations and the part of the batch that each is for, once there are any."""
        return self._made if self._on_host is None else self._on_host.made

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return (self._on_host or self).problem.structure.device

    def numerics(self, values: Tensor) -> list[tuple[Numeric | DeferredNumeric, slice]]:
        """The factorisations: of the values at the first call, whatever became of the tensor since."""
        if self._made is None or (self._values is not None and not torch.equal(self._values, values)):
            values = resolved(values)
            matrices = values.reshape(math.prod(values.shape[:-1]), values.shape[-1]).contiguous()
            try:
                self._made = self._factored(matrices)
            except NonFiniteError as error:
                if self.problem.options.constraints is not None:
                    refuse_non_finite(error, self.problem.structure, matrices, self.problem.options.constraints)
                raise
            self._values = values.clone() if self._compare else None
        return self._made

    def _factored(self, matrices: Tensor) -> list[tuple[Numeric | DeferredNumeric, slice]]:
        structure, part = self.problem.structure, self.problem.part
        if part is not None:
            self._check_rest(part, matrices)
            structure, matrices = part.structure, matrices.index_select(-1, part.entries)
        blocks = blocks_of(structure, matrices.shape[0])
        return [found for at, block in blocks for found in self._factor(matrices[at], structure, block, at)]

    def _check_rest(self, part: Part, matrices: Tensor) -> None:
        """An engine sees the part only, in which nothing shows that the rest is not what it should be."""
        options = self.problem.options
        check_triangle(self.problem.structure, options.triangle)
        if part.rest.nnz == 0:
            return
        rest = matrices.index_select(-1, part.rest_entries)
        for at, block in blocks_of(part.rest, rest.shape[0]):
            matrix = Matrix(block, rest[at].reshape(-1))
            _ = matrix.largest  # raises where there is NaN
            if options.assume not in ("auto", "general"):
                check_symmetry(matrix, options)

    def _factor(
        self, matrices: Tensor, structure: Structure, block: Structure, part: slice
    ) -> Iterator[tuple[Numeric | DeferredNumeric, slice]]:
        """The factorisation of the block-diagonal matrix, or if there is none, those of its blocks, one of which will
        know what is wrong."""
        options = self.problem.options
        numeric = Numeric if options.constraints is None else Minimization
        if options.reporting == "deferred" and structure.device != _engines.CPU:
            yield DeferredNumeric(block, matrices.reshape(-1), options, blocks=matrices.shape[0]), part
            return
        if block is not structure:
            try:
                yield numeric(block, matrices.reshape(-1), options, blocks=matrices.shape[0]), part
                return
            except (SparseSolverError, Doubtful):
                pass
        for at, matrix in enumerate(matrices, part.start):
            yield numeric(structure, matrix, options), slice(at, at + 1)

    def solve(self, values: Tensor, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        if self._on_host is not None:
            if self.made is None or self._compare:  # else nobody looks at them
                values = values.detach().cpu()
            return self._on_host.solve(values, rhs.detach().cpu(), transpose, strict).to(rhs.device)
        if self.problem.options.reporting == "deferred":
            raise_finished()
        rhs = resolved(rhs).contiguous()
        if self.problem.part is None:
            return self._solve(values, rhs, transpose, strict)
        x, rows = torch.zeros_like(rhs), self.problem.part.rows
        return x.index_copy_(-1, rows, self._solve(values, rhs.index_select(-1, rows), transpose, strict))

    def _solve(self, values: Tensor, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        numerics = self.numerics(values)
        if values.dim() == 1:
            return numerics[0][0].solve(rhs, transpose, strict)
        x = torch.empty_like(rhs)
        for numeric, part in numerics:
            x[part] = parted(numeric.solve(joined(rhs[part]), transpose, strict), part.stop - part.start)
        return x

    def batched(self) -> Factors:
        """The factors for the values that `vmap` makes of these: forward and backward pass here, and share them.

        Under nested transforms nothing but their equality proves that two tensors of values are the same.
        """
        if self._batched is None:
            self._batched = Factors(self.problem, compare=True)
        return self._batched


class _Owner(np.ndarray):  # type: ignore[type-arg]
    """An array with a place for the object that its memory keeps alive."""

    factors: Factors


_numbers = itertools.count(1)
_alive: weakref.WeakValueDictionary[int, Factors] = weakref.WeakValueDictionary()


def token_of(factors: Factors) -> Tensor:
    """A tensor that keeps `factors` alive as long as its memory lives."""
    number = next(_numbers)
    owner = np.array([number], dtype=np.int64).view(_Owner)
    owner.factors = factors
    _alive[number] = factors
    return torch.from_numpy(owner)


def factors_of(token: Tensor, problem: Problem) -> Factors:
    """The factors that the token keeps alive.

    New ones where somebody replaced the token by a copy, as hooks on saved tensors do: then the matrix is factored
    again from the saved values. Numbers are never used twice, so a copy cannot find the factors of another matrix.
    """
    factors = _alive.get(int(token))
    return Factors(problem) if factors is None else factors


def no_token() -> Tensor:
    """A token that keeps nothing alive."""
    return torch.zeros(1, dtype=torch.int64, device="cpu")
