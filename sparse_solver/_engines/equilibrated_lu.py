"""LU with partial pivoting of the equilibrated matrix, in double precision, by SuperLU.

It is slow, and accurate where the pivots of other methods are too small: the last resort for all
kinds and dtypes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .._sparse.matrix import Matrix
from .._sparse.matvec import Products, ScipyIndices
from .._sparse.structure import Structure
from .._sparse.triangle import Arrangement
from .._sparse.values import CPU, powers_of_two, row_moduli, scaling_power, to_double
from .pivots import Pivots
from .protocol import Kind, is_hermitian
from .superlu import SuperluFactor, SuperluSymbolic
from .superlu_memory import Decomposition

ROBUST_ENGINE = "superlu"
# Rows and columns alternate; the second time, few sizes change by more than a factor of two.
_EQUILIBRATION_STEPS = 3
# The exponent of the largest power of two that is used.
_LARGEST_POWER = 1000


class EquilibratedSymbolic(SuperluSymbolic):
    """LU with partial pivoting, in double precision, of R A C with powers of two R and C.

    R and C make the largest entries of rows and columns nearly one, so that pivots are compared
    with entries of their own size. Matrices on other devices are copied to the CPU.
    """

    def __init__(self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None):
        super().__init__(structure.on(CPU), "general", dtype, triangle)
        self.is_hermitian = is_hermitian(kind, dtype)
        self._indices = ScipyIndices(self.arrangement, structure.shape)
        self.method = "LU with partial pivoting after equilibration, in double precision"

    def factor(self, matrix: Matrix) -> EquilibratedFactor:
        on_host = Matrix(matrix.structure.on(CPU), to_double(matrix.values).cpu())
        values = on_host.arrange(self.arrangement, self.is_hermitian)
        rows, cols = self.arrangement.rows, self.arrangement.col
        unit = scaling_power(values.abs().amax())  # else powers for subnormal rows would overflow
        scaled = values * unit
        scales = _equilibrate(self.arrangement, scaled, self._indices)
        decomposition = self.decompose(scaled * scales[0][rows] * scales[1][cols])
        return EquilibratedFactor(decomposition, self.arrangement, values, unit, scales)


class EquilibratedFactor(SuperluFactor):
    """The factor of R A C 2^unit, where R and C are powers of two."""

    def __init__(
        self,
        decomposition: Decomposition,
        arrangement: Arrangement,
        values: Tensor,
        unit: Tensor,
        scales: tuple[Tensor, Tensor],
    ):
        super().__init__(decomposition, arrangement, values, spd=False)
        self._unit = _exponents(unit)
        self._scales = _exponents(scales[0]), _exponents(scales[1])

    def pivots(self) -> Pivots:
        scaled, (of_rows, of_cols) = super().pivots(), self._scales
        exponents = of_rows.numpy()[scaled.rows] + of_cols.numpy()[scaled.cols] + int(self._unit)
        return replace(scaled, logarithms=scaled.logarithms - exponents * math.log(2))

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        before, after = reversed(self._scales) if transpose else self._scales
        on_host = rhs.cpu()
        # What is substituted is at most one, so that nothing overflows before the end.
        size = _exponents(row_moduli(on_host)).unsqueeze(-1) + before.max()
        x = self.decomposition.substitute(_scale(on_host, before - size), transpose)
        return _scale(x, after + self._unit + size).to(rhs.device)


def _exponents(scales: Tensor) -> Tensor:
    """The largest integers whose powers of two are not larger."""
    return torch.frexp(scales)[1] - 1


def _scale(vectors: Tensor, exponents: Tensor) -> Tensor:
    """Multiply by powers of two that may be no numbers themselves, although the results are."""
    half = (exponents // 2).clamp(-_LARGEST_POWER, _LARGEST_POWER)
    rest = (exponents - half).clamp(-_LARGEST_POWER, _LARGEST_POWER)
    return vectors * powers_of_two(half) * powers_of_two(rest)


def _equilibrate(
    arrangement: Arrangement, values: Tensor, indices: ScipyIndices
) -> tuple[Tensor, Tensor]:
    """Powers of two for rows and columns that bring their largest entries near one.

    All entries are brought near one first, since the largest ones tell little about unknowns of
    very different size. The rest is as LAPACK's `geequb` does it, but rows and columns in turn.
    """
    logarithms = Products(arrangement, values, lambda: indices, hermitian=False).find_logarithms()
    row_scales, col_scales = (
        powers_of_two(line.round().clamp(-_LARGEST_POWER, _LARGEST_POWER)) for line in logarithms
    )
    moduli, rows, cols = values.abs(), arrangement.rows, arrangement.col
    for _ in range(_EQUILIBRATION_STEPS):
        for scales, at in ((row_scales, rows), (col_scales, cols)):
            scaled = moduli * row_scales[rows] * col_scales[cols]
            largest = torch.zeros_like(scales).scatter_reduce_(0, at, scaled, "amax")
            scales *= scaling_power(largest)
    return row_scales, col_scales
