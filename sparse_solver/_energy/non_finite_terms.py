"""Which term of an energy has a value or a derivative that is not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .indexed_sum import IndexedSum
from .restricted_energy import RestrictedEnergy
from .terms.element_derivatives import compute_gradients, compute_hessians, compute_values

_DERIVATIVES = {"value": compute_values, "gradient": compute_gradients, "Hessian": compute_hessians}

_ADVICE = (
    "; where a summand is not differentiable, as a norm is not at zero, write it differently, for "
    "example with a small number added under the root"
)


def describe_non_finite_term(energy: Any, X: Tensor) -> str | None:
    """The first term whose value, gradient or Hessian at X is not finite, in words, if any."""
    if isinstance(energy, RestrictedEnergy):
        return describe_non_finite_term(energy._energy, energy.extend(X))
    if not isinstance(energy, IndexedSum):
        return None
    with torch.no_grad():
        for name, derivative in _DERIVATIVES.items():
            for group, chunk, each in energy._evaluate(derivative, X):
                each = each.reshape(len(each), -1)
                bad = torch.nonzero(~torch.isfinite(each))
                if bad.numel():
                    (at, entry), terms = bad[0].tolist(), energy._terms[group]
                    number = chunk.start + at
                    vertices = ", ".join(map(str, terms.indices[number].tolist()))
                    summand = f" of summand {group}" if len(energy._terms) > 1 else ""
                    where = f"term {number}{summand}, at the vertices {vertices}"
                    advice = "" if name == "value" else _ADVICE
                    return f"the {name} of {where}, is {each[at, entry].item()}{advice}"
    return None
