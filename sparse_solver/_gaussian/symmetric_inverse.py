"""Log-determinants and inverses for values of any device, batch and structure."""

from __future__ import annotations

import torch
from torch import Tensor

from .._factor.options import Options, Triangle
from .._solve.autograd import refuse_nested_forward_mode, refuse_tracing
from .._solve.half_solve import Half, solve_half
from .._solve.inverse import register_inverse
from .._solve.shapes import check_flags, check_rhs, check_values, fold_rhs
from .._sparse.block_diagonal import count_matrices
from .._sparse.index_checks import check_square
from .._sparse.structure import Structure, find_diagonal_entries
from .._sparse.values import CPU, check_finite, to_double
from .._torch.dynamo import disable_dynamo
from ..errors import EngineUnsupportedError, OptionError
from .entries import complete, join_blocks
from .factors import InverseFactors, Matrices
from .functions import LogDeterminant, SelectedInverse
from .real_form import real_form_of, to_complex, to_real


class SymmetricInverse:
    """The inverses of positive definite matrices, whose factors are made at the first call.

    See `_solve.inverse.Inverse`.
    """

    def __init__(
        self, structure: Structure, values: Tensor, triangle: Triangle | None, max_solves: int
    ):
        check_square(structure.shape)
        check_values(values, structure.nnz)
        Options("spd", triangle).check(values.dtype)
        self.max_solves = check_max_solves(max_solves)
        self._values = values
        self._shape = (*values.shape[:-1], *(structure.batch_shape or structure.shape))
        host = structure.on(CPU)
        self._structure = complete(host) if triangle is None else host
        is_batch, is_complex = structure.batch_shape is not None, values.is_complex()
        real = self._structure
        if is_complex:
            real = real_form_of(self._structure, triangle)
        elif is_batch:
            real = self._structure.remember(join_blocks)
        blocks = count_matrices(structure) if is_batch else 1
        matrices = Matrices(real, triangle, self._structure, is_complex, blocks, self.max_solves)
        self._factors = InverseFactors(matrices)

    @disable_dynamo
    def logdet(self) -> Tensor:
        """(...) the logarithms of the determinants."""
        determinants: Tensor = LogDeterminant.apply(self._matrices(), self._factors)
        if self._values.is_complex():
            determinants = determinants / 2
        return determinants.reshape(self._shape[:-2]).to(self._values.device)

    @disable_dynamo
    def selected_inverse(self) -> Tensor:
        """(..., nnz) the entries of the inverses at the stored places."""
        inverses: Tensor = SelectedInverse.apply(self._matrices(), self._factors)
        if self._values.is_complex():
            inverses = to_complex(inverses)
        own = inverses[..., : self._values.shape[-1]]
        return own.reshape(self._values.shape).to(self._values.device)

    def diagonal(self) -> Tensor:
        """(..., n) the diagonals of the inverses, which are real."""
        inverses = self.selected_inverse()
        inverses = inverses.real if inverses.is_complex() else inverses
        at = self._structure.remember(find_diagonal_entries)
        if inverses.shape[-1] == 0:  # there are no rows
            return inverses.new_zeros(self._shape[:-1])
        diagonals = inverses.index_select(-1, at.to(inverses.device))
        return diagonals.reshape(self._shape[:-1])

    @disable_dynamo
    def solve_factor(self, b: Tensor, adjoint: bool = False) -> Tensor:
        """B b or Bᵀ b with B Bᵀ = A⁻¹, differentiable in the values and in b."""
        check_rhs("b", b, self._values)
        check_flags(False, adjoint)
        self._check_real("call Factorization.solve_factor, which is differentiable in b only")
        values, rhs, unfold = fold_rhs(self._structure, self._values, b)
        values = self._complete(values.to(CPU))
        x = solve_half(values, to_double(rhs.to(CPU)), make_half(self._factors), adjoint)
        return unfold(x.to(b.dtype).to(b.device))

    def apply_half(self, values: Tensor, rhs: Tensor, adjoint: bool) -> Tensor:
        """Apply B or Bᵀ, with B Bᵀ = A⁻¹, to the rows of `rhs`; all tensors are plain."""
        self._check_real("factorize with assume='spd' and another engine")
        x = self._factors.apply_half(self._complete(values.cpu()), rhs.cpu(), adjoint)
        return x.to(rhs.device, rhs.dtype)

    def _matrices(self) -> Tensor:
        """(nnz,) or (B, nnz), the values on the CPU of real matrices with symmetric structures."""
        refuse_tracing("use torch.compile")
        refuse_nested_forward_mode(self._values)
        values = self._values.to(CPU)
        if values.dim() > 2:
            values = values.reshape(values.shape[:-1].numel(), values.shape[-1])
        values = self._complete(values)
        return to_real(values) if values.is_complex() else values

    def _check_real(self, advice: str) -> None:
        """Raise if the matrices are complex, since the real form of a matrix has other halves."""
        if self._values.is_complex():
            raise EngineUnsupportedError(
                f"the supernodal factorisation of a matrix of dtype {self._values.dtype} cannot "
                f"apply a half of its inverse, since it is real: {advice}",
                engine=None,
            )

    def _complete(self, values: Tensor) -> Tensor:
        """The values with zeros for entries whose opposites are not stored."""
        if missing := self._structure.nnz - values.shape[-1]:
            values = torch.cat((values, values.new_zeros((*values.shape[:-1], missing))), -1)
        return values


def make_half(factors: InverseFactors) -> Half:
    """The half of the inverse that belongs to these factors."""

    def apply(values: Tensor, rhs: Tensor, adjoint: bool, strict: bool) -> Tensor:
        if strict:
            check_finite("b", rhs)
        return factors.apply_half(values, rhs, adjoint)

    return Half(apply, factors.differentiate_half, lambda: make_half(factors.batched()))


def check_max_solves(max_solves: int) -> int:
    """Raise OptionError unless this is a number of solves."""
    if isinstance(max_solves, bool) or not isinstance(max_solves, int) or max_solves < 0:
        raise OptionError(f"max_solves={max_solves!r}: expected an integer that is not negative")
    return max_solves


register_inverse(SymmetricInverse)
