"""What is tried before a matrix is factored in its own precision."""

from __future__ import annotations

from ..._engines.analysis import ASKED_FOR, Analysis
from ..._engines.iterate_or_factor import find_candidate, find_iterations
from ..._engines.protocol import Kind
from ..._engines.registry import iterates
from ..._sparse.matrix import Matrix
from ..options import Options
from .fast_path import is_well_scaled
from .mixed_precision import analyze_in_single
from .preconditioner import Preconditioner

# Iterations of a solve with the caller's preconditioner, after which a factorisation is expected to
# take less time: about so many substitutions cost as much on large grids in three dimensions.
MOST_PRECONDITIONED = 60


def find_attempt(
    matrix: Matrix, kind: Kind, options: Options, blocks: int, preconditioner: Preconditioner | None
) -> Analysis | None:
    """The method to try first with a matrix of `blocks` equal blocks; None to factor it at once."""
    is_definite, triangle, engine = kind == "spd", options.triangle, options.engine
    if preconditioner is not None:
        # Judging solutions for badly scaled matrices takes dozens of solves.
        is_usable = engine is not None or is_well_scaled(matrix.diagonal, blocks)
        found = find_candidate(matrix, triangle) if is_definite and is_usable else None
        if found is None:
            return None
        name, candidate = found
        limit = None if engine else MOST_PRECONDITIONED
        symbolic = candidate.precondition(preconditioner, limit, takes_doubtful=limit is None)
        return Analysis(symbolic, name, ASKED_FOR, 0.0)
    if options.precision == "mixed":
        return analyze_in_single(matrix, kind, triangle, engine)
    if is_definite and engine is None and blocks == 1 and is_well_scaled(matrix.diagonal):
        return find_iterations(matrix, triangle)
    return None


def is_final(options: Options) -> bool:
    """Whether nothing follows the attempt, since the engine that iterates was asked for by name."""
    return options.engine is not None and iterates(options.engine)
