"""Where the entries of a sparse matrix are: canonical CSR, and the maps to and from it.

A `Structure` is immutable and holds private copies of its indices. `structure_of` finds the same
structure again for equal indices, so that everything computed from it (index maps, symbolic
analyses) is computed once.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from .._torch.fork_safe_lock import ForkSafeLock
from .._torch.modes import outside_transforms, synchronize_stream
from .._torch.tensor_cache import Check, TensorCache

T = TypeVar("T")
P = ParamSpec("P")

_MISSING: Any = object()


class Structure:
    """The stored positions of a matrix, in the caller's order and in canonical CSR.

    rows, cols : (nnz,) int64, the caller's entries in any order, validated, with duplicates
    crow, col : canonical CSR: rows in order, columns increasing in each row, every position once
    canonical_rows : (canonical_nnz,) the row of each canonical entry
    position : (nnz,) the canonical position of each of the caller's entries; None for the identity
    entry_of : the inverse of `position`, where it exists and is not the identity
    labels : (n,) the caller's numbers of the rows, for error messages; None if they are the same
    batch_shape : the shape (..., n, n) of a batch of matrices with different patterns, which are
        the blocks on the diagonal of this one; None for a matrix that is not made of a batch
    """

    def __init__(
        self,
        rows: Tensor,
        cols: Tensor,
        shape: tuple[int, int],
        labels: Tensor | None = None,
        batch_shape: tuple[int, ...] | None = None,
    ):
        self.rows, self.cols, self.shape, self.labels = rows, cols, shape, labels
        self.batch_shape = batch_shape
        self.nnz = rows.numel()
        self.device = rows.device
        self._memory: dict[tuple[Any, ...], Any] = {}
        # Reentrant, since building one thing may ask for others.
        self._lock = ForkSafeLock(reentrant=True)
        self._block: tuple[weakref.ref[Structure], int] | None = None

        self.position: Tensor | None = None
        self.entry_of: Tensor | None = None
        self.has_duplicates = False
        self.canonical_rows, self.col = rows, cols
        order = find_row_major_order(rows, cols)
        if order is not None:
            sorted_rows, sorted_cols = rows[order], cols[order]
            first = torch.ones_like(order, dtype=torch.bool)
            first[1:] = sorted_rows[1:] != sorted_rows[:-1]
            first[1:] |= sorted_cols[1:] != sorted_cols[:-1]
            self.position = torch.empty_like(order)
            self.position[order] = first.cumsum(0) - 1
            self.canonical_rows, self.col = sorted_rows[first], sorted_cols[first]
            self.has_duplicates = self.col.numel() != self.nnz
            self.entry_of = None if self.has_duplicates else order
        self.canonical_nnz = self.col.numel()
        self.crow = row_pointers(self.canonical_rows, shape[0])
        _by_storage[rows.data_ptr()] = self

    def remember(
        self, build: Callable[Concatenate[Structure, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return ``build(self, *args)``, computed at the first call with these arguments.

        `build` is a function or class of a module, which is the key together with the hashable
        `args`. Threads that call at the same time wait for one of them.
        """
        key = (build, *args)
        value: T = self._memory.get(key, _MISSING)
        if value is not _MISSING:
            return value
        with self._lock:
            if key not in self._memory:
                with outside_transforms():
                    value = build(self, *args, **kwargs)
                    synchronize_stream(self.device)
                self._memory[key] = value
            value = self._memory[key]
            return value

    def canonical(self, values: Tensor) -> Tensor:
        """Put the caller's values (..., nnz) in canonical order, duplicates summed.

        The result may alias `values`.
        """
        if self.position is None:
            return values
        if self.entry_of is not None:
            return values.index_select(-1, self.entry_of)
        summed: Tensor = values.new_zeros((*values.shape[:-1], self.canonical_nnz))
        return summed.index_add_(-1, self.position, values)

    def set_block(self, block: Structure, count: int) -> None:
        """Record that this structure is `count` copies of `block` on the diagonal."""
        # A weak reference, since `block` remembers this structure.
        self._block = weakref.ref(block), count

    @property
    def block(self) -> tuple[Structure, int]:
        """The equal blocks on the diagonal and their number; itself, once, if none were set."""
        block, count = (None, 1) if self._block is None else (self._block[0](), self._block[1])
        return (self, 1) if block is None else (block, count)

    # Properties with `remember` instead of functools.cached_property, which on Python 3.10 and
    # 3.11 holds one lock for all objects of the class, also through a fork.
    @property
    def transpose_map(self) -> Tensor:
        """(canonical_nnz,) the canonical position of (j, i) for entry (i, j); -1 if not stored."""
        return self.remember(_find_transpose_map)

    @property
    def diagonal(self) -> Tensor:
        """(n,) the canonical position of (i, i); -1 where it is not stored."""
        return self.remember(_find_diagonal)

    @property
    def column_order(self) -> Tensor:
        """(canonical_nnz,) the canonical entries sorted by column, then by row."""
        return self.remember(_find_column_order)

    def diagonal_of(self, canonical: Tensor) -> Tensor:
        """(n,) the diagonal for these canonical values; zero where it is not stored."""
        if canonical.numel() == 0:
            return canonical.new_zeros(min(self.shape))
        at = self.diagonal
        if self.remember(_has_whole_diagonal):
            return canonical.index_select(0, at)
        return canonical.index_select(0, at.clamp(min=0)).masked_fill(at < 0, 0)

    def label(self, row: int) -> int:
        """The caller's number of this row."""
        return row if self.labels is None else int(self.labels[row])

    def on(self, device: torch.device) -> Structure:
        """The same structure with its indices on another device."""
        return self if device == self.device else self.remember(_copy_to, device)


