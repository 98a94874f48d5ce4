"""Products with the matrix that an engine has factored, for residuals: by SciPy's compiled loops on the CPU, else by torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._layout import Layout
from ._structure import Structure, row_pointers, silence_notice


class Products:
    """A x and |A||x|, and the same with Aᵀ, for the rows of `x` (k, n).

    `layout` and `values` : the arrangement of A that was factored; `stored` : the triangle that the structure holds.
    `hermitian` : if the layout is a triangle, whether the other one is its conjugate.
    """

    def __init__(self, structure: Structure, stored: str | None, layout: Layout, values: Tensor, hermitian: bool):
        self._on_cpu = values.device.type == "cpu"
        name, build = ("SciPy indices", _indices) if self._on_cpu else ("torch indices", _TorchIndices)
        self._indices: Any = structure.remember((name, layout.part, stored), lambda: build(layout))
        self._shape, self._values, self._layout = structure.shape, values, layout
        self._triangle, self._hermitian = layout.part != "full", hermitian
        self._at_diagonal = layout.at_diagonal
        self._moduli: Tensor | None = None

    def apply(self, x: Tensor, transpose: bool) -> Tensor:
        return self._product(self._values, x, transpose, self._hermitian)

    def magnitude(self, x: Tensor, transpose: bool) -> Tensor:
        moduli = self._values.abs() if self._moduli is None else self._moduli
        if self._on_cpu:  # on a GPU, another stream might read what this one has not made yet
            self._moduli = moduli
        return self._product(moduli, x.abs(), transpose, False)

    def column_sizes(self) -> Tensor:
        """(n,) the largest modulus in each column."""
        rows, cols = self._layout.rows, self._layout.col
        moduli = self._values.abs()
        sizes = moduli.new_zeros(self._shape[0]).scatter_reduce_(0, cols, moduli, "amax")
        return sizes.scatter_reduce_(0, rows, moduli, "amax") if self._triangle else sizes

    def _product(self, values: Tensor, x: Tensor, transpose: bool, hermitian: bool) -> Tensor:
        if hermitian and transpose:  # Aᵀ = conj(A)
            return self._product(values, x.conj().resolve_conj(), False, True).conj().resolve_conj()
        if not self._triangle:
            return self._multiply(values, x, transpose)
        opposite = values.conj().resolve_conj() if hermitian else values
        twice = values.index_select(0, self._at_diagonal) * x
        return self._multiply(values, x, False) + self._multiply(opposite, x, True) - twice

    def _multiply(self, values: Tensor, x: Tensor, transpose: bool) -> Tensor:
        if not self._on_cpu:
            product: Tensor = self._indices.multiply(values, x, transpose)
            return product
        from scipy.sparse import csc_matrix, csr_matrix

        make, shape = (csc_matrix, self._shape[::-1]) if transpose else (csr_matrix, self._shape)
        matrix = make((values.numpy(), *self._indices), shape=shape)
        if x.shape[0] == 1:
            return torch.from_numpy(matrix @ x[0].numpy()).unsqueeze(0)
        return torch.from_numpy(np.ascontiguousarray((matrix @ x.numpy().T).T))


def _indices(layout: Layout) -> tuple[Any, Any]:
    """Column indices and row pointers as SciPy wants them: it converts what has more bits than it needs, at each call."""
    fits = max(layout.nnz, layout.crow.numel()) <= np.iinfo(np.int32).max
    dtype = torch.int32 if fits else torch.int64
    return layout.col.to(dtype).numpy(), layout.crow.to(dtype).numpy()


class _TorchIndices:
    """CSR indices of a square matrix, and of its transpose, on a device."""

    def __init__(self, layout: Layout):
        n = layout.crow.numel() - 1
        self._order = torch.sort(layout.col, stable=True)[1]  # rows are in order already
        self._plain = layout.crow, layout.col
        self._transposed = row_pointers(layout.col[self._order], n), layout.rows[self._order]
        silence_notice()

    def multiply(self, values: Tensor, x: Tensor, transpose: bool) -> Tensor:
        """A x, or Aᵀ x, for the rows of `x` (k, n)."""
        crow, col = self._transposed if transpose else self._plain
        values = values.index_select(0, self._order) if transpose else values
        n = x.shape[-1]
        matrix = torch.sparse_csr_tensor(crow, col, values, (n, n), device=values.device, check_invariants=False)
        return (matrix @ x.mT).mT.contiguous()
