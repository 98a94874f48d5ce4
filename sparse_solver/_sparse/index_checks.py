"""Validation of tensors, shapes, indices and selections, and hints for foreign arrays."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from .._torch.modes import has_own_dispatch
from ..errors import DeviceError, IndexRangeError, LayoutError, ShapeError
from .structure import Structure, structure_of, structure_of_batch, structure_of_compressed

INDEX_DTYPES = (torch.int32, torch.int64)

# Tensors on other devices are copied to the host first.
_DEVICES_OF_ENGINES = ("cpu", "cuda")


def describe_type(value: object) -> str:
    """Name the type of something that is not a tensor, and how to convert it to one."""
    name = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"a NumPy array ({name}); convert it with torch.from_numpy"
    if type(value).__module__.startswith("scipy.sparse"):
        has_values = getattr(value, "format", None) in ("csr", "csc", "coo")
        return (
            f"a SciPy matrix ({name}); P = Pattern.from_scipy(A) takes its places, and "
            f"torch.from_numpy({'A' if has_values else 'A.tocsr()'}.data) are its values"
        )
    return f"a {name}"


def check_dense(name: str, value: Tensor) -> None:
    """Raise LayoutError unless the value, called `name`, is a dense torch tensor."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        is_tensor = isinstance(value, Tensor)
        what = f"has layout {value.layout}" if is_tensor else f"is {describe_type(value)}"
        raise LayoutError(f"{name} {what}; expected a dense torch tensor")
    check_plain(name, value)


def check_plain(name: str, tensor: Tensor) -> None:
    """Raise LayoutError for a tensor whose memory native libraries would read, but cannot."""
    if (
        has_own_dispatch(tensor)
        and tensor.device.type in _DEVICES_OF_ENGINES
        and not torch.compiler.is_compiling()  # compiled graphs take such tensors apart
    ):
        raise LayoutError(
            f"{name} is a {type(tensor).__name__}, whose memory native libraries cannot read; "
            f"expected a plain torch.Tensor, such as the local part of a DTensor"
        )


def check_shape(shape: Iterable[int]) -> tuple[int, int]:
    """Return the shape of a matrix; raise ShapeError if it is not two sizes."""
    shape = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    sizes = [size for size in shape if isinstance(size, Integral) and size >= 0]
    if len(shape) != 2 or len(sizes) != 2:
        raise ShapeError(f"the matrix has shape {shape}; expected two sizes, (n, n)")
    return int(sizes[0]), int(sizes[1])


