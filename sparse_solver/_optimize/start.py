"""Where Newton's method starts: validation of x0, and the values of its fixed entries."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .._factor.options import Options
from .._factor.problem import Problem
from .._sparse.index_checks import check_dense, describe_type
from .._sparse.structure import Structure
from .._sparse.submatrix import remove_rows
from .._torch.modes import is_transformed
from ..errors import DeviceError, DtypeError, LayoutError, OptionError, ShapeError, TransformError


def list_parameters(params: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The tensors of ``params=``; raise OptionError for one tensor, which would give its rows."""
    if isinstance(params, Tensor):
        raise OptionError("params is a tensor; expected an iterable of tensors, as params=(k,)")
    return tuple(params)


def check_start(x0: Tensor, parameters: tuple[Tensor, ...]) -> None:
    """Raise unless Newton's method can start at x0, and be differentiated in the parameters."""
    check_dense("x0", x0)
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            raise LayoutError(f"params holds {describe_type(parameter)}; expected torch tensors")
    if x0.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"x0 has dtype {x0.dtype}; expected float32 or float64")
    if is_transformed(x0, *parameters):
        raise TransformError(
            "Newton's method branches on numbers that torch.func and forward mode hide; call it "
            "outside of them, and differentiate its result by torch.autograd"
        )


def set_fixed_values(x0: Tensor, fixed: Tensor | None, values: Tensor | None) -> Tensor:
    """x0 with `values` at the fixed entries; differentiable in both.

    fixed : as for `minimize`, and valid
    values : in the order of `fixed` (p, ...) like rows of x0, or (count,) in row-major order if
        `fixed` is a mask of x0's shape; None for the values in x0
    """
    if values is None:
        return x0
    if fixed is None:
        raise OptionError("fixed_values are given without fixed=, which says where they belong")
    check_dense("fixed_values", values)
    is_mask = fixed.dtype == torch.bool
    entries = x0.reshape(-1) if is_mask and fixed.shape == x0.shape else x0
    places = torch.nonzero(fixed.reshape(-1)).squeeze(-1) if is_mask else fixed.to(torch.int64)
    expected = (places.numel(), *entries.shape[1:])
    if values.shape != expected:
        shape = tuple(values.shape)
        raise ShapeError(f"fixed_values have shape {shape}; expected {expected}, as fixed= selects")
    if values.dtype != x0.dtype:
        message = f"fixed_values have dtype {values.dtype}, x0 has {x0.dtype}"
        raise DtypeError(f"{message}; convert one of them")
    if values.device != x0.device:
        message = f"fixed_values are on {values.device}, x0 is on {x0.device}"
        raise DeviceError(f"{message}; move them to one device")
    return entries.index_copy(0, places.to(x0.device), values).reshape(x0.shape)


def make_problem(
    structure: Structure, fixed: Tensor, options: Options, device: torch.device
) -> Problem:
    """The linear problem of a Newton step on `device`, in which the entries `fixed` (p,) stay."""
    structure = structure.on(device)
    submatrix = remove_rows(structure, fixed.to(device)) if fixed.numel() else None
    return Problem(structure, options, submatrix)
