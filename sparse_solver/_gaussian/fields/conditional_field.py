"""What is known about a Gaussian field after observations."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..._solve.shapes import check_rhs
from ..._sparse.index_checks import select_indices
from ..._sparse.structure import Structure
from ..._sparse.submatrix import remove_rows
from ..._sparse.values import check_finite
from ..._torch.modes import is_transformed
from ...errors import ShapeError
from .covariance import Covariance, multiply, sum_squares
from .linear_constraints import LinearConstraints
from .observations import Observations

if TYPE_CHECKING:
    from typing_extensions import Self

LOG_2_PI = math.log(2 * math.pi)


def broadcast_batches(*shapes: torch.Size) -> torch.Size:
    """The batch shape of tensors with these batch dimensions."""
    try:
        batch: torch.Size = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        listed = ", ".join(str(tuple(shape)) for shape in shapes)
        raise ShapeError(f"the batch dimensions {listed} do not broadcast") from None
    return batch


class ConditionalField(Distribution):
    """A field that may be conditioned."""

    values: Tensor
    _structure: Structure
    _given: LinearConstraints | None
    _covariance: Covariance

    @abstractmethod
    def _find_information(self) -> Tensor:
        """(..., n) the precision times the mean, where there are no constraints."""

    @abstractmethod
    def _with(
        self,
        structure: Structure,
        values: Tensor,
        information: Tensor,
        given: LinearConstraints | None,
    ) -> Self:
        """A field with another precision, and the same validation."""

    def condition(self, H: Tensor, y: Tensor, noise_precision: Tensor | float) -> Self:
        """The field, given observations y = H x + noise.

        Parameters
        ----------
        H : Tensor
            (k, n), a sparse tensor; its rows should have few entries, since those of a row are all
            connected in the posterior precision.
        y : Tensor
            (k,) or (..., k).
        noise_precision : Tensor or float
            A number, (k,) or (..., k): the inverse variances of the independent noise.

        Returns
        -------
        GaussianField
            The posterior, with the precision Q + Hᵀ R H on a pattern that is made once, and the
            information Q loc + Hᵀ R y.

        Raises
        ------
        SparseSolverError
            If arguments do not fit the field.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))
        >>> field = ss.GaussianField(P, torch.ones(2))
        >>> posterior = field.condition(torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]), 3.0)
        >>> posterior.mean, posterior.variance
        (tensor([1.5000, 0.0000]), tensor([0.2500, 1.0000]))
        """
        observations = self._observe(H, y, noise_precision)
        return self._condition(observations)

    def log_evidence(self, H: Tensor, y: Tensor, noise_precision: Tensor | float) -> Tensor:
        """The logarithm of the density of observations y = H x + noise.

        Maximised over the parameters of a model, it gives their maximum marginal likelihood. Costs
        the log-determinants of the precision and of the posterior one.

        Parameters
        ----------
        H, y, noise_precision
            As for `condition`.

        Returns
        -------
        Tensor
            (...), the batch dimensions of the field and of the observations.

        Raises
        ------
        SparseSolverError
            As for `condition`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> P = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))
        >>> field = ss.GaussianField(P, torch.ones(2))
        >>> field.log_evidence(torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]), 1.0)
        tensor(-2.2655)
        """
        observations = self._observe(H, y, noise_precision)
        posterior = self._condition(observations)
        mean, weights = posterior.mean, observations.precision
        shift, misfit = mean - self.mean, observations.y - observations.apply(mean)
        distance = sum_squares(self._structure, self.values, shift.unsqueeze(-2))
        distance = distance + (weights * misfit.square()).sum(-1)
        logdet = weights.log().sum(-1) + self._covariance.logdet_precision()
        logdet = logdet - posterior._covariance.logdet_precision()
        return (logdet - distance - observations.count * LOG_2_PI) / 2

    def _observe(self, H: Tensor, y: Tensor, noise_precision: Tensor | float) -> Observations:
        found = Observations(H, y, noise_precision, self.values, self.event_shape[0])
        broadcast_batches(self.batch_shape, y.shape[:-1], found.precision.shape[:-1])
        return found

    def _condition(self, observations: Observations) -> Self:
        structure, values = observations.add_to(self._structure, self.values)
        information = self._find_information() + observations.find_information()
        return self._with(structure, values, information, self._given)

    def condition_on(self, index: Tensor, y: Tensor) -> Self:
        """The other entries of the field, given that those at `index` are y.

        Parameters
        ----------
        index : Tensor
            (k,) int64 or int32 indices, or an (n,) bool mask.
        y : Tensor
            (k,) or (..., k), in the order of `index` (of a mask: in increasing order).

        Returns
        -------
        GaussianField
            The field of the n − k other entries, in increasing order.

        Raises
        ------
        SparseSolverError
            If arguments do not fit the field.
        InfeasibleConstraintsError
            If y contradicts the constraints of the field. Constraints that y satisfies already are
            left out.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> i = torch.arange(3)  # a chain
        >>> P = ss.Pattern(torch.cat([i, i[1:], i[:-1]]), torch.cat([i, i[:-1], i[1:]]), (3, 3))
        >>> field = ss.GaussianField(P, torch.tensor([2.0, 2, 2, -1, -1, -1, -1]))
        >>> field.condition_on(torch.tensor([1]), torch.tensor([4.0])).mean
        tensor([2., 2.])
        """
        n = self.event_shape[0]
        check_rhs("y", y, self.values)
        chosen = select_indices("index", index, n, "entries", "the field").to(y.device)
        if y.dim() == 0 or y.shape[-1] != chosen.numel():
            raise ShapeError(f"y has shape {tuple(y.shape)}; expected (..., {chosen.numel()})")
        broadcast_batches(self.batch_shape, y.shape[:-1])
        if not is_transformed(y):
            check_finite("y", y.detach())
        rest = remove_rows(self._structure, chosen.sort()[0])
        known = y.new_zeros((*y.shape[:-1], n)).index_copy(-1, chosen, y)
        information = self._find_information() - multiply(self._structure, self.values, known)
        given = None if self._given is None else self._given.restrict(rest.rows, known)
        values = self.values.index_select(-1, rest.entries)
        return self._with(rest.structure, values, information.index_select(-1, rest.rows), given)
