"""`slogdet`, which a room above this one computes, and `Pattern` and `Factorization` offer.

That room registers a class, so that this one need not import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from .._factor.factors import Factors
from .._factor.options import Assume, Options, Triangle
from .._factor.problem import Problem
from .._sparse.structure import Structure
from .._torch.dynamo import disable_dynamo
from .inverse import MAX_SOLVES


class SignAndLogdet(NamedTuple):
    """A determinant, ``sign * exp(logabsdet)``, as `torch.linalg.slogdet` returns it.

    Attributes
    ----------
    sign : Tensor
        (...) 1 or -1, or for complex matrices numbers of modulus one.
    logabsdet : Tensor
        (...) the logarithms of the moduli, which are real.
    """

    sign: Tensor
    logabsdet: Tensor


class Determinant(Protocol):
    """The determinants of matrices (..., n, n), differentiable in their values.

    max_solves : the most solves that a derivative may take
    """

    max_solves: int

    def slogdet(self) -> SignAndLogdet:
        """(...) the phases and the logarithms of the moduli."""


_Build = Callable[[Problem, Tensor, int, Factors | None], Determinant]
_builders: list[_Build] = []


def register_determinant(build: _Build) -> None:
    """Let `slogdet` call ``build(problem, values, max_solves, factors)``."""
    _builders[:] = [build]


class FactorizationDeterminant:
    """What a `Factorization` offers of the determinant."""

    _values: Tensor
    _problem: Problem
    _factors: Factors
    _determinant: Determinant | None

    @disable_dynamo
    def slogdet(self, *, max_solves: int = MAX_SOLVES) -> SignAndLogdet:
        """The sign and the logarithm of the modulus of the determinant; see `Pattern.slogdet`.

        Uses the pivots of this factorisation, if its engine tells them and the matrix is in double
        precision on the CPU. Otherwise the first call makes a factor of its own, which later calls
        use. Derivatives solve with this factorisation.

        Parameters
        ----------
        max_solves : int
            As for `Pattern.slogdet`.

        Returns
        -------
        SignAndLogdet
            As for `Pattern.slogdet`; of the matrices of a batch, also if these have different
            patterns.

        Raises
        ------
        SparseSolverError
            As for `Pattern.slogdet`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> F = ss.factorize(torch.tensor([[0.0, 2.0], [3.0, 1.0]]).to_sparse())
        >>> F.slogdet()  # of -6
        SignAndLogdet(sign=tensor(-1.), logabsdet=tensor(1.7918))
        """
        known = self._determinant
        if known is None or known.max_solves != max_solves:
            known = _builders[0](self._problem, self._values, max_solves, self._factors)
            self._determinant = known
        return known.slogdet()


class PatternDeterminant:
    """What a `Pattern` offers of the determinant."""

    _structure: Structure

    @disable_dynamo
    def slogdet(
        self,
        values: Tensor,
        *,
        assume: Assume = "auto",
        triangle: Triangle | None = None,
        max_solves: int = MAX_SOLVES,
    ) -> SignAndLogdet:
        """The sign and the logarithm of the modulus of the determinant of A(values).

        For matrices of any kind; use `logdet` where a matrix must be positive definite, which
        refuses others and has cheaper higher derivatives. Costs one or, where the engine that
        solves does not tell its pivots, two factorisations. The gradient costs n solves or, for a
        positive definite matrix and if Numba is installed, a selected inverse; the second
        derivative costs 2 n solves, and higher ones more.

        Parameters
        ----------
        values : Tensor
            (nnz,), or (..., nnz) for a batch of matrices; float32, float64, complex64 or
            complex128. All is computed in double precision, on the CPU.
        assume, triangle
            As for `sparse_solver.solve`.
        max_solves : int
            The most solves that a derivative may take; an OptionError is raised where it would
            take more.

        Returns
        -------
        SignAndLogdet
            (...) `sign`, in the dtype of the values, and `logabsdet`, which is real.

        Raises
        ------
        SingularMatrixError
            If a matrix is singular, exactly or to working precision, as for a solve; dense torch
            returns a sign of 0 and a logarithm of -inf, if it notices.
        NotPositiveDefiniteError, NotSymmetricError, NonFiniteError
            If the matrix is not what it must be.

        Notes
        -----
        d logabsdet = Re tr(A⁻¹ dA), and the phase changes by i sign Im tr(A⁻¹ dA). The gradient of
        logabsdet at an entry is (A⁻ᴴ)_ij, twice that off the diagonal with `triangle`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (2, 2))
        >>> values = torch.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
        >>> sign, logabsdet = P.slogdet(values)
        >>> sign.item(), round(logabsdet.exp().item(), 4)
        (-1.0, 2.0)
        >>> logabsdet.backward()
        >>> values.grad  # the transpose of the inverse
        tensor([-2.0000,  1.5000,  1.0000, -0.5000])
        """
        problem = Problem(self._structure, Options(assume, triangle))
        return _builders[0](problem, values, max_solves, None).slogdet()
