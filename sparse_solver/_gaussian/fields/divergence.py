"""The Kullback-Leibler divergence of Gaussian fields, for `torch.distributions.kl_divergence`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import register_kl

from ...errors import OptionError, ShapeError
from .covariance import sum_squares
from .gaussian_field import GaussianField


@register_kl(GaussianField, GaussianField)
def _find_kl(p: GaussianField, q: GaussianField) -> Tensor:
    """½ (tr(Q_q Σ_p) + (μ_p − μ_q)ᵀ Q_q (μ_p − μ_q) − dim + log det Q_p − log det Q_q)."""
    if p.event_shape != q.event_shape:
        raise ShapeError(f"the fields have {p.event_shape[0]} and {q.event_shape[0]} entries")
    _check_same_support(p, q)
    shift = p.mean - q.mean
    trace = p._covariance.pair(q._structure, q.values)
    trace = trace + sum_squares(q._structure, q.values, shift.unsqueeze(-2))
    logdet = p._covariance.logdet_precision() - q._covariance.logdet_precision()
    result: Tensor = (trace - p._covariance.dimension + logdet) / 2
    return result.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))


def _check_same_support(p: GaussianField, q: GaussianField) -> None:
    first, second = p._given, q._given
    if (first is None) != (second is None):
        raise OptionError("only one of the fields has constraints: the divergence is infinite")
    if first is not None and second is not None:
        same = first.C.shape == second.C.shape and torch.equal(first.C, second.C)
        if not (same and bool((first.d == second.d).all())):
            raise OptionError("the fields have different constraints; expected equal C and d")
