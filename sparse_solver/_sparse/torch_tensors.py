"""Sparse torch tensors to values and back, differentiably and without coalescing.

`split_tensor` and `assemble_tensor` are each other's inverse and, since both only reorder numbers,
each other's derivative. They stand in for torch's `values()` and constructors, which refuse
uncoalesced tensors and sort in the backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._torch.modes import is_captured, outside_functions, silence_beta_warning
from ..errors import LayoutError, ShapeError, TransformError
from .block_diagonal import batch_places, repeat
from .index_checks import (
    check_batch_structure,
    check_compressed_structure,
    check_coo_structure,
    check_plain,
    check_shape,
    describe_type,
)
from .structure import Structure, find_places, row_pointers
from .torch_constructors import repair_constructors

_KINDS = {torch.sparse_coo: "coo", torch.sparse_csr: "csr", torch.sparse_csc: "csc"}
LAYOUTS = tuple(_KINDS)


@dataclass(frozen=True)
class Skeleton:
    """A sparse tensor without its values.

    indices : ((dimensions, nnz),) for COO, else pointers and indices
    """

    layout: torch.layout
    size: tuple[int, ...]
    indices: tuple[Tensor, ...]
    is_coalesced: bool = False

    @property
    def values_shape(self) -> torch.Size:
        """The shape of the values."""
        last = self.indices[-1]
        return last.shape[1:] if self.layout == torch.sparse_coo else last.shape

    def fill(self, values: Tensor) -> Tensor:
        """The tensor with these values, not differentiable."""
        options: dict[str, Any] = {"device": values.device, "check_invariants": False}
        if self.layout == torch.sparse_coo:
            options["is_coalesced"] = self.is_coalesced
            return torch.sparse_coo_tensor(self.indices[0], values, self.size, **options)
        options["layout"] = self.layout
        silence_beta_warning()
        arguments: tuple[Any, ...] = (*self.indices, values, self.size)
        return torch.sparse_compressed_tensor(*arguments, **options)


class _Split(Function):
    """The values of a sparse tensor.

    summed, order : where places hold several values, the structure whose canonical entries are
        their sums, and the order of these in the skeleton, which has each place once
    """

    @staticmethod
    def forward(
        A: Tensor, skeleton: Skeleton, summed: Structure | None, order: Tensor | None
    ) -> Tensor:
        # `.data` has a version counter of its own: the derivatives of a solve need the factor, not
        # the values of A, so that autograd must not refuse them when A is overwritten later.
        values = A._values().data if A.layout == torch.sparse_coo else A.values().data
        if summed is None:
            return values
        canonical = summed.canonical(values)
        return canonical if order is None else canonical.index_select(-1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.skeleton = inputs[1]

    @staticmethod
    def backward(ctx: Any, values_bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        return assemble_tensor(values_bar, ctx.skeleton), None, None, None


class _Assemble(Function):
    """The sparse tensor with a skeleton and values."""

    @staticmethod
    def forward(values: Tensor, skeleton: Skeleton) -> Tensor:
        return skeleton.fill(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.skeleton = inputs[1]

    @staticmethod
    def backward(ctx: Any, A_bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        return _sample(A_bar, ctx.skeleton), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise TransformError(
            "forward-mode derivatives of a sparse tensor are not supported; "
            "use Pattern.solve(values, b)"
        )


def split_tensor(
    A: Tensor, name: str = "A", different_patterns: bool = False
) -> tuple[Structure, Tensor]:
    """Split a sparse tensor, called `name` in errors, into its structure and its values.

    The structure is that of all matrices of a batch, whose values are (..., nnz). Where that is not
    so, and `different_patterns` are allowed, it is the structure of the matrices on one diagonal,
    and the values are (nnz,).

    Each place occurs once, in A's own order where A has no duplicates. A tensor represents the sum
    of the values that it stores at a place, so that its gradient has one value a place, too; the
    backward pass of torch's constructor hands it to each of the duplicates.
    """
    if isinstance(A, Tensor) and is_captured(A):  # torch cannot read compressed tensors inside
        with outside_functions():
            return split_tensor(A, name, different_patterns)
    skeleton = skeleton_of(A, name)
    structure, summed, order = structure_in(skeleton, different_patterns), None, None
    if structure.has_duplicates:
        summed = structure
        skeleton, order = canonical_skeleton(structure, skeleton.layout, skeleton.size)
        structure = structure_in(skeleton, different_patterns)
    if A.requires_grad:
        repair_constructors(A, _sample_at)
    # Also without the Function under torch.vmap, for which it has no rule.
    split = _Split.apply if A.requires_grad else _Split.forward
    values: Tensor = split(A, skeleton, summed, order)
    return structure, values if structure.batch_shape is None else values.flatten()


def assemble_tensor(values: Tensor, skeleton: Skeleton) -> Tensor:
    """The sparse tensor with this skeleton, which has each place once, and these values."""
    A: Tensor = _Assemble.apply(values, skeleton)
    return A


def canonical_skeleton(
    structure: Structure, layout: torch.layout, size: tuple[int, ...]
) -> tuple[Skeleton, Tensor | None]:
    """The skeleton of a tensor with the canonical entries, and their order in it.

    The order is None for the identity. The indices are new tensors, since the owner of the sparse
    tensor may write to them.
    """
    order = None
    if structure.batch_shape is not None:
        if layout != torch.sparse_coo:
            raise LayoutError(
                f"matrices of a {layout} batch with different patterns store several values at one "
                f"place; sum them"
            )
        places = batch_places(structure, structure.canonical_rows, structure.col)
        return Skeleton(layout, size, (torch.stack(places),), is_coalesced=True), None
    if layout == torch.sparse_coo:
        indices: tuple[Tensor, ...] = (torch.stack((structure.canonical_rows, structure.col)),)
    elif layout == torch.sparse_csr:
        indices = (structure.crow.clone(), structure.col.clone())
    else:
        order = structure.column_order
        pointers = row_pointers(structure.col[order], structure.shape[1])
        indices = (pointers, structure.canonical_rows[order])
    if batch := size[:-2]:
        indices = tuple(index.expand(*batch, *index.shape).contiguous() for index in indices)
    return Skeleton(layout, size, indices, is_coalesced=layout == torch.sparse_coo), order


def skeleton_of(A: Tensor, name: str = "A") -> Skeleton:
    """The skeleton of a sparse COO, CSR or CSC tensor; raise LayoutError for anything else."""
    if not isinstance(A, Tensor):
        raise LayoutError(f"{name} is {describe_type(A)}; expected a sparse torch tensor")
    check_plain(name, A)
    if is_captured(A):
        with outside_functions():
            return skeleton_of(A, name)
    if A.layout not in LAYOUTS:
        is_dense = A.layout == torch.strided
        hint = "; for a dense matrix use torch.linalg.solve, or .to_sparse()" if is_dense else ""
        expected = f"expected torch.sparse_coo, sparse_csr or sparse_csc{hint}"
        raise LayoutError(f"{name} has layout {A.layout}; {expected}")
    if A.dense_dim():
        raise LayoutError(
            f"{name} is a hybrid tensor with {A.dense_dim()} dense dimension(s); "
            f"its values must be numbers"
        )
    size = tuple(A.shape)
    if A.layout == torch.sparse_coo:
        if A.sparse_dim() < 2:
            raise LayoutError(f"{name} is a COO tensor of shape {size}; expected (..., n, n)")
        return Skeleton(A.layout, size, (A._indices(),), A.is_coalesced())
    if A.layout == torch.sparse_csr:
        return Skeleton(A.layout, size, (A.crow_indices(), A.col_indices()))
    return Skeleton(A.layout, size, (A.ccol_indices(), A.row_indices()))


def structure_in(skeleton: Skeleton, different_patterns: bool = False) -> Structure:
    """The structure of a matrix or, for a batch, the one that all its matrices share.

    For other batches, if they are allowed, that of all matrices on one diagonal.
    """
    shape, size = check_shape(skeleton.size[-2:]), skeleton.size
    kind, batch = _KINDS[skeleton.layout], size[:-2]
    if kind != "coo":
        compressed, plain = skeleton.indices
        if not batch:
            return check_compressed_structure(kind, compressed, plain, shape)
        compressed, plain = compressed.flatten(0, -2), plain.flatten(0, -2)
        if 0 not in batch and all(bool((i == i[:1]).all()) for i in (compressed, plain)):
            return check_compressed_structure(kind, compressed[0], plain[0], shape)
    elif not batch:
        rows, cols = skeleton.indices[0]
        return check_coo_structure(rows, cols, shape)
    if different_patterns:
        return check_batch_structure(kind, skeleton.indices, size)
    if 0 in batch:
        raise ShapeError(f"the tensor has shape {size}: an empty batch has no pattern")
    what = "is stored as COO" if kind == "coo" else "has matrices with different patterns"
    raise LayoutError(
        f"the batch of shape {size} {what}; expected one matrix, or a CSR or CSC batch of matrices "
        f"that share one pattern: pass one matrix at a time (solve and factorize take all batches)"
    )


def _sample_at(A_bar: Tensor, A: Tensor) -> Tensor:
    """The values of a gradient at the stored places of A."""
    return _sample(A_bar, skeleton_of(A))


def _sample(A_bar: Tensor, skeleton: Skeleton) -> Tensor:
    """The values at the skeleton's places of a gradient with any layout and any places."""
    structure = structure_in(skeleton, different_patterns=True)
    if A_bar.layout == torch.strided:
        if structure.batch_shape is None:
            return A_bar[..., structure.rows, structure.cols]
        places = batch_places(structure, structure.rows, structure.cols)
        return A_bar[places].view(skeleton.values_shape)
    other, values = split_tensor(A_bar, different_patterns=True)
    if structure.batch_shape != other.batch_shape:  # only one of them has a pattern for all
        count = math.prod(skeleton.size[:-2])
        if other.batch_shape is None:
            other, values = repeat(other, count), values.flatten()
        else:
            structure = repeat(structure, count)
    if other is structure:
        return values.view(skeleton.values_shape)
    if values.shape[-1] == 0:
        return values.new_zeros(skeleton.values_shape)
    wanted = torch.stack((structure.rows, structure.cols))
    found = find_places(torch.stack((other.rows, other.cols)), wanted)
    sampled = values.index_select(-1, found.clamp(min=0)).masked_fill(found < 0, 0)
    return sampled.view(skeleton.values_shape)
