"""Sparse torch tensors to values and back, differentiably and without a coalesce.

`entries` and `assemble` are each other's inverse and, being a relabelling of numbers, each other's derivative. They
replace torch's own `values()` and constructors here because those refuse uncoalesced tensors and sort in the backward.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._structure import Structure, row_pointers, structure_of, structure_of_compressed
from .errors import DeviceError, IndexRangeError, LayoutError, ShapeError, TransformError

LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
_INDEX_DTYPES = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Skeleton:
    """A sparse tensor without its values: `indices` (2, nnz) for COO, else (compressed, plain) pointers and indices."""

    layout: torch.layout
    size: tuple[int, ...]
    indices: tuple[Tensor, ...]
    is_coalesced: bool = False

    def filled(self, values: Tensor) -> Tensor:
        """The tensor with these values, not differentiable."""
        if self.layout == torch.sparse_coo:
            return torch.sparse_coo_tensor(
                self.indices[0],
                values,
                self.size,
                device=values.device,
                is_coalesced=self.is_coalesced,
                check_invariants=False,
            )
        compressed, plain = self.indices
        return torch.sparse_compressed_tensor(
            compressed,
            plain,
            values,
            self.size,
            layout=self.layout,
            device=values.device,
            check_invariants=False,  # type: ignore[call-arg, arg-type, misc]
        )


class _Entries(Function):
    """`summed`: the structure of A's places if some of them hold several values, which are then summed, and put
    into the `order` of the skeleton, which has each place once."""

    @staticmethod
    def forward(A: Tensor, skeleton: Skeleton, summed: Structure | None, order: Tensor | None) -> Tensor:
        # `.data`: with a version counter of its own. Overwriting A after the solve does no harm to its derivatives,
        # which need the factor but not the values; autograd must not refuse them.
        values = A._values().data if A.layout == torch.sparse_coo else A.values().data
        if summed is None:
            return values
        return summed.canonical(values) if order is None else summed.canonical(values).index_select(-1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.skeleton = inputs[1]

    @staticmethod
    def backward(ctx: Any, values_bar: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return assemble(values_bar, ctx.skeleton), None, None, None


class _Assemble(Function):
    @staticmethod
    def forward(values: Tensor, skeleton: Skeleton) -> Tensor:
        return skeleton.filled(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.skeleton = inputs[1]

    @staticmethod
    def backward(ctx: Any, A_bar: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _sampled(A_bar, ctx.skeleton), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise TransformError(
            "forward-mode derivatives of a sparse tensor are not supported; use Pattern.solve(values, b)"
        )


def entries(A: Tensor, name: str = "A") -> tuple[Structure, Tensor]:
    """The places and values of the entries of `A`, each place once, in A's own order if that is so there already. `name`:
    what errors call it.

    A tensor knows only the sum of what it holds at a place; hence its gradient has one value a place, too, and
    torch's own backward of a constructor hands that to each of the duplicates.
    """
    skeleton = skeleton_of(A, name)
    structure, summed, order = structure_in(skeleton), None, None
    if structure.has_duplicates:
        summed = structure
        skeleton, order = canonical_skeleton(structure, skeleton.layout, skeleton.size)
        structure = structure_in(skeleton)
    if not A.requires_grad:  # also under torch.vmap, for which the Function has no rule
        return structure, _Entries.forward(A, skeleton, summed, order)
    values: Tensor = _Entries.apply(A, skeleton, summed, order)
    return structure, values


def assemble(values: Tensor, skeleton: Skeleton) -> Tensor:
    """The sparse tensor with this skeleton, which has each place once, and these values."""
    A: Tensor = _Assemble.apply(values, skeleton)
    return A


def canonical_skeleton(
    structure: Structure, layout: torch.layout, size: tuple[int, ...]
) -> tuple[Skeleton, Tensor | None]:
    """The skeleton of a tensor with the canonical entries, and their order in it (None: as they are).

    Its indices are new tensors, since the owner of the sparse tensor may write to them.
    """
    order = None
    if layout == torch.sparse_coo:
        indices: tuple[Tensor, ...] = (torch.stack((structure.canonical_rows, structure.col)),)
    elif layout == torch.sparse_csr:
        indices = (structure.crow.clone(), structure.col.clone())
    else:
        order = structure.remember("column order", lambda: torch.sort(structure.col, stable=True)[1])
        indices = (row_pointers(structure.col[order], structure.shape[1]), structure.canonical_rows[order])
    if batch := size[:-2]:
        indices = tuple(index.expand(*batch, *index.shape).contiguous() for index in indices)
    return Skeleton(layout, size, indices, is_coalesced=layout == torch.sparse_coo), order


def skeleton_of(A: Tensor, name: str = "A") -> Skeleton:
    """The skeleton of a sparse COO, CSR or CSC tensor; LayoutError for anything else."""
    if not isinstance(A, Tensor):
        raise LayoutError(f"{name} is a {type(A).__name__}, not a torch tensor")
    if A.layout not in LAYOUTS:
        dense = "; for a dense matrix use torch.linalg.solve, or .to_sparse()" if A.layout == torch.strided else ""
        raise LayoutError(f"{name} has layout {A.layout}; expected torch.sparse_coo, sparse_csr or sparse_csc{dense}")
    if A.dense_dim():
        raise LayoutError(
            f"{name} is a hybrid tensor with {A.dense_dim()} dense dimension(s); its values must be numbers"
        )
    size = tuple(A.shape)
    if A.layout == torch.sparse_coo:
        if A.sparse_dim() != 2:
            raise LayoutError(
                f"{name} is a COO tensor of shape {size}; batches are stored as CSR, or as one Pattern with (batch, nnz) values"
            )
        return Skeleton(A.layout, size, (A._indices(),), A.is_coalesced())
    if A.layout == torch.sparse_csr:
        return Skeleton(A.layout, size, (A.crow_indices(), A.col_indices()))
    return Skeleton(A.layout, size, (A.ccol_indices(), A.row_indices()))


def structure_in(skeleton: Skeleton) -> Structure:
    """The structure of a matrix or, for a batch, the one that all its matrices share."""
    shape = shape_of(skeleton.size[-2:])
    if skeleton.layout == torch.sparse_coo:
        rows, cols = skeleton.indices[0]
        return coo_structure(rows, cols, shape)
    compressed, plain = skeleton.indices
    if compressed.dim() > 1:
        compressed, plain = (i.reshape(-1, i.shape[-1]) for i in (compressed, plain))
        if compressed.shape[0] == 0:
            raise ShapeError(f"A has shape {skeleton.size}: an empty batch has no pattern; use Pattern.solve")
        if not (bool((compressed == compressed[:1]).all()) and bool((plain == plain[:1]).all())):
            raise LayoutError("the matrices of the batch have different patterns; solve with them one by one")
        compressed, plain = compressed[0], plain[0]
    kind = "csr" if skeleton.layout == torch.sparse_csr else "csc"
    return compressed_structure(kind, compressed, plain, shape)


def shape_of(shape: Iterable[int]) -> tuple[int, int]:
    """The shape of a matrix; raises ShapeError if it is none."""
    shape = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    sizes = [size for size in shape if isinstance(size, Integral) and size >= 0]
    if len(shape) != 2 or len(sizes) != 2:
        raise ShapeError(f"the matrix has shape {shape}; expected two sizes, (n, n)")
    return int(sizes[0]), int(sizes[1])


def coo_structure(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> Structure:
    """The structure with these COO indices; raises IndexRangeError or DeviceError where they are none of a matrix."""
    check_coo(rows, cols)

    def check(rows: Tensor, cols: Tensor) -> None:
        check_range("row", rows, shape[0], "rows")
        check_range("column", cols, shape[1], "columns")

    return structure_of(rows, cols, shape, check)


def check_coo(rows: Tensor, cols: Tensor) -> None:
    """Raises IndexRangeError or DeviceError unless these are two equally long lists of integers."""
    for name, index in (("rows", rows), ("cols", cols)):
        if not isinstance(index, Tensor) or index.dtype not in _INDEX_DTYPES:
            what = index.dtype if isinstance(index, Tensor) else type(index).__name__
            raise IndexRangeError(f"{name} is {what}; expected a tensor of torch.int64 or torch.int32")
    if rows.dim() != 1 or rows.shape != cols.shape:
        raise IndexRangeError(
            f"rows and cols have shapes {tuple(rows.shape)} and {tuple(cols.shape)}; expected (nnz,) twice"
        )
    check_device(rows, cols)


def compressed_structure(kind: str, compressed: Tensor, plain: Tensor, shape: tuple[int, int]) -> Structure:
    """The same for CSR (`kind` "csr") or CSC indices."""
    outer, inner, count = ("row", "column", shape[0]) if kind == "csr" else ("column", "row", shape[1])
    for index in (compressed, plain):
        if not isinstance(index, Tensor) or index.dtype not in _INDEX_DTYPES or index.dim() != 1:
            raise IndexRangeError(f"{kind} indices must be one-dimensional tensors of torch.int64 or torch.int32")
    check_device(compressed, plain)

    def check(compressed: Tensor, plain: Tensor) -> None:
        if compressed.numel() != count + 1:
            raise IndexRangeError(f"{compressed.numel()} {outer} pointers for {count} {outer}s; expected {count + 1}")
        if int(compressed[0]) != 0 or int(compressed[-1]) != plain.numel() or bool((compressed.diff() < 0).any()):
            raise IndexRangeError(f"{outer} pointers must rise from 0 to the number of entries, {plain.numel()}")
        check_range(inner, plain, shape[1] if kind == "csr" else shape[0], f"{inner}s")

    return structure_of_compressed(kind, compressed, plain, shape, check)


def check_device(*indices: Tensor) -> None:
    """Raises DeviceError for indices on different devices, or without numbers."""
    for index in indices:
        if index.device != indices[0].device:
            raise DeviceError(f"indices are on {indices[0].device} and on {index.device}; move them to one of them")
        if index.device.type == "meta":
            raise DeviceError("indices are on meta, where there are no numbers")


def check_range(name: str, index: Tensor, count: int, lines: str, of: str = "a matrix") -> None:
    """Raises IndexRangeError for an index, called `name`, of `count` `lines` (rows or columns) that there is not."""
    if index.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < 0 or high >= count:
        entry = int(torch.nonzero((index < 0) | (index >= count))[0])
        raise IndexRangeError(
            f"{name} index {int(index[entry])} (entry {entry}) is outside of {of} with {count} {lines}",
            entry=entry,
            index=int(index[entry]),
        )


def chosen_indices(name: str, chosen: Tensor, count: int, lines: str, of: str = "a matrix") -> Tensor:
    """(p,) int64, of a list of indices or a mask, called `name`, of `count` `lines`; raises if it is none."""
    dtypes = (torch.int64, torch.int32, torch.bool)
    if not isinstance(chosen, Tensor) or chosen.dim() != 1 or chosen.dtype not in dtypes:
        what = f"{chosen.dtype} of shape {tuple(chosen.shape)}" if isinstance(chosen, Tensor) else type(chosen).__name__
        raise IndexRangeError(
            f"{name} is {what}; expected (p,) torch.int64 or torch.int32, or an ({count},) mask of torch.bool"
        )
    if chosen.dtype == torch.bool:
        if chosen.numel() != count:
            raise ShapeError(f"{name} is a mask of {chosen.numel()} entries for {of} with {count} {lines}")
        return torch.nonzero(chosen).squeeze(-1)
    chosen = chosen.to(torch.int64, copy=True)
    check_range(name, chosen, count, lines, of)
    repeated = torch.nonzero(torch.bincount(chosen, minlength=count) > 1)
    if repeated.numel():
        index = int(repeated[0])
        entry = int(torch.nonzero(chosen == index)[1])
        raise IndexRangeError(f"entry {index} is {name} twice; give each once", entry=entry, index=index)
    return chosen


def _sampled(A_bar: Tensor, skeleton: Skeleton) -> Tensor:
    """The values, at the skeleton's places, of a gradient of any layout and with any places."""
    structure = structure_in(skeleton)
    if A_bar.layout == torch.strided:
        return A_bar[..., structure.rows, structure.cols]
    other, values = entries(A_bar)
    if other is structure or values.shape[-1] == 0:
        return values if other is structure else values.new_zeros((*values.shape[:-1], structure.nnz))
    # Number the places of both, and look the skeleton's up among the gradient's.
    here, there = torch.stack((structure.rows, structure.cols)), torch.stack((other.rows, other.cols))
    number = torch.unique(torch.cat((there, here), 1), dim=1, return_inverse=True)[1]
    at = number.new_full((number.numel(),), -1)
    at[number[: other.nnz]] = torch.arange(other.nnz, device=number.device)
    found = at[number[other.nnz :]]
    return values.index_select(-1, found.clamp(min=0)).masked_fill(found < 0, 0)
