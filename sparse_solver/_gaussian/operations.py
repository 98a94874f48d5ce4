"""What `Pattern` and `Factorization` offer, for values of any device, batch and structure."""

from __future__ import annotations

import torch
from torch import Tensor

from .._factor.options import Options, Triangle
from .._solve.operations import register_inverse
from .._solve.shapes import check_values
from .._sparse.index_checks import check_square
from .._sparse.structure import Structure
from .._sparse.values import CPU
from .._torch.dynamo import disable_dynamo
from .._torch.modes import is_traced
from ..errors import EngineUnsupportedError, TransformError
from .entries import complete, entries_of
from .factors import InverseFactors
from .functions import LogDeterminant, SelectedInverse


class SymmetricInverse:
    """The inverses of positive definite matrices, whose factors are made at the first call.

    See `_solve.operations.Inverse`.
    """

    def __init__(self, structure: Structure, values: Tensor, triangle: Triangle | None):
        check_square(structure.shape)
        check_values(values, structure.nnz)
        Options("spd", triangle).check(values.dtype)
        if values.is_complex():
            raise EngineUnsupportedError(
                f"values have dtype {values.dtype}, but log-determinants and selected inverses are "
                f"computed for float32 and float64 only",
                engine=None,
            )
        self._shape, self._values = values.shape, values
        host = structure.on(CPU)
        self._structure = complete(host) if triangle is None else host
        self._factors = InverseFactors(self._structure, triangle)

    @disable_dynamo
    def logdet(self) -> Tensor:
        """(...) the logarithms of the determinants."""
        determinants: Tensor = LogDeterminant.apply(self._matrices(), self._factors)
        return determinants.reshape(self._shape[:-1]).to(self._values.device)

    @disable_dynamo
    def selected_inverse(self) -> Tensor:
        """(..., nnz) the entries of the inverses at the stored places."""
        inverses: Tensor = SelectedInverse.apply(self._matrices(), self._factors)
        own = inverses[..., : self._shape[-1]]
        return own.reshape(self._shape).to(self._values.device)

    def diagonal(self) -> Tensor:
        """(..., n) the diagonals of the inverses."""
        inverses = self.selected_inverse()
        at = entries_of(self._structure, self._factors.triangle).diagonal
        if inverses.shape[-1] == 0:  # there are no rows
            return inverses.new_zeros((*inverses.shape[:-1], len(at)))
        return inverses.index_select(-1, at.to(inverses.device))

    def _matrices(self) -> Tensor:
        """The values on the CPU, (nnz,) or (B, nnz), with zeros where opposites are not stored."""
        if is_traced():
            raise TransformError(
                "torch.jit.trace and make_fx would record the result as a constant; use "
                "torch.compile"
            )
        values, missing = self._values.to(CPU), self._structure.nnz - self._shape[-1]
        if values.dim() > 2:
            values = values.reshape(self._shape[:-1].numel(), self._shape[-1])
        if missing:
            values = torch.cat((values, values.new_zeros((*values.shape[:-1], missing))), -1)
        return values


register_inverse(SymmetricInverse)
