"""`Factorization`: a matrix that is factored once and solved with often."""

from __future__ import annotations

from dataclasses import astuple
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._factor.factors import Factors
from .._factor.ladder.preconditioner import Preconditioner
from .._factor.options import Options
from .._factor.problem import Problem
from .._sparse.block_diagonal import batch_places
from .._sparse.index_checks import (
    check_batch_structure,
    check_coo_structure,
    check_shape,
    describe_type,
)
from .._torch.dynamo import disable_dynamo
from .._torch.modes import copy_to_keep, is_transformed
from ..errors import DtypeError, OptionError, ShapeError, TransformError
from .determinant import FactorizationDeterminant
from .info import Info, collect_info
from .inverse import FactorizationInverse
from .shapes import check_values, solve_values


class Factorization(FactorizationInverse, FactorizationDeterminant):
    """A factored matrix, made by `factorize` or `Pattern.factorize`.

    It represents the matrix as it was when it was factored, whatever is written to its values
    later. Solutions are differentiable in those values and in `b`, to any order, and their
    derivatives use the same factor. The memory of the factor is released with the last of this
    object and the graphs of its solutions.

    A Factorization can be pickled, copied, and saved and loaded by `torch.save` and `torch.load`.
    The copy has the same values, as constants; a loaded one factors again when it is first used,
    without the preconditioner that it may have had.

    Attributes
    ----------
    shape : tuple of int
        (..., n, n), with the batch dimensions of the values.
    dtype : torch.dtype
        The dtype of the values.

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]]).to_sparse()
    >>> F = ss.factorize(A, assume="spd")
    >>> F.solve(torch.tensor([1.0, 2.0]))
    tensor([0.0909, 0.6364])
    >>> F.info.assume, F.info.n, F.info.perturbed_pivots
    ('spd', 2, 0)
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @disable_dynamo
    def __init__(self, problem: Problem, values: Tensor):
        check_values(values, problem.structure.nnz)
        problem.check(values.dtype)
        # A copy, since what is written to `values` later is not part of this matrix.
        self._set(problem, copy_to_keep(values))
        self._prepare()

    def _set(self, problem: Problem, values: Tensor) -> None:
        structure = problem.structure
        self._values, self._problem = values, problem.on(values.device)
        self._factors = Factors(self._problem)
        self._inverse = self._determinant = None
        self.shape = structure.batch_shape or (*values.shape[:-1], *structure.shape)
        self.dtype = values.dtype

    def _prepare(self) -> None:
        """Factor now, below the transforms of torch.func that the values are part of."""
        if is_transformed(self._values):
            nothing = self._values.new_zeros((self._problem.structure.shape[0], 0))
            solve_values(self._problem, self._values, nothing, factors=self._factors)
        else:
            self._factors.prepare(self._values)

    @property
    def info(self) -> Info:
        """What is known about the factorisation, an `Info`.

        Raises
        ------
        TransformError
            Inside of `torch.vmap` over the values, where a factorisation is one of many.
        """
        if self._factors.parts is None and not is_transformed(self._values):
            self._factors.prepare(self._values)  # a loaded Factorization that was not used yet
        if self._factors.parts is None:
            raise TransformError(
                "inside of torch.vmap a factorisation is one of many; factorize the batch outside "
                "of it"
            )
        factors = [part.factor for part in self._factors.parts]
        return collect_info(self._problem.structure, factors, self._factors.device)

    def solve(self, b: Tensor, *, transpose: bool = False, adjoint: bool = False) -> Tensor:
        """Solve A x = b; differentiable in the values that were factored and in `b`.

        Costs one substitution a right-hand side.

        Parameters
        ----------
        b : Tensor
            (n,), (n, k), or batched, as for `torch.linalg.solve`; of the dtype and on the device
            of the matrix.
        transpose : bool
            Solve Aᵀ x = b instead.
        adjoint : bool
            Solve Aᴴ x = b instead.

        Returns
        -------
        Tensor
            x, of the shape that `torch.linalg.solve` gives.

        Raises
        ------
        ShapeError, DtypeError, DeviceError, LayoutError, OptionError
            If `b` does not fit the matrix, or options contradict each other.
        NonFiniteError, SingularMatrixError
            If `b` is not finite, or has no accurate solution.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> F = ss.factorize(torch.tensor([[2.0, 1.0], [0.0, 1.0]]).to_sparse())
        >>> F.solve(torch.ones(2)), F.solve(torch.ones(2), transpose=True)
        (tensor([0., 1.]), tensor([0.5000, 0.5000]))
        """
        return solve_values(
            self._problem,
            self._values,
            b,
            transpose=transpose,
            adjoint=adjoint,
            factors=self._factors,
        )

    def __repr__(self) -> str:
        known = ""
        if self._factors.parts is not None:
            known = f", assume={self.info.assume!r}, engine={self.info.engine!r}"
        return f"Factorization(shape={self.shape}, dtype={self.dtype}{known})"

    def __reduce__(self) -> tuple[Any, ...]:
        structure, options = self._problem.structure, astuple(self._problem.options)
        # Copies, as for a Pattern.
        rows, cols, shape = structure.rows.clone(), structure.cols.clone(), structure.batch_shape
        if shape is not None:
            *numbers, cols = batch_places(structure, rows, cols)
            rows = torch.stack(numbers)
        indices = rows, cols, shape or structure.shape
        return restore_factorization, (*indices, self._values.detach(), *options)

    def __copy__(self) -> Factorization:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Factorization:
        # The native factor is immutable, and shared.
        copy = Factorization.__new__(Factorization)
        copy._values, copy._problem = self._values.detach().clone(), self._problem
        copy._factors, copy.shape, copy.dtype = self._factors, self.shape, self.dtype
        copy._inverse = copy._determinant = None  # which belong to the values of this object
        return copy


def restore_factorization(
    rows: Tensor, cols: Tensor, shape: tuple[int, ...], values: Tensor, *options: Any
) -> Factorization:
    """Unpickle a `Factorization`, which factors when it is first used.

    For a batch with different patterns, `rows` are (dimensions − 1, nnz): all indices but `cols`.
    """
    if len(shape) == 2:
        structure = check_coo_structure(rows, cols, check_shape(shape))
    else:
        structure = check_batch_structure("coo", (torch.cat((rows, cols.unsqueeze(0))),), shape)
    check_values(values, structure.nnz)
    restored = Factorization.__new__(Factorization)
    restored._set(Problem(structure, Options(*options)), values)
    return restored


def make_preconditioner(F: Factorization | None) -> Preconditioner | None:
    """The factorisation of one matrix as a preconditioner, if there is one."""
    if F is None:
        return None
    if not isinstance(F, Factorization):
        raise OptionError(
            f"preconditioner is {describe_type(F)}; expected a Factorization, as "
            f"sparse_solver.factorize makes it"
        )
    if len(F.shape) > 2:
        raise ShapeError(
            f"the preconditioner is the factorisation of a batch of shape {F.shape}; expected that "
            f"of one matrix, which serves all matrices"
        )
    if torch.compiler.is_compiling():
        raise TransformError(
            "preconditioner= cannot be a part of a compiled graph; call the solve outside of "
            "torch.compile"
        )
    if torch._C._functorch.is_functorch_wrapped_tensor(F._values):
        raise TransformError(
            "the preconditioner depends on what torch.func transforms; factorize it outside of the "
            "transformed function"
        )
    if F.dtype.is_complex:
        raise DtypeError(
            f"the preconditioner is the factorisation of a matrix of {F.dtype}; expected that of a "
            f"real one, since preconditioner= is for real positive definite matrices"
        )
    factors, values = F._factors, F._values.detach()
    find_definiteness = partial(factors.are_definite, values)
    return Preconditioner(factors.apply_inverse, values, F.shape[-1], find_definiteness)
