"""A factorisation of another matrix, as an approximate inverse for conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..._sparse.values import row_powers
from ...errors import ConvergenceError, SparseSolverError


class Preconditioner:
    """The factorisation of one matrix of the same size; see `protocol.ApproximateInverse`.

    apply_inverse, values : `Factors.apply_inverse`, and the values that were factored
    order : the number of rows
    find_definiteness : whether the factor is known to be that of a positive definite matrix
    """

    method = "conjugate gradients preconditioned by a factorisation"
    # The factor is the caller's, and is not of the matrix that is solved with.
    proof: str | None = None
    nnz: int | None = None
    flops: int | None = None
    memory_bytes: int | None = 0

    def __init__(
        self,
        apply_inverse: Callable[..., Tensor],
        values: Tensor,
        order: int,
        find_definiteness: Callable[[], bool],
    ):
        self._apply_inverse, self._values, self.order = apply_inverse, values, order
        self._find_definiteness = find_definiteness

    @property
    def is_definite(self) -> bool:
        """Whether it is known to be positive definite."""
        return self._find_definiteness()

    def apply(self, rhs: Tensor) -> Tensor:
        each = rhs.view(-1, self.order)  # blocks of equal matrices have the same one
        powers = row_powers(each)
        scaled = (each * powers).to(self._values.device, self._values.dtype)
        try:
            x = self._apply_inverse(self._values, scaled, transpose=False, strict=False)
        except SparseSolverError as error:  # which is about the other matrix
            message = f"the preconditioner could not be applied: {error}"
            raise ConvergenceError(message, iterations=0, residual=None) from error
        return (x.to(rhs.device, torch.float64) / powers).view_as(rhs)
