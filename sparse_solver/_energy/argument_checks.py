"""Validation of the variables, indices and constants of an `IndexedSum`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .._sparse.index_checks import INDEX_DTYPES, check_dense, check_range, describe_type
from ..errors import DeviceError, DtypeError, IndexRangeError, LayoutError, ShapeError
from .terms.element_terms import Terms


def check_indices(indices: Tensor) -> None:
    """Raise unless the indices are a tensor (terms, locals) of integers, with locals > 0."""
    if not isinstance(indices, Tensor) or indices.layout != torch.strided or indices.dim() != 2:
        is_tensor = isinstance(indices, Tensor)
        what = f"of shape {tuple(indices.shape)}" if is_tensor else describe_type(indices)
        raise ShapeError(f"indices are {what}; expected a tensor (terms, locals)")
    if indices.dtype not in INDEX_DTYPES:
        raise IndexRangeError(f"indices are {indices.dtype}; expected torch.int64 or torch.int32")
    if indices.shape[1] == 0:
        raise ShapeError("indices have shape (terms, 0): a term must read at least one vertex")


def check_constants(name: str, tree: Any, count: int, device: torch.device) -> None:
    """Raise unless constants are dense tensors (count, ...) on the device of the indices."""
    for leaf in tree_leaves(tree) if tree is not None else ():
        check_dense(f"a constant in {name}", leaf)
        if leaf.dim() == 0 or leaf.shape[0] != count:
            raise ShapeError(f"{name} has shape {tuple(leaf.shape)}; expected ({count}, ...)")
        if leaf.device != device:
            where = f"{name} is on {leaf.device}, the indices are on {device}"
            raise DeviceError(f"{where}; move one of them")


def check_variables(X: Tensor, terms: tuple[Terms, ...]) -> None:
    """Raise unless X is a dense real tensor on the device of the indices."""
    check_dense("X", X)
    if X.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"X has dtype {X.dtype}; expected float32 or float64")
    for group in terms:
        if group.indices.device != X.device:
            where = f"X is on {X.device}, the indices are on {group.indices.device}"
            raise DeviceError(f"{where}; move one of them")


def check_parameters(tensors: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> None:
    """Raise unless the tensors may take the place of the parameters: as many, of equal shapes."""
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise LayoutError(f"a parameter is {describe_type(tensor)}; expected torch tensors")
    given, expected = ([tuple(t.shape) for t in each] for each in (tensors, parameters))
    if given != expected:
        raise ShapeError(
            f"the parameters have shapes {given}; expected {expected}, those of parameters()"
        )


def check_shape(shape: torch.Size, terms: tuple[Terms, ...]) -> None:
    """Raise unless X of this shape fits the indices and the constants of the vertices."""
    if len(shape) not in (1, 2):
        raise ShapeError(f"X has shape {tuple(shape)}; expected (vertices,) or (vertices, dim)")
    for group in terms:
        indices, constants = group.indices, group.constants["per_variable"]
        check_range("vertex", indices.reshape(-1), shape[0], "vertices", "variables")
        check_constants("per_variable", constants, shape[0], indices.device)
