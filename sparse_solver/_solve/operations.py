"""Operations that a room above this one computes, and that `Pattern` and `Factorization` offer.

That room registers a class, so that this one need not import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from .._factor.options import Triangle
from .._sparse.structure import Structure


class Inverse(Protocol):
    """The inverses of positive definite matrices (..., n, n), differentiable in their values."""

    def logdet(self) -> Tensor:
        """(...) the logarithms of the determinants of the matrices."""

    def selected_inverse(self) -> Tensor:
        """(..., nnz) the entries of the inverses at the stored places."""

    def diagonal(self) -> Tensor:
        """(..., n) the diagonals of the inverses."""


_builders: list[Callable[[Structure, Tensor, Triangle | None], Inverse]] = []


def register_inverse(build: Callable[[Structure, Tensor, Triangle | None], Inverse]) -> None:
    """Let `inverse_of` call ``build(structure, values, triangle)``."""
    _builders[:] = [build]


def inverse_of(structure: Structure, values: Tensor, triangle: Triangle | None) -> Inverse:
    """The inverses of the matrices with these values; factors are made at the first call."""
    return _builders[0](structure, values, triangle)


class PatternInverse:
    """What a `Pattern` offers of the inverse."""

    _structure: Structure

    def logdet(self, values: Tensor, *, triangle: Triangle | None = None) -> Tensor:
        """The log-determinant of the positive definite matrix A(values).

        Costs one factorisation, and its first gradient a selected inverse, which takes about twice
        as long. It is differentiable to any order; from the third derivative on, n solves are made.

        Parameters
        ----------
        values : Tensor
            (nnz,), or (..., nnz) for a batch of matrices; float32, for which all is computed in
            double precision, or float64.
        triangle : {"lower", "upper"}, optional
            The triangle that is stored, if it is only one.

        Returns
        -------
        Tensor
            (...) the logarithms of the determinants.

        Raises
        ------
        NotPositiveDefiniteError, NotSymmetricError, SingularMatrixError, NonFiniteError
            If the matrix is not what it must be.
        EngineUnavailableError
            If Numba is not installed: ``pip install sparse-solver[gaussian]``.
        EngineUnsupportedError
            For complex values.

        Notes
        -----
        The gradient of an entry is (A⁻ᵀ)_ij, twice that off the diagonal with `triangle`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (2, 2))
        >>> values = torch.tensor([2.0, 1.0, 1.0, 3.0], requires_grad=True)
        >>> P.logdet(values).backward()
        >>> values.grad  # the inverse
        tensor([ 0.6000, -0.2000, -0.2000,  0.4000])
        """
        return inverse_of(self._structure, values, triangle).logdet()

    def selected_inverse(self, values: Tensor, *, triangle: Triangle | None = None) -> Tensor:
        """The entries of A(values)⁻¹ at the places of A, for a positive definite matrix.

        Costs about three factorisations, and its gradient about four more. It is differentiable to
        any order; from the second derivative on, n solves are made.

        Parameters
        ----------
        values, triangle
            As for `logdet`.

        Returns
        -------
        Tensor
            (..., nnz) in the order of the values; duplicates each have the entry of their place.

        Raises
        ------
        SparseSolverError
            As for `logdet`.

        Notes
        -----
        A change dA changes the inverse by -A⁻¹ dA A⁻¹. The matrix is symmetric, so that only the
        symmetric part of a cotangent matters: the gradient is -A⁻¹ sym(V) A⁻¹ at the places of A.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (2, 2))
        >>> P.selected_inverse(torch.tensor([2.0, 1.0, 1.0, 3.0]))
        tensor([ 0.6000, -0.2000, -0.2000,  0.4000])
        """
        return inverse_of(self._structure, values, triangle).selected_inverse()
