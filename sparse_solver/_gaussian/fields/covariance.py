"""The covariance Σ = Q⁻¹ of a Gaussian field, applied by solves and never formed.

Vectors are (..., n); their leading dimensions are broadcast with those of the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..._factor.options import Options
from ..._factor.problem import Problem
from ..._solve.factorization import Factorization
from ..._solve.inverse import MAX_SOLVES
from ..._sparse.kernels import Places, apply, apply_adjoint
from ..._sparse.structure import Structure, structure_of
from ..._torch.modes import is_recorded, recording
from ...errors import NotPositiveDefiniteError, SingularMatrixError
from ..symmetric_inverse import SymmetricInverse


class Covariance(Protocol):
    """The covariance of a field, and what follows from it.

    dimension : that of the subspace that the field is in
    noise : how many standard normal numbers a sample is made of
    """

    @property
    def dimension(self) -> int: ...
    @property
    def noise(self) -> int: ...

    def apply(self, vectors: Tensor) -> Tensor:
        """Σ v for vectors v (..., n)."""

    def color(self, white: Tensor) -> Tensor:
        """(..., n) vectors of the covariance Σ, for white noise (..., noise)."""

    def logdet_precision(self) -> Tensor:
        """(...) log det of the precision on the subspace that the field is in."""

    def diagonal(self) -> Tensor:
        """(..., n) the variances."""

    def pair(self, structure: Structure, values: Tensor) -> Tensor:
        """(...) tr(A Σ) for the symmetric matrix A with this structure and these values."""


class FreeCovariance:
    """The inverse of a positive definite matrix Q."""

    def __init__(self, structure: Structure, values: Tensor):
        self.structure, self.values = structure, values
        self.dimension = self.noise = structure.shape[0]
        self._inverse = SymmetricInverse(structure, values, None, MAX_SOLVES)
        self._factorization: Factorization | None = None

    @property
    def factorization(self) -> Factorization:
        """The factor that solves."""
        if self._factorization is None:
            with explain_singular(), recording():
                problem = Problem(self.structure, Options("spd"))
                self._factorization = Factorization(problem, self.values)
        return self._factorization

    def apply(self, vectors: Tensor) -> Tensor:
        """Σ v."""
        return self.factorization.solve(vectors.unsqueeze(-1)).squeeze(-1)

    def apply_columns(self, columns: Tensor) -> Tensor:
        """(..., n, k), Σ applied to columns (n, k)."""
        batch = self.values.shape[:-1]
        return self.factorization.solve(columns.expand(*batch, *columns.shape))

    def color(self, white: Tensor) -> Tensor:
        """B z with B Bᵀ = Σ; the gradient in the values is that of the supernodal factor."""
        columns = white.unsqueeze(-1)
        if is_recorded(self.values):
            with explain_singular():
                return self._inverse.solve_factor(columns).squeeze(-1)
        return self.factorization.solve_factor(columns).squeeze(-1)

    def logdet_precision(self) -> Tensor:
        """Log det Q."""
        with explain_singular():
            return self._inverse.logdet()

    def diagonal(self) -> Tensor:
        """The diagonal of Q⁻¹, by the selected inverse."""
        with explain_singular():
            return self._inverse.diagonal()

    def pair(self, structure: Structure, values: Tensor) -> Tensor:
        """The sum of the products of both matrices' entries at the places of A."""
        if structure is self.structure:
            inverse = self._inverse
        else:  # zeros of Q at these places
            own, zeros = self.structure, self.values.new_zeros(structure.nnz)
            joined = join_structures(own, structure.rows, structure.cols)
            zeros = zeros.expand(*self.values.shape[:-1], -1)
            both = torch.cat((self.values, zeros), -1)
            inverse = SymmetricInverse(joined, both, None, MAX_SOLVES)
        with explain_singular():
            entries = inverse.selected_inverse()[..., -structure.nnz :]
        return (values * entries).sum(-1)


def join_structures(structure: Structure, rows: Tensor, cols: Tensor) -> Structure:
    """The structure with more entries behind its own, also at places that it has already."""
    joined = torch.cat((structure.rows, rows)), torch.cat((structure.cols, cols))
    return structure_of(*joined, structure.shape)


def multiply(
    structure: Structure, values: Tensor, vectors: Tensor, transpose: bool = False
) -> Tensor:
    """A v or Aᵀ v for vectors v (..., n)."""
    places = Places(structure.rows, structure.cols).of(transpose)
    count = structure.shape[1 if transpose else 0]
    return apply(values, vectors.unsqueeze(-2), places, count).squeeze(-2)


def sum_squares(structure: Structure, values: Tensor, rows: Tensor) -> Tensor:
    """(...) Σ vᵀ A v over the rows v of (..., k, n)."""
    return (values * apply_adjoint(rows, rows, Places(structure.rows, structure.cols))).sum(-1)


@contextmanager
def explain_singular() -> Iterator[None]:
    """Say in errors about the precision what a field can do about them."""
    try:
        yield
    except (NotPositiveDefiniteError, SingularMatrixError) as error:
        message = (
            f"the precision of the field is not positive definite: {error}. An intrinsic field, "
            f"whose precision has null vectors, needs a linear constraint for each of them, such "
            f"as constraints=torch.ones(1, n) for a sum of zero"
        )
        raise type(error)(message, **error.__dict__) from None
