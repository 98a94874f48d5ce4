"""The matrix of conjugate gradients: products, its diagonal, and norms in the units of that.

Conjugate gradients with the diagonal D of A as preconditioner are those for D^-½ A D^-½, whose
diagonal is one, without forming it. Sizes are measured in its units: ‖r‖ is ‖D^-½ r‖₂ for residuals
and right-hand sides, and ‖x‖ is ‖D^½ x‖₂ for solutions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..._sparse.values import new_numbers, powers_of_two
from ..._torch.modes import silence_beta_warning
from ..protocol import not_positive_definite

# Beyond these exponents to base 2 of diagonal entries, squares of residuals might overflow or
# underflow; then rows and columns are scaled by powers of two.
_LARGE_EXPONENT = 200
# The diagonal entries after that are below 4, and so are the moduli of all entries if the matrix is
# positive definite.
_LARGEST_SCALED = 4.0


class SymmetricMatrix:
    """A symmetric matrix with a positive diagonal in double precision, of `blocks` equal blocks.

    Vectors are the rows of (k, n) tensors; each has a system for each block of the matrix.

    crow, col, rows : CSR indices, the first two in int32 where they fit
    at_diagonal : (n,) the places of the diagonal entries
    values : (nnz,) double
    longest_row : the most entries of a row
    units : (n,) powers of two by which rows and columns were scaled; None for ones
    diagonal, inverse_diagonal : (n,) of the scaled matrix
    """

    def __init__(
        self,
        indices: tuple[Tensor, Tensor, Tensor],
        at_diagonal: Tensor,
        values: Tensor,
        blocks: int,
        longest_row: int,
    ):
        self._crow, self._col, rows = indices
        self.longest_row = longest_row
        self.n, self.blocks = at_diagonal.numel(), blocks
        self.order = self.n // blocks
        diagonal = values.index_select(0, at_diagonal)
        self.units = _units(diagonal)
        if self.units is not None:
            row_units, column_units = (self.units.index_select(0, at) for at in (rows, self._col))
            values = values * row_units * column_units
            if not bool((values.abs() < _LARGEST_SCALED).all()):
                raise not_positive_definite("cg", "an entry that is too large", None)
            diagonal = values.index_select(0, at_diagonal)
        silence_beta_warning()
        self.values, self.diagonal, self.inverse_diagonal = values, diagonal, 1 / diagonal
        self._matrix = self._make(values)

    def _make(self, values: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(
            *(self._crow, self._col, values),
            size=(self.n, self.n),
            device=values.device,
            check_invariants=False,
        )

    def product(
        self, x: Tensor, out: Tensor
    ) -> tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]:
        """torch's function f and its arguments, where ``f(matrix, x, out=out)`` computes A x.

        `x` and `out` (k, n) are contiguous.
        """
        if x.shape[0] == 1:
            return torch.mv, self._matrix, x.view(-1), out.view(-1)
        return torch.mm, self._matrix, x.mT, out.mT

    def multiply(self, x: Tensor, out: Tensor) -> Tensor:
        """Store A x in `out`, for the rows of the contiguous `x` (k, n)."""
        function, *arguments, result = self.product(x, out)
        function(*arguments, out=result)
        return out

    def row_sums(self, weights: Tensor | None = None) -> Tensor:
        """(n,) Σ_j |a_ij| w_j, for the positive weights (n,), or ones."""
        weights = torch.ones_like(self.diagonal) if weights is None else weights
        moduli = torch.abs(self.values, out=new_numbers(self.values, self.values.numel()))
        return torch.mv(self._make(moduli), weights)

    def has_positive_entry_off_diagonal(self) -> bool:
        """Whether an entry off the diagonal, which is positive, is positive as well."""
        return int((self.values > 0).sum()) > self.n

    def split(self, vectors: Tensor) -> Tensor:
        """(systems, order) the parts of vectors (k, n) that belong to one system each."""
        return vectors.view(-1, self.order)

    def inner(self, u: Tensor, v: Tensor) -> Tensor:
        """(systems, 1) the inner products of the systems of `u` and `v` (k, n)."""
        left, right = u.view(-1, 1, self.order), v.view(-1, self.order, 1)
        return torch.bmm(left, right).view(-1, 1)


def _units(diagonal: Tensor) -> Tensor | None:
    """Powers of two near the roots of the reciprocals; None if no scaling is needed."""
    low, high = torch.aminmax(diagonal)
    limit = 2.0**_LARGE_EXPONENT
    if float(low) >= 1 / limit and float(high) <= limit:
        return None
    return powers_of_two(-torch.div(torch.frexp(diagonal)[1] - 1, 2, rounding_mode="floor"))
