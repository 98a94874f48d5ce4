"""The fast path: with a matrix like the last one of its pattern, nothing is checked twice.

A pattern whose last matrix was beyond doubt is factored by a `FastPath`, which makes in a few
operations all the checks that such a matrix has to pass. Where it does not pass them, `ladder`
finds out why, and what to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..._engines.protocol import UpperSymbolic
from ..._sparse.both_triangles import agree, both_triangles_of
from ..._sparse.structure import Structure
from ...errors import SparseSolverError
from ..accuracy.checked_factor import InverseOperator, Record, SoundFactor
from ..accuracy.systems import Vectors
from ..options import Assume, Triangle
from .starting_method import Start
from .symmetry import check_lines, check_triangle


class FastPath(Protocol):
    """A way to factor matrices that are beyond doubt.

    symbolic : the analysis
    blocks : the equal blocks on the diagonal
    """

    @property
    def symbolic(self) -> object: ...
    @property
    def blocks(self) -> int: ...

    def factor(self, structure: Structure, values: Tensor) -> InverseOperator | None:
        """The factor of the matrix with these values; None if there may be any doubt about it."""


class FastPaths:
    """The fast path for one pattern, one dtype and one choice of options.

    Raises an error if the pattern alone shows that no matrix can be solved with.

    path : None after a matrix that was not beyond doubt
    known : the last path
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
        self.path: FastPath | None = None
        self.known: FastPath | None = None
        # When to leave a provisional path; None if the path is not provisional.
        self._review: Start | None = None

    def open(
        self, symbolic: object, make: Callable[[], FastPath], is_provisional: bool = False
    ) -> None:
        """Take the path with this analysis, which is made unless it is known.

        A provisional one is left now and then, since other values may have a faster way.
        """
        if self.known is None or self.known.symbolic is not symbolic:
            self.known = make()
        self.path = self.known
        if is_provisional:
            self._review = self._review or Start()
            self._review.keep(self.path)

    def find(self, blocks: int) -> FastPath | None:
        """The path for so many blocks, if there is one to take."""
        path = self.path
        if path is None or path.blocks != blocks:
            return None
        return path if self._review is None or self._review.find() is not None else None


class CholeskyPath:
    """The path for positive definite matrices.

    An exact comparison of both triangles while they are gathered, and pivots that are not small
    beside the diagonal, show all that the solve has to know: symmetric, finite, positive definite,
    and not nearly singular.

    record : how the last factor came about
    """

    def __init__(self, structure: Structure, symbolic: UpperSymbolic, record: Record, blocks: int):
        triangles = both_triangles_of(structure)
        assert triangles is not None  # since the triangles of the last matrix agreed
        self.blocks, self.symbolic, self._record = blocks, symbolic, replace(record)
        self._triangles = symbolic.reorder(triangles)
        self._vectors = Vectors(structure.shape[0], blocks)

    def factor(self, structure: Structure, values: Tensor) -> SoundFactor | None:
        upper, lower = self._triangles.fill(values)
        if not agree(upper, lower, conjugate=True):
            return None
        diagonal = upper.index_select(0, self._triangles.at_diagonal)
        if is_well_scaled(diagonal):
            started = time.perf_counter()
            with suppress(SparseSolverError):  # the ladder will raise an error that says more
                factor = self.symbolic.factor_upper(upper, diagonal)
                if factor.sound:
                    seconds = time.perf_counter() - started
                    return SoundFactor(self._record, factor, self._vectors, seconds)
        return None


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
