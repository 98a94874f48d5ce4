"""A Hermitian matrix as a real symmetric one of twice the size.

    x + iy  →  [[x, -y], [y, x]]    in place of each entry

The real form is positive definite if the matrix is, its determinant is the square of that of the
matrix, and its inverse is the real form of the inverse. Its factorisation takes twice the
operations of a complex one, which is far less than a solve for each row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._factor.options import Triangle
from .._sparse.structure import Structure


def real_form_of(structure: Structure, triangle: Triangle | None) -> Structure:
    """The structure of the real form, whose entries are in the order of `to_real`."""
    return structure.remember(_find_real_form, triangle)


def _find_real_form(structure: Structure, triangle: Triangle | None) -> Structure:
    n, rows, cols = structure.shape[0], 2 * structure.rows, 2 * structure.cols
    i, j = torch.cat((rows, rows + 1, rows + 1, rows)), torch.cat((cols, cols + 1, cols, cols + 1))
    if triangle is not None:
        # On the diagonal, y and -y would lie on both sides: put on one side, they cancel.
        i, j = torch.minimum(i, j), torch.maximum(i, j)
        if triangle == "lower":
            i, j = j, i
    return Structure(i, j, (2 * n, 2 * n), torch.arange(2 * n) // 2)


def to_real(values: Tensor) -> Tensor:
    """(..., 4 nnz) the entries of the real form, for complex values (..., nnz)."""
    x, y = values.real, values.imag
    return torch.cat((x, x, y, -y), -1)


def to_complex(entries: Tensor) -> Tensor:
    """(..., nnz) the entries of the Hermitian matrix with these entries (..., 4 nnz)."""
    x, _, y, _ = entries.unflatten(-1, (4, entries.shape[-1] // 4)).unbind(-2)
    return torch.complex(x, y)
