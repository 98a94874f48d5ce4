"""Factoring a matrix: the kinds to try in turn, and for each kind the methods.

The fastest method is an analysis of the pattern alone, which serves all values. Where its factor is
not good enough, the next ones are, of PARDISO and cuDSS, analyses that use the values to scale the
matrix and to match rows with columns, and at last LU with partial pivoting of the equilibrated
matrix, in double precision. A pattern that needed a later method starts with that the next time;
now and then the first one is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from .._engines.analysis import Analysis, analyze
from .._engines.protocol import Factor, Kind, Symbolic, is_hermitian
from .._engines.superlu import EquilibratedSymbolic
from .._sparse.matrix import Matrix
from .._sparse.matvec import Products, product_indices
from .._sparse.structure import Structure
from .._sparse.values import to_double
from ..errors import EngineError, EngineUnsupportedError, SingularMatrixError, SparseSolverError
from .checked_factor import CheckedFactor, EmptyFactor, Record, Rung
from .equations import Equations
from .options import Options
from .singular import explain_structure
from .start import Start
from .symmetry import check_lines, check_triangle, choose_kinds


def factor_matrix(
    structure: Structure, values: Tensor, options: Options, blocks: int = 1
) -> CheckedFactor | EmptyFactor:
    """Factor the matrix with these contiguous values (nnz,) and `blocks` equal diagonal blocks.

    Raises an error where there is no factorisation, or BlockInDoubt.
    """
    check_triangle(structure, options.triangle)
    check_lines(structure, options.triangle)
    matrix = Matrix(structure, values)
    ladder = choose_kinds(matrix, options)
    record = Record(ladder.kinds[0], ladder.reason)
    if structure.shape[0] == 0:
        return EmptyFactor(record)
    if matrix.check_finite() == 0:
        message = "the matrix is singular: all its values are zero"
        raise SingularMatrixError(message, engine=None, row=None)
    for kind in ladder:
        with ladder.attempt(kind):
            record.kind, record.kind_reason = kind, ladder.reason
            return CheckedFactor(record, MethodLadder(matrix, options, record, blocks))
    raise AssertionError("the last attempt returns or raises")


class MethodLadder:
    """The factorisations of one matrix as one kind, each by a more robust method."""

    def __init__(self, matrix: Matrix, options: Options, record: Record, blocks: int):
        self._matrix, self._options, self._record, self._blocks = matrix, options, record, blocks
        self._equations: Equations | None = None
        self.failure: SparseSolverError | None = None
        request = record.kind, matrix.dtype, options.triangle, options.engine
        self._start: Start = matrix.structure.remember(_find_start, *request)
        self._rungs = self._generate()

    def climb(self) -> Rung | None:
        """The factor by the next method that gives one; None after the last method."""
        return next(self._rungs, None)

    def _generate(self) -> Iterator[Rung]:
        options, record = self._options, self._record
        analysis = analyze(self._matrix, record.kind, options.triangle, options.engine)
        self._first = analysis
        record.analysis_seconds += analysis.seconds
        symbolic: Symbolic | None = self._start.find() or analysis.symbolic
        is_matched = False
        while symbolic is not None:
            last = symbolic
            factor = self._attempt(symbolic.factor, "factorization_seconds")
            if factor is not None:
                sound = factor.sound and self._is_well_scaled()
                made = factor, symbolic.method, analysis.engine, symbolic, sound
                yield Rung(*made, may_perturb_less=not is_matched)
                del factor
            symbolic = self._attempt(symbolic.analyze_values, "analysis_seconds")
            is_matched = True
        for robust in self._find_robust(last):
            factor = self._attempt(robust.factor, "factorization_seconds")
            if factor is not None:
                sound = factor.sound and self._is_well_scaled()
                yield Rung(factor, robust.method, robust.engine, robust, sound, False)
                del factor

    def _is_well_scaled(self) -> bool:
        """Whether errors of a positive definite matrix are small beside all large solutions.

        Cholesky factorisation is accurate in the units 1 / √a_jj of the unknowns, which must not
        differ by more than 1 / √ε for that.
        """
        diagonal = self._matrix.diagonal.real.reshape(self._blocks, -1)
        low, high = torch.aminmax(diagonal, dim=-1)
        return bool((low >= torch.finfo(diagonal.dtype).eps * high).all())

    def _find_robust(self, last: Symbolic) -> Iterator[InDouble | EquilibratedSymbolic]:
        """The methods in double precision that come after this one."""
        if isinstance(last, EquilibratedSymbolic):
            return
        matrix, options, kind = self._matrix, self._options, self._record.kind
        is_single = matrix.dtype in (torch.float32, torch.complex64)
        if is_single and kind == "spd" and not isinstance(last, InDouble):
            doubles = Matrix(matrix.structure, to_double(matrix.values))
            yield InDouble(analyze(doubles, kind, options.triangle, options.engine))
        yield EquilibratedSymbolic(matrix.structure, kind, matrix.dtype, options.triangle)

    def _attempt(self, method: Callable[[Matrix], _Made], clock: str) -> _Made | None:
        """What the method makes of the matrix; None if it fails, unless another kind may serve."""
        started = time.perf_counter()
        try:
            return method(self._matrix)
        except (EngineError, EngineUnsupportedError, SingularMatrixError) as error:
            if isinstance(error, EngineError) and error.out_of_memory:
                raise
            self.failure = error.with_traceback(None)  # which holds frames, hence factors
            return None
        finally:
            seconds = getattr(self._record, clock) + time.perf_counter() - started
            setattr(self._record, clock, seconds)

    def keep(self, rung: Rung, reason: str) -> None:
        """Record this factor, and start with its method for later values of the pattern."""
        record, first = self._record, self._first
        is_first = rung.symbolic is first.symbolic
        self._start.keep(None if is_first else rung.symbolic)
        record.engine = rung.engine
        record.engine_reason = first.reason if rung.engine == first.engine else reason
        record.method, record.method_reason = rung.method, reason
        if rung.sound:
            self._rungs = iter(())  # no other factor will be needed
        else:  # the caller may overwrite the values
            self._matrix = Matrix(self._matrix.structure, self._matrix.values.clone())

    def equations(self, factor: Factor) -> Equations:
        """The equations that this factor, and every other one, solves."""
        if self._equations is None:
            products = products_of(factor, self._matrix, self._options, self._record.kind)
            n, dtype = self._matrix.structure.shape[0], self._matrix.dtype
            self._equations = Equations(products, n, self._blocks, dtype, factor.values.device)
        return self._equations

    def explain_structure(self) -> str | None:
        """Why the matrix is singular whatever its values are, if it is."""
        return explain_structure(self._matrix.structure, self._options.triangle)


def _find_start(structure: Structure, *request: object) -> Start:
    return Start()


_Made = TypeVar("_Made")


class InDouble:
    """An analysis that factors the matrix in double precision."""

    def __init__(self, analysis: Analysis):
        self.engine, self._symbolic = analysis.engine, analysis.symbolic
        self.method = f"{analysis.symbolic.method} in double precision"

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return self._symbolic.factor_nnz(matrix)

    def factor(self, matrix: Matrix) -> Factor:
        return self._symbolic.factor(Matrix(matrix.structure, to_double(matrix.values)))

    def analyze_values(self, matrix: Matrix) -> Symbolic | None:
        return None


def products_of(factor: Factor, matrix: Matrix, options: Options, kind: Kind) -> Products:
    """The products with the matrix that was factored."""
    coverage, hermitian = factor.arrangement.coverage, is_hermitian(kind, matrix.dtype)
    find_indices = partial(product_indices, matrix.structure, coverage, options.triangle)
    return Products(factor.arrangement, factor.values, find_indices, hermitian)
