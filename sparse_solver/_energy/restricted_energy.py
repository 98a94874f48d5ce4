"""An energy some of whose variables are fixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._solve.pattern import Pattern
from .._sparse.index_checks import describe_type
from .._sparse.submatrix import remove_rows
from ..errors import ShapeError
from .argument_checks import check_parameters
from .energy import fixed_numbers, parameters_of
from .psd_projection import Projection


class RestrictedEnergy:
    """An energy as a function of its free variables, a vector x (free,).

    Made by `IndexedSum.restrict`. It is an `Energy` itself.

    Parameters
    ----------
    energy : Energy
        The energy of all variables, whose `hessian_values` takes ``project=``.
    X : Tensor
        Holds the values of the fixed variables, which may require gradients. Its other entries do
        not matter.
    fixed : Tensor, optional
        As for `IndexedSum.restrict`.

    Attributes
    ----------
    pattern : Pattern
        (free, free), of the Hessian.

    Raises
    ------
    IndexRangeError, ShapeError
        If `fixed` is not a valid selection of the variables.

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> edges = torch.tensor([[0, 1], [1, 2]])
    >>> springs = ss.IndexedSum(lambda x: (x[1] - x[0]) ** 2 / 2, edges)
    >>> free = springs.restrict(torch.tensor([0.0, 0.0, 2.0]), fixed=torch.tensor([0, 2]))
    >>> free
    RestrictedEnergy(free=1, shape=(3,))
    >>> free.gradient(torch.tensor([0.0])), free.extend(torch.tensor([1.0]))
    (tensor([-2.]), tensor([0., 1., 2.]))
    """

    def __init__(self, energy: Any, X: Tensor, *, fixed: Tensor | None):
        self.__setstate__((energy, X, fixed_numbers(fixed, X.shape)))

    def __getstate__(self) -> tuple[Any, Tensor, Tensor]:
        return self._energy, self._X, self._submatrix.removed

    def __setstate__(self, state: tuple[Any, Tensor, Tensor]) -> None:
        self._energy, self._X, removed = state
        self._submatrix = remove_rows(self._energy.pattern._structure, removed)
        self.pattern = Pattern._of(self._submatrix.structure)

    def select(self, X: Tensor) -> Tensor:
        """Select the free variables.

        Parameters
        ----------
        X : Tensor
            All variables.

        Returns
        -------
        Tensor
            (free,) the entries of X that are not fixed.
        """
        return X.reshape(-1).index_select(0, self._submatrix.rows)

    def extend(self, x: Tensor) -> Tensor:
        """Put free variables and fixed values together; the inverse of `select`.

        Parameters
        ----------
        x : Tensor
            (free,) the free variables.

        Returns
        -------
        Tensor
            All variables.

        Raises
        ------
        ShapeError
            If `x` is not a vector of the free variables.
        """
        rows = self._submatrix.rows
        if not isinstance(x, Tensor) or x.shape != rows.shape:
            is_tensor = isinstance(x, Tensor)
            what = f"has shape {tuple(x.shape)}" if is_tensor else f"is {describe_type(x)}"
            raise ShapeError(f"x {what}; expected ({rows.numel()},), the free variables")
        return self._X.reshape(-1).index_copy(0, rows, x).reshape(self._X.shape)

    def __call__(self, x: Tensor) -> Any:
        """Evaluate the energy; the same as `value`."""
        return self.value(x)

    def value(self, x: Tensor) -> Any:
        """Evaluate the energy.

        Parameters
        ----------
        x : Tensor
            (free,) the free variables.

        Returns
        -------
        float or Tensor
            As `value` of the energy of all variables.
        """
        return self._energy.value(self.extend(x))

    def gradient(self, x: Tensor) -> Tensor:
        """Evaluate the gradient.

        Parameters
        ----------
        x : Tensor
            (free,) the free variables.

        Returns
        -------
        Tensor
            (free,) ∂E/∂x.
        """
        return self.select(self._energy.gradient(self.extend(x)))

    def hessian_values(self, x: Tensor, *, project: bool | Projection = False) -> Tensor:
        """Evaluate the Hessian.

        Parameters
        ----------
        x : Tensor
            (free,) the free variables.
        project : bool or {"zero", "absolute"}
            As for `IndexedSum.hessian_values`.

        Returns
        -------
        Tensor
            (nnz,) the values of ∂²E/∂x² on `pattern`.
        """
        values: Tensor = self._energy.hessian_values(self.extend(x), project=project)
        return values.index_select(0, self._submatrix.entries)

    def hessian(self, x: Tensor, *, project: bool | Projection = False) -> Tensor:
        """Evaluate the Hessian as a sparse tensor.

        Parameters
        ----------
        x : Tensor
            (free,) the free variables.
        project : bool or {"zero", "absolute"}
            As for `IndexedSum.hessian_values`.

        Returns
        -------
        Tensor
            (free, free) ∂²E/∂x², a sparse CSR tensor.
        """
        values = self.hessian_values(x, project=project)
        return self.pattern.tensor(values, layout=torch.sparse_csr)

    def parameters(self) -> tuple[Tensor, ...]:
        """List the tensors that the energy depends on, besides x.

        Returns
        -------
        tuple of Tensor
            The parameters of the energy of all variables, and X with the fixed values.
        """
        return (*parameters_of(self._energy)[0], self._X)

    def with_parameters(self, *tensors: Tensor) -> RestrictedEnergy:
        """Replace the tensors that the energy depends on.

        Parameters
        ----------
        *tensors : Tensor
            As many as `parameters` lists, of the same shapes.

        Returns
        -------
        RestrictedEnergy
            The same energy with these tensors.

        Raises
        ------
        ShapeError, LayoutError
            If they are not.
        """
        check_parameters(tensors, self.parameters())
        *own, X = tensors
        energy = RestrictedEnergy.__new__(RestrictedEnergy)
        energy._energy, energy._X = parameters_of(self._energy)[1](*own), X
        energy._submatrix, energy.pattern = self._submatrix, self.pattern
        return energy

    def __repr__(self) -> str:
        free, shape = self._submatrix.rows.numel(), tuple(self._X.shape)
        return f"RestrictedEnergy(free={free}, shape={shape})"
