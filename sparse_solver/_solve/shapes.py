"""Validation and shapes of a solve: from what the user passed to matrices and rows of vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._factor.factors import Factors
from .._factor.problem import Problem
from .._sparse.block_diagonal import join_batch, unjoin_batch
from .._sparse.index_checks import check_dense, check_plain, describe_type
from .._sparse.structure import Structure
from .._sparse.values import DTYPES
from ..errors import DeviceError, DtypeError, LayoutError, OptionError, ShapeError
from .autograd import solve_eagerly
from .compile import solve_compiled


def check_values(values: Tensor, nnz: int, name: str = "values") -> None:
    """Raise unless the values, called `name`, are (..., nnz) numbers that can be solved with."""
    if not isinstance(values, Tensor) or values.layout != torch.strided:
        is_tensor = isinstance(values, Tensor)
        what = f"a tensor of layout {values.layout}" if is_tensor else describe_type(values)
        expected = f"expected a dense torch tensor of shape ({nnz},) or (batch, {nnz})"
        raise LayoutError(f"{name} is {what}; {expected}")
    check_plain(name, values)
    check_dtype("the matrix" if name == "values" else name, values.dtype)
    if values.dim() == 0 or values.shape[-1] != nnz:
        shape = tuple(values.shape)
        expected = f"the pattern has {nnz} entries: expected (..., {nnz})"
        raise ShapeError(f"{name} have shape {shape}, but {expected}")
    if values.device.type == "meta":
        raise DeviceError(f"{name} are on the meta device, which holds no numbers")


def check_dtype(what: str, dtype: torch.dtype) -> None:
    """Raise DtypeError unless the package solves with numbers of this dtype."""
    if dtype not in DTYPES:
        expected = "expected float32, float64, complex64 or complex128"
        raise DtypeError(f"{what} has dtype {dtype}; {expected}")


def check_rhs(name: str, b: Tensor, values: Tensor) -> None:
    """Raise unless the right-hand side, called `name`, fits the dtype and device of `values`."""
    check_dense(name, b)
    check_dtype(name, b.dtype)
    if b.dtype != values.dtype:
        message = f"the matrix has dtype {values.dtype}, {name} has {b.dtype}"
        raise DtypeError(f"{message}; convert one of them")
    if b.device != values.device:
        raise DeviceError(f"the matrix is on {values.device}, {name} is on {b.device}")


def check_flags(transpose: bool, adjoint: bool) -> None:
    """Raise OptionError unless these are flags, at most one of which is True."""
    for name, flag in (("transpose", transpose), ("adjoint", adjoint)):
        if not isinstance(flag, bool):
            raise OptionError(f"{name}={flag!r}: expected True or False")
    if adjoint and transpose:
        raise OptionError("transpose=True solves with Aᵀ and adjoint=True with Aᴴ; choose one")


def solve_values(
    problem: Problem,
    values: Tensor,
    b: Tensor,
    *,
    transpose: bool = False,
    adjoint: bool = False,
    factors: Factors | None = None,
) -> Tensor:
    """x with A(values) x = b; shapes as in `torch.linalg.solve`.

    factors : the factors of `values`, if they exist already
    """
    structure = problem.structure
    check_values(values, structure.nnz)
    check_rhs("b", b, values)
    problem.check(values.dtype)
    check_flags(transpose, adjoint)
    is_compiled = torch.compiler.is_compiling() and factors is None
    if not is_compiled and structure.device != values.device:
        problem = problem.on(values.device)
    if adjoint:  # A⁻ᴴ b = conj(A⁻ᵀ conj(b))
        b, transpose = b.conj(), True

    n, batch, unfold = structure.shape[0], values.shape[:-1], None
    if structure.batch_shape is not None or batch or not 1 <= b.dim() <= 2:
        values, rhs, unfold = fold_rhs(structure, values, b)
    else:  # the common case, which small systems feel
        if b.shape[0] != n:
            raise _mismatch(b, batch, n)
        rhs = b.unsqueeze(0) if b.dim() == 1 else b.mT
    if is_compiled:
        x = solve_compiled(values, rhs, problem, transpose)
    else:
        x = solve_eagerly(values, rhs, factors, problem, transpose)
    if unfold is not None:
        x = unfold(x)
    else:
        x = x.squeeze(0) if b.dim() == 1 else x.mT
    return x.conj() if adjoint else x


def fold_rhs(
    structure: Structure, values: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Values with at most one batch dimension, rows of right-hand sides, and the way back."""
    if structure.batch_shape is not None:
        return values, *_fold_blocks(b, structure.batch_shape)
    lead, rhs, unfold = _fold_batch(b, values.shape[:-1], structure.shape[0])
    return values.reshape(*lead, values.shape[-1]), rhs, unfold


def _fold_blocks(
    b: Tensor, batch_shape: tuple[int, ...]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Rows of right-hand sides for the matrix with a batch on its diagonal, and the way back."""
    *batch, n, _ = batch_shape
    lead, rhs, unfold = _fold_batch(b, torch.Size(batch), n)
    rhs = rhs if lead else rhs.unsqueeze(0)
    return join_batch(rhs), lambda x: unfold(unjoin_batch(x, len(rhs)))


def _fold_batch(
    b: Tensor, batch: torch.Size, n: int
) -> tuple[tuple[int, ...], Tensor, Callable[[Tensor], Tensor]]:
    """At most one batch dimension, rows of right-hand sides with that, and the way back.

    Batch dimensions that the matrix does not have become right-hand sides for the same factor.
    """
    is_flat = is_vector(b, batch, n)
    rhs = b.unsqueeze(-2) if is_flat else b.mT if b.dim() >= 2 else b  # (..., k, n)
    if b.dim() == 0 or rhs.shape[-1] != n:
        raise _mismatch(b, batch, n)
    try:
        full = torch.broadcast_shapes(batch, rhs.shape[:-2])
    except RuntimeError:
        shapes = f"{tuple(batch)} of the matrix and {tuple(rhs.shape[:-2])} of b"
        raise ShapeError(f"the batch dimensions {shapes} do not broadcast") from None

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
    lead = (count,) if own else ()
    rhs = rhs.reshape(*lead, rows_each, n)
    inverse = [0] * len(order)
    for position, d in enumerate(order):
        inverse[d] = position

    def unfold(x: Tensor) -> Tensor:
        x = x.reshape(permuted).permute(inverse)
        return x.squeeze(-2) if is_flat else x.mT

    return lead, rhs, unfold


def is_vector(b: Tensor, batch: torch.Size, n: int) -> bool:
    """Whether torch.linalg.solve(A, b) takes b for a vector.

    That is so if b has one dimension, or the shape of A without the last dimension.
    """
    return b.dim() == 1 or (b.dim() == len(batch) + 1 and b.shape == (*batch, n))


def _mismatch(b: Tensor, batch: torch.Size, n: int) -> ShapeError:
    matrix = f"a matrix of shape {(*batch, n, n)}"
    expected = f"expected (..., {n}) or (..., {n}, k)"
    return ShapeError(f"b has shape {tuple(b.shape)} for {matrix}; {expected}")
