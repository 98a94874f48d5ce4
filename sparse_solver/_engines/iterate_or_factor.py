"""Whether to iterate before a matrix is factored, and for how long.

An engine that iterates is tried first for a matrix whose values suggest by diagonal dominance that
it is positive definite, if two solves, which a step of training needs, are expected to cost less
than a factorisation with two substitutions. The expected number of iterations is the smaller one of

- the bound that diagonal dominance gives, and
- a multiple of the levels of the graph, since an iteration carries information from one level to
  the next: on grids without a shift, about eight iterations a level were needed.

It may iterate until it has cost as much as the factorisation. What it costs at worst is therefore
twice the cost of factoring at once, as for the classical decision whether to rent or to buy [1].

Costs are modelled in bytes moved, never measured, so that a choice can be repeated. The analysis of
a direct method predicts its cost, but may take as long as three factorisations. So a lower bound is
estimated first from the envelope of the reordered matrix, and the analysis is left out where that
is enough. The constants were calibrated by ``python -m benchmarks.iterate_or_factor``.

[1] A. R. Karlin, M. S. Manasse, L. A. McGeoch, S. Owicki, "Competitive randomized algorithms for
nonuniform problems", Algorithmica 11, 1994.
"""

from __future__ import annotations

import math
import time

import torch

from .._sparse.matrix import Matrix
from .._sparse.structure import Structure
from .._sparse.values import is_single
from .analysis import Analysis, analyze
from .protocol import Candidate, IterativeSymbolic
from .registry import direct_engines_on, engine_named, iterative_engines_on
from .select import USUAL_FLOPS, direct_cost, envelope_flops, select

# The expected iterations, if the bound is not smaller: per level of the graph, and besides.
_PER_LEVEL, _BESIDES = 8.0, 25.0
# The solves of a step of training: forward and backward.
_SOLVES = 2
# Smaller matrices are factored in less time than conjugate gradients need.
_FEW_ROWS = 300
# Matrices with at most so many entries a row are chains and trees, which have no fill.
_FEW_ENTRIES_PER_ROW = 3.0
# Operations of nested dissection, see `estimate_flops`.
_FLOPS_PER_WIDTH = 10.0
# The part of the estimated cost that a factorisation hardly ever falls below, and the same where
# the graph has few levels. The estimate was 0.5 to 2 times the cost on grids and meshes, and up to
# 30 times on random graphs with few edges.
_CERTAIN_PART, _CERTAIN_PART_IF_FLAT = 1 / 5, 1 / 40
_FEW_LEVELS = 20


def find_iterations(matrix: Matrix, triangle: str | None) -> Analysis | None:
    """The analysis of the engine that is to iterate first with a positive definite matrix.

    None if the matrix is better factored at once. Its entries are finite, its diagonal positive.
    """
    if not may_iterate(matrix.structure, triangle):
        return None
    started = time.perf_counter()
    found = find_candidate(matrix, triangle)
    if found is None or not found[1].is_dominant:
        return None
    engine, candidate = found
    budget = _find_budget(candidate, matrix, triangle)
    if budget == 0:
        return None
    reason, seconds = _explain(candidate, budget), time.perf_counter() - started
    return Analysis(candidate.limit(budget), engine, reason, seconds)


def find_candidate(matrix: Matrix, triangle: str | None) -> tuple[str, Candidate] | None:
    """The engine that iterates, and the matrix as it sees it; None if none takes the matrix."""
    for name in iterative_engines_on(matrix.structure.device):
        if engine_named(name).supports("spd", matrix.dtype):
            symbolic = analyze(matrix, "spd", triangle, name).symbolic
            assert isinstance(symbolic, IterativeSymbolic)
            return name, symbolic.examine(matrix)
    return None


def may_iterate(structure: Structure, triangle: str | None) -> bool:
    """Whether the pattern alone does not rule out that iterating is cheaper than factoring."""
    if structure.device.type != "cpu":  # the costs were calibrated on CPUs
        return False
    n, nnz = structure.shape[0], structure.canonical_nnz
    entries = nnz if triangle is None else 2 * nnz - n
    return n > _FEW_ROWS and entries > _FEW_ENTRIES_PER_ROW * n


def _find_budget(candidate: Candidate, matrix: Matrix, triangle: str | None) -> int:
    """The iterations that are affordable; zero if the matrix is to be factored at once."""
    structure = matrix.structure
    expected = min(candidate.iteration_bound, expect_iterations(structure))
    estimate = structure.remember(estimate_cost, matrix.dtype)
    part = _CERTAIN_PART if count_levels(structure) > _FEW_LEVELS else _CERTAIN_PART_IF_FLAT
    certain = choose_budget(expected, part * estimate / candidate.iteration_cost)
    if certain:
        return certain
    cost = _predict_cost(matrix, triangle) or estimate
    return choose_budget(expected, cost / candidate.iteration_cost)


def choose_budget(expected: float, affordable: float) -> int:
    """The iterations to try, where a solve is expected to take so many; zero for none.

    affordable : the cost of a factorisation, in iterations
    """
    return int(affordable) if _SOLVES * expected <= affordable else 0


def expect_iterations(structure: Structure) -> float:
    """The iterations of a solve that the graph suggests."""
    return _BESIDES + _PER_LEVEL * count_levels(structure)


def count_levels(structure: Structure) -> float:
    """About the number of levels, the nodes at one distance from a peripheral one.

    The rows of the envelope are as long as the levels that they belong to have nodes.
    """
    n = structure.shape[0]
    return n / math.sqrt(structure.remember(envelope_flops) / n)


def estimate_cost(structure: Structure, dtype: torch.dtype) -> float:
    """The cost of a factorisation, estimated without an analysis."""
    n = structure.shape[0]
    choice = select(n, "spd", dtype, direct_engines_on(structure.device))
    assert choice is not None  # since SuperLU is a part of SciPy
    factor_nnz = math.sqrt(n * estimate_flops(structure) / USUAL_FLOPS)
    return direct_cost(choice.engine, n, factor_nnz, is_single(dtype))


def estimate_flops(structure: Structure) -> float:
    """The operations of a factorisation, estimated without an analysis.

    An envelope with w entries in each row takes n w² operations. Nested dissection takes about
    10 w max(w², n) on grids, meshes and graphs.
    """
    n = structure.shape[0]
    width = n / count_levels(structure)
    return _FLOPS_PER_WIDTH * width * max(width**2, n)


def _predict_cost(matrix: Matrix, triangle: str | None) -> float | None:
    """The cost of a factorisation, as its analysis predicts it; None if it does not."""
    analysis = analyze(matrix, "spd", triangle, None)
    factor_nnz = analysis.symbolic.factor_nnz(matrix)
    if factor_nnz is None:
        return None
    n, single = matrix.structure.shape[0], is_single(matrix.dtype)
    return direct_cost(analysis.engine, n, factor_nnz, single)


def _explain(candidate: Candidate, budget: int) -> str:
    """Why to iterate, in words."""
    instead = f"a factorisation costs as much as {budget} iterations or more"
    bound = candidate.iteration_bound
    if _SOLVES * bound > budget:
        return f"{instead}, and the graph suggests that fewer are needed"
    return f"{instead}, and a solve takes at most {bound:.0f} by diagonal dominance"
