"""Where the entries of a sparse matrix are: canonical CSR, and the maps to and from it.

A `Structure` is immutable, holds private copies of its indices, and is found again for equal indices
(`structure_of`), so that whatever is computed from it (maps, symbolic analyses) is computed once.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache as cache_once
from typing import Any, TypeVar

import torch
from torch import Tensor

from ._cache import Check, IndexCache
from ._plain import finish, plainly
from ._sync import ForkSafeLock

T = TypeVar("T")

_BLOCK = 2**22  # numbers
_MISSING: Any = object()


class Structure:
    """The stored positions of a matrix, in the caller's order and in canonical CSR.

    `rows`, `cols` : (nnz,) int64, the caller's entries: any order, duplicates allowed, already validated.
    `crow`, `col` : canonical CSR: rows in order, columns increasing within a row, every position once.
    `position` : (nnz,) the canonical position of each of the caller's entries, or None if it is the identity.
    `labels` : (n,) what the caller calls the rows, for errors, where that is not their number.
    """

    def __init__(self, rows: Tensor, cols: Tensor, shape: tuple[int, int], labels: Tensor | None = None):
        self.rows, self.cols, self.shape, self.labels = rows, cols, shape, labels
        self.nnz = rows.numel()
        self.device = rows.device
        self._memory: dict[Hashable, Any] = {}
        self._lock = ForkSafeLock(reentrant=True)  # what is built may ask for other things that are remembered
        self._block: tuple[weakref.ref[Structure], int] | None = None

        self.position: Tensor | None = None
        self.entry_of: Tensor | None = (
            None  # the inverse of `position`, where there is one and that is not the identity
        )
        self.has_duplicates = False
        self.canonical_rows, self.col = rows, cols
        order = _row_major_order(rows, cols)
        if order is not None:
            sorted_rows, sorted_cols = rows[order], cols[order]
            first = torch.ones_like(order, dtype=torch.bool)
            first[1:] = (sorted_rows[1:] != sorted_rows[:-1]) | (sorted_cols[1:] != sorted_cols[:-1])
            self.position = torch.empty_like(order)
            self.position[order] = first.cumsum(0) - 1
            self.canonical_rows, self.col = sorted_rows[first], sorted_cols[first]
            self.has_duplicates = self.col.numel() != self.nnz
            self.entry_of = None if self.has_duplicates else order
        self.canonical_nnz = self.col.numel()
        self.crow = row_pointers(self.canonical_rows, shape[0])
        _by_storage[rows.data_ptr()] = self

    def remember(self, key: Hashable, build: Callable[[], T]) -> T:
        """What `build` made at the first call with this key; threads that ask at once wait for one of them."""
        value: T = self._memory.get(key, _MISSING)
        if value is not _MISSING:
            return value
        with self._lock:
            if key not in self._memory:
                with plainly():
                    value = build()
                    finish(self.device)
                self._memory[key] = value
            value = self._memory[key]
            return value

    def replace(self, key: Hashable, value: object) -> None:
        """Let `remember` return `value` from now on."""
        with self._lock:
            self._memory[key] = value

    def forget(self, key: Hashable) -> None:
        with self._lock:
            self._memory.pop(key, None)

    def canonical(self, values: Tensor) -> Tensor:
        """The caller's values (..., nnz) in canonical order, duplicates summed. May alias `values`."""
        if self.position is None:
            return values
        if self.entry_of is not None:
            return values.index_select(-1, self.entry_of)
        summed: Tensor = values.new_zeros((*values.shape[:-1], self.canonical_nnz))
        return summed.index_add_(-1, self.position, values)

    def sampled_product(self, left: Tensor, right: Tensor, scale: float) -> Tensor:
        """(nnz,) scale · Σ_k left_{k,r} right_{k,c}, the entries of a product at the caller's places (r, c).

        Of plain tensors (k, n). Each place is computed once, by a kernel that reads (n, k) arrays: copies, made block by
        block, since large new arrays take the system longer to provide than the product takes.
        """
        silence_notice()
        entries = torch.zeros(self.canonical_nnz, dtype=left.dtype, device=self.device)
        product = torch.sparse_csr_tensor(
            self.crow, self.col, entries, self.shape, device=self.device, check_invariants=False
        )
        width = max(1, _BLOCK // self.shape[0])
        for block, other in zip(left.split(width), right.split(width), strict=True):
            block, other = (side.resolve_conj().mT.contiguous() for side in (block, other))
            torch.sparse.sampled_addmm(product, block, other.mT, beta=1.0, alpha=scale, out=product)
        return entries if self.position is None else entries.index_select(0, self.position)

    def is_of(self, block: Structure, count: int) -> None:
        """Notes that there are `count` times the entries of `block` on the diagonal, and nothing else."""
        self._block = weakref.ref(block), count  # which remembers this structure, so that there would be a cycle

    @property
    def block(self) -> tuple[Structure, int]:
        """The equal blocks on the diagonal, and how many there are: this one, once, if nothing is known."""
        block, count = (None, 1) if self._block is None else (self._block[0](), self._block[1])
        return (self, 1) if block is None else (block, count)

    # Not cached properties, which on some versions of Python hold one lock for all objects, and through a fork.
    @property
    def transpose_map(self) -> Tensor:
        """(canonical_nnz,) the canonical position of (j, i) for each entry (i, j); -1 where it is not stored."""
        return self.remember("transpose map", self._find_transpose_map)

    def _find_transpose_map(self) -> Tensor:
        # Sorting by column, with rows in order already, lists the transposed pattern in canonical order.
        order = torch.sort(self.col, stable=True)[1]
        rows, cols = self.canonical_rows, self.col
        if torch.equal(cols[order], rows) and torch.equal(rows[order], cols):
            mapped = torch.empty_like(order)
            mapped[order] = torch.arange(self.canonical_nnz, device=self.device)
            return mapped
        both = torch.stack((torch.cat((rows, cols)), torch.cat((cols, rows))))
        number = torch.unique(both, dim=1, return_inverse=True)[1]
        here, there = number[: self.canonical_nnz], number[self.canonical_nnz :]
        position: Tensor = here.new_full((int(number.max()) + 1,), -1)
        position[here] = torch.arange(self.canonical_nnz, device=self.device)
        return position.index_select(0, there)

    @property
    def diagonal(self) -> Tensor:
        """(n,) the canonical position of (i, i); -1 where it is not stored."""
        return self.remember("diagonal", self._find_diagonal)

    def _find_diagonal(self) -> Tensor:
        at = torch.nonzero(self.canonical_rows == self.col).squeeze(-1)
        position = torch.full((min(self.shape),), -1, dtype=torch.int64, device=self.device)
        position[self.col[at]] = at
        return position

    def diagonal_of(self, canonical: Tensor) -> Tensor:
        """(n,) the diagonal of the matrix with these canonical values; zero where it is not stored."""
        if canonical.numel() == 0:
            return canonical.new_zeros(min(self.shape))
        at: Tensor = self.diagonal
        if self.remember("whole diagonal", lambda: bool((at >= 0).all())):
            return canonical.index_select(0, at)
        return canonical.index_select(0, at.clamp(min=0)).masked_fill(at < 0, 0)

    def empty_line(self, triangle: str | None) -> tuple[str, int] | None:
        """The first row or column without a stored entry, which makes any values singular."""
        rows = torch.bincount(self.canonical_rows, minlength=self.shape[0])
        cols = torch.bincount(self.col, minlength=self.shape[1])
        if triangle is not None:  # row i of the matrix is row i and column i of the stored triangle
            rows = cols = rows + cols
        for name, counts in (("row", rows), ("column", cols)):
            empty = torch.nonzero(counts == 0)
            if empty.numel():
                return name, int(empty[0])
        return None

    def label(self, row: int) -> int:
        """What the caller calls this row."""
        return row if self.labels is None else int(self.labels[row])

    def without(self, removed: Tensor) -> Part:
        """The matrix without the rows and columns `removed` (k,), which are valid, sorted and differ."""
        parts: IndexCache[Part] = self.remember("parts", lambda: IndexCache(capacity=16))
        return parts.find((), (removed,), self._reduced)

    def _reduced(self, removed: Tensor) -> Part:
        kept = torch.ones(self.shape[0], dtype=torch.bool, device=self.device)
        kept[removed] = False
        number, at = kept.cumsum(0) - 1, torch.nonzero(kept).squeeze(-1)
        inside = kept[self.rows] & kept[self.cols]
        entries, rest = (torch.nonzero(which).squeeze(-1) for which in (inside, ~inside | (self.rows == self.cols)))
        n, labels = at.numel(), at if self.labels is None else self.labels[at]
        part = Structure(number[self.rows[entries]], number[self.cols[entries]], (n, n), labels)
        return Part(part, entries, at, removed, Structure(self.rows[rest], self.cols[rest], self.shape), rest)

    def on(self, device: torch.device) -> Structure:
        """The same structure with its indices on another device."""
        if device == self.device:
            return self

        def copy() -> Structure:
            labels = None if self.labels is None else self.labels.to(device)
            return Structure(self.rows.to(device), self.cols.to(device), self.shape, labels)

        return self.remember(("on", device), copy)

    def outside(self, triangle: str) -> tuple[int, int] | None:
        """The first entry that the named triangle ("lower" or "upper", diagonal included) does not contain."""
        wrong = torch.nonzero(self.rows < self.cols if triangle == "lower" else self.rows > self.cols)
        return (int(self.rows[wrong[0]]), int(self.cols[wrong[0]])) if wrong.numel() else None


@dataclass(frozen=True)
class Part:
    """Some rows of a matrix, and the same columns.

    `structure`, `entries`, `rows` : of the part, and which entries and rows of the matrix they are
    `removed` : the rows that are not
    `rest`, `rest_entries` : the entries of the matrix that are not in the part, and the diagonal, in the numbering of the
    matrix
    """

    structure: Structure
    entries: Tensor
    rows: Tensor
    removed: Tensor
    rest: Structure
    rest_entries: Tensor


@cache_once
def silence_notice() -> None:
    """torch tells once a process that its CSR tensors are new: nothing to a user who sees none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = torch.zeros(0, dtype=torch.int64, device="cpu")
        torch.sparse_csr_tensor(empty.new_zeros(1), empty, empty.double(), (0, 0), device="cpu", check_invariants=False)


def _row_major_order(rows: Tensor, cols: Tensor) -> Tensor | None:
    """A stable permutation to row-major order; None if the entries are in strict row-major order already."""
    in_order = (rows[1:] > rows[:-1]) | ((rows[1:] == rows[:-1]) & (cols[1:] > cols[:-1]))
    return None if bool(in_order.all()) else row_major(rows, cols)


def row_major(rows: Tensor, cols: Tensor) -> Tensor:
    """The stable permutation that sorts entries by row, then by column."""
    # Two stable sorts instead of one by row * n + col, which need not fit into 63 bits.
    order = torch.sort(cols, stable=True)[1]
    return order[torch.sort(rows[order], stable=True)[1]]


def row_pointers(rows: Tensor, count: int) -> Tensor:
    """The CSR row pointers (count + 1,) of sorted row indices."""
    pointers = torch.zeros(count + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(torch.bincount(rows, minlength=count), 0, out=pointers[1:])
    return pointers


# Structures that are alive, by the address of their (private, hence never reused while alive) row indices:
# the compile door receives index tensors instead of objects and finds the object again through this.
_by_storage: weakref.WeakValueDictionary[int, Structure] = weakref.WeakValueDictionary()

# Sixteen patterns cover a multigrid hierarchy or a few alternating meshes; an evicted one is only analysed again.
cache: IndexCache[Structure] = IndexCache(capacity=16)


def structure_of(rows: Tensor, cols: Tensor, shape: tuple[int, int], check: Check | None = None) -> Structure:
    """The structure of COO indices that pass `check`, if they need one, shared with every earlier equal one that is still cached."""

    def build(rows: Tensor, cols: Tensor) -> Structure:
        return Structure(rows.to(torch.int64), cols.to(torch.int64), shape)

    return cache.find(("coo", shape), (rows, cols), build, check)


def structure_of_compressed(
    kind: str, compressed: Tensor, plain: Tensor, shape: tuple[int, int], check: Check
) -> Structure:
    """The same of CSR (`kind` "csr": row pointers, columns) or CSC (column pointers, rows) indices."""

    def build(pointers: Tensor, inner: Tensor) -> Structure:
        pointers, inner = pointers.to(torch.int64), inner.to(torch.int64)
        outer = torch.repeat_interleave(pointers.diff())
        rows, cols = (outer, inner) if kind == "csr" else (inner, outer)
        return Structure(rows, cols, shape)

    return cache.find((kind, shape), (compressed, plain), build, check)


def structure_at(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> Structure:
    """The structure that owns exactly these (`rows`, `cols`), else the one of equal indices."""
    owner = _by_storage.get(rows.data_ptr())
    if (
        owner is not None
        and owner.shape == shape
        and owner.nnz == rows.numel()
        and owner.cols.data_ptr() == cols.data_ptr()
        and owner.rows.stride() == rows.stride()
        and owner.cols.stride() == cols.stride()
    ):
        return owner
    return structure_of(rows, cols, shape)  # copies of those of a structure
