"""Conjugate gradients as an engine: real symmetric positive definite matrices, on any device.

Nothing is factored. `CgSymbolic.factor` proves that the matrix is not singular, and
`CgFactor.substitute` iterates. There are no tolerances to choose: a solution is as accurate as that
of a direct method, or there is none. The method is the right one where factors have much fill and
the matrix is well conditioned: random graphs, and large grids in three dimensions.

Source: M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems",
J. Res. Nat. Bur. Standards 49, 1952.
"""

from __future__ import annotations

import torch

from ..._sparse.matrix import Matrix
from ..._sparse.structure import Structure
from ..._sparse.triangle import arrangement_of
from ..._sparse.values import to_double
from ..protocol import Availability, Kind
from .attempt import METHOD, CgCandidate
from .factor import CgFactor, Prepared
from .products import SymmetricMatrix


class CgSymbolic:
    """Index arrays of the whole matrix, which products are fastest with."""

    method = METHOD
    is_iterative = True

    def __init__(self, structure: Structure, triangle: str | None):
        arrangement = self.arrangement = arrangement_of(structure, "full", triangle)
        self.blocks = structure.block[1]
        fits = max(arrangement.nnz, structure.shape[0]) <= torch.iinfo(torch.int32).max
        index = torch.int32 if fits else torch.int64
        crow, col = arrangement.crow.to(index), arrangement.col.to(index)
        self.indices = crow, col, arrangement.rows
        self.longest = int(crow.diff().amax())  # entries of a row
        self.at_diagonal = torch.nonzero(arrangement.rows == arrangement.col).squeeze(-1)

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return None

    def factor(self, matrix: Matrix) -> CgFactor:
        return CgFactor(self._prepare(matrix))

    def analyze_values(self, matrix: Matrix) -> None:
        return None

    def examine(self, matrix: Matrix) -> CgCandidate:
        return CgCandidate(self._prepare(matrix))

    def _prepare(self, matrix: Matrix) -> Prepared:
        values = matrix.arrange(self.arrangement, hermitian=False)
        where, sizes = (self.indices, self.at_diagonal), (self.blocks, self.longest)
        prepared = SymmetricMatrix(*where, to_double(values), *sizes)
        row_sums = prepared.row_sums() * prepared.inverse_diagonal
        return Prepared(self.arrangement, values, prepared, row_sums)


class Cg:
    name = "cg"
    device_types: tuple[str, ...] = ("cpu", "cuda")
    is_iterative = True

    def availability(self) -> Availability:
        return Availability(version=torch.__version__)

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return kind == "spd" and dtype in (torch.float32, torch.float64)

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> CgSymbolic:
        return CgSymbolic(structure, triangle)


ENGINE = Cg()
