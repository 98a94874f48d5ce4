"""Solving with values on a structure: validation of what the user passed, shapes, and the choice of door.

The public calls that end here are in `_functional.py`, `_pattern.py` and `_factorization.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._engines import DTYPES
from ._factors import Factors, Problem
from ._function import solve_eagerly
from ._kinds import Options
from ._ops import solve_compiled
from ._structure import Part, Structure
from .errors import DeviceError, DtypeError, LayoutError, OptionError, ShapeError


def check_values(values: Tensor, nnz: int, device: torch.device, name: str = "values") -> None:
    """Raises unless the values called `name` are (..., nnz) numbers that can be solved with, on the device of the pattern."""
    if not isinstance(values, Tensor) or values.layout != torch.strided:
        raise LayoutError(f"{name} must be a dense torch tensor of shape ({nnz},) or (batch, {nnz})")
    _check_dtype("the matrix" if name == "values" else name, values.dtype)
    if values.dim() == 0 or values.shape[-1] != nnz:
        raise ShapeError(
            f"{name} have shape {tuple(values.shape)}, but the pattern has {nnz} entries: expected (..., {nnz})"
        )
    if values.device != device:
        raise DeviceError(f"{name} are on {values.device}, the pattern is on {device}")


def _check_dtype(what: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise DtypeError(f"{what} has dtype {dtype}; expected float32, float64, complex64 or complex128")


def check_rhs(name: str, b: Tensor, values: Tensor) -> None:
    """Raises unless what is called `name` are numbers that can be solved for, as `values` are."""
    if not isinstance(b, Tensor) or b.layout != torch.strided:
        what = f"layout {b.layout}" if isinstance(b, Tensor) else f"type {type(b).__name__}"
        raise LayoutError(f"{name} has {what}; expected a dense torch tensor")
    _check_dtype(name, b.dtype)
    if b.dtype != values.dtype:
        raise DtypeError(f"the matrix has dtype {values.dtype}, {name} has {b.dtype}; convert one of them")
    if b.device != values.device:
        raise DeviceError(f"the matrix is on {values.device}, {name} is on {b.device}")


def solve_values(
    structure: Structure, values: Tensor, b: Tensor, options: Options, transpose: bool, factors: Factors | None = None,
    part: Part | None = None,
) -> Tensor:  # fmt: skip
    """x with A(values) x = b; shapes as in `torch.linalg.solve`.

    `factors` : those of `values`, if there are any
    `part` : what is left of the matrix where rows are, with their columns, left out; x is zero there
    """
    if structure.shape[0] != structure.shape[1]:
        raise ShapeError(f"the matrix has shape {structure.shape}; only a square one, (n, n), can be solved with")
    check_values(values, structure.nnz, structure.device)
    check_rhs("b", b, values)
    options.check(values.dtype)
    if not isinstance(transpose, bool):
        raise OptionError(f"transpose={transpose!r}: expected True or False")
    n, batch, problem = structure.shape[0], values.shape[:-1], Problem(structure, options, part)

    if not batch and 1 <= b.dim() <= 2:  # the common case, and on small systems the rest below would be felt
        if b.shape[0] != n:
            raise _mismatch(b, batch, n)
        if b.dim() == 1:
            return _solved(values, b.unsqueeze(0), problem, transpose, factors).squeeze(0)
        return _solved(values, b.mT, problem, transpose, factors).mT

    flat = is_vector(b, batch, n)
    rhs = b.unsqueeze(-2) if flat else b.mT if b.dim() >= 2 else b  # vectors as rows: (..., k, n)
    if b.dim() == 0 or rhs.shape[-1] != n:
        raise _mismatch(b, batch, n)
    try:
        full = torch.broadcast_shapes(batch, rhs.shape[:-2])
    except RuntimeError:
        raise ShapeError(
            f"the batch dimensions {tuple(batch)} of the matrix and {tuple(rhs.shape[:-2])} of b do not broadcast"
        ) from None

    # Batch dimensions that the matrix does not have are more right-hand sides for the same factor.
    k = rhs.shape[-2]
    sizes = (1,) * (len(full) - len(batch)) + tuple(batch)
    own = [d for d in range(len(full)) if sizes[d] != 1]
    shared = [d for d in range(len(full)) if sizes[d] == 1]
    order = [*own, *shared, len(full), len(full) + 1]
    rhs = rhs.expand(*full, k, n).permute(order)
    permuted = rhs.shape
    count, rows_each = 1, k  # by loops: Dynamo does not trace math.prod
    for d in own:
        count *= full[d]
    for d in shared:
        rows_each *= full[d]
    if own:
        values, rhs = values.reshape(count, structure.nnz), rhs.reshape(count, rows_each, n)
    else:
        values, rhs = values.reshape(structure.nnz), rhs.reshape(rows_each, n)

    x = _solved(values, rhs, problem, transpose, factors)
    inverse = [0] * len(order)
    for position, d in enumerate(order):
        inverse[d] = position
    x = x.reshape(permuted).permute(inverse)
    return x.squeeze(-2) if flat else x.mT


def is_vector(b: Tensor, batch: torch.Size, n: int) -> bool:
    """Whether torch.linalg.solve(A, b) takes b for a vector: it has one dimension, or A's shape without the last."""
    return b.dim() == 1 or (b.dim() == len(batch) + 1 and b.shape == (*batch, n))


def _mismatch(b: Tensor, batch: torch.Size, n: int) -> ShapeError:
    return ShapeError(
        f"b has shape {tuple(b.shape)} for a matrix of shape {(*batch, n, n)}; expected (..., {n}) or (..., {n}, k)"
    )


def _solved(values: Tensor, rhs: Tensor, problem: Problem, transpose: bool, factors: Factors | None) -> Tensor:
    """The rows of x by the door that is open: `values` (nnz,) and `rhs` (k, n), or (B, nnz) and (B, k, n)."""
    if torch.compiler.is_compiling() and factors is None:
        return solve_compiled(values, rhs, problem, transpose)
    x: Tensor = solve_eagerly(values, rhs, factors, problem, transpose)
    return x
