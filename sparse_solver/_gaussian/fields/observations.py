"""Observations y = H x + noise of a field, and the precision Q + Hᵀ R H of what is left to know."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._solve.shapes import check_rhs
from ..._sparse.index_checks import describe_type
from ..._sparse.structure import Structure, structure_of
from ..._sparse.torch_tensors import split_tensor
from ..._sparse.values import check_finite
from ..._torch.modes import is_transformed
from ..._torch.tensor_cache import TensorCache
from ...errors import LayoutError, OptionError, ShapeError
from .covariance import multiply


class _Merged(NamedTuple):
    """The structure of Q + Hᵀ R H, and the products that Hᵀ R H consists of.

    structure : with each place once
    joined : with the entries of Q, and then those of all products
    left, right : (products,) the entries of H that are multiplied, of the same row
    """

    structure: Structure
    joined: Structure
    left: Tensor
    right: Tensor


class Observations:
    """y = H x + noise, the noise being independent of x and of precision diag(r).

    H : (k, n), a sparse tensor, or a dense one
    y : (..., k)
    noise_precision : a number, or (..., k), positive
    """

    def __init__(
        self, H: Tensor, y: Tensor, noise_precision: Tensor | float, values: Tensor, n: int
    ):
        if not isinstance(H, Tensor):
            raise LayoutError(f"H is {describe_type(H)}; expected a sparse tensor (k, {n})")
        H = H.to_sparse() if H.layout == torch.strided else H
        if H.dim() != 2 or H.shape[1] != n:
            raise ShapeError(f"H has shape {tuple(H.shape)}; expected (k, {n})")
        self._structure, self._values = split_tensor(H, "H")
        check_rhs("H", self._values, values)
        check_rhs("y", y, values)
        k = H.shape[0]
        if y.dim() == 0 or y.shape[-1] != k:
            raise ShapeError(
                f"y has shape {tuple(y.shape)}; expected (..., {k}), a number a row of H"
            )
        self.y, self.count = y, k
        self.precision = _read_precision(noise_precision, y)
        if not is_transformed(H, y):
            check_finite("H", self._values.detach())
            check_finite("y", y.detach())

    def apply(self, x: Tensor) -> Tensor:
        """(..., k) H x."""
        return multiply(self._structure, self._values, x)

    def apply_transposed(self, y: Tensor) -> Tensor:
        """(..., n) Hᵀ y."""
        return multiply(self._structure, self._values, y, transpose=True)

    def find_information(self) -> Tensor:
        """(..., n) Hᵀ R y."""
        return self.apply_transposed(self.precision * self.y)

    def add_to(self, structure: Structure, values: Tensor) -> tuple[Structure, Tensor]:
        """The structure and the values of Q + Hᵀ R H."""
        own, cache = self._structure, structure.remember(_new_cache)
        found = cache.find(own.shape, (own.rows, own.cols), partial(_merge, structure))
        H, weights = self._values, self.precision
        left, right = H.index_select(-1, found.left), H.index_select(-1, found.right)
        rows = own.rows.index_select(0, found.left)
        products = left * right * weights.index_select(-1, rows)
        batch = torch.broadcast_shapes(values.shape[:-1], products.shape[:-1])
        parts = values.expand(*batch, -1), products.expand(*batch, -1)
        return found.structure, found.joined.canonical(torch.cat(parts, -1))


def _read_precision(given: Any, y: Tensor) -> Tensor:
    """(..., k) the precisions of the noise."""
    if not isinstance(given, Tensor):
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise OptionError(
                f"noise_precision is {describe_type(given)}; expected a number or a tensor"
            )
        given = y.new_tensor(float(given))
    check_rhs("noise_precision", given, y)
    try:
        batch = torch.broadcast_shapes(given.shape, y.shape[-1:])[:-1]
        precision: Tensor = given.expand(*batch, y.shape[-1])
    except RuntimeError:
        raise ShapeError(
            f"noise_precision has shape {tuple(given.shape)}; expected a number or "
            f"(..., {y.shape[-1]}), a number an observation"
        ) from None
    if not is_transformed(given) and not bool(((given > 0) & (given < torch.inf)).all()):
        raise OptionError(
            "noise_precision has entries that are not positive and finite: leave an observation "
            "that says nothing out, and pass entries without noise to condition_on"
        )
    return precision


def _new_cache(structure: Structure) -> TensorCache[_Merged]:
    """A cache for the structures of one precision with the observations that were used last."""
    return TensorCache()


def _merge(structure: Structure, rows: Tensor, cols: Tensor) -> _Merged:
    """The structure of Q + Hᵀ R H for an H whose entries are at these places."""
    order = torch.sort(rows, stable=True)[1]
    in_row = torch.bincount(rows)
    starts = torch.cumsum(in_row, 0) - in_row
    repeats = in_row[rows]  # each entry meets all entries of its row
    left = torch.repeat_interleave(repeats)
    first = torch.repeat_interleave(torch.cumsum(repeats, 0) - repeats, repeats)
    right = order[starts[rows[left]] + torch.arange(left.numel(), device=left.device) - first]
    own = structure.on(rows.device)
    joined_rows = torch.cat((own.rows, cols[left]))
    joined_cols = torch.cat((own.cols, cols[right]))
    joined = Structure(joined_rows, joined_cols, structure.shape)
    merged = structure_of(joined.canonical_rows, joined.col, structure.shape)
    return _Merged(merged, joined, left, right)
