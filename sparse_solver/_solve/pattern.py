"""`Pattern`: the places of a sparse matrix's entries, analysed once and solved with many values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._factor.options import Assume, Options, Precision, Triangle
from .._factor.problem import Problem
from .._sparse.index_checks import (
    check_compressed_structure,
    check_coo_structure,
    check_shape,
    describe_type,
)
from .._sparse.structure import Structure
from .._sparse.torch_tensors import (
    LAYOUTS,
    assemble_tensor,
    canonical_skeleton,
    skeleton_of,
    structure_in,
)
from .._sparse.values import CPU
from ..errors import LayoutError
from .determinant import PatternDeterminant
from .factorization import Factorization, make_preconditioner
from .inverse import PatternInverse
from .shapes import check_values, solve_values


class Pattern(PatternInverse, PatternDeterminant):
    """Where the entries of a sparse matrix are.

    Everything that depends on the places alone (index maps, symbolic analyses) is computed once
    and shared with every Pattern and tensor of equal places. `values` are always given in the
    order of `rows` and `cols`. A Pattern is the fast way to solve, and the one for `torch.func`
    and `torch.compile`. It has no device: it is solved where the values are.

    Parameters
    ----------
    rows, cols : Tensor
        (nnz,) int64 or int32, in any order; entries at the same place are summed.
    shape : sequence of int
        (n, n). Other shapes serve where the matrix is not solved with: `tensor`, and the
        constraints of a `QuadraticProgram`.

    Attributes
    ----------
    shape : tuple of int
        The shape of the matrix.
    nnz : int
        The number of entries, duplicates included.

    Raises
    ------
    ShapeError
        If `shape` is not two sizes.
    IndexRangeError
        For indices that are not integers, lie outside the matrix, or differ in number.
    DeviceError
        For indices on different devices.

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> P = ss.Pattern(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 1]), (2, 2))
    >>> values = torch.tensor([4.0, 3.0, 1.0, 1.0], requires_grad=True)
    >>> x = P.solve(values, torch.tensor([1.0, 2.0]))
    >>> x.sum().backward()
    >>> values.grad
    tensor([-0.0165, -0.1736, -0.0248, -0.1157])
    """

    def __init__(self, rows: Tensor, cols: Tensor, shape: Sequence[int]):
        self._set(check_coo_structure(rows, cols, check_shape(shape)))

    def _set(self, structure: Structure) -> None:
        self._structure = structure
        self.shape: tuple[int, int] = structure.shape
        self.nnz: int = structure.nnz
        self._problems: dict[tuple[Any, ...], Problem] = {}

    @classmethod
    def _of(cls, structure: Structure) -> Pattern:
        pattern = cls.__new__(cls)
        pattern._set(structure)
        return pattern

    @classmethod
    def from_csr(cls, crow_indices: Tensor, col_indices: Tensor, shape: Sequence[int]) -> Pattern:
        """Make the pattern with CSR indices.

        Parameters
        ----------
        crow_indices : Tensor
            (n + 1,) row pointers.
        col_indices : Tensor
            (nnz,) columns.
        shape : sequence of int
            As for `Pattern`.

        Returns
        -------
        Pattern
            The pattern, whose values are in the order of `col_indices`.

        Raises
        ------
        ShapeError, IndexRangeError, DeviceError
            As for `Pattern`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> ss.Pattern.from_csr(torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1]), (2, 2))
        Pattern(shape=(2, 2), nnz=3)
        """
        checked = check_shape(shape)
        return cls._of(check_compressed_structure("csr", crow_indices, col_indices, checked))

    @classmethod
    def from_csc(cls, ccol_indices: Tensor, row_indices: Tensor, shape: Sequence[int]) -> Pattern:
        """Make the pattern with CSC indices.

        Parameters
        ----------
        ccol_indices : Tensor
            (n + 1,) column pointers.
        row_indices : Tensor
            (nnz,) rows.
        shape : sequence of int
            As for `Pattern`.

        Returns
        -------
        Pattern
            The pattern, whose values are in the order of `row_indices`.

        Raises
        ------
        ShapeError, IndexRangeError, DeviceError
            As for `Pattern`.
        """
        checked = check_shape(shape)
        return cls._of(check_compressed_structure("csc", ccol_indices, row_indices, checked))

    @classmethod
    def from_tensor(cls, A: Tensor) -> Pattern:
        """Make the pattern of a sparse tensor.

        Parameters
        ----------
        A : Tensor
            A sparse COO, CSR or CSC tensor, or a batch of CSR or CSC matrices with one pattern.

        Returns
        -------
        Pattern
            The pattern, whose values are in the order of the stored values of `A`.

        Raises
        ------
        LayoutError
            If `A` is not such a tensor.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> ss.Pattern.from_tensor(torch.eye(3).to_sparse())
        Pattern(shape=(3, 3), nnz=3)
        """
        return cls._of(structure_in(skeleton_of(A)))

    @classmethod
    def from_scipy(cls, A: Any) -> Pattern:
        """Make the pattern of a SciPy sparse matrix or array.

        Parameters
        ----------
        A : scipy.sparse matrix or array
            Of any format.

        Returns
        -------
        Pattern
            The pattern. Its values are ``torch.from_numpy(A.data)`` for the formats CSR, CSC and
            COO, and ``torch.from_numpy(A.tocsr().data)`` for others.

        Raises
        ------
        LayoutError
            If `A` is not a SciPy sparse matrix.

        Examples
        --------
        >>> import scipy.sparse, torch, sparse_solver as ss
        >>> A = scipy.sparse.csr_array([[4.0, 1.0], [1.0, 3.0]])
        >>> ss.Pattern.from_scipy(A).solve(torch.from_numpy(A.data), torch.ones(2).double())
        tensor([0.1818, 0.2727], dtype=torch.float64)
        """
        from scipy.sparse import issparse

        if not issparse(A) or A.ndim != 2:
            raise LayoutError(f"A is {describe_type(A)}; expected a SciPy sparse matrix")
        if A.format not in ("csr", "csc", "coo"):
            A = A.tocsr()
        if A.format == "coo":
            return cls(_to_tensor(A.row), _to_tensor(A.col), A.shape)
        make = cls.from_csr if A.format == "csr" else cls.from_csc
        return make(_to_tensor(A.indptr), _to_tensor(A.indices), A.shape)

    @property
    def rows(self) -> Tensor:
        """(nnz,) int64, a copy: the row of each entry, in the order of the values."""
        return self._structure.rows.clone()

    @property
    def cols(self) -> Tensor:
        """(nnz,) int64, a copy: the column of each entry, in the order of the values."""
        return self._structure.cols.clone()

    def solve(
        self,
        values: Tensor,
        b: Tensor,
        *,
        assume: Assume = "auto",
        triangle: Triangle | None = None,
        transpose: bool = False,
        adjoint: bool = False,
        engine: str | None = None,
        precision: Precision = "full",
        preconditioner: Factorization | None = None,
        non_blocking: bool = False,
    ) -> Tensor:
        """Solve A(values) x = b; differentiable in `values` and `b`, to any order.

        The gradient of an entry is −λ_i conj(x_j) with λ = A⁻ᴴ x̄. Costs one factorisation a matrix
        and one substitution a right-hand side, and the backward pass one substitution; matrices
        that are not positive definite cost somewhat more, see `sparse_solver.solve`.

        Parameters
        ----------
        values : Tensor
            (nnz,), or (..., nnz) for a batch of matrices; float32, float64, complex64 or
            complex128.
        b : Tensor
            (n,), (n, k), or batched, as for `torch.linalg.solve`; of the same dtype and device.
        assume, triangle, transpose, adjoint, engine, precision, preconditioner, non_blocking
            As for `sparse_solver.solve`.

        Returns
        -------
        Tensor
            x, of the shape that `torch.linalg.solve` gives.

        Raises
        ------
        SparseSolverError
            As for `sparse_solver.solve`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))
        >>> P.solve(torch.tensor([[1.0, 2.0], [4.0, 8.0]]), torch.ones(2))
        tensor([[1.0000, 0.5000],
                [0.2500, 0.1250]])
        """
        problem = self._problem(assume, triangle, engine, non_blocking, precision)
        if preconditioner is not None:
            problem = replace(problem, preconditioner=make_preconditioner(preconditioner))
        return solve_values(problem, values, b, transpose=transpose, adjoint=adjoint)

    def _problem(self, *options: Any) -> Problem:
        """The systems with these options (see `Options`), made once for those that were used."""
        if torch.compiler.is_compiling() or not all(map(_is_simple, options)):
            return Problem(self._structure, Options(*options))
        problem = self._problems.get(options)
        if problem is None:
            problem = self._problems[options] = Problem(self._structure, Options(*options))
        return problem

    def factorize(
        self,
        values: Tensor,
        *,
        assume: Assume = "auto",
        triangle: Triangle | None = None,
        engine: str | None = None,
        precision: Precision = "full",
        preconditioner: Factorization | None = None,
        non_blocking: bool = False,
    ) -> Factorization:
        """Factor A(values) once, to solve with it often.

        Parameters
        ----------
        values : Tensor
            As for `solve`.
        assume, triangle, engine, precision, preconditioner, non_blocking
            As for `sparse_solver.solve`.

        Returns
        -------
        Factorization
            The factored matrix.

        Raises
        ------
        SparseSolverError
            As for `sparse_solver.solve`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))
        >>> P.factorize(torch.tensor([1.0, 2.0])).solve(torch.ones(2))
        tensor([1.0000, 0.5000])
        """
        options = Options(assume, triangle, engine, non_blocking, precision)
        inverse = make_preconditioner(preconditioner)
        problem = Problem(self._structure, options, preconditioner=inverse)
        return Factorization(problem, values)

    def tensor(self, values: Tensor, *, layout: torch.layout = torch.sparse_coo) -> Tensor:
        """Make the sparse tensor A(values); differentiable in `values`.

        Parameters
        ----------
        values : Tensor
            (nnz,), or (..., nnz) for a batch of CSR or CSC matrices.
        layout : torch.layout
            torch.sparse_coo, torch.sparse_csr or torch.sparse_csc.

        Returns
        -------
        Tensor
            The sparse tensor, duplicates summed and indices sorted.

        Raises
        ------
        LayoutError, ShapeError, DtypeError, DeviceError
            If the layout does not exist or cannot hold a batch, or the values do not fit.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]), (2, 2))
        >>> P.tensor(torch.tensor([1.0, 2.0, 3.0])).to_dense()
        tensor([[1., 0.],
                [0., 5.]])
        """
        check_values(values, self.nnz)
        structure = self._structure.on(values.device)
        if layout not in LAYOUTS:
            raise LayoutError(
                f"layout={layout}: expected torch.sparse_coo, torch.sparse_csr or torch.sparse_csc"
            )
        if values.dim() != 1 and layout == torch.sparse_coo:
            raise LayoutError("a batch of matrices is stored as torch.sparse_csr or sparse_csc")
        size = (*values.shape[:-1], *structure.shape)
        skeleton, order = canonical_skeleton(structure, layout, size)
        canonical = structure.canonical(values)
        canonical = canonical if order is None else canonical.index_select(-1, order)
        return assemble_tensor(canonical, skeleton)

    def __repr__(self) -> str:
        return f"Pattern(shape={self.shape}, nnz={self.nnz})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies, since torch.multiprocessing moves what it sends to shared memory, and engines keep
        # the addresses of the indices.
        return (Pattern, (self.rows, self.cols, self.shape))

    def __copy__(self) -> Pattern:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pattern:
        return self  # a pattern is immutable


def _is_simple(option: object) -> bool:
    """Whether equal options of this type mean the same; True == 1, which is refused."""
    return option is None or isinstance(option, str | bool)


def _to_tensor(index: Any) -> Tensor:
    """A copy of an index array, on the host whatever torch's default device is."""
    return torch.tensor(index, device=CPU)
