"""Products with the matrix that an engine has factored, for residuals.

SciPy's compiled loops compute them on the CPU, and torch's elsewhere. They are not differentiable;
`kernels` has the differentiable product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .._torch.modes import silence_beta_warning
from .structure import Structure, row_pointers
from .triangle import Arrangement, Coverage, arrangement_of
from .values import to_double

# Steps of `Products.find_logarithms`; in a well connected pattern, each makes errors several times
# smaller.
_BALANCING_STEPS = 8


class Products:
    """A x and |A||x|, and the same with Aᵀ, for the rows of `x` (k, n), in double precision.

    Residuals of single precision data that are formed in double precision have digits left.

    arrangement, values : the matrix as the engine has it
    find_indices : gives the index arrays that multiply, when they are needed
    hermitian : whether the triangle that the arrangement lacks is the conjugate of the other one
    """

    def __init__(
        self,
        arrangement: Arrangement,
        values: Tensor,
        find_indices: Callable[[], _Indices],
        hermitian: bool,
    ):
        self._arrangement, self._values, self._find_indices = arrangement, values, find_indices
        self._is_triangle, self._hermitian = arrangement.coverage == "upper", hermitian
        self._doubles: Tensor | None = None
        self._moduli: Tensor | None = None

    def apply(self, x: Tensor, transpose: bool) -> Tensor:
        """A x or Aᵀ x."""
        doubles = self._keep("_doubles", to_double)
        return self._product(doubles, to_double(x), transpose, self._hermitian)

    def apply_modulus(self, x: Tensor, transpose: bool) -> Tensor:
        """|A||x| or |A|ᵀ|x|, by which rounding errors are measured."""
        return self._product(self._find_moduli(), to_double(x).abs(), transpose, False)

    def line_moduli(self, divisors: Tensor | None, of_columns: bool) -> Tensor:
        """(n,) the largest modulus in each row, or in each column, of a square matrix.

        divisors : (n,) of the rows where the columns are asked for, and of the columns where the
            rows are; None for ones
        """
        moduli = self._find_moduli()
        rows, cols = self._arrangement.rows, self._arrangement.col
        along, across = (cols, rows) if of_columns else (rows, cols)
        largest = moduli.new_zeros(self._arrangement.crow.numel() - 1)
        for at, other in ((along, across), (across, along))[: 1 + self._is_triangle]:
            sizes = moduli if divisors is None else moduli / divisors.index_select(0, other)
            largest.scatter_reduce_(0, at, sizes, "amax")
        return largest

    def find_logarithms(self) -> tuple[Tensor, Tensor]:
        """(n,) each: logarithms to base 2 of scales that bring all entries near one.

        The scales R and C of rows and columns nearly minimise the squared logarithms of the entries
        of R A C that are not zero, by steps that make their mean zero in all columns, then in all
        rows. So the scales recover the D of matrices D₁ S D₂, which largest entries may not.

        Source: A. R. Curtis, J. K. Reid, "On the automatic scaling of matrices for Gaussian
        elimination", J. Inst. Maths Applics 10, 1972.
        """
        moduli = self._find_moduli()
        stored, logarithms = (moduli > 0).double(), torch.where(moduli > 0, moduli, 1).log2()
        ones = moduli.new_ones(1, self._arrangement.crow.numel() - 1)
        rows, cols = torch.zeros_like(ones), torch.zeros_like(ones)
        sums = {side: self._product(logarithms, ones, side, False) for side in (True, False)}
        counts = {
            side: self._product(stored, ones, side, False).clamp(min=1) for side in (True, False)
        }
        for _ in range(_BALANCING_STEPS):
            cols = -(sums[True] + self._product(stored, rows, True, False)) / counts[True]
            rows = -(sums[False] + self._product(stored, cols, False, False)) / counts[False]
        return rows[0], cols[0]

    def _find_moduli(self) -> Tensor:
        """The moduli of the values."""
        return self._keep("_moduli", lambda values: to_double(values).abs())

    def _keep(self, name: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What `make` gives for the values, kept as the attribute `name` on the CPU."""
        made: Tensor | None = getattr(self, name)
        if made is None:
            made = make(self._values)
            if made.device.type == "cpu":  # on a GPU, another stream might read it too early
                setattr(self, name, made)
        return made

    def _product(self, values: Tensor, x: Tensor, transpose: bool, hermitian: bool) -> Tensor:
        if hermitian and transpose:  # Aᵀ = conj(A)
            return self._product(values, x.conj().resolve_conj(), False, True).conj().resolve_conj()
        if not self._is_triangle:
            return self._find_indices().multiply(values, x, transpose)
        opposite = values.conj().resolve_conj() if hermitian else values
        indices = self._find_indices()
        below = indices.multiply(opposite, x, True)
        twice = values.index_select(0, self._arrangement.at_diagonal) * x
        return indices.multiply(values, x, False) + below - twice


