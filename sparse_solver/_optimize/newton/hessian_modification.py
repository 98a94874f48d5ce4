"""Directions in which an energy falls, from Hessians that may be indefinite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._energy.psd_projection import Projection
from ..._factor.factors import Factors
from ..._sparse.structure import find_diagonal_entries
from ..._sparse.values import probe_vector
from ...errors import NotPositiveDefiniteError, SingularMatrixError
from ..equations import Equations
from ..report import MatrixKind
from .stopping import StopReason, Stuck

# How many shifts are tried, each larger than the one before by this factor.
_SHIFTS = 25
_GROWTH = 10
# Steps of inverse iteration, which find a curvature well enough to judge its sign.
_INVERSE_ITERATIONS = 12

# How often a vector is filtered to remove its components of larger curvature.
_FILTERS = 8


@dataclass(frozen=True, eq=False)
class Direction:
    """d = −H⁻¹ g with a positive definite H, zero at fixed entries.

    hessian, values : (nnz,) H before and after the shift
    matrix : how H was made
    """

    d: Tensor
    hessian: Tensor
    values: Tensor
    factors: Factors
    matrix: MatrixKind
    shift: float

    @property
    def is_true(self) -> bool:
        """Whether H is the true Hessian."""
        return self.matrix == "true"

    @property
    def is_changed(self) -> bool:
        """Whether H was changed, and the step goes along d, not along negative curvature."""
        return self.matrix in ("projected", "shifted")


class HessianModifier:
    """Finds directions of descent, with the true Hessian or a positive definite one in its place.

    compute : the Hessian's values at X; takes ``project=`` if there is a `projection`
    factorizations : the number of factorisations, failed ones included
    changed : for how many iterations in a row the Hessian was changed
    """

    def __init__(
        self, compute: Callable[..., Tensor], equations: Equations, projection: Projection | None
    ):
        self.compute, self.equations, self.projection = compute, equations, projection
        self.factorizations = self.changed = 0
        self._shift = 0.0
        self._last: tuple[Tensor, Tensor] | None = None  # a point X, and the true Hessian there

    def find_direction(self, X: Tensor, g: Tensor, cautious: bool) -> Direction:
        """The direction by the true Hessian if it is positive definite, otherwise by a changed one.

        If `cautious`, the true Hessian is not tried.
        """
        found = None if cautious else self.try_true(X, g)
        if found is None and self.projection is not None:
            values = self.compute(X, project=self.projection)
            found = self._try(values, g, "projected") or self._try_shifts(values, g)
        elif found is None:
            found = self._try_shifts(self._compute_once(X), g)
        self.changed = 0 if found.is_true else self.changed + 1
        return found

    def try_true(self, X: Tensor, g: Tensor) -> Direction | None:
        """The direction by the true Hessian; None if it is not positive definite."""
        return self._try(self._compute_once(X), g, "true")

    def find_lowest_curvature(self, X: Tensor, g: Tensor) -> tuple[Tensor, bool]:
        """The eigenvector for the Hessian's lowest eigenvalue, and whether that is negative.

        The eigenvector points downhill if the gradient has a component along it. The eigenvalue
        counts as negative if it is lower than rounding errors explain. Both come from inverse
        iteration with a shifted Hessian.
        """
        values = self._compute_once(X)
        found = self._try_shifts(values, g)
        submatrix = self.equations.problem.submatrix
        v: Tensor = probe_vector(g.numel(), g.dtype, 0.0).squeeze(0).to(g.device)
        v = v if submatrix is None else v.index_fill(0, submatrix.removed, 0.0)
        curvature = math.inf
        for _ in range(_INVERSE_ITERATIONS):
            v = v / v.norm()
            w = self.equations.try_inverse(found.values, v, found.factors)
            if w is None or not float(v @ w) > 0:
                raise Stuck(StopReason.NOT_INVERTIBLE)
            curvature, v = 1 / float(v @ w) - found.shift, w
        size = -float(v.norm()) if float(g @ v) > 0 else float(v.norm())
        return v / size, curvature < -self._smallest_shift(values)

    def select_soft_part(self, X: Tensor, g: Tensor, v: Tensor) -> Tensor:
        """v without its components along which the curvature is larger than rounding errors.

        All of v, if the Hessian is too small or too large to be inverted.
        """
        try:
            found = self._try_shifts(self._compute_once(X), g)
        except Stuck:
            return v
        size = float(v.abs().max()) or 1.0
        soft = v.reshape(-1) / size
        for _ in range(_FILTERS):
            filtered = self.equations.try_inverse(found.values, soft, found.factors)
            if filtered is None:
                return v
            soft = found.shift * filtered
        return size * soft.reshape(v.shape)

    def _compute_once(self, X: Tensor) -> Tensor:
        """The true Hessian's values at X, computed at the first call for this tensor."""
        if self._last is None or self._last[0] is not X:
            self._last = X, self.compute(X)
        return self._last[1]

    def _try(
        self, values: Tensor, g: Tensor, matrix: MatrixKind, shift: float = 0.0
    ) -> Direction | None:
        """The direction by this Hessian plus `shift` times the identity; None if not definite."""
        problem, hessian = self.equations.problem, values
        if shift:
            diagonal = problem.structure.remember(find_diagonal_entries)
            values = values.index_add(0, diagonal, values.new_full((g.numel(),), shift))
        factors = Factors(problem)
        self.factorizations += 1
        try:
            d = self.equations.apply_inverse(values, -g, factors)
        except (NotPositiveDefiniteError, SingularMatrixError):
            return None
        return Direction(d, hessian, values, factors, matrix, shift)

    def _try_shifts(self, values: Tensor, g: Tensor) -> Direction:
        """The direction by this Hessian plus a multiple of the identity that makes it definite.

        The first shift is smaller than the last one that succeeded. (J. Nocedal and S. J. Wright,
        "Numerical optimization", 2006, algorithm 3.3.)
        """
        shift = max(self._shift / _GROWTH, self._smallest_shift(values))
        for _ in range(_SHIFTS):
            found = self._try(values, g, "shifted", shift)
            if found is not None:
                self._shift = shift
                return found
            shift *= _GROWTH
        raise Stuck(StopReason.NOT_SHIFTABLE)

    def _smallest_shift(self, values: Tensor) -> float:
        """A shift that exceeds rounding errors of the largest diagonal entry."""
        structure = self.equations.problem.structure
        largest = float(structure.diagonal_of(structure.canonical(values)).abs().max())
        return math.sqrt(torch.finfo(values.dtype).eps) * (largest if largest > 0 else 1.0)
