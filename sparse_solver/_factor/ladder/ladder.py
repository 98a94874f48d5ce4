"""Factoring a matrix: the kinds to try in turn, and for each kind the methods.

Where that is cheaper than to factor, an engine iterates first; see `iterate_or_factor`. The fastest
factorisation is by an analysis of the pattern alone, which serves all values. Where its factor is
not good enough, the next ones are, of PARDISO, rslab and cuDSS, analyses that use the values to
scale the matrix and to match rows with columns, and at last LU with partial pivoting of the
equilibrated matrix, in double precision. A pattern that needed a later method starts with that the
next time; now and then the first one is tried again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from ..._engines.analysis import Analysis, analyze
from ..._engines.equilibrated_lu import ROBUST_ENGINE, EquilibratedSymbolic
from ..._engines.iterate_or_factor import may_iterate
from ..._engines.protocol import (
    DenseSymbolic,
    Factor,
    Iterative,
    Kind,
    Symbolic,
    UpperSymbolic,
    is_hermitian,
)
from ..._sparse.matrix import Matrix
from ..._sparse.matvec import Products, product_indices
from ..._sparse.structure import Structure
from ..._sparse.values import is_single, to_double
from ...errors import (
    ConvergenceError,
    EngineError,
    EngineUnsupportedError,
    SingularMatrixError,
    SparseSolverError,
)
from ..accuracy.checked_factor import CheckedFactor, EmptyFactor, InverseOperator, Record, Rung
from ..accuracy.singular import explain_structure
from ..accuracy.systems import Systems
from ..options import Options
from .attempts import find_attempt, is_final
from .dense_path import DensePath
from .fast_path import CholeskyPath, FastPaths, is_well_scaled
from .preconditioner import Preconditioner
from .starting_method import Start
from .symmetry import choose_kinds

# Why a preconditioner has no effect on a matrix.
_OTHER_KIND = "preconditioner= is for positive definite matrices, which this one is not"
_BADLY_SCALED = "preconditioner= was not used, since the diagonal is of very different sizes"
# After these errors of a method, the next one follows.
_LETS_CLIMB = EngineError, EngineUnsupportedError, SingularMatrixError, ConvergenceError


def factor_matrix(
    structure: Structure,
    values: Tensor,
    options: Options,
    blocks: int = 1,
    preconditioner: Preconditioner | None = None,
    may_be_fast: bool = True,
) -> InverseOperator:
    """Factor the matrix with these contiguous values (nnz,) and `blocks` equal diagonal blocks.

    may_be_fast : whether the fast path may be taken; else all kinds and methods follow in turn,
        from the fastest on
    preconditioner : iterate with it, if the matrix is positive definite, instead of factoring

    Raises an error where there is no factorisation, or BlockInDoubt.
    """
    fast_paths = _fast_paths_of(structure, options, values.dtype)
    may_be_fast = may_be_fast and _has_fast_path(options, preconditioner)
    path = fast_paths.find(blocks) if may_be_fast else None
    if path is not None:
        factor = path.factor(structure, values)
        if factor is not None:
            return factor
        fast_paths.path = None
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
            methods = MethodLadder(matrix, options, record, blocks, preconditioner)
            first = None
            with methods.try_method("factorization_seconds"):
                first = methods.method.factor(matrix)
            checked = CheckedFactor(record, methods, methods.climb(first))
            methods.open_fast_path(checked)
            return checked
    raise AssertionError("the last attempt returns or raises")


def _has_fast_path(options: Options, preconditioner: Preconditioner | None) -> bool:
    """Whether matrices are factored in their own precision, so that a fast path can be open."""
    return preconditioner is None and options.precision == "full"


def _fast_paths_of(structure: Structure, options: Options, dtype: torch.dtype) -> FastPaths:
    return structure.remember(FastPaths, options.assume, options.triangle, options.engine, dtype)


class MethodLadder:
    """The factorisations of one matrix as one kind, each by a more robust method."""

    def __init__(
        self,
        matrix: Matrix,
        options: Options,
        record: Record,
        blocks: int,
        preconditioner: Preconditioner | None = None,
    ):
        self._matrix, self._options, self._record, self._blocks = matrix, options, record, blocks
        self._systems: Systems | None = None
        self.failure: SparseSolverError | None = None
        self.obstacle: str | None = None
        self._has_fast_path = _has_fast_path(options, preconditioner)
        request = record.kind, matrix.dtype, options.triangle, options.engine, options.precision
        # A preconditioner that was not good enough says nothing about the next one.
        is_new = preconditioner is not None
        self._start = Start() if is_new else matrix.structure.remember(_new_start, *request)
        kept: _Method | None = self._start.find()
        attempt = None
        if kept is None:
            attempt = find_attempt(matrix, record.kind, options, blocks, preconditioner)
        if attempt is not None:
            record.analysis_seconds += attempt.seconds
        elif preconditioner is not None:
            self.obstacle = _BADLY_SCALED if record.kind == "spd" else _OTHER_KIND
        # The engine of the present method, and why it was taken.
        self._analysis = attempt or self._analyze()
        self.method: _Method = kept or self._analysis.symbolic
        # What a factorisation in the precision of the matrix may follow.
        self._attempt = None if attempt is None or is_final(options) else attempt.symbolic
        self._first = self.method if kept is None else None
        self._is_matched = False

    def _analyze(self) -> Analysis:
        """The analysis of the pattern by the engine that factors."""
        options = self._options
        analysis = analyze(self._matrix, self._record.kind, options.triangle, options.engine)
        self._record.analysis_seconds += analysis.seconds
        return analysis

    def climb(self, factor: Factor | None = None) -> Rung | None:
        """The factor by the present method or, without one, by the next method that gives one."""
        while factor is None and (method := self._find_next()) is not None:
            self.method = method
            with self.try_method("factorization_seconds"):
                factor = method.factor(self._matrix)
        if factor is None:
            return None
        if self.failure is not None:
            self.obstacle, self.failure = str(self.failure), None
        method = self.method
        is_robust = isinstance(method, EquilibratedSymbolic)
        engine = ROBUST_ENGINE if is_robust else self._analysis.engine
        is_last = is_robust or (_iterates(method) and method is not self._attempt)
        sound = factor.sound and is_well_scaled(self._matrix.diagonal, self._blocks)
        made = factor, method.method, engine, method, sound
        return Rung(*made, may_perturb_less=not (self._is_matched or is_last), is_last=is_last)

    def _find_next(self) -> _Method | None:
        """The method after the present one; None after the last method."""
        matrix, options, kind = self._matrix, self._options, self._record.kind
        present = self.method
        if present is self._attempt:
            self._attempt = None
            with self.try_method("analysis_seconds"):
                self._attempt = present.analyze_values(matrix)
            if self._attempt is not None:
                return self._attempt
            self._analysis = self._analyze()
            return self._analysis.symbolic
        if isinstance(present, EquilibratedSymbolic) or _iterates(present):
            return None  # an engine that iterates was asked for by name, instead of a factorisation
        if not isinstance(present, InDouble):
            self._is_matched, better = True, None
            with self.try_method("analysis_seconds"):
                better = present.analyze_values(matrix)
            if better is not None:
                return better
            if kind == "spd" and is_single(matrix.dtype):
                doubles = Matrix(matrix.structure, to_double(matrix.values))
                return InDouble(analyze(doubles, kind, options.triangle, options.engine))
        return EquilibratedSymbolic(matrix.structure, kind, matrix.dtype, options.triangle)

    @contextmanager
    def try_method(self, clock: str) -> Iterator[None]:
        """Time what a method does, and suppress the errors after which the next one follows."""
        started = time.perf_counter()
        try:
            yield
        except _LETS_CLIMB as error:
            is_plain = self.method is self._analysis.symbolic
            if (
                is_plain
                and clock == "factorization_seconds"
                and isinstance(error, EngineError | EngineUnsupportedError)
            ):
                raise  # the engine failed, and not this matrix
            self.failure = error.with_traceback(None)  # which holds frames, hence factors
        finally:
            seconds = getattr(self._record, clock) + time.perf_counter() - started
            setattr(self._record, clock, seconds)

    def keep(self, rung: Rung, reason: str) -> None:
        """Record this factor, and start with its method for later values of the pattern."""
        record, analysis = self._record, self._analysis
        # An attempt is made for one matrix, so that the next one needs its own.
        is_first = rung.symbolic is self._first or rung.symbolic is self._attempt
        self._start.keep(None if is_first else rung.symbolic)
        record.engine = rung.engine
        record.engine_reason = analysis.reason if rung.engine == analysis.engine else reason
        record.method, record.method_reason = rung.method, reason
        if rung.may_fail or not rung.sound:
            # Another factor may be needed, and the caller may overwrite the values.
            self._matrix = Matrix(self._matrix.structure, self._matrix.values.clone())

    def open_fast_path(self, checked: CheckedFactor) -> None:
        """Take the fast path for the next matrices, if this one was beyond doubt."""
        symbolic, judge, record = self._analysis.symbolic, checked.judge, self._record
        matrix, options = self._matrix, self._options
        is_plain = self._has_fast_path and self.method is symbolic
        if not (is_plain and judge.is_beyond_doubt):
            return
        fast_paths = _fast_paths_of(matrix.structure, options, matrix.dtype)
        if judge.sound and matrix.is_mirrored and isinstance(symbolic, UpperSymbolic):
            arguments = matrix.structure, symbolic, record, self._blocks
            may_change = may_iterate(matrix.structure, options.triangle)
            is_provisional = options.engine is None and may_change
            fast_paths.open(symbolic, partial(CholeskyPath, *arguments), is_provisional)
        elif record.kind == "general" and isinstance(symbolic, DenseSymbolic):
            find_symmetry = options.assume == "auto"
            fallback = partial(factor_matrix, options=options, may_be_fast=False)
            given = matrix.structure, symbolic, find_symmetry, record, fallback
            fast_paths.open(symbolic, partial(DensePath, *given))

    def systems(self, factor: Factor) -> Systems:
        """The systems that this factor, and every other one, solves."""
        if self._systems is None:
            products = products_of(factor, self._matrix, self._options, self._record.kind)
            n, dtype = self._matrix.structure.shape[0], self._matrix.dtype
            self._systems = Systems(products, n, self._blocks, dtype, factor.values.device)
        return self._systems

    def explain_structure(self) -> str | None:
        """Why the matrix is singular whatever its values are, if it is."""
        return explain_structure(self._matrix.structure, self._options.triangle)


def _new_start(structure: Structure, *request: object) -> Start:
    return Start()


class InDouble:
    """An analysis that factors the matrix in double precision."""

    def __init__(self, analysis: Analysis):
        self._symbolic = analysis.symbolic
        self.method = f"{analysis.symbolic.method} in double precision"

    def factor(self, matrix: Matrix) -> Factor:
        return self._symbolic.factor(Matrix(matrix.structure, to_double(matrix.values)))


_Method = Symbolic | InDouble | EquilibratedSymbolic


def _iterates(method: _Method) -> bool:
    """Whether a method iterates instead of factoring."""
    return isinstance(method, Iterative)


def products_of(factor: Factor, matrix: Matrix, options: Options, kind: Kind) -> Products:
    """The products with the matrix that was factored."""
    coverage, hermitian = factor.arrangement.coverage, is_hermitian(kind, matrix.dtype)
    find_indices = partial(product_indices, matrix.structure, coverage, options.triangle)
    return Products(factor.arrangement, factor.values, find_indices, hermitian)
