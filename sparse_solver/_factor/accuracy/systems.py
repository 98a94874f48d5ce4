"""The systems A x = b that a factor solves: residuals, and the sizes that errors are compared with.

Vectors are the rows of (k, n) tensors. A block-diagonal matrix with several equal blocks makes each
vector several systems, which are measured one by one: a number for each of k · blocks systems.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..._sparse.matvec import Products
from ..._sparse.values import PROBE_MEAN, is_finite, probe_vector, row_moduli


class Scales(NamedTuple):
    """The sizes of the rows and columns of A, or of Aᵀ, in double precision.

    rows : (1, n) the largest modulus in each row
    columns : (1, n) the largest modulus in each column once all rows are divided by their sizes
    """

    rows: Tensor
    columns: Tensor


class Vectors:
    """Rows of n numbers, each of which is made of the vectors of so many `blocks`.

    order : the number of unknowns of one system
    """

    def __init__(self, n: int, blocks: int):
        self.n, self.blocks, self.order = n, blocks, n // blocks

    def is_empty(self, vectors: Tensor) -> bool:
        """Whether there are no systems."""
        return vectors.numel() == 0

    def all_finite(self, vectors: Tensor) -> bool:
        """Whether no entry is NaN or infinite."""
        return is_finite(vectors)

    def sizes(self, vectors: Tensor) -> Tensor:
        """(systems,) the largest modulus in the part of each system; NaN where it has one."""
        return row_moduli(vectors.reshape(-1, self.order))

    def have_squares(self, vectors: Tensor) -> bool:
        """Whether the squared length of each system's part neither overflows nor underflows."""
        parts = vectors.reshape(-1, self.order)
        squares = torch.linalg.vecdot(parts, parts).real
        if squares.numel() == 1:
            low = high = squares.item()
        else:
            low, high = (number.item() for number in torch.aminmax(squares))
        return bool(torch.finfo(squares.dtype).tiny < low and high < math.inf)

    def spread(self, numbers: Tensor) -> Tensor:
        """(k, n) the number of each system in all of its rows."""
        return numbers.unsqueeze(-1).expand(-1, self.order).reshape(-1, self.n)


class Systems(Vectors):
    """A matrix of n rows with so many `blocks`, to multiply and measure with.

    dtype : that of the matrix; residuals and bounds are in double precision
    start : the number of the first row, where other processes have the rows before it
    """

    def __init__(
        self,
        products: Products,
        n: int,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        start: int = 0,
    ):
        super().__init__(n, blocks)
        self.dtype, self.products = dtype, products
        self._device, self._start = device, start
        self._scales: dict[bool, Scales] = {}
        self._row_sums: dict[bool, Tensor] = {}

    def residual(self, x: Tensor, rhs: Tensor, transpose: bool) -> Tensor:
        """b − A x."""
        return rhs - self.products.apply(x, transpose)

    def bound(self, x: Tensor, rhs: Tensor | None, transpose: bool) -> Tensor:
        """|A||x| + |b|, without b where it is None."""
        product = self.products.apply_modulus(x, transpose)
        return product if rhs is None else product + rhs.abs()

    def scales(self, transpose: bool) -> Scales:
        """The sizes of rows and columns of A, or of Aᵀ."""
        if transpose not in self._scales:
            rows = self.products.line_moduli(None, of_columns=transpose)
            columns = self.products.line_moduli(rows, of_columns=not transpose)
            self._scales[transpose] = Scales(rows.unsqueeze(0), columns.unsqueeze(0))
        return self._scales[transpose]

    def has_scales(self) -> bool:
        """Whether every row and every column has an entry that is not zero."""
        scales = self.scales(False)
        return bool((self.smallest(scales.rows) > 0) & (self.smallest(scales.columns) > 0))

    def column_spread(self, scales: Scales) -> Tensor:
        """The ratio of the largest size of a column to the smallest."""
        return self.largest(scales.columns) / self.smallest(scales.columns)

    def row_sums(self, transpose: bool) -> Tensor:
        """(1, n) the sum of the moduli in each row."""
        if transpose not in self._row_sums:
            self._row_sums[transpose] = self.bound(self.ones(), None, transpose)
        return self._row_sums[transpose]

    def balanced_units(self, transpose: bool) -> Tensor:
        """(1, n) sizes of the unknowns with which all entries of A, or of Aᵀ, become nearly one."""
        rows, cols = self.products.find_logarithms()
        return torch.exp2(rows if transpose else cols).unsqueeze(0)

    def probe(self) -> Tensor:
        """(1, n) scattered numbers."""
        return probe_vector(self.n, torch.float64, PROBE_MEAN, self._device, self._start)

    def smallest(self, line: Tensor) -> Tensor:
        """The smallest of (1, n) numbers."""
        return line.amin()

    def largest(self, line: Tensor) -> Tensor:
        """The largest of (1, n) numbers."""
        return line.amax()

    def ratios(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """(systems,) max_i |numerator_i| / denominator_i of each system.

        0 / 0 counts as 0, and overflow as infinity.
        """
        ratio = (numerator.abs() / denominator).reshape(-1, self.order)
        largest = ratio.amax(-1)
        # Without asking a GPU, which would take longer.
        if largest.device.type != "cpu" or bool(largest.isnan().any()):
            zero = (denominator == 0) & (numerator == 0)
            ratio = ratio.masked_fill(zero.view_as(ratio), 0)
            largest = ratio.nan_to_num(nan=math.inf, posinf=math.inf).amax(-1)
        return largest

    def unit_at_largest(self, vectors: Tensor) -> Tensor:
        """Unit vectors that are one where the largest entry of each system is."""
        each = vectors.abs().reshape(-1, self.order)
        at = each.argmax(-1, keepdim=True)
        return torch.zeros_like(each).scatter_(-1, at, 1).view(vectors.shape).to(vectors.dtype)

    def ones(self) -> Tensor:
        """(1, n) ones."""
        return torch.ones(1, self.n, dtype=torch.float64, device=self._device)
