"""A place outside of whatever mode or transform of torch the caller is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def plainly() -> Iterator[None]:
    """Tensors that are made in here are ordinary ones on the CPU, and may be remembered for calls to come.

    Outside of it they would be wrapped by the transforms of `torch.func` that are active, belong to
    `torch.inference_mode`, or lie on the default device.
    """
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    with torch.inference_mode(False), torch.device("cpu"), temporarily_clear_interpreter_stack():
        yield
