"""A supernodal Cholesky factor, and what is computed from it.

Every call has its own memory for updates, so that threads may use one factor at the same time.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..free_memory import check_memory
from ..protocol import is_doubtful, not_positive_definite
from .blas import blas_table
from .elimination import factor
from .inversion import invert
from .perturbation import gather_cotangents, spread_cotangents
from .primitives import FAILED
from .reverse_cholesky import reverse_cholesky
from .substitution import substitute
from .symbolic import Symbolic, analyze
from .threads import run_together

__all__ = ["SupernodalFactor", "analyze"]

Array = NDArray[np.float64]

# Right-hand sides that are solved with at once: enough for fast products, few enough to stay in the
# cache.
_COLUMNS = 32


class SupernodalFactor:
    """The factor L of P A Pᵀ = L Lᵀ, for a symmetric positive definite matrix.

    Entries are those of the upper triangle in the order of `symbolic.arrangement`.

    Raises NotPositiveDefiniteError with the row, in the caller's order.
    """

    def __init__(self, symbolic: Symbolic, entries: Array):
        check_memory("supernodal", symbolic.panel_size + symbolic.update_size, torch.float64)
        self.symbolic, tree = symbolic, symbolic.tree
        self._panels = np.empty(symbolic.panel_size)
        failures = np.zeros(len(tree.tasks), dtype=np.int64)
        memory = np.empty(symbolic.update_size)
        given = tree, self._panels, memory, entries, blas_table(), failures
        sync = run_together(factor, given, symbolic.may_share)
        failed = int(sync[FAILED]) or int(min(failures[failures > 0], default=0))
        if failed:
            row = int(symbolic.order[failed - 1])
            raise not_positive_definite("supernodal", "Cholesky", row)
        pivots = self._panels[symbolic.pivots_at]
        self._pivots = np.empty_like(pivots)  # the roots of the pivots, in the order of the rows
        self._pivots[symbolic.order] = pivots
        diagonal = entries[symbolic.arrangement.at_diagonal.numpy()]
        with np.errstate(over="ignore", under="ignore"):
            smallest = float(min((self._pivots / np.sqrt(diagonal)).min(initial=1.0), 1.0)) ** 2
        # Relative to its diagonal entry, beside which it may be a rounding error.
        self.smallest_pivot = smallest
        self.is_doubtful = is_doubtful(smallest, torch.float64)

    def log_pivots(self) -> Array:
        """(n,) the logarithms of the pivots, in the order of the rows; their sum is log det A."""
        logarithms: Array = 2 * np.log(self._pivots)
        return logarithms

    def invert(self) -> Array:
        """The entries of A⁻¹ at the places of the entries."""
        symbolic = self.symbolic
        result, memory = np.empty(symbolic.arrangement.nnz), np.empty(symbolic.update_size)
        shared = tuple(np.empty(size) for size in symbolic.top_sizes)
        given = symbolic.tree, self._panels, memory, shared, symbolic.task_sizes, result
        run_together(invert, (*given, blas_table()), symbolic.may_share)
        return result

    def perturb_inverse(self, entries: Array) -> Array:
        """The entries of -A⁻¹ V A⁻¹ for the symmetric matrix V that has these entries."""
        symbolic, tree, blas = self.symbolic, self.symbolic.tree, blas_table()
        cotangents, result = np.empty_like(self._panels), np.empty(symbolic.arrangement.nnz)
        updates, sums = np.empty(symbolic.update_size), np.empty(symbolic.update_size)
        sizes = tuple(map(max, symbolic.top_sizes, symbolic.task_sizes))
        given: tuple[Any, ...] = tree, self._panels, cotangents, sums, entries, sizes[0], blas
        run_together(gather_cotangents, given, symbolic.may_share)
        given = tree, self._panels, cotangents, updates, sums, sizes, result, blas
        run_together(spread_cotangents, given, symbolic.may_share)
        return result

    def apply(self, rhs: Array, forward: bool, backward: bool) -> Array:
        """Apply Bᵀ (forward), B (backward) or, with both, B Bᵀ = A⁻¹ to the rows (k, n) of `rhs`.

        B = Pᵀ L⁻ᵀ P.
        """
        count, n = rhs.shape
        order, panels = self.symbolic.order, self._panels
        parts = np.append(np.arange(0, count, _COLUMNS), count)
        x = np.empty(count * n)
        for low, high in pairwise(parts):
            x[n * low : n * high] = rhs[low:high, order].T.ravel()
        given = self.symbolic.tree, panels, x, parts, forward, backward, blas_table()
        run_together(substitute, given, count > _COLUMNS)
        solution = np.empty_like(rhs)
        for low, high in pairwise(parts):
            solution[low:high, order] = x[n * low : n * high].reshape(n, high - low).T
        return solution

    def differentiate_half(self, white: Array, half: Array, other: Array) -> Array:
        """The derivatives of Σ gᵀ Bᵀ h, over pairs of rows g and h, in all entries of A.

        An entry and its opposite are independent, and have the same derivative.

        white, half, other : the rows g, B g and Bᵀ h
        """
        symbolic, k = self.symbolic, len(white)
        result = np.zeros(symbolic.arrangement.nnz)
        if k == 0:
            return result
        vectors = tuple(rows[:, symbolic.order].T.ravel() for rows in (white, half, other))
        size = max(symbolic.top_sizes[0], symbolic.task_sizes[0])
        updates = np.empty(symbolic.update_size)
        given = symbolic.tree, self._panels, vectors, k, updates, size, result, blas_table()
        run_together(reverse_cholesky, given, symbolic.may_share)
        return result
