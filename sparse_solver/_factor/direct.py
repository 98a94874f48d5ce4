"""The direct way to factor a positive definite matrix, on which nothing is checked twice.

An exact comparison of both triangles while they are gathered, and pivots that are not small beside
the diagonal, show all that the solve has to know: symmetric, finite, positive definite, and not
nearly singular. A pattern whose last matrix had such pivots is factored this way. Where anything is
different, `ladder` finds out what, and what to do.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._engines.protocol import DirectSymbolic
from .._sparse.halves import Halves, agree, halves_of
from .._sparse.structure import Structure
from .checked_factor import Record
from .options import Assume, Triangle
from .symmetry import check_lines, check_triangle
from .systems import Vectors


class Route(NamedTuple):
    """How the last matrix was factored.

    record : how its factor came about
    """

    symbolic: DirectSymbolic
    halves: Halves
    record: Record
    vectors: Vectors

    def read(self, values: Tensor) -> tuple[Tensor, Tensor] | None:
        """The upper triangle and the diagonal, if nothing is to be said against this route."""
        upper, lower = self.halves.fill(values)
        if not agree(upper, lower, conjugate=True):
            return None
        diagonal = upper.index_select(0, self.halves.at_diagonal)
        return (upper, diagonal) if is_well_scaled(diagonal) else None


class Direct:
    """The direct way for one pattern, one dtype and one choice of options.

    Raises an error if the pattern alone shows that no matrix can be solved with.

    route : None where the way is closed
    """

    def __init__(
        self,
        structure: Structure,
        assume: Assume,
        triangle: Triangle | None,
        engine: str | None,
        dtype: torch.dtype,
    ):
        check_triangle(structure, triangle)
        check_lines(structure, triangle)
        self.route: Route | None = None

    def open(
        self, structure: Structure, symbolic: DirectSymbolic, record: Record, blocks: int
    ) -> None:
        """Factor the next matrices like this one, which was found to be beyond doubt."""
        halves = halves_of(structure)
        if halves is not None:
            halves = structure.remember(_reorder_halves, symbolic)
            self.route = Route(symbolic, halves, record, Vectors(structure.shape[0], blocks))


def _reorder_halves(structure: Structure, symbolic: DirectSymbolic) -> Halves:
    halves = halves_of(structure)
    assert halves is not None
    return symbolic.reorder(halves)


def is_well_scaled(diagonal: Tensor, blocks: int = 1) -> bool:
    """Whether errors of a positive definite matrix are small beside all large solutions.

    Cholesky factorisation is accurate in the units 1 / √a_jj of the unknowns, which must not differ
    by more than 1 / √ε for that, in any of the diagonal blocks.
    """
    diagonal, eps = diagonal.real, torch.finfo(diagonal.dtype).eps
    low, high = torch.aminmax(diagonal)
    is_even: bool = low.item() >= eps * high.item()
    if is_even or blocks == 1:
        return is_even
    low, high = torch.aminmax(diagonal.view(blocks, -1), dim=-1)
    return bool((low >= eps * high).all())