class _Indices(Protocol):
    """Index arrays that multiply with a matrix."""

    def multiply(self, values: Tensor, x: Tensor, transpose: bool) -> Tensor:
        """A x, or Aᵀ x, for the rows of `x` (k, n)."""


def product_indices(structure: Structure, coverage: Coverage, triangle: str | None) -> _Indices:
    """The index arrays that multiply with an arrangement of this structure, made once."""
    return structure.remember(_build_indices, coverage, triangle)


def _build_indices(structure: Structure, coverage: Coverage, triangle: str | None) -> _Indices:
    build = ScipyIndices if structure.device.type == "cpu" else _TorchIndices
    return build(arrangement_of(structure, coverage, triangle), structure.shape)


class ScipyIndices:
    """CSR indices for SciPy, which would convert wider integers than necessary at every call."""

    def __init__(self, arrangement: Arrangement, shape: tuple[int, int]):
        fits = max(arrangement.nnz, arrangement.crow.numel()) <= np.iinfo(np.int32).max
        dtype = torch.int32 if fits else torch.int64
        self._shape = shape
        self._indices = arrangement.col.to(dtype).numpy(), arrangement.crow.to(dtype).numpy()

    def multiply(self, values: Tensor, x: Tensor, transpose: bool) -> Tensor:
        """A x, or Aᵀ x, for the rows of `x` (k, n)."""
        from scipy.sparse import csc_matrix, csr_matrix

        # The same arrays, read by columns, are the transpose.
        make, shape = (csc_matrix, self._shape[::-1]) if transpose else (csr_matrix, self._shape)
        matrix = make((values.numpy(), *self._indices), shape=shape)
        dtype = torch.promote_types(values.dtype, x.dtype)
        y = x.new_empty((x.shape[0], shape[0]), dtype=dtype)
        # One by one: the product with several vectors at once wants an entry of all of them side
        # by side, and takes up to twice as long.
        for row, vector in zip(y.numpy(), x.numpy(), strict=True):
            row[:] = matrix @ vector
        return y


class _TorchIndices:
    """CSR indices of a square matrix and of its transpose, on a device."""

    def __init__(self, arrangement: Arrangement, shape: tuple[int, int]):
        self._shape = shape
        self._order = torch.sort(arrangement.col, stable=True)[1]  # rows are in order already
        self._plain = arrangement.crow, arrangement.col
        sorted_cols, sorted_rows = arrangement.col[self._order], arrangement.rows[self._order]
        self._transposed = row_pointers(sorted_cols, shape[1]), sorted_rows
        silence_beta_warning()

    def multiply(self, values: Tensor, x: Tensor, transpose: bool) -> Tensor:
        """A x, or Aᵀ x, for the rows of `x` (k, n)."""
        crow, col = self._transposed if transpose else self._plain
        values = values.index_select(0, self._order) if transpose else values
        matrix = torch.sparse_csr_tensor(
            crow, col, values, self._shape, device=values.device, check_invariants=False
        )
        return (matrix @ x.mT).mT.contiguous()