def _find_transpose_map(structure: Structure) -> Tensor:
    rows, cols, nnz = structure.canonical_rows, structure.col, structure.canonical_nnz
    # Sorted by column, with rows in order already, the entries of a symmetric pattern are those of
    # the transposed pattern in canonical order.
    order = structure.column_order
    if torch.equal(cols[order], rows) and torch.equal(rows[order], cols):
        mapped = torch.empty_like(order)
        mapped[order] = torch.arange(nnz, device=structure.device)
        return mapped
    return find_places(torch.stack((rows, cols)), torch.stack((cols, rows)))


def find_places(places: Tensor, wanted: Tensor) -> Tensor:
    """(m,) where the `wanted` (2, m) places are among the distinct `places` (2, nnz), or -1."""
    count = places.shape[1]
    if count == 0:
        return wanted.new_full((wanted.shape[1],), -1)
    both = torch.cat((places, wanted), 1)
    numbers = _number_places(*both)
    if numbers is None:
        rows, cols = (torch.unique(line, return_inverse=True)[1] for line in both)
        numbers = rows * (cols.amax() + 1) + cols
    known, order = numbers[:count].sort()
    # Searching for sorted numbers is several times faster, since they share what the cache holds.
    searched, back = numbers[count:].sort()
    at = torch.searchsorted(known, searched).clamp(max=count - 1)
    found = torch.empty_like(at)
    found[back] = torch.where(known[at] == searched, order[at], -1)
    return found


def _find_diagonal(structure: Structure) -> Tensor:
    at = torch.nonzero(structure.canonical_rows == structure.col).squeeze(-1)
    position = torch.full((min(structure.shape),), -1, dtype=torch.int64, device=structure.device)
    position[structure.col[at]] = at
    return position


def _has_whole_diagonal(structure: Structure) -> bool:
    return bool((structure.diagonal >= 0).all())


def _find_column_order(structure: Structure) -> Tensor:
    return torch.sort(structure.col, stable=True)[1]


def _copy_to(structure: Structure, device: torch.device) -> Structure:
    labels = None if structure.labels is None else structure.labels.to(device)
    rows, cols = structure.rows.to(device), structure.cols.to(device)
    return Structure(rows, cols, structure.shape, labels, structure.batch_shape)


def find_diagonal_entries(structure: Structure) -> Tensor:
    """(n,) one of the caller's entries at each place of the diagonal; 0 where there is none."""
    at = torch.nonzero(structure.rows == structure.cols).squeeze(-1)
    return at.new_zeros(structure.shape[0]).index_copy(0, structure.rows[at], at)


def find_empty_line(structure: Structure, triangle: str | None) -> tuple[str, int] | None:
    """The first row or column without a stored entry, which makes the matrix singular."""
    rows = torch.bincount(structure.canonical_rows, minlength=structure.shape[0])
    cols = torch.bincount(structure.col, minlength=structure.shape[1])
    if triangle is not None:  # row i of the matrix is row i and column i of the stored triangle
        rows = cols = rows + cols
    for name, counts in (("row", rows), ("column", cols)):
        empty = torch.nonzero(counts == 0)
        if empty.numel():
            return name, int(empty[0])
    return None


def find_outside(structure: Structure, triangle: str) -> tuple[int, int] | None:
    """The first entry outside the named triangle ("lower" or "upper", diagonal included)."""
    rows, cols = structure.rows, structure.cols
    wrong = torch.nonzero(rows < cols if triangle == "lower" else rows > cols)
    return (int(rows[wrong[0]]), int(cols[wrong[0]])) if wrong.numel() else None


