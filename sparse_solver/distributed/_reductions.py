"""Sums over ranks that autograd differentiates, to any order.

A tensor is replicated if all ranks hold equal copies of it. `all_sum` makes a replicated sum of
shares; the derivative in each share is that of the sum, which is replicated already. Conversely,
where each rank uses its copy for its own share, the derivative is the sum of those of all ranks:
`replicate`. Each function is the adjoint of the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._solve.shapes import check_dtype
from .._sparse.index_checks import check_dense
from .._sparse.values import CPU
from .._torch.dynamo import disable_dynamo
from .._torch.modes import is_recorded, is_transformed, materialize
from ..errors import DeviceError, TransformError
from ._collective import Group
from ._mpi import MPI


@disable_dynamo
def all_sum(share: Tensor, *, comm: MPI.Comm | None = None) -> Tensor:
    """Sum a tensor over all ranks; differentiable, to any order.

    The call is collective, and so is its backward pass: ``all_sum(loss).backward()`` on every rank
    gives the gradient of the sum, once.

    Parameters
    ----------
    share : Tensor
        A dense tensor on the CPU; float32, float64, complex64 or complex128, of the same shape and
        dtype on all ranks.
    comm : mpi4py.MPI.Comm, optional
        The communicator of the `Pattern`; by default MPI.COMM_WORLD.

    Returns
    -------
    Tensor
        Σ_r share_r, entry by entry, on all ranks. Its derivative in each share is one.

    Raises
    ------
    LayoutError, DtypeError, DeviceError
        If `share` is not such a tensor on some rank.
    TransformError
        Inside of transforms of `torch.func`.
    CollectiveError
        If ranks make different calls, or pass different shapes or dtypes.

    Examples
    --------
    >>> import torch
    >>> from mpi4py import MPI
    >>> from sparse_solver.distributed import all_sum
    >>> all_sum(torch.ones(2), comm=MPI.COMM_SELF)
    tensor([1., 1.])
    """
    return _apply(_Sum, "all_sum", share, Group.of(comm))


@disable_dynamo
def replicate(copy: Tensor, *, comm: MPI.Comm | None = None) -> Tensor:
    """Return a tensor that all ranks hold, for use in the computations of each rank's share.

    The gradient is the sum over all ranks, so that parameters that all ranks hold stay equal when
    each rank runs the same optimiser. The call is collective, and so is its backward pass.

    Parameters
    ----------
    copy : Tensor
        As for `all_sum`; equal on all ranks, which is not checked.
    comm : mpi4py.MPI.Comm, optional
        As for `all_sum`.

    Returns
    -------
    Tensor
        The values of `copy`. The forward pass sends none of them.

    Raises
    ------
    LayoutError, DtypeError, DeviceError, TransformError, CollectiveError
        As for `all_sum`.

    Examples
    --------
    >>> import torch
    >>> from mpi4py import MPI
    >>> from sparse_solver.distributed import replicate
    >>> w = torch.ones(2, requires_grad=True)
    >>> replicate(w, comm=MPI.COMM_SELF).sum().backward()
    >>> w.grad
    tensor([1., 1.])
    """
    return _apply(_Replicate, "replicate", copy, Group.of(comm))


def make_anchor(recorded: bool) -> Tensor:
    """An input that makes torch record a call on all ranks if any of them records it."""
    return torch.zeros((), device="cpu", requires_grad=recorded)


def name_backward(name: str, call: int) -> str:
    """The name of the backward pass of the collective call with this number."""
    return f"backward of {name} (number {call})"


def refuse_transforms(*tensors: Tensor) -> None:
    """Raise TransformError if a transform of torch hides the numbers of the tensors."""
    if is_transformed(*tensors):
        raise TransformError(
            "torch.func, forward mode, vmap and is_grads_batched=True do not support collective "
            "calls; use torch.autograd.grad or backward, with create_graph=True for second "
            "derivatives"
        )


def _apply(
    function: type[_Sum] | type[_Replicate], name: str, tensor: Tensor, group: Group
) -> Tensor:
    """Apply the function after the ranks have agreed."""

    def check() -> None:
        check_dense("the tensor", tensor)
        check_dtype("the tensor", tensor.dtype)
        if tensor.device != CPU:
            where = f"the tensor is on {tensor.device}"
            raise DeviceError(f"{where}; ranks exchange tensors on the CPU: pass tensor.cpu()")
        refuse_transforms(tensor)

    _, (recorded, _) = group.agree(
        name,
        check,
        same=lambda _: {"shape": tuple(tensor.shape), "dtype": tensor.dtype},
        any_of=lambda _: (is_recorded(tensor),),
    )
    result: Tensor = function.apply(tensor, make_anchor(recorded), group)
    return result


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, anchor: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.call = group, group.calls
        with group.collective():
            return group.reduce_sum(materialize(share))

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        name = name_backward("all_sum", ctx.call)
        return _apply(_Replicate, name, bar, ctx.group), None, None


class _Replicate(Function):
    @staticmethod
    def forward(ctx: Any, copy: Tensor, anchor: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.call = group, group.calls
        return copy.clone()

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Any:  # type: ignore[override] # torch's is (ctx, *grads)
        return _apply(_Sum, name_backward("replicate", ctx.call), bar, ctx.group), None, None
