"""Determinants by the pivots of checked factorisations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._engines.equilibrated_lu import ROBUST_ENGINE
from .._engines.pivots import find_determinants
from .._engines.protocol import TellsPivots
from .._sparse.values import CPU
from .factors import BatchFactor
from .options import Options
from .problem import Problem


def determinants_of(
    parts: Sequence[BatchFactor], count: int, blocks: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """(count, blocks) phases and logarithms of the moduli of the determinants of a batch.

    Each of its `count` matrices has so many diagonal blocks, for each of which there is one. None
    where a factor does not tell its pivots. `dtype` is that of double precision.
    """
    phases = torch.ones(count, blocks, dtype=dtype, device=CPU)
    logarithms = torch.zeros(count, blocks, dtype=torch.float64, device=CPU)
    for operator, batch in parts:
        factor = operator.factor
        if factor is None:  # the matrices have no rows
            continue
        if not isinstance(factor, TellsPivots):
            return None
        shape = batch.stop - batch.start, blocks
        found = find_determinants(factor.pivots(), math.prod(shape))
        phase, logarithms[batch] = (torch.from_numpy(numbers).view(shape) for numbers in found)
        if operator.record.kind in ("spd", "hermitian") and phase.is_complex():
            phase = phase.real.sgn()  # exactly, since such a determinant is real
        phases[batch] = phase.to(dtype)
    return phases, logarithms


def with_pivots(problem: Problem, is_definite: bool) -> Problem:
    """The same matrices, to be factored by an engine that tells its pivots.

    is_definite : whether all of them are known to be positive definite
    """
    options = problem.options
    assume = "spd" if is_definite else options.assume
    if assume == "auto":  # what has been found out already is not tried again
        assume = "general" if options.triangle is None else "symmetric"
    return Problem(problem.structure, Options(assume, options.triangle, ROBUST_ENGINE))
