"""Tokens: tensors that keep factors alive as long as an autograd graph needs them.

A factor lives as long as a `Factorization` or a node of a graph may still solve with it. The node
holds it through a token, a tiny tensor whose memory owns the `Factors` object and that the node
saves like any other tensor: the token is freed with the node's buffers, after a backward pass that
does not retain the graph, however long the caller keeps the loss.
"""

from __future__ import annotations

import itertools
import weakref

import numpy as np
import torch
from torch import Tensor

from .factors import Factors
from .problem import Problem


class _Owner(np.ndarray):  # type: ignore[type-arg] # NumPy's classes of arrays take no arguments at run time
    """An array with a place for the object that its memory keeps alive."""

    factors: Factors


_numbers = itertools.count(1)
_alive: weakref.WeakValueDictionary[int, Factors] = weakref.WeakValueDictionary()


def token_of(factors: Factors) -> Tensor:
    """A tensor that keeps `factors` alive as long as its memory lives."""
    number = next(_numbers)
    owner = np.array([number], dtype=np.int64).view(_Owner)
    owner.factors = factors
    _alive[number] = factors
    return torch.from_numpy(owner)


def factors_of(token: Tensor, problem: Problem) -> Factors:
    """The factors that the token keeps alive, or new ones if the token was replaced by a copy.

    Hooks on saved tensors replace it; then the matrix is factored again from the saved values.
    Numbers are never used twice, so that a copy cannot find the factors of another matrix.
    """
    factors = _alive.get(int(token))
    return Factors(problem) if factors is None else factors


def empty_token() -> Tensor:
    """A token that keeps nothing alive."""
    return torch.zeros(1, dtype=torch.int64, device="cpu")


def count_alive() -> int:
    """How many factors are kept alive by tokens."""
    return len(_alive)
