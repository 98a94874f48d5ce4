"""torch's modes and transforms: whether one is active, and how to compute outside of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad


@contextmanager
def outside_transforms() -> Iterator[None]:
    """Make ordinary tensors on the CPU, which may be remembered for later calls.

    Elsewhere new tensors may be wrapped by the active transforms of `torch.func`, belong to
    `torch.inference_mode`, or lie on torch's default device.
    """
    with torch.inference_mode(False), torch.device("cpu"), outside_functions():
        yield


def is_captured(tensor: Tensor) -> bool:
    """Whether functions are being transformed by `torch.func`, of which this is no argument."""
    functorch = torch._C._functorch
    is_idle = functorch.get_interpreter_stack() is None
    return not (is_idle or functorch.is_functorch_wrapped_tensor(tensor))


@contextmanager
def outside_functions() -> Iterator[None]:
    """Leave the functions that `torch.func` is transforming, for a tensor that they captured."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with temporarily_clear_interpreter_stack():
        yield


@contextmanager
def recording() -> Iterator[None]:
    """Record what is computed, also in `torch.no_grad` and `torch.inference_mode`.

    For what is remembered: later calls may differentiate it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def outside_inference() -> Iterator[None]:
    """Make tensors that can be used in training later, where `torch.inference_mode` is on, too."""
    is_recorded = torch.is_grad_enabled()  # which `inference_mode(False)` changes
    with torch.inference_mode(False), torch.set_grad_enabled(is_recorded):
        yield


def is_transformed(*tensors: Tensor) -> bool:
    """Whether a `torch.func` transform, forward mode or torch's legacy vmap may be involved."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)
    )


def is_traced() -> bool:
    """Whether torch.jit.trace or make_fx records operations, but not those of native libraries."""
    proxies = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    return proxies is not None or torch.jit.is_tracing()  # type: ignore[attr-defined] # torch does not export it to type checkers


def is_recorded(*tensors: Tensor) -> bool:
    """Whether autograd records what is computed from these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def is_unrecorded(*tensors: Tensor) -> bool:
    """Whether torch only computes: grad mode is off, and no transform has these tensors.

    This is not the opposite of `is_recorded`: with grad mode on, both may be False.
    """
    return not torch.is_grad_enabled() and not is_transformed(*tensors)


def has_own_dispatch(tensor: Tensor) -> bool:
    """Whether a tensor computes in a way of its own, as a DTensor does, and may have no memory."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


def is_differentiable(tensor: Tensor) -> bool:
    """Whether torch differentiates in tensors of this dtype."""
    return tensor.is_floating_point() or tensor.is_complex()


def materialize(tensor: Tensor) -> Tensor:
    """Detach a tensor from its graph, and resolve lazy conjugates and negatives."""
    detached = tensor.detach() if tensor.requires_grad else tensor
    return detached.resolve_conj().resolve_neg()


def unwrap(tensor: Tensor) -> Tensor:
    """The numbers that transforms of `torch.func` have wrapped, those of all examples of a vmap.

    The dimensions of the examples come first.
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        dim = functorch.maybe_get_bdim(tensor)  # -1 unless it is vmap that has wrapped it
        tensor = functorch.get_unwrapped(tensor)
        tensor = tensor.movedim(dim, 0) if dim > 0 else tensor
    return tensor.detach()


def copy_to_keep(tensor: Tensor) -> Tensor:
    """Copy a tensor with its graph; the copy can be used in training, also after inference mode."""
    if not torch.is_inference_mode_enabled():
        return tensor.clone()
    with torch.inference_mode(False), torch.no_grad():
        return tensor.clone()


def outlast_inference(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that can be used in training if `torch.inference_mode` made it."""
    return copy_to_keep(tensor) if tensor.is_inference() else tensor


def record_current_stream(*tensors: Tensor) -> None:
    """Keep the memory of these tensors until the current stream of their device has read them.

    Another stream may have made the tensors, and torch frees memory for the stream that made it.
    """
    for tensor in tensors:
        tensor.record_stream(torch.get_device_module(tensor.device).current_stream(tensor.device))


def synchronize_stream(device: torch.device) -> None:
    """Wait until a device has finished the current stream's work, which other streams will read."""
    if device.type != "cpu":
        gpu = torch.get_device_module(device)
        if hasattr(gpu, "current_stream"):
            gpu.current_stream(device).synchronize()


@cache
def silence_beta_warning() -> None:
    """Suppress the warning, which torch gives once a process, that CSR tensors are new.

    A caller who passes no CSR tensor could not act on the warning.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = torch.zeros(0, dtype=torch.int64, device="cpu")
        pointers, values = empty.new_zeros(1), empty.double()
        torch.sparse_csr_tensor(
            pointers, empty, values, (0, 0), device="cpu", check_invariants=False
        )
