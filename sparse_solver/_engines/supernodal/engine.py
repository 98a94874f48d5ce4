"""The supernodal Cholesky factorisation as an engine: real positive definite matrices on the CPU.

It computes in float64, for float32 too. Numba is imported, and the kernels are compiled, when a
pattern is first analysed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..._sparse.both_triangles import BothTriangles
from ..._sparse.matrix import Matrix
from ..._sparse.structure import Structure
from ..._sparse.triangle import Arrangement
from ..._sparse.values import is_finite, to_double
from ...errors import NonFiniteError
from ..protocol import METHODS, Availability, Kind, is_doubtful
from .library import INSTALL, is_compiled, load


class SupernodalSymbolic:
    """The analysis of a pattern, `symbolic`."""

    method = METHODS["spd"]

    def __init__(self, structure: Structure, triangle: str | None):
        self._library = load()
        self.symbolic = self._library.analyze(structure, triangle)
        self.nnz: int = self.symbolic.factor_nnz

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return self.nnz

    def factor(self, matrix: Matrix) -> EngineFactor:
        return self._factor(matrix.arrange(self.symbolic.arrangement, hermitian=False))

    def _factor(self, values: Tensor) -> EngineFactor:
        factor = self._library.SupernodalFactor(self.symbolic, to_double(values).numpy())
        return EngineFactor(factor, values)

    def reorder(self, triangles: BothTriangles) -> BothTriangles:
        return triangles

    def factor_upper(self, upper: Tensor, diagonal: Tensor) -> EngineFactor:
        if not is_finite(upper):
            raise NonFiniteError("values are not finite", argument="values", index=None)
        return self._factor(upper)

    def analyze_values(self, matrix: Matrix) -> None:
        return None


class EngineFactor:
    """A factor by double precision, for right-hand sides of the dtype of the values."""

    perturbed_pivots: int | None = 0
    negative_eigenvalues: int | None = 0
    has_halves = True

    def __init__(self, factor: Any, values: Tensor):
        self._factor, self.values = factor, values
        self.sound = not is_doubtful(factor.smallest_pivot, values.dtype)

    @property
    def arrangement(self) -> Arrangement:
        arrangement: Arrangement = self._factor.symbolic.arrangement
        return arrangement

    @property
    def nnz(self) -> int | None:
        nnz: int = self._factor.symbolic.factor_nnz
        return nnz

    @property
    def flops(self) -> int | None:
        return int(self._factor.symbolic.flops)

    @property
    def memory_bytes(self) -> int | None:
        symbolic = self._factor.symbolic
        return 8 * int(symbolic.panel_size + symbolic.n)

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        x = self._factor.apply(to_double(rhs).numpy(), forward=True, backward=True)
        return torch.from_numpy(x).to(rhs.dtype)

    def substitute_half(self, rhs: Tensor, adjoint: bool) -> Tensor:
        x = self._factor.apply(to_double(rhs).numpy(), forward=adjoint, backward=not adjoint)
        return torch.from_numpy(x).to(rhs.dtype)


class Supernodal:
    name = "supernodal"
    device_types: tuple[str, ...] = ("cpu",)

    @property
    def is_ready(self) -> bool:
        """Whether the kernels were compiled in this process already."""
        return is_compiled()

    def availability(self) -> Availability:
        return _availability()

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return kind == "spd" and dtype in (torch.float32, torch.float64)

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> SupernodalSymbolic:
        return SupernodalSymbolic(structure, triangle)


@cache
def _availability() -> Availability:
    """Whether Numba and SciPy are there; Numba, which takes a second to be imported, is not."""
    missing = [name for name in ("numba", "scipy") if importlib.util.find_spec(name) is None]
    if missing:
        return Availability(missing=f"{' and '.join(missing)} cannot be imported; {INSTALL}")
    return Availability(version=f"Numba {importlib.metadata.version('numba')}")


ENGINE = Supernodal()
