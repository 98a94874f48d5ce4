"""Arrays of numbers: the dtypes that are solved with, moduli, finiteness, and probe vectors."""

from __future__ import annotations

import cmath
import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .._torch.modes import outside_transforms, synchronize_stream
from ..errors import NonFiniteError

CPU = torch.device("cpu")

# What the package solves with; an engine may take fewer.
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)

# The mean of probe vectors for factors: not zero, since vectors that singular matrices annihilate
# are often constant.
PROBE_MEAN = 0.25

# From so many numbers on, the time that the operating system takes to provide memory counts.
_LARGE = 2**19


def largest_modulus(numbers: Tensor) -> float:
    """The largest modulus of at least one number; NaN if one of them is NaN."""
    if numbers.is_complex():
        return float(torch.linalg.vector_norm(numbers, math.inf))
    low, high = torch.aminmax(numbers)  # many times faster than a norm
    if low.device.type != "cpu":  # synchronise with a GPU once
        return float(torch.maximum(-low, high))
    return max(-low.item(), high.item())


def row_moduli(vectors: Tensor) -> Tensor:
    """(k,) the largest modulus in each row of (k, n) numbers; NaN where a row has one."""
    if vectors.is_complex():
        largest: Tensor = torch.linalg.vector_norm(vectors, math.inf, dim=-1)
        return largest
    return torch.maximum(-vectors.amin(-1), vectors.amax(-1))


def is_finite(numbers: Tensor) -> bool:
    """Whether no number is NaN or infinite."""
    # A sum with such a number is not finite. Where it overflowed, a second pass tells.
    return cmath.isfinite(numbers.sum().item()) or largest_modulus(numbers) < math.inf


def raise_non_finite(argument: str, tensor: Tensor) -> None:
    """Raise NonFiniteError for the first entry that is NaN or infinite, if there is one."""
    bad = torch.nonzero(~torch.isfinite(tensor))
    if bad.numel():
        place = tuple(bad[0].tolist())
        # A right-hand side may have been folded out of a batch; the caller knows the row only.
        message = f"{argument}[{place[-1]}] is {tensor[place].item()}"
        raise NonFiniteError(message, argument=argument, index=place[-1])


def check_finite(argument: str, tensor: Tensor) -> None:
    """Raise NonFiniteError if an entry is NaN or infinite; one pass if none is."""
    if tensor.numel() and not is_finite(tensor):
        raise_non_finite(argument, tensor)


def new_numbers(like: Tensor, count: int) -> Tensor:
    """(count,) numbers that are not set, of the dtype and on the device of `like`."""
    if count < _LARGE or like.device != CPU:
        return like.new_empty(count)
    # NumPy asks the operating system for huge pages, which it provides several times faster.
    memory = np.empty(count * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(memory).view(like.dtype)


def select_numbers(numbers: Tensor, index: Tensor) -> Tensor:
    """``numbers[index]`` for one dimension, in a new tensor; not differentiable."""
    if index.numel() < _LARGE or numbers.device != CPU:
        return numbers.index_select(0, index)
    return torch.take(numbers, index, out=new_numbers(numbers, index.numel()))


def permute_columns(rows: Tensor, order: Tensor) -> Tensor:
    """``rows[:, order]`` for (k, n) numbers and a line (1, m), in a new tensor; not differentiable.

    `index_select` takes several times longer.
    """
    if rows.shape[0] == 1:
        if order.numel() < _LARGE or rows.device != CPU:
            return rows.gather(1, order)
        return torch.take(rows, order, out=new_numbers(rows, order.numel()).view(1, -1))
    return rows.gather(1, order.expand(len(rows), -1))


def is_single(dtype: torch.dtype) -> bool:
    """Whether numbers of this dtype are in single precision."""
    return dtype in (torch.float32, torch.complex64)


def double_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of double precision for numbers of this one."""
    return torch.complex128 if dtype.is_complex else torch.float64


def single_of(dtype: torch.dtype) -> torch.dtype:
    """The dtype of single precision for numbers of this one."""
    return torch.complex64 if dtype.is_complex else torch.float32


def to_double(values: Tensor) -> Tensor:
    """The same numbers in double precision."""
    return values.to(double_of(values.dtype))


def scaling_power(moduli: Tensor) -> Tensor:
    """The powers of two just below the reciprocals of `moduli`; one where a modulus is zero."""
    largest = 126 if moduli.dtype == torch.float32 else 1022
    exponents = torch.frexp(moduli)[1].clamp(-largest, largest)
    return torch.where(moduli > 0, powers_of_two(-exponents, moduli.dtype), 1.0)


def row_powers(rows: Tensor) -> Tensor:
    """(k, 1) powers of two that bring the largest modulus of each row of numbers near one."""
    return scaling_power(row_moduli(rows)).unsqueeze(-1)


def powers_of_two(exponents: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """2 to these integers, exactly; they must be the exponents of normal numbers of the dtype.

    Composed of their bits, since functions that compute powers are inexact on some devices.
    """
    single = dtype == torch.float32
    integers, mantissa, bias = (torch.int32, 23, 127) if single else (torch.int64, 52, 1023)
    return ((exponents.to(integers) + bias) << mantissa).view(dtype)


@lru_cache(maxsize=8)
def probe_vector(
    n: int, dtype: torch.dtype, mean: float, device: torch.device = CPU, start: int = 0
) -> Tensor:
    """(1, n) scattered numbers in [mean − 1, mean + 1], numbers `start` on of a fixed sequence.

    They are not random: `torch.vmap` forbids torch's generators where this may be called.
    """
    with outside_transforms():
        i = torch.arange(start + 1, start + n + 1, dtype=torch.float64)
        scattered = 2 * torch.frac(i * i * 0.6180339887498949) - (1 - mean)
        numbers = scattered.unsqueeze(0).to(device, dtype)
        synchronize_stream(device)  # other streams will read them
        return numbers
