"""The fast path for small general matrices: dense LU, judged in a few dense products.

The rules are those of `judge`: an accurate solution of the probe that does not grow so much that
half of the digits might be lost. They are written in NumPy here, whose operations with small arrays
take a third of the time of torch's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..._engines.protocol import DenseFactor, DenseSymbolic, Factor
from ..._sparse.dense import Array, assemble_dense
from ..._sparse.structure import Structure
from ..._sparse.values import PROBE_MEAN, is_finite, is_single, probe_vector, to_double
from ...errors import SingularMatrixError
from ..accuracy.checked_factor import InverseOperator, Record
from ..accuracy.judge import ACCURATE, growth_in_doubt
from .symmetry import ASYMMETRY_LIMIT

# Steps of refinement; a backward stable factor rarely needs one.
_MOST_STEPS = 2


# Factors a matrix of a structure in any way.
Fallback = Callable[[Structure, Tensor], InverseOperator]


class DensePath:
    """The path for general matrices, by dense LU.

    symbolic : the analysis
    find_symmetry : whether a matrix that may be symmetric is to take another way
    record : how the last factor came about
    fallback : for matrices and right-hand sides that need another factor
    """

    blocks = 1

    def __init__(
        self,
        structure: Structure,
        symbolic: DenseSymbolic,
        find_symmetry: bool,
        record: Record,
        fallback: Fallback,
    ):
        self.symbolic, self._fallback = symbolic, fallback
        self._n = structure.shape[0]
        self._places = (structure.cols * self._n + structure.rows).numpy()
        self._are_distinct = not structure.has_duplicates
        self._probe = probe_vector(self._n, torch.float64, PROBE_MEAN)[0].numpy()
        self._probe_size = float(np.abs(self._probe).max())
        reason = "not symmetric" if find_symmetry else record.kind_reason
        self._record = replace(record, kind_reason=reason, analysis_seconds=0.0)
        # Where the last matrix was not symmetric, and where it was not Hermitian.
        conjugations = (False, True) if symbolic.dtype.is_complex else (False,)
        self._asymmetries = dict.fromkeys(conjugations if find_symmetry else (), (0, 0))

    def factor(self, structure: Structure, values: Tensor) -> SoundDenseFactor | None:
        started, entries = time.perf_counter(), values.numpy()
        with np.errstate(all="ignore"):
            dense = assemble_dense(self._n, self._places, entries, self._are_distinct)
            moduli = np.abs(dense)
            rows = moduli.max(1)
            columns = (moduli / rows[:, None]).max(0)
            low, high = columns.min(), columns.max()
            # False where a row or a column is zero, or an entry is not a number.
            if not low > 0 or self._may_be_symmetric(dense, values.dtype):
                return None
            try:
                factor = self.symbolic.factor_dense(dense)
            except SingularMatrixError:
                return None
            # The caller may overwrite the values before another factor is needed.
            fallback = partial(self._fallback, structure, torch.from_numpy(entries.copy()))
            made = SoundDenseFactor(self._record, factor, values.dtype, moduli, fallback)
            found = made.solve(self._probe * rows, False)
            if found is None:
                return None
            growth = (found[1] / rows).max() / self._probe_size * high / low
            if not growth <= growth_in_doubt(values.dtype):
                return None
            made.seconds = time.perf_counter() - started
            return made

    def _may_be_symmetric(self, dense: Array, dtype: torch.dtype) -> bool:
        """Whether the matrix might be symmetric or Hermitian up to rounding errors."""
        factor = ASYMMETRY_LIMIT * torch.finfo(dtype).eps
        for conjugate, (i, j) in self._asymmetries.items():
            a, b = dense[i, j], dense[j, i]
            difference = abs(a - (b.conjugate() if conjugate else b))
            if difference > factor * (abs(a) + abs(b) + abs(dense[i, i]) + abs(dense[j, j])):
                continue
            differences = np.abs(dense - (dense.conj().T if conjugate else dense.T))
            worst = int(differences.argmax())
            self._asymmetries[conjugate] = i, j = divmod(worst, self._n)
            if not differences[i, j] > factor * np.abs(dense).max():
                return True
        return False


class SoundDenseFactor:
    """A dense factor of a matrix that is beyond doubt.

    seconds : the time of the factorisation
    """

    def __init__(
        self,
        like: Record,
        factor: DenseFactor,
        dtype: torch.dtype,
        moduli: Array,
        fallback: Callable[[], InverseOperator],
    ):
        self._like, self.seconds, self._fallback, self._dtype = like, 0.0, fallback, dtype
        self.factor: Factor | None = factor
        self._substitute, self._dense = factor.substitute_columns, factor.dense
        self._moduli, self._limit = moduli, ACCURATE * torch.finfo(dtype).eps
        self._checked: InverseOperator | None = None

    @property
    def record(self) -> Record:
        """How the factor came about."""
        return replace(self._like, factorization_seconds=self.seconds)

    def apply_inverse(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """Apply A⁻¹ or A⁻ᵀ to the rows of the contiguous `rhs` (k, n); see `CheckedFactor`."""
        if rhs.numel() == 0:
            return torch.empty_like(rhs)
        rows = to_double(rhs).numpy()
        with np.errstate(all="ignore"):
            found = self.solve(rows[0] if len(rows) == 1 else rows.T, transpose)
        if found is not None:
            x = torch.from_numpy(found[0].T.reshape(rows.shape)).to(self._dtype)
            if not is_single(self._dtype) or is_finite(x):
                return x
        # Another factor may be better, and will raise the right error if none is.
        checked = self._checked
        if checked is None:
            checked = self._checked = self._fallback()
        return checked.apply_inverse(rhs, transpose, strict)

    def solve(self, rhs: Array, transpose: bool) -> tuple[Array, Array] | None:
        """Accurate solutions (n,) or (n, k), with |A||x| + |b|; None if they are not accurate."""
        dense, moduli = self._dense, self._moduli
        if transpose:
            dense, moduli = dense.T, moduli.T
        x, size = self._substitute(rhs, transpose), np.abs(rhs)
        for _ in range(_MOST_STEPS):
            residual, bound = rhs - dense @ x, moduli @ np.abs(x) + size
            # False where x is not finite, since then a difference of infinities is not a number.
            if (self._limit * bound - np.abs(residual)).min() >= 0:
                return x, bound
            x = x + self._substitute(residual, transpose)
        return None
