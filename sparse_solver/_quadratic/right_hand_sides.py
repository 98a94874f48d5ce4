"""The shapes of several right-hand sides that are given together: b, fixed_values and d."""

from __future__ import annotations

import torch
from torch import Tensor

from .._solve.shapes import check_rhs, is_vector
from .._sparse.values import check_finite
from .._torch.modes import is_transformed
from ..errors import ShapeError


def stack_as_rows(
    given: dict[str, Tensor | None], sizes: dict[str, int], values: Tensor
) -> tuple[dict[str, Tensor], bool]:
    """Turn right-hand sides into rows (..., k, size) with equal leading dimensions.

    Also returns whether all of them were vectors. None stands for zeros. `values` are those of the
    matrix, whose batch dimensions are part of the leading ones.
    """
    batch = values.shape[:-1]
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
    has_columns = False
    for name, tensor in tensors.items():
        check_rhs(name, tensor, values)
        has_columns |= tensor.dim() > 1 and not is_vector(tensor, batch, sizes[name])
    rows, all_flat = {}, True
    for name, tensor in tensors.items():
        size = sizes[name]
        is_flat = is_vector(tensor, batch, size)
        # A tensor that may be a batch of vectors or columns is columns beside others with columns,
        # else what torch.linalg.solve takes it for.
        if has_columns and tensor.dim() > 1 and tensor.shape[-2] == size:
            is_flat = False
        row = tensor.unsqueeze(-2) if is_flat else tensor.mT if tensor.dim() >= 2 else tensor
        if tensor.dim() == 0 or row.shape[-1] != size:
            expected = f"expected (..., {size}) or (..., {size}, k)"
            raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; {expected}")
        _check_readable_finite(name, row)
        rows[name], all_flat = row, all_flat and is_flat
    shapes = {name: row.shape[:-1] for name, row in rows.items()}
    lead = broadcast_shapes(shapes | {"the values": torch.Size((*batch, 1))})
    zero = values.new_zeros(())
    return {name: rows.get(name, zero).expand(*lead, sizes[name]) for name in sizes}, all_flat


def _check_readable_finite(name: str, rows: Tensor) -> None:
    """Raise NonFiniteError for NaN or infinity, where torch lets numbers be looked at."""
    if torch.compiler.is_compiling() or is_transformed(rows):
        return
    check_finite(name, rows.detach())


def broadcast_shapes(shapes: dict[str, torch.Size]) -> torch.Size:
    """The shape that these leading dimensions broadcast to, or ShapeError."""
    try:
        shape: torch.Size = torch.broadcast_shapes(*shapes.values())
        return shape
    except RuntimeError:
        listed = ", ".join(f"{tuple(shape)} of {name}" for name, shape in shapes.items())
        raise ShapeError(
            f"the leading dimensions (and number of columns) do not broadcast: {listed}"
        ) from None


def unstack_rows(rows: Tensor, is_flat: bool) -> Tensor:
    """Columns (..., size, k) of rows (..., k, size), or vectors (..., size)."""
    return rows.squeeze(-2) if is_flat else rows.mT
