"""Whether the caller is in some mode or transform of torch, and a place outside of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad


@contextmanager
def plainly() -> Iterator[None]:
    """Tensors that are made in here are ordinary ones on the CPU, and may be remembered for calls to come.

    Outside of it they would be wrapped by the transforms of `torch.func` that are active, belong to
    `torch.inference_mode`, or lie on the default device.
    """
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with torch.inference_mode(False), torch.device("cpu"), temporarily_clear_interpreter_stack():
        yield


def is_plain(*tensors: Tensor) -> bool:
    """Whether torch does nothing here but compute: it records no graph, and transforms none of these tensors."""
    return not torch.is_grad_enabled() and not is_transformed(*tensors)


def has_derivatives(tensor: Tensor) -> bool:
    """Whether torch differentiates in tensors of this dtype."""
    return tensor.is_floating_point() or tensor.is_complex()


def is_transformed(*tensors: Tensor) -> bool:
    """Whether a transform of `torch.func`, forward mode, or torch's first vmap may have to do with these tensors."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)
    )


def resolved(tensor: Tensor) -> Tensor:
    """`tensor` without a graph, with its numbers in memory as they are: no conjugates and negatives that are lazy."""
    return tensor.detach().resolve_conj().resolve_neg()


def read_here(*tensors: Tensor) -> None:
    """Keeps the memory of these tensors, which another stream may have made and may free, until the current stream, too,
    has read them."""
    for tensor in tensors:
        tensor.record_stream(torch.get_device_module(tensor.device).current_stream(tensor.device))


def finish(device: torch.device) -> None:
    """Waits until the device has made what the current stream of this thread was given, for other streams to find it made."""
    if device.type != "cpu":
        gpu = torch.get_device_module(device)
        if hasattr(gpu, "current_stream"):
            gpu.current_stream(device).synchronize()
