"""A supernodal Cholesky factor, and what is computed from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blas import blas_table
from .elimination import factor
from .inversion import invert
from .primitives import FAILED
from .symbolic import Symbolic
from .threads import run_together

Array = NDArray[np.float64]


class SupernodalFactor:
    """A = Pᵀ L Lᵀ P of the values of an upper triangle, in the order of its arrangement."""

    def __init__(self, symbolic: Symbolic, values: Array, threads: int):
        self.symbolic, self._threads = symbolic, threads
        tree = symbolic.tree
        self._panels = np.empty(symbolic.panel_size)
        failures = np.zeros(len(tree.tasks), dtype=np.int64)
        updates = np.empty(symbolic.update_size)
        given = tree, self._panels, updates, values, blas_table(), failures
        sync = run_together(factor, given, threads)
        self._updates = updates
        bad = failures[failures > 0].min(initial=symbolic.n + 1) if sync[FAILED] == 0 else sync[FAILED]
        if bad <= symbolic.n:
            raise RuntimeError(int(symbolic.order[bad - 1]))

    @property
    def pivots(self) -> Array:
        return self._panels[self.symbolic.pivots_at]

    def invert(self) -> Array:
        s = self.symbolic
        result = np.empty(s.arrangement.nnz)
        shared = np.empty(s.shared_sizes[0]), np.empty(s.shared_sizes[1])
        given = s.tree, self._panels, self._updates, shared, s.task_sizes, result, blas_table()
        run_together(invert, given, self._threads)
        return result
