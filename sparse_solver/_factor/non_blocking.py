"""``non_blocking=True``: factorisations and solves on a GPU that the host does not wait for."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from .._engines.analysis import ASKED_FOR, analyze
from .._engines.protocol import NonBlockingSymbolic, Symbolic, is_hermitian
from .._sparse.matrix import Matrix
from .._sparse.structure import Structure
from .._sparse.values import row_moduli
from .._torch.fork_safe_lock import ForkSafeLock
from .._torch.modes import record_current_stream
from ..errors import EngineError, EngineUnsupportedError
from .accuracy.checked_factor import EmptyFactor, Record
from .accuracy.judge import Judge
from .accuracy.systems import Systems
from .ladder.ladder import products_of
from .ladder.symmetry import check_lines, check_triangle, imaginary_diagonal, measure_asymmetry
from .options import Options
from .pending_errors import Failure, submit


class NonBlockingFactor:
    """A factorisation on a device, used like a `CheckedFactor`, that never waits for the device.

    Pivots are not read; each solution is judged by its residual.
    """

    def __init__(self, record: Record, judge: Judge, failures: Tensor, n: int):
        self._judge, self._failures, self._n = judge, failures, n
        self.record, self.factor = record, judge.factor

    def apply_inverse(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """Apply A⁻¹ or A⁻ᵀ to the rows of `rhs` (k, n); NaN for systems that cannot be solved."""
        if rhs.numel() == 0:
            return torch.empty_like(rhs)
        record_current_stream(self._failures)
        each = rhs.view(-1, self._n)
        infinite = ~torch.isfinite(each).all(-1)
        finite_rhs = rhs.masked_fill(~torch.isfinite(rhs), 0)
        x, accurate = self._judge.solve_non_blocking(finite_rhs, transpose)
        failures = self._failures.repeat(rhs.shape[0])
        failures = _add(failures, infinite, Failure.RHS_NOT_FINITE)
        failures = _add(failures, ~accurate, Failure.INACCURATE)
        # A loss that overflowed must reach a gradient scaler as what it is.
        ignored = failures == Failure.RHS_NOT_FINITE
        raised = failures if strict else failures.masked_fill(ignored, Failure.NONE)
        submit(raised, self._n, self.record.kind, self.record.engine)
        failed = (failures != Failure.NONE).unsqueeze(-1)
        return x.view_as(each).masked_fill(failed, float("nan")).view_as(rhs)


def factor_non_blocking(
    structure: Structure, values: Tensor, options: Options, blocks: int = 1
) -> NonBlockingFactor | EmptyFactor:
    """Factor a matrix, called as `factor_matrix`, without waiting for its device."""
    check_triangle(structure, options.triangle)
    check_lines(structure, options.triangle)
    kind = options.kind(values.dtype)
    record = Record(kind, ASKED_FOR)
    if structure.shape[0] == 0:
        return EmptyFactor(record)
    matrix = Matrix(structure, values)
    failures = _find_failures(matrix, options, blocks)
    analysis = analyze(matrix, kind, options.triangle, options.engine)
    record.engine, record.engine_reason = analysis.engine, analysis.reason
    record.analysis_seconds = analysis.seconds
    symbolic = analysis.symbolic
    if kind == "general":  # that pivots fail would be known too late
        started = time.perf_counter()
        matched = structure.remember(_MatchedAnalysis, analysis.engine, values.dtype)
        symbolic = matched.find(matrix, symbolic, blocks)
        record.analysis_seconds += time.perf_counter() - started
    if not isinstance(symbolic, NonBlockingSymbolic):
        raise EngineUnsupportedError(
            f"the engine {record.engine!r} cannot factor without waiting for the device; use "
            f"non_blocking=False",
            engine=record.engine,
        )
    started = time.perf_counter()
    factor = symbolic.factor_non_blocking(matrix)
    record.factorization_seconds = time.perf_counter() - started  # until it was submitted
    record.method, record.method_reason = symbolic.method, "the fastest method for this kind"
    n, products = structure.shape[0], products_of(factor, matrix, options, kind)
    systems = Systems(products, n, blocks, values.dtype, values.device)
    return NonBlockingFactor(record, Judge(systems, factor), failures, n // blocks)


def _find_failures(matrix: Matrix, options: Options, blocks: int) -> Tensor:
    """(blocks,) int8, what is wrong with the values of each block; see `Failure`."""
    kind = options.kind(matrix.dtype)

    def any_of(wrong: Tensor) -> Tensor:
        return wrong.view(blocks, -1).any(-1)

    infinite = any_of(~torch.isfinite(matrix.values))
    failures = _add(
        torch.zeros_like(infinite, dtype=torch.int8), infinite, Failure.VALUES_NOT_FINITE
    )
    hermitian = is_hermitian(kind, matrix.dtype)
    if kind != "general" and (options.triangle is None or hermitian):
        whole = options.triangle is None
        excess = measure_asymmetry(matrix, hermitian)[0] if whole else imaginary_diagonal(matrix)
        failures = _add(failures, any_of(excess > 0), Failure.NOT_SYMMETRIC)
    if kind == "spd":
        negative = any_of(matrix.diagonal.real <= 0)
        failures = _add(failures, negative, Failure.DIAGONAL_NOT_POSITIVE)
    return failures


def _add(failures: Tensor, where: Tensor, failure: Failure) -> Tensor:
    """The failures, with another one where there was none."""
    return torch.where((failures == Failure.NONE) & where, int(failure), failures)


class _MatchedAnalysis:
    """The analysis of an LU factorisation that uses values, for one engine and dtype.

    It uses the values of the first solve in which every block has some, for which the host waits.
    An analysis that fails is tried once more, with other values.
    """

    def __init__(self, structure: Structure, engine: str, dtype: torch.dtype):
        self._found: Symbolic | None = None
        self._has_failed = False
        self._lock = ForkSafeLock()

    def find(self, matrix: Matrix, symbolic: Symbolic, blocks: int) -> Symbolic:
        """The matched analysis, or as long as there is none the one of the pattern."""
        with self._lock:
            if self._found is None:
                self._found = self._match(matrix, symbolic, blocks)
            return symbolic if self._found is None else self._found

    def _match(self, matrix: Matrix, symbolic: Symbolic, blocks: int) -> Symbolic | None:
        sizes = row_moduli(matrix.canonical.view(blocks, -1))
        if not bool(((sizes > 0) & (sizes < float("inf"))).all()):
            return None
        try:
            return symbolic.analyze_values(matrix) or symbolic
        except EngineUnsupportedError:
            return symbolic
        except EngineError as error:
            if error.out_of_memory:
                raise
            gives_up, self._has_failed = self._has_failed, True
            return symbolic if gives_up else None
