"""Sums over ranks that autograd sees through, to any order, and what all distributed functions of autograd share.

What all ranks hold equal copies of is "replicated". `sum` makes it of shares, and each share's derivative is that of the sum,
which is replicated already. Going the other way, where each rank uses its copy for its own share, the derivative is the sum of
what the ranks have: `replicate`. Each is the adjoint of the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._sparse.values import DTYPES
from .._torch.dynamo import disable_dynamo
from .._torch.modes import is_recorded, is_transformed, materialize
from ..errors import DeviceError, DtypeError, LayoutError, TransformError
from ._collective import Group
from ._mpi import MPI


@disable_dynamo
def sum(share: Tensor, comm: MPI.Comm | None = None) -> Tensor:
    """Σ over the ranks of `share`, entry by entry, on all ranks; for losses. Collective, as is its backward pass.

    Its derivative in each share is one: ``sum(loss).backward()`` on every rank gives the gradient of the sum, once.

    share : a dense tensor on the CPU, of float32, float64, complex64 or complex128, of the same shape and dtype on all ranks
    comm : that of the `Pattern`; None: MPI.COMM_WORLD

    Raises `CollectiveError` where ranks do something else, or shapes or dtypes differ, `LayoutError`, `DtypeError`, `DeviceError`,
    and `TransformError` inside of `torch.func`, on all ranks.

    >>> import torch
    >>> from mpi4py import MPI
    >>> from sparse_solver.distributed import sum
    >>> sum(torch.ones(2), comm=MPI.COMM_SELF)
    tensor([1., 1.])
    """
    return _applied(_Sum, "sum", share, Group.of(comm))


@disable_dynamo
def replicate(copy: Tensor, comm: MPI.Comm | None = None) -> Tensor:
    """`copy`, a tensor that all ranks hold equally, for use in what each rank computes of its own share.

    Its gradient is the sum of those of all ranks, so that parameters which all ranks share stay equal when an optimiser runs on
    each of them. Its forward pass sends nothing but what makes sure that it is collective; shapes, dtypes and errors as for
    `sum`.

    >>> import torch
    >>> from mpi4py import MPI
    >>> from sparse_solver.distributed import replicate
    >>> w = torch.ones(2, requires_grad=True)
    >>> replicate(w, comm=MPI.COMM_SELF).sum().backward()
    >>> w.grad
    tensor([1., 1.])
    """
    return _applied(_Replicate, "replicate", copy, Group.of(comm))


def anchored(recorded: bool) -> Tensor:
    """A number that makes torch record a call on a rank none of whose own tensors asks for it, where some rank's does."""
    return torch.zeros((), device="cpu", requires_grad=recorded)


def backward_name(name: str, call: int) -> str:
    """What the backward pass of the collective call with this number is called: no other one may take its place."""
    return f"backward of {name} (number {call})"


def check_plain(*tensors: Tensor) -> None:
    """Raises TransformError where a transform of torch hides what the tensors hold."""
    if is_transformed(*tensors):
        raise TransformError(
            "torch.func, forward mode, vmap and is_grads_batched=True do not go through calls that all ranks make together; "
            "use torch.autograd.grad or backward, and create_graph=True for second derivatives"
        )


def _applied(
    function: type[_Sum] | type[_Replicate], name: str, tensor: Tensor, group: Group
) -> Tensor:
    def check() -> None:
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise LayoutError("only dense torch tensors can be summed over ranks")
        if tensor.dtype not in DTYPES:
            raise DtypeError(
                f"the tensor has dtype {tensor.dtype}; expected float32, float64, complex64 or complex128"
            )
        if tensor.device.type != "cpu":
            raise DeviceError(
                f"the tensor is on {tensor.device}; ranks exchange tensors on the CPU"
            )
        check_plain(tensor)

    _, (recorded, _) = group.agree(
        name,
        check,
        same=lambda _: {"shape": tuple(tensor.shape), "dtype": tensor.dtype},
        any_of=lambda _: (is_recorded(tensor),),
    )
    result: Tensor = function.apply(tensor, anchored(recorded), group)
    return result


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, share: Tensor, anchor: Tensor, group: Group) -> Tensor:  # type: ignore[override]
        ctx.group, ctx.call = group, group.calls
        with group.collective():
            return group.total(materialize(share))

    @staticmethod
    def backward(ctx: Any, total_bar: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return (
            _applied(_Replicate, backward_name("sum", ctx.call), total_bar, ctx.group),
            None,
            None,
        )


class _Replicate(Function):
    @staticmethod
    def forward(ctx: Any, copy: Tensor, anchor: Tensor, group: Group) -> Tensor:  # type: ignore[override]
        ctx.group, ctx.call = group, group.calls
        return copy.clone()

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _applied(_Sum, backward_name("replicate", ctx.call), bar, ctx.group), None, None
