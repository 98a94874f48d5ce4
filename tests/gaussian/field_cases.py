"""Dense counterparts of Gaussian fields, and fields to compare with them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from gaussian_cases import grid, pattern_of
from torch import Tensor

import sparse_solver as ss

n = 30


def scattered(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def full(P: ss.Pattern, values: Tensor) -> Tensor:
    """(..., n, n), dense."""
    zeros = values.new_zeros(*values.shape[:-1], P.shape[0] * P.shape[1])
    return zeros.index_add(-1, P.rows * P.shape[1] + P.cols, values).unflatten(-1, P.shape)


def proper() -> tuple[ss.Pattern, Tensor]:
    """The precision of a field on a grid."""
    P, values = pattern_of(grid(5, 6))
    return P, values.double()


def intrinsic() -> tuple[ss.Pattern, Tensor]:
    """A precision that annihilates constant vectors."""
    P, values = proper()
    return P, without_sums(P, values)


def without_sums(P: ss.Pattern, values: Tensor) -> Tensor:
    """The values with another diagonal, by which the rows sum to zero."""
    sums = full(P, values).sum(1)
    return values - torch.where(P.rows == P.cols, sums[P.rows], 0)


def symmetric_part(P: ss.Pattern, values: Tensor) -> Tensor:
    """The mean of the entries and their opposites, without duplicates."""
    here, opposite = (torch.argsort(k) for k in (P.rows * n + P.cols, P.cols * n + P.rows))
    return (values + values.index_select(0, opposite[torch.argsort(here)])) / 2


class Dense(NamedTuple):
    """A normal distribution in the subspace of the x with C x = d."""

    mean: Tensor
    covariance: Tensor
    logdet: Tensor
    dimension: int

    def log_prob(self, x: Tensor, Q: Tensor) -> Tensor:
        shift = x - self.mean
        distance = ((shift @ Q) * shift).sum(-1)
        return (self.logdet - distance - self.dimension * math.log(2 * math.pi)) / 2


def dense_field(Q: Tensor, h: Tensor, C: Tensor, d: Tensor) -> Dense:
    """The distribution with the density exp(−½ xᵀ Q x + hᵀ x) where C x = d."""
    Z = torch.linalg.svd(C.detach())[2][len(C) :].mT
    inner = Z.mT @ Q @ Z
    covariance = Z @ torch.linalg.inv(inner) @ Z.mT
    start = torch.linalg.pinv(C) @ d
    mean = start + covariance @ (h - Q @ start)
    return Dense(mean, covariance, torch.logdet(inner), Z.shape[1])
