"""What an energy is to `minimize`, and an energy some of whose variables are fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ._pattern import Pattern
from ._projection import Projection
from ._structure import Structure, structure_of
from ._tensors import chosen_indices
from .errors import ShapeError


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
    vertices = chosen_indices("fixed", fixed, shape[0], "vertices", "variables").sort()[0]
    dim = n // max(shape[0], 1)
    return (vertices.unsqueeze(-1) * dim + torch.arange(dim, device=vertices.device)).reshape(-1)


def with_diagonal(structure: Structure) -> Structure:
    """The structure, with entries added where the diagonal is not stored; its values are those, and zeros."""
    missing = torch.nonzero(structure.diagonal < 0).squeeze(-1)
    if missing.numel() == 0:
        return structure
    return structure_of(torch.cat((structure.rows, missing)), torch.cat((structure.cols, missing)), structure.shape)


class RestrictedEnergy:
    """An energy as a function of the variables that are not fixed: a vector x (free,). Made by `IndexedSum.restrict`.

    It has all that an energy has: `value`, `gradient`, `hessian_values`, `pattern`, `parameters`. The fixed values
    are those of X, and may require gradients.

    >>> import torch, sparse_solver as ss
    >>> spring = ss.IndexedSum(lambda x: (x[1] - x[0]) ** 2 / 2, torch.tensor([[0, 1], [1, 2]]))
    >>> free = spring.restrict(torch.tensor([0, 2]), torch.tensor([0.0, 0.0, 2.0]))
    >>> free.gradient(torch.tensor([0.0])), free.pattern, free.extend(torch.tensor([1.0]))
    (tensor([-2.]), Pattern(shape=(1, 1), nnz=1), tensor([0., 1., 2.]))
    """

    def __init__(self, energy: Any, fixed: Tensor | None, X: Tensor):
        numbers = fixed_numbers(fixed, X.shape)
        self._energy, self._X = energy, X
        self._part = energy.pattern._structure.without(numbers)
        self.pattern = Pattern._of(self._part.structure)

    def select(self, X: Tensor) -> Tensor:
        """(free,) the variables of X that are not fixed."""
        return X.reshape(-1).index_select(0, self._part.rows)

    def extend(self, x: Tensor) -> Tensor:
        """X with the variables x and the fixed values."""
        if not isinstance(x, Tensor) or x.shape != self._part.rows.shape:
            what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"x is {what}; expected ({self._part.rows.numel()},), the variables that are not fixed")
        return self._X.reshape(-1).index_copy(0, self._part.rows, x).reshape(self._X.shape)

    def __call__(self, x: Tensor) -> Any:
        """The energy; the same as `value`."""
        return self.value(x)

    def value(self, x: Tensor) -> Any:
        """The energy."""
        return self._energy.value(self.extend(x))

    def gradient(self, x: Tensor) -> Tensor:
        """(free,) its gradient."""
        return self.select(self._energy.gradient(self.extend(x)))

    def hessian_values(self, x: Tensor, project: bool | Projection = False) -> Tensor:
        """(nnz,) the values of its Hessian on the pattern."""
        values: Tensor = self._energy.hessian_values(self.extend(x), project=project)
        return values.index_select(0, self._part.entries)

    def hessian(self, x: Tensor, project: bool | Projection = False) -> Tensor:
        """The Hessian as a sparse CSR tensor."""
        return self.pattern.tensor(self.hessian_values(x, project), torch.sparse_csr)

    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that the energy depends on, besides x."""
        return (*parameters_of(self._energy)[0], self._X)

    def with_parameters(self, *tensors: Tensor) -> RestrictedEnergy:
        """The same energy with these in place of its `parameters()`."""
        *own, X = tensors
        energy = RestrictedEnergy.__new__(RestrictedEnergy)
        energy._energy, energy._X = parameters_of(self._energy)[1](*own), X
        energy._part, energy.pattern = self._part, self.pattern
        return energy
