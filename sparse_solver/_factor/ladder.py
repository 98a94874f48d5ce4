"""Factoring a matrix: the kinds to try in turn, and a second analysis where pivots are bad."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor

from .._engines.analysis import Analysis, analyze, remember_better
from .._engines.protocol import Factor, is_hermitian
from .._sparse.matrix import Matrix
from .._sparse.matvec import Products, product_indices
from .._sparse.structure import Structure
from ..errors import EngineError, EngineUnsupportedError, SingularMatrixError
from .accuracy import CheckedFactor, EmptyFactor, Record
from .options import Options
from .symmetry import check_lines, check_triangle, choose_kinds


class BlockInDoubt(Exception):
    """A block-diagonal matrix whose blocks are better judged one by one."""


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
            analysis = analyze(matrix, kind, options.triangle, options.engine)
            record.engine, record.engine_reason = analysis.engine, analysis.reason
            record.analysis_seconds += analysis.seconds
            started = time.perf_counter()
            factor = analysis.symbolic.factor(matrix)
            record.factorization_seconds += time.perf_counter() - started
            checked = check_factor(factor, matrix, options.triangle, record, blocks)
            return _ensure_accurate(checked, analysis, matrix, options.triangle, blocks)
    raise AssertionError("the last attempt returns or raises")


def _ensure_accurate(
    checked: CheckedFactor, analysis: Analysis, matrix: Matrix, triangle: str | None, blocks: int
) -> CheckedFactor:
    """Improve a factor that is not accurate; raise if the matrix is singular, or in doubt."""
    failure: Exception | None = None
    try:
        if not checked.factor.stable:
            checked, failure = _improve(checked, analysis, matrix, triangle, blocks)
        if blocks > 1:
            if not checked.is_beyond_doubt():
                raise BlockInDoubt
        elif checked.factor.doubtful or not checked.factor.stable:
            checked.refuse_singular()
        if failure is not None:
            raise failure
        return checked
    finally:
        failure = None  # its traceback holds this frame, hence the factor


def _improve(
    checked: CheckedFactor, analysis: Analysis, matrix: Matrix, triangle: str | None, blocks: int
) -> tuple[CheckedFactor, Exception | None]:
    """Replace a factor with perturbed pivots or large errors by one whose analysis used the values.

    Also returns the error of the second analysis, if the first factor is not accurate either; the
    matrix may still turn out to be singular.
    """
    record, accurate = checked.record, checked.is_accurate()
    if accurate and not checked.factor.perturbed_pivots:
        return checked, None
    try:
        started = time.perf_counter()
        better = analysis.symbolic.analyze_values(matrix)
        record.analysis_seconds += time.perf_counter() - started
        if better is None:
            return checked, None
        started = time.perf_counter()
        factor = better.factor(matrix)
        record.factorization_seconds += time.perf_counter() - started
    except (EngineError, EngineUnsupportedError, torch.OutOfMemoryError) as error:
        return checked, None if accurate else error
    second = check_factor(factor, matrix, triangle, record, blocks)
    if second.is_accurate() >= accurate:
        checked = second
        remember_better(matrix, record.kind, triangle, record.engine, better)
    return checked, None


def check_factor(
    factor: Factor,
    matrix: Matrix,
    triangle: str | None,
    record: Record,
    blocks: int,
    largest: float | None = None,
) -> CheckedFactor:
    """The checks on a factor of this matrix, whose largest entry is found unless it is given."""
    structure = matrix.structure
    largest = matrix.check_finite() if largest is None else largest
    coverage, hermitian = factor.arrangement.coverage, is_hermitian(record.kind, matrix.dtype)
    find_indices = partial(product_indices, structure, coverage, triangle)
    products = Products(factor.arrangement, factor.values, find_indices, hermitian)
    return CheckedFactor(record, structure, factor, products, largest, blocks)
