"""What an energy is to `minimize`, and an energy some of whose variables are fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .._solve.pattern import Pattern
from .._sparse.index_checks import select_indices
from .._sparse.structure import Structure, structure_of


class Energy(Protocol):
    """A function of X, with two derivatives. Methods take X in the shape that it was given to `minimize`.

    For a minimiser that is differentiable, `gradient` and `hessian_values` are differentiable in X and in the tensors that
    ``parameters()`` lists, and ``with_parameters(*tensors)`` is the same energy with others in their place.
    """

    @property
    def pattern(self) -> Pattern:
        """The places of the Hessian, both triangles, for variables in the order of X.reshape(-1)."""

    def value(self, X: Tensor, /) -> Any:
        """The energy, a number or a scalar tensor; NaN or infinite where it is not defined."""

    def gradient(self, X: Tensor, /) -> Tensor:
        """Its gradient, of the shape of X."""

    def hessian_values(self, X: Tensor, /) -> Tensor:
        """(nnz,) the values of its Hessian on the pattern. May take ``project=``, as that of an `IndexedSum`."""


def parameters_of(energy: Any) -> tuple[tuple[Tensor, ...], Callable[..., Any]]:
    """The tensors that an energy says it depends on, and the function that makes the energy with others."""
    if hasattr(energy, "parameters") and hasattr(energy, "with_parameters"):
        return tuple(energy.parameters()), energy.with_parameters
    return (), lambda: energy


def fixed_numbers(fixed: Tensor | None, shape: torch.Size) -> Tensor:
    """(p,) sorted: which entries of X.reshape(-1) are fixed.

    `fixed` : (p,) int64 or int32 vertices (rows of X), or a bool mask, of vertices or of X's shape; None: none
    """
    n = shape.numel()
    if fixed is None:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    if isinstance(fixed, Tensor) and fixed.dtype == torch.bool and fixed.shape == shape:
        return torch.nonzero(fixed.reshape(-1)).squeeze(-1)
    vertices = select_indices("fixed", fixed, shape[0], "vertices", "variables").sort()[0]
    dim = n // max(shape[0], 1)
    return (vertices.unsqueeze(-1) * dim + torch.arange(dim, device=vertices.device)).reshape(-1)


def with_diagonal(structure: Structure) -> Structure:
    """The structure, with entries added where the diagonal is not stored; its values are those, and zeros."""
    missing = torch.nonzero(structure.diagonal < 0).squeeze(-1)
    if missing.numel() == 0:
        return structure
    return structure_of(
        torch.cat((structure.rows, missing)), torch.cat((structure.cols, missing)), structure.shape
    )
