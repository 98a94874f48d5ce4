"""QDLDL: LDLᵀ by simple loops after an AMD ordering; nothing is faster where there is little fill.

Real symmetric positive definite matrices; it works in float64, and float32 goes through that.
The binding's `Solver` holds one analysis and one factorisation, and `update` overwrites the latter. So that a
factor belongs to one owner, each has a `Solver` of its own, which goes back to a pool when its owner dies.
Source: B. Stellato et al., "OSQP: an operator splitting solver for quadratic programs", 2020, and the `qdldl` package.
"""

from __future__ import annotations

import importlib.metadata
import weakref
from collections import deque
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._layout import layout_of
from .._structure import Structure
from ._protocol import Availability, Kind, not_positive_definite

# What idle solvers of one pattern may hold in all; a time-stepping loop with a hundred live factors finds them again.
_IDLE_BYTES = 256 * 2**20


class QdldlSymbolic:
    def __init__(self, structure: Structure, stored: str | None):
        # The lower triangle by rows is, to the letter, the upper triangle by columns that QDLDL reads.
        self.layout = layout_of(structure, "lower", stored)
        self._n = structure.shape[0]
        self._idle: deque[Any] = deque()
        solver = self._new_solver()
        columns = np.diff(solver.factors()[0].indptr).astype(np.int64) + 1  # entries of each, with the diagonal
        self.nnz, self.flops = int(columns.sum()), int((columns**2).sum())
        # An integer and a float an entry of the factor; the permuted matrix has a map besides.
        self.bytes_each = 16 * (self.nnz + 2 * self.layout.nnz)
        self._idle.append(solver)

    def factor_nnz(self, canonical: Tensor) -> int | None:
        return self.nnz

    def matrix(self, values: np.ndarray[Any, Any]) -> Any:
        from scipy.sparse import csc_matrix

        crow, col = self.layout.crow.numpy(), self.layout.col.numpy()
        return csc_matrix((values, col, crow), shape=(self._n, self._n))

    def _new_solver(self) -> Any:
        import qdldl

        # The constructor factors what it is given: the identity cannot fail, and has the same pattern.
        identity = (self.layout.rows == self.layout.col).to(torch.float64).numpy()
        return qdldl.Solver(self.matrix(identity), upper=True)

    def factor(self, canonical: Tensor) -> QdldlFactor:
        values = self.layout.gather(canonical, hermitian=False)
        try:
            solver = self._idle.pop()
        except IndexError:
            solver = self._new_solver()
        return QdldlFactor(self, solver, values)

    def retry(self, canonical: Tensor) -> None:
        return None

    def give_back(self, solver: Any) -> None:
        if (len(self._idle) + 1) * self.bytes_each <= _IDLE_BYTES or not self._idle:
            self._idle.append(solver)


class QdldlFactor:
    perturbed_pivots: int | None = 0
    stable = True

    def __init__(self, symbolic: QdldlSymbolic, solver: Any, values: Tensor):
        self._solver, self.values, self.layout = solver, values, symbolic.layout
        self.nnz: int | None = symbolic.nnz
        self.flops: int | None = symbolic.flops
        self.memory_bytes: int | None = symbolic.bytes_each
        weakref.finalize(self, symbolic.give_back, solver).atexit = False
        matrix = symbolic.matrix(values.to(torch.float64).numpy())
        solver.update(matrix, upper=True)
        _, pivots, order = solver.factors()
        # `update` says nothing when it meets a zero pivot: it leaves that one in place and stops.
        if not (pivots > 0).all():
            raise not_positive_definite("qdldl", "LDLᵀ", int(order[np.argmin(pivots > 0)]))
        # A row of the lower triangle ends with its diagonal entry.
        diagonal = values[self.layout.crow[1:] - 1].to(torch.float64).numpy()
        self.smallest_pivot: float | None = float((pivots / diagonal[order]).min())

    def solve(self, rhs: Tensor, transpose: bool) -> Tensor:
        x = torch.empty_like(rhs)
        for source, target in zip(rhs, x, strict=True):
            target.copy_(torch.from_numpy(self._solver.solve(source.to(torch.float64).numpy())))
        return x


class Qdldl:
    name = "qdldl"

    @staticmethod
    @cache
    def _availability() -> Availability:
        try:
            import qdldl  # noqa: F401

            return Availability(version=importlib.metadata.version("qdldl"))
        except ImportError as error:
            return Availability(missing=f"{error}; pip install qdldl")

    def availability(self) -> Availability:
        return self._availability()

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return kind == "spd" and dtype in (torch.float32, torch.float64)

    def analyze(self, structure: Structure, kind: Kind, dtype: torch.dtype, stored: str | None) -> QdldlSymbolic:
        return QdldlSymbolic(structure, stored)


ENGINE = Qdldl()