def check_square(shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless a matrix of this shape can be solved with."""
    if shape[0] != shape[1]:
        raise ShapeError(f"the matrix has shape {shape}; only a square one, (n, n), can be solved")


def check_coo(rows: Tensor, cols: Tensor) -> None:
    """Raise IndexRangeError or DeviceError unless both are equally long lists of integers."""
    _check_integers("rows", rows)
    _check_integers("cols", cols)
    if rows.dim() != 1 or rows.shape != cols.shape:
        shapes = f"{tuple(rows.shape)} and {tuple(cols.shape)}"
        raise IndexRangeError(f"rows and cols have shapes {shapes}; expected (nnz,) twice")
    check_device(rows, cols)


def _check_integers(name: str, index: Tensor) -> None:
    if not isinstance(index, Tensor) or index.dtype not in INDEX_DTYPES:
        what = index.dtype if isinstance(index, Tensor) else describe_type(index)
        raise IndexRangeError(f"{name} is {what}; expected a tensor of torch.int64 or int32")
    check_plain(name, index)


def check_coo_structure(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> Structure:
    """The structure with these COO indices; raise IndexRangeError or DeviceError if invalid."""
    check_coo(rows, cols)

    def check(rows: Tensor, cols: Tensor) -> None:
        check_range("row", rows, shape[0], "rows")
        check_range("column", cols, shape[1], "columns")

    return structure_of(rows, cols, shape, check)


def check_compressed_structure(
    kind: str, compressed: Tensor, plain: Tensor, shape: tuple[int, int]
) -> Structure:
    """The structure with these CSR (`kind` "csr") or CSC indices; raise as for COO indices."""
    names = ("crow_indices", "col_indices") if kind == "csr" else ("ccol_indices", "row_indices")
    for name, index in zip(names, (compressed, plain), strict=True):
        _check_integers(name, index)
        if index.dim() != 1:
            raise IndexRangeError(f"{name} has shape {tuple(index.shape)}; expected (m,)")
    check_device(compressed, plain)
    check = partial(_check_compressed, kind, shape)
    return structure_of_compressed(kind, compressed, plain, shape, check)


def _check_compressed(kind: str, shape: tuple[int, int], compressed: Tensor, plain: Tensor) -> None:
    """Raise IndexRangeError for invalid pointers (..., m) and indices (..., nnz)."""
    is_csr = kind == "csr"
    outer, inner = ("row", "column") if is_csr else ("column", "row")
    (count, size), nnz = shape if is_csr else shape[::-1], plain.shape[-1]
    if compressed.shape[-1] != count + 1:
        found = f"{compressed.shape[-1]} {outer} pointers for {count} {outer}s"
        raise IndexRangeError(f"{found}; expected {count + 1}")
    ends_fit = (compressed[..., 0] == 0) & (compressed[..., -1] == nnz)
    if not bool(ends_fit.all()) or bool((compressed.diff() < 0).any()):
        expected = f"must rise from 0 to the number of entries, {nnz}"
        raise IndexRangeError(f"{outer} pointers {expected}")
    check_range(inner, plain.flatten(), size, f"{inner}s")


def check_batch_structure(
    kind: str, indices: tuple[Tensor, ...], shape: tuple[int, ...]
) -> Structure:
    """The structure of a batch (see `structure_of_batch`); raise as for the indices of a matrix."""
    check_square(shape[-2:])
    check_device(*indices)

    def check_coo_batch(index: Tensor) -> None:
        for size, numbers in zip(shape[:-2], index, strict=False):
            check_range("batch", numbers, size, "matrices", "a batch")
        check_range("row", index[-2], shape[-2], "rows")
        check_range("column", index[-1], shape[-1], "columns")

    check_csr_batch = partial(_check_compressed, kind, (shape[-2], shape[-1]))
    check = check_coo_batch if kind == "coo" else check_csr_batch
    return structure_of_batch(kind, indices, shape, check)


def check_device(*indices: Tensor) -> None:
    """Raise DeviceError for indices on different devices, or on one without numbers."""
    first = indices[0].device
    for index in indices:
        if index.device != first:
            raise DeviceError(f"indices are on {first} and on {index.device}; move them to one")
        if index.device.type == "meta":
            raise DeviceError("indices are on the meta device, which holds no numbers")


def check_range(name: str, index: Tensor, count: int, lines: str, of: str = "a matrix") -> None:
    """Raise IndexRangeError for an index outside of `count` `lines` (such as rows)."""
    if index.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(index))
    if low < 0 or high >= count:
        entry = int(torch.nonzero((index < 0) | (index >= count))[0])
        value = int(index[entry])
        message = f"{name} index {value} (entry {entry}) is outside of {of} with {count} {lines}"
        raise IndexRangeError(message, entry=entry, index=value)


def select_indices(
    name: str, chosen: Tensor, count: int, lines: str, of: str = "a matrix"
) -> Tensor:
    """(p,) int64, the selection of `count` `lines` that a list of indices or a mask makes.

    Raises IndexRangeError or ShapeError for an invalid selection, which is called `name`.
    """
    dtypes = (*INDEX_DTYPES, torch.bool)
    if not isinstance(chosen, Tensor) or chosen.dim() != 1 or chosen.dtype not in dtypes:
        is_tensor = isinstance(chosen, Tensor)
        what = (
            f"{chosen.dtype} of shape {tuple(chosen.shape)}" if is_tensor else describe_type(chosen)
        )
        expected = f"(p,) torch.int64 or torch.int32, or an ({count},) mask of torch.bool"
        raise IndexRangeError(f"{name} is {what}; expected {expected}")
    if chosen.dtype == torch.bool:
        if chosen.numel() != count:
            given = f"{name} is a mask of {chosen.numel()} entries"
            raise ShapeError(f"{given} for {of} with {count} {lines}")
        return torch.nonzero(chosen).squeeze(-1)
    chosen = chosen.to(torch.int64, copy=True)
    check_range(name, chosen, count, lines, of)
    repeated = torch.nonzero(torch.bincount(chosen, minlength=count) > 1)
    if repeated.numel():
        index = int(repeated[0])
        entry = int(torch.nonzero(chosen == index)[1])
        message = f"{name} has the entry {index} twice; list it once"
        raise IndexRangeError(message, entry=entry, index=index)
    return chosen
