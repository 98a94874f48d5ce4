"""Log-determinants, inverses and half solves, which a room above this one computes.

`Pattern` and `Factorization` offer them. That room registers a class, so that this one need not
import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from .._factor.factors import Factors
from .._factor.options import Triangle
from .._factor.problem import Problem
from .._sparse.structure import Structure
from .._sparse.values import check_finite
from ..errors import OptionError
from .half_solve import Half, solve_half
from .shapes import check_flags, check_rhs, fold_rhs


class Inverse(Protocol):
    """The inverses of positive definite matrices (..., n, n), differentiable in their values.

    max_solves : the most solves that a derivative may take
    """

    max_solves: int

    def logdet(self) -> Tensor:
        """(...) the logarithms of the determinants of the matrices."""

    def selected_inverse(self) -> Tensor:
        """(..., nnz) the entries of the inverses at the stored places."""

    def diagonal(self) -> Tensor:
        """(..., n) the diagonals of the inverses."""

    def solve_factor(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """B b or Bᵀ b with B Bᵀ = A⁻¹, of the shape of a solve, differentiable in b, too."""

    def apply_half(self, values: Tensor, rhs: Tensor, adjoint: bool) -> Tensor:
        """Apply B or Bᵀ, with B Bᵀ = A⁻¹, to the rows of `rhs`; all tensors are plain."""


# The most solves that a derivative may take by default: up to half a minute.
MAX_SOLVES = 10_000

_Build = Callable[[Structure, Tensor, Triangle | None, int], Inverse]
_builders: list[_Build] = []


def register_inverse(build: _Build) -> None:
    """Let `inverse_of` call ``build(structure, values, triangle, max_solves)``."""
    _builders[:] = [build]


def inverse_of(
    structure: Structure, values: Tensor, triangle: Triangle | None, max_solves: int
) -> Inverse:
    """The inverses of the matrices with these values; factors are made at the first call."""
    return _builders[0](structure, values, triangle, max_solves)


class FactorizationInverse:
    """What a `Factorization` offers of the inverse."""

    _values: Tensor
    _problem: Problem
    _factors: Factors
    _inverse: Inverse | None

    def logdet(self, *, max_solves: int = MAX_SOLVES) -> Tensor:
        """The log-determinant of a positive definite matrix; see `Pattern.logdet`.

        The first call makes a factor of its own, which later calls and `inverse_diagonal` use.

        Parameters
        ----------
        max_solves : int
            As for `Pattern.logdet`.

        Returns
        -------
        Tensor
            (...) the logarithms of the determinants, differentiable in the values; those of the
            matrices of a batch, also if these have different patterns.

        Raises
        ------
        SparseSolverError
            As for `Pattern.logdet`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> ss.factorize(torch.tensor([[2.0, 1.0], [1.0, 3.0]]).to_sparse()).logdet()
        tensor(1.6094)
        """
        return self._find_inverse(max_solves).logdet()

    def inverse_diagonal(self, *, max_solves: int = MAX_SOLVES) -> Tensor:
        """The diagonal of the inverse of a positive definite matrix.

        Parameters
        ----------
        max_solves : int
            As for `Pattern.logdet`.

        Returns
        -------
        Tensor
            (..., n) the diagonals, real and differentiable in the values; see
            `Pattern.selected_inverse`.

        Raises
        ------
        SparseSolverError
            As for `Pattern.logdet`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> ss.factorize(torch.tensor([[2.0, 1.0], [1.0, 3.0]]).to_sparse()).inverse_diagonal()
        tensor([0.6000, 0.4000])
        """
        return self._find_inverse(max_solves).diagonal()

    def solve_factor(self, b: Tensor, *, adjoint: bool = False) -> Tensor:
        """Apply B or Bᴴ to b, where B Bᴴ = A⁻¹, for a positive definite matrix A.

        If the entries of b are independent standard normal numbers, B b is a sample of the Gaussian
        field with the precision matrix A. It costs half of a solve, and is differentiable in b.

        Parameters
        ----------
        b : Tensor
            As for `solve`.
        adjoint : bool
            Whether to apply Bᴴ, such as to whiten: Bᴴ A B is the identity.

        Returns
        -------
        Tensor
            The shape, dtype and device of `solve`.

        Raises
        ------
        NotPositiveDefiniteError
            If the matrix is not positive definite.
        EngineUnavailableError
            If the engine that factored has no such half, and Numba, whose factor has one, is not
            installed: ``pip install "sparse-solver[gaussian]"``.
        EngineUnsupportedError
            The same for a complex matrix.
        TransformError
            Where the derivative in the values of the matrix is asked for, which
            `Pattern.solve_factor` has.

        Notes
        -----
        With a permutation P and the Cholesky factor L of P A Pᵀ, B = Pᵀ L⁻ᴴ P. The permutation is
        up to the engine.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> F = ss.factorize(torch.tensor([[4.0, 0.0], [0.0, 1.0]]).to_sparse(), assume="spd")
        >>> F.solve_factor(torch.tensor([1.0, 1.0]))
        tensor([0.5000, 1.0000])
        """
        check_rhs("b", b, self._values)
        check_flags(False, adjoint)
        values, rhs, unfold = fold_rhs(self._problem.structure, self._values, b)
        return unfold(solve_half(values, rhs, Half(self._apply_half), adjoint))

    def _apply_half(self, values: Tensor, rhs: Tensor, adjoint: bool, strict: bool) -> Tensor:
        if strict:
            check_finite("b", rhs)
        x = self._factors.apply_half(values, rhs, adjoint)
        if x is None:
            x = self._find_inverse(MAX_SOLVES).apply_half(values, rhs, adjoint)
        return x

    def _find_inverse(self, max_solves: int) -> Inverse:
        if self._inverse is None or self._inverse.max_solves != max_solves:
            structure, options = self._problem.structure, self._problem.options
            if options.assume == "symmetric" and self._values.is_complex():
                raise OptionError(
                    "assume='symmetric', but log-determinants and inverses are computed for "
                    "Hermitian positive definite matrices: factorize with assume='spd'"
                )
            self._inverse = inverse_of(structure, self._values, options.triangle, max_solves)
        return self._inverse


class PatternInverse:
    """What a `Pattern` offers of the inverse."""

    _structure: Structure

    def logdet(
        self, values: Tensor, *, triangle: Triangle | None = None, max_solves: int = MAX_SOLVES
    ) -> Tensor:
        """The log-determinant of the positive definite matrix A(values).

        Costs one factorisation, and its first gradient a selected inverse, which takes about twice
        as long. It is differentiable to any order; the third derivative takes 2 n solves.

        Parameters
        ----------
        values : Tensor
            (nnz,), or (..., nnz) for a batch of matrices; float32, float64, complex64 or
            complex128. All is computed in double precision.
        triangle : {"lower", "upper"}, optional
            The triangle that is stored, if it is only one.
        max_solves : int
            The most solves that a derivative may take; an OptionError is raised where it would
            take more.

        Returns
        -------
        Tensor
            (...) the logarithms of the determinants, which are real.

        Raises
        ------
        NotPositiveDefiniteError, NotSymmetricError, SingularMatrixError, NonFiniteError
            If the matrix is not what it must be.
        EngineUnavailableError
            If Numba is not installed: ``pip install "sparse-solver[gaussian]"``.

        Notes
        -----
        The gradient of an entry is (A⁻ᴴ)_ij, twice that off the diagonal with `triangle`. Hermitian
        matrices are factored as real ones of twice the size.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (2, 2))
        >>> values = torch.tensor([2.0, 1.0, 1.0, 3.0], requires_grad=True)
        >>> P.logdet(values).backward()
        >>> values.grad  # the inverse
        tensor([ 0.6000, -0.2000, -0.2000,  0.4000])
        """
        return inverse_of(self._structure, values, triangle, max_solves).logdet()

    def selected_inverse(
        self, values: Tensor, *, triangle: Triangle | None = None, max_solves: int = MAX_SOLVES
    ) -> Tensor:
        """The entries of A(values)⁻¹ at the places of A, for a positive definite matrix.

        Costs about three factorisations, and its gradient about four more. It is differentiable to
        any order; the second derivative takes 2 n solves.

        Parameters
        ----------
        values, triangle, max_solves
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
        return inverse_of(self._structure, values, triangle, max_solves).selected_inverse()

    def solve_factor(
        self, values: Tensor, b: Tensor, *, adjoint: bool = False, triangle: Triangle | None = None
    ) -> Tensor:
        """Apply B or Bᵀ to b, where B Bᵀ = A(values)⁻¹, for a real positive definite matrix.

        As `Factorization.solve_factor`, but differentiable once in the values, too: the gradient of
        samples. Costs one factorisation and half of a solve, and the gradient about two more
        factorisations.

        Parameters
        ----------
        values, triangle
            As for `logdet`, but real.
        b : Tensor
            As for `solve`.
        adjoint : bool
            Whether to apply Bᵀ.

        Returns
        -------
        Tensor
            The shape, dtype and device of `solve`.

        Raises
        ------
        SparseSolverError
            As for `logdet`.
        EngineUnsupportedError
            If the matrix is complex.
        TransformError
            Where a second derivative in the values is asked for, or one by forward mode.

        Notes
        -----
        With a permutation P that depends on the pattern and on what is installed, and the Cholesky
        factor L of P A Pᵀ, B = Pᵀ L⁻ᵀ P. It is differentiated by reverse mode through the
        factorisation, for that permutation.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))
        >>> values = torch.tensor([4.0, 1.0], requires_grad=True)
        >>> x = P.solve_factor(values, torch.ones(2))
        >>> x.sum().backward()
        >>> x.detach(), values.grad  # the derivative of a^(-1/2) is -a^(-3/2) / 2
        (tensor([0.5000, 1.0000]), tensor([-0.0625, -0.5000]))
        """
        inverse = inverse_of(self._structure, values, triangle, MAX_SOLVES)
        return inverse.solve_factor(b, adjoint)
