"""The interface of an energy, and which of its variables are fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from .._solve.pattern import Pattern
from .._sparse.index_checks import select_indices
from .._sparse.structure import Structure, structure_of


class Energy(Protocol):
    """The interface of a function of X with two derivatives, which `minimize` requires.

    All methods take X in the shape that was passed to `minimize`.

    Notes
    -----
    For a minimiser that is differentiable, `gradient` and `hessian_values` are differentiable in X
    and in the tensors that a method ``parameters()`` lists, and ``with_parameters(*tensors)``
    returns the same energy with other tensors in their place.

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> class Quartic:  # Σ (x_i² − 1)² / 4
    ...     pattern = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))
    ...     def value(self, x):
    ...         return ((x**2 - 1) ** 2).sum() / 4
    ...     def gradient(self, x):
    ...         return x**3 - x
    ...     def hessian_values(self, x):
    ...         return 3 * x**2 - 1
    >>> x, report = ss.minimize(Quartic(), torch.tensor([2.0, -3.0]))
    >>> x
    tensor([ 1., -1.])
    """

    @property
    def pattern(self) -> Pattern:
        """The places of the Hessian, both triangles, in the order of X.reshape(-1)."""

    def value(self, X: Tensor, /) -> Any:
        """Evaluate the energy.

        Parameters
        ----------
        X : Tensor
            The variables.

        Returns
        -------
        float or Tensor
            A number or a scalar tensor; NaN or infinity where the energy is not defined.
        """

    def gradient(self, X: Tensor, /) -> Tensor:
        """Evaluate the gradient.

        Parameters
        ----------
        X : Tensor
            The variables.

        Returns
        -------
        Tensor
            ∂E/∂X, of the shape of X.
        """

    def hessian_values(self, X: Tensor, /) -> Tensor:
        """Evaluate the Hessian. May take ``project=``, as `IndexedSum.hessian_values` does.

        Parameters
        ----------
        X : Tensor
            The variables.

        Returns
        -------
        Tensor
            (nnz,) the values of ∂²E/∂X² on `pattern`.
        """


def parameters_of(energy: Any) -> tuple[tuple[Tensor, ...], Callable[..., Any]]:
    """The tensors that an energy depends on, and the function that makes the energy with others."""
    if hasattr(energy, "parameters") and hasattr(energy, "with_parameters"):
        return tuple(energy.parameters()), energy.with_parameters
    return (), lambda: energy


def fixed_numbers(fixed: Tensor | None, shape: torch.Size) -> Tensor:
    """(p,) sorted: which entries of X.reshape(-1) are fixed, X being of this shape.

    `fixed` is (p,) int64 or int32 vertices (rows of X), or a bool mask of vertices or of X's shape.
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
    """The structure with the missing entries of the diagonal after its own."""
    missing = torch.nonzero(structure.diagonal < 0).squeeze(-1)
    if missing.numel() == 0:
        return structure
    rows, cols = (torch.cat((index, missing)) for index in (structure.rows, structure.cols))
    return structure_of(rows, cols, structure.shape)