def find_row_major_order(rows: Tensor, cols: Tensor) -> Tensor | None:
    """A stable permutation to row-major order; None if the entries already are, without repeats."""
    in_order = (rows[1:] > rows[:-1]) | ((rows[1:] == rows[:-1]) & (cols[1:] > cols[:-1]))
    return None if bool(in_order.all()) else row_major(rows, cols)


def row_major(rows: Tensor, cols: Tensor) -> Tensor:
    """The stable permutation that sorts entries by row, then by column."""
    numbers = _number_places(rows, cols)
    if numbers is not None:
        return torch.sort(numbers, stable=True)[1]
    order = torch.sort(cols, stable=True)[1]
    return order[torch.sort(rows[order], stable=True)[1]]


def _number_places(rows: Tensor, cols: Tensor) -> Tensor | None:
    """Numbers that are in the order of the places, row by row; None if they exceed 63 bits."""
    if rows.numel() == 0:
        return rows
    width = int(cols.amax()) + 1
    fits = (int(rows.amax()) + 1) * width <= torch.iinfo(torch.int64).max
    return rows * width + cols if fits else None


def row_pointers(rows: Tensor, count: int) -> Tensor:
    """The CSR row pointers (count + 1,) of sorted row indices."""
    pointers = torch.zeros(count + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(torch.bincount(rows, minlength=count), 0, out=pointers[1:])
    return pointers


# The living structures by the address of their row indices, which are private and therefore not
# reused while the structure lives: a compiled graph passes index tensors instead of objects.
_by_storage: weakref.WeakValueDictionary[int, Structure] = weakref.WeakValueDictionary()

_structures: TensorCache[Structure] = TensorCache()


def structure_of(
    rows: Tensor, cols: Tensor, shape: tuple[int, int], check: Check | None = None
) -> Structure:
    """The structure of COO indices, shared with every equal one that is still cached.

    `check` validates indices that are not in the cache.
    """

    def build(rows: Tensor, cols: Tensor) -> Structure:
        return Structure(rows.to(torch.int64), cols.to(torch.int64), shape)

    return _structures.find(("coo", shape), (rows, cols), build, check)


def structure_of_compressed(
    kind: str, compressed: Tensor, plain: Tensor, shape: tuple[int, int], check: Check
) -> Structure:
    """The structure of CSR (`kind` "csr": row pointers, columns) or CSC indices."""

    def build(pointers: Tensor, inner: Tensor) -> Structure:
        rows, cols = _expand_pointers(kind, pointers.to(torch.int64), inner.to(torch.int64))
        return Structure(rows, cols, shape)

    return _structures.find((kind, shape), (compressed, plain), build, check)


def _expand_pointers(kind: str, pointers: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """The rows and columns of the entries of CSR or CSC indices, with pointers (..., n + 1)."""
    outer = torch.repeat_interleave(pointers.diff().flatten())
    return (outer, inner) if kind == "csr" else (inner, outer)


def structure_of_batch(
    kind: str, indices: tuple[Tensor, ...], shape: tuple[int, ...], check: Check
) -> Structure:
    """The structure of a batch of this shape (..., n, n): its matrices on one diagonal.

    kind, indices : "coo" and (dimensions, nnz) indices, or "csr" or "csc", pointers (..., n + 1)
        and indices (..., nnz)
    """
    *batch, n, _ = shape
    count = math.prod(batch)

    def build(*indices: Tensor) -> Structure:
        if kind == "coo":
            *places, rows, cols = indices[0].to(torch.int64)
            number = torch.zeros_like(rows)
            for size, place in zip(batch, places, strict=True):
                number = number * size + place
            rows, cols = number * n + rows, number * n + cols
        else:
            pointers, inner = (index.flatten(0, -2).to(torch.int64) for index in indices)
            first = n * torch.arange(count, device=inner.device).unsqueeze(1)
            rows, cols = _expand_pointers(kind, pointers, (first + inner).flatten())
        return Structure(rows, cols, (count * n, count * n), batch_shape=shape)

    return _structures.find((kind, shape), indices, build, check)


def structure_at(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> Structure:
    """The structure that owns exactly these index tensors, else the one with equal indices."""
    owner = _by_storage.get(rows.data_ptr())
    if owner is not None and owner.shape == shape and owner.nnz == rows.numel():
        pairs = ((owner.rows, rows), (owner.cols, cols))
        if all(a.data_ptr() == b.data_ptr() and a.stride() == b.stride() for a, b in pairs):
            return owner
    return structure_of(rows, cols, shape)
