"""An energy some of whose variables are fixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._solve.pattern import Pattern
from .._sparse.submatrix import remove_rows
from ..errors import ShapeError
from .energy import fixed_numbers, parameters_of
from .psd_projection import Projection


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
        self._submatrix = remove_rows(energy.pattern._structure, numbers)
        self.pattern = Pattern._of(self._submatrix.structure)

    def select(self, X: Tensor) -> Tensor:
        """(free,) the variables of X that are not fixed."""
        return X.reshape(-1).index_select(0, self._submatrix.rows)

    def extend(self, x: Tensor) -> Tensor:
        """X with the variables x and the fixed values."""
        if not isinstance(x, Tensor) or x.shape != self._submatrix.rows.shape:
            what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(
                f"x is {what}; expected ({self._submatrix.rows.numel()},), the variables that are not fixed"
            )
        return self._X.reshape(-1).index_copy(0, self._submatrix.rows, x).reshape(self._X.shape)

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
        return values.index_select(0, self._submatrix.entries)

    def hessian(self, x: Tensor, project: bool | Projection = False) -> Tensor:
        """The Hessian as a sparse CSR tensor."""
        return self.pattern.tensor(self.hessian_values(x, project), layout=torch.sparse_csr)

    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors that the energy depends on, besides x."""
        return (*parameters_of(self._energy)[0], self._X)

    def with_parameters(self, *tensors: Tensor) -> RestrictedEnergy:
        """The same energy with these in place of its `parameters()`."""
        *own, X = tensors
        energy = RestrictedEnergy.__new__(RestrictedEnergy)
        energy._energy, energy._X = parameters_of(self._energy)[1](*own), X
        energy._submatrix, energy.pattern = self._submatrix, self.pattern
        return energy
