"""One matrix, factored: the only layer that calls an engine. It takes and returns plain tensors."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from . import _engines
from ._engines import Kind
from ._kinds import Options, check_lines, check_triangle, kinds_of
from ._matrix import Matrix, largest_modulus, raise_non_finite
from ._structure import Structure
from ._trust import Trusted, row_sizes
from .errors import EngineError, EngineUnsupportedError, NonFiniteError, NotPositiveDefiniteError, SingularMatrixError


class Doubtful(Exception):
    """A block-diagonal matrix whose blocks are better judged one by one."""


class Numeric:
    """The factorisation of the matrix with the given contiguous values (nnz,), which has so many equal `blocks` on its
    diagonal; raises where there is none, or `Doubtful`.

    `kind` is what `assume` became and `kind_reason` why; `engine` and `engine_reason` likewise.
    """

    def __init__(self, structure: Structure, values: Tensor, options: Options, blocks: int = 1):
        self._blocks = blocks
        self.n = structure.shape[0]
        self.engine, self.engine_reason = "none", "nothing to factor"
        self.analysis_seconds = self.factorization_seconds = 0.0
        self.trusted: Trusted | None = None

        check_triangle(structure, options.triangle)
        check_lines(structure, options.triangle)
        matrix = Matrix(structure, values)
        kinds, self.kind_reason = kinds_of(matrix, options)
        self.kind: Kind = kinds[0]
        if self.n == 0:
            return
        if matrix.largest == 0:
            raise SingularMatrixError("the matrix is singular: all its values are zero", engine=None, row=None)
        for self.kind in kinds:
            try:
                self.trusted = self._factor(matrix, options)
                return
            except NotPositiveDefiniteError as error:
                if self.kind == kinds[-1]:
                    raise
                self.kind_reason += ", but " + str(error).split(";")[0]

    def _factor(self, matrix: Matrix, options: Options) -> Trusted:
        kind, dtype, stored = self.kind, matrix.dtype, options.triangle
        analysis = _engines.analyze(matrix, kind, stored, options.engine)
        self.engine, self.engine_reason = analysis.engine, analysis.reason
        self.analysis_seconds += analysis.seconds

        def factored(symbolic: _engines.Symbolic) -> Trusted:
            started = time.perf_counter()
            factor = symbolic.factor(matrix)
            self.factorization_seconds += time.perf_counter() - started
            return Trusted(factor, matrix.structure, stored, kind, matrix.largest, self.engine, self._blocks)

        trusted = factored(analysis.symbolic)
        failure: Exception | None = None
        if not trusted.factor.stable:
            accurate = trusted.is_accurate()
            if trusted.factor.perturbed_pivots or not accurate:
                try:
                    started = time.perf_counter()
                    better = analysis.symbolic.retry(matrix)
                    self.analysis_seconds += time.perf_counter() - started
                    if better is not None:
                        second = factored(better)
                        if second.is_accurate() >= accurate:
                            trusted = second
                            _engines.remember_better(matrix.structure, self.engine, kind, dtype, stored, better)
                # Perhaps of a matrix that is found singular below.
                except (EngineError, EngineUnsupportedError, torch.OutOfMemoryError) as error:
                    failure = None if accurate else error
        try:
            if self._blocks > 1:
                if not trusted.is_beyond_doubt():
                    raise Doubtful
            elif trusted.factor.doubtful or not trusted.factor.stable:
                trusted.refuse_singular()
            if failure is not None:
                raise failure
            return trusted
        finally:
            failure = None  # its traceback holds this frame, hence the factor

    def solve(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """A⁻¹ or A⁻ᵀ applied to the rows of the contiguous `rhs` (k, n), in a new tensor.

        Rows that hold NaN or infinity raise NonFiniteError if `strict`, else they give NaN (a loss that overflowed
        must reach a gradient scaler as what it is).
        """
        if rhs.numel() == 0:
            return torch.empty_like(rhs)
        assert self.trusted is not None
        size = largest_modulus(rhs)
        if size < float("inf"):
            return self.trusted.solve(rhs, size, transpose, strict)
        if strict:
            raise_non_finite("b", rhs.view(-1, self.n // self._blocks))
            raise NonFiniteError("b is too large: the modulus of an entry is infinite", argument="b", index=None)
        each = rhs.view(-1, self.n // self._blocks)
        rows = torch.isfinite(row_sizes(each)).unsqueeze(-1)
        x = self.solve(torch.where(rows, each, torch.zeros_like(each)).view(rhs.shape), transpose, strict)
        return torch.where(rows, x.view(each.shape), torch.full_like(each, float("nan"))).view(rhs.shape)
