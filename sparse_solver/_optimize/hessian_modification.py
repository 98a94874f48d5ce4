"""Directions in which an energy falls, from Hessians that may be indefinite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._energy.psd_projection import Projection
from .._factor.factors import Factors
from .._sparse.structure import Structure
from .._sparse.values import probe_vector
from ..errors import NotPositiveDefiniteError, SingularMatrixError
from .implicit_diff import Equations
from .line_search import Stuck
from .report import Matrix

_SHIFTS = 25  # how many shifts are tried, each ten times the one before


_INVERSE_ITERATIONS = 12


@dataclass(frozen=True, eq=False)
class Direction:
    """d = −H⁻¹ g, zero at fixed entries, with a positive definite H, and how that was found.

    hessian, values : (nnz,) H before and after the shift
    """

    d: Tensor
    hessian: Tensor
    values: Tensor
    factors: Factors
    matrix: Matrix
    shift: float


class Hessians:
    """Finds directions in which the energy falls."""

    def __init__(
        self, values: Callable[..., Tensor], equations: Equations, project: Projection | None
    ):
        self.values, self.equations, self.project = values, equations, project
        self.factorizations = 0
        self._shift = 0.0
        self._last: tuple[Tensor, Tensor] | None = None  # an X, and the true Hessian there
        self.changed = 0  # iterations in a row in which the Hessian was

    def direction(self, X: Tensor, g: Tensor, cautious: bool) -> Direction:
        """With the true Hessian if that is positive definite (if `cautious`, it is not tried), else with one that is."""
        found = None if cautious else self.true(X, g)
        if found is None and self.project is not None:
            values = self.values(X, project=self.project)
            found = self.solved(values, g, "projected")
            found = self._shifted(values, g) if found is None else found
        elif found is None:
            found = self._shifted(self._true_values(X), g)
        self.changed = 0 if found.matrix == "true" else self.changed + 1
        return found

    def true(self, X: Tensor, g: Tensor) -> Direction | None:
        """The direction by the true Hessian; None if it is not positive definite."""
        return self.solved(self._true_values(X), g, "true")

    def _true_values(self, X: Tensor) -> Tensor:
        """The Hessian at X, which is computed once, however often it is asked for there."""
        if self._last is None or self._last[0] is not X:
            self._last = X, self.values(X)
        return self._last[1]

    def lowest_curvature(self, X: Tensor, g: Tensor) -> tuple[Tensor, bool]:
        """The eigenvector of the Hessian's lowest eigenvalue, downhill if there is a slope, and whether that is negative, by more
        than rounding errors may do; by inverse iteration with the shifted Hessian."""
        values = self._true_values(X)
        found = self._shifted(values, g)
        submatrix = self.equations.problem.submatrix
        v: Tensor = probe_vector(g.numel(), g.dtype, 0.0).squeeze(0).to(g.device)
        v = v if submatrix is None else v.index_fill(0, submatrix.removed, 0.0)
        curvature = math.inf
        for _ in range(_INVERSE_ITERATIONS):
            v = v / v.norm()
            w = self.equations.solve(found.values, v, found.factors)
            if not float(v @ w) > 0:
                raise Stuck(
                    "the Hessian is too small, or too large, to be inverted; has the energy a minimum?"
                )
            curvature, v = 1 / float(v @ w) - found.shift, w
        size = -float(v.norm()) if float(g @ v) > 0 else float(v.norm())
        return v / size, curvature < -self._smallest_shift(values)

    def solved(
        self, values: Tensor, g: Tensor, matrix: Matrix, shift: float = 0.0
    ) -> Direction | None:
        """The direction with this Hessian plus a multiple of the identity; None if it is not positive definite."""
        problem, hessian = self.equations.problem, values
        if shift:
            values = values.index_add(
                0,
                problem.structure.remember(_find_diagonal_entries),
                values.new_full((g.numel(),), shift),
            )
        factors = Factors(problem)
        self.factorizations += 1
        try:
            return Direction(
                self.equations.solve(values, -g, factors), hessian, values, factors, matrix, shift
            )
        except (NotPositiveDefiniteError, SingularMatrixError):
            return None

    def _shifted(self, values: Tensor, g: Tensor) -> Direction:
        # Those that worked last time are tried again, but a smaller one first. (J. Nocedal and S. J. Wright, "Numerical
        # optimization", 2006, algorithm 3.3.)
        shift = max(self._shift / 10, self._smallest_shift(values))
        for _ in range(_SHIFTS):
            found = self.solved(values, g, "shifted", shift)
            if found is not None:
                self._shift = shift
                return found
            shift *= 10
        raise Stuck("no multiple of the identity makes the Hessian positive definite")

    def _smallest_shift(self, values: Tensor) -> float:
        """More than rounding errors, beside the largest diagonal entry."""
        structure = self.equations.problem.structure
        largest = float(structure.diagonal_of(structure.canonical(values)).abs().max())
        return math.sqrt(torch.finfo(values.dtype).eps) * (largest if largest > 0 else 1.0)


def _find_diagonal_entries(structure: Structure) -> Tensor:
    """(n,) an entry at (i, i) for each i; all are stored."""
    at = torch.nonzero(structure.rows == structure.cols).squeeze(-1)
    entries = torch.empty(structure.shape[0], dtype=torch.int64, device=at.device)
    entries[structure.rows[at]] = at
    return entries
