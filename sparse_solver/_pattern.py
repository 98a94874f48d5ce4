"""`Pattern`: the places of a sparse matrix's entries, known once, solved with many values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._factorization import Factorization
from ._kinds import Assume, Options, Reporting, Triangle
from ._solve import check_values, solve_values
from ._structure import Structure
from ._tensors import (
    LAYOUTS,
    assemble,
    canonical_skeleton,
    compressed_structure,
    coo_structure,
    shape_of,
    skeleton_of,
    structure_in,
)
from .errors import LayoutError


class Pattern:
    """Where the entries of a sparse matrix are.

    rows, cols : (nnz,) int64 or int32, in any order; entries at the same place are summed
    shape : (n, n); other shapes are good for what does not solve with the matrix (`tensor`, the constraints of a
        `QuadraticProgram`)

    Everything that depends on the places alone (index maps, symbolic analyses) is computed once and shared with
    every Pattern and tensor of equal places. `values` are always given in the order of `rows` and `cols`. This is
    the fast path, and the one for `torch.func` and `torch.compile`.

    Raises `ShapeError` if the shape is none, `IndexRangeError` for indices that are no integers, lie outside of the
    matrix, or differ in number.

    >>> import torch, sparse_solver as ss
    >>> P = ss.Pattern(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 1]), (2, 2))
    >>> values = torch.tensor([4.0, 3.0, 1.0, 1.0], requires_grad=True)
    >>> x = P.solve(values, torch.tensor([1.0, 2.0]))
    >>> x.sum().backward()
    >>> values.grad
    tensor([-0.0165, -0.1736, -0.0248, -0.1157])
    """

    def __init__(self, rows: Tensor, cols: Tensor, shape: Sequence[int]):
        self._set(coo_structure(rows, cols, shape_of(shape)))

    def _set(self, structure: Structure) -> None:
        self._structure = structure
        self.shape: tuple[int, int] = structure.shape
        self.nnz: int = structure.nnz

    @classmethod
    def _of(cls, structure: Structure) -> Pattern:
        pattern = cls.__new__(cls)
        pattern._set(structure)
        return pattern

    @classmethod
    def from_csr(cls, crow_indices: Tensor, col_indices: Tensor, shape: Sequence[int]) -> Pattern:
        """The pattern with CSR indices: (n + 1,) row pointers and (nnz,) columns.

        >>> import torch, sparse_solver as ss
        >>> ss.Pattern.from_csr(torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1]), (2, 2))
        Pattern(shape=(2, 2), nnz=3)
        """
        return cls._from_compressed("csr", crow_indices, col_indices, shape)

    @classmethod
    def from_csc(cls, ccol_indices: Tensor, row_indices: Tensor, shape: Sequence[int]) -> Pattern:
        """The pattern with CSC indices: (n + 1,) column pointers and (nnz,) rows; see `from_csr`."""
        return cls._from_compressed("csc", ccol_indices, row_indices, shape)

    @classmethod
    def _from_compressed(cls, kind: str, compressed: Tensor, plain: Tensor, shape: Sequence[int]) -> Pattern:
        return cls._of(compressed_structure(kind, compressed, plain, shape_of(shape)))

    @classmethod
    def from_tensor(cls, A: Tensor) -> Pattern:
        """The pattern of a sparse COO, CSR or CSC tensor, in the order of its stored values.

        >>> import torch, sparse_solver as ss
        >>> ss.Pattern.from_tensor(torch.eye(3).to_sparse())
        Pattern(shape=(3, 3), nnz=3)
        """
        return cls._of(structure_in(skeleton_of(A)))

    @property
    def rows(self) -> Tensor:
        """(nnz,) int64, a copy: the row of each entry, in the order in which values are given."""
        return self._structure.rows.clone()

    @property
    def cols(self) -> Tensor:
        """(nnz,) int64, a copy: the column of each entry."""
        return self._structure.cols.clone()

    def solve(
        self,
        values: Tensor,
        b: Tensor,
        *,
        assume: Assume = "auto",
        triangle: Triangle | None = None,
        transpose: bool = False,
        engine: str | None = None,
        check: Reporting = "sync",
    ) -> Tensor:
        """x = A(values)⁻¹ b, differentiable in `values` and `b` to any order; see `solve` for the keywords.

        values : (nnz,), or (..., nnz) for a batch of matrices; float32, float64, complex64 or complex128
        b : (n,), (n, k), or batched, as for `torch.linalg.solve`; of the same dtype
        returns : x, of the shape that `torch.linalg.solve` gives

        The gradient of an entry is −λ_i conj(x_j) with λ = A⁻ᴴ x̄. Costs one factorisation a matrix and one
        substitution a right-hand side, and the backward one substitution (indefinite and general matrices: see `solve`).

        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))
        >>> P.solve(torch.tensor([[1.0, 2.0], [4.0, 8.0]]), torch.ones(2))
        tensor([[1.0000, 0.5000],
                [0.2500, 0.1250]])
        """
        return solve_values(self._structure, values, b, Options(assume, triangle, engine, reporting=check), transpose)

    def factorize(
        self,
        values: Tensor,
        *,
        assume: Assume = "auto",
        triangle: Triangle | None = None,
        engine: str | None = None,
        check: Reporting = "sync",
    ) -> Factorization:
        """Factor A(values) once, to solve with it often; see `solve` for the keywords.

        >>> import torch, sparse_solver as ss
        >>> F = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2)).factorize(torch.tensor([1.0, 2.0]))
        >>> F.solve(torch.ones(2))
        tensor([1.0000, 0.5000])
        """
        factorization: Factorization = Factorization(
            self._structure, values, Options(assume, triangle, engine, reporting=check)
        )
        return factorization

    def tensor(self, values: Tensor, layout: torch.layout = torch.sparse_coo) -> Tensor:
        """The sparse tensor A(values), duplicates summed and indices sorted; differentiable in `values`.

        layout : torch.sparse_coo, torch.sparse_csr or torch.sparse_csc

        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]), (2, 2))
        >>> P.tensor(torch.tensor([1.0, 2.0, 3.0])).to_dense()
        tensor([[1., 0.],
                [0., 5.]])
        """
        structure = self._structure
        check_values(values, structure.nnz, structure.device)
        if layout not in LAYOUTS:
            raise LayoutError(f"layout={layout}: expected torch.sparse_coo, torch.sparse_csr or torch.sparse_csc")
        if values.dim() != 1 and layout == torch.sparse_coo:
            raise LayoutError("a batch of matrices is stored as torch.sparse_csr or torch.sparse_csc")
        size = (*values.shape[:-1], *structure.shape)
        skeleton, order = canonical_skeleton(structure, layout, size)
        canonical = structure.canonical(values)
        return assemble(canonical if order is None else canonical.index_select(-1, order), skeleton)

    def __repr__(self) -> str:
        return f"Pattern(shape={self.shape}, nnz={self.nnz})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Pattern, (self._structure.rows, self._structure.cols, self.shape))

    def __copy__(self) -> Pattern:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Pattern:
        return self  # nothing about a pattern can change
