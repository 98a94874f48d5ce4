"""One distributed matrix, factored and checked.

The core's ladder of kinds and its checks are used, with numbers that all ranks have reduced
together, so that all of them take the same decisions.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from .._engines.analysis import ASKED_FOR
from .._engines.protocol import Kind, is_doubtful, not_positive_definite
from .._factor.accuracy import CheckedFactor, EmptyFactor, Record
from .._factor.options import Assume, Options
from .._factor.symmetry import (
    Asymmetry,
    KindLadder,
    empty_line_error,
    excess_over_rounding,
    find_kinds,
    not_positive_diagonal,
    not_symmetric,
)
from .._sparse.matvec import Products, ScipyIndices
from .._sparse.values import row_moduli, scaling_power
from ..errors import EngineError, NonFiniteError, SingularMatrixError
from ._halo_exchange import Rows
from ._mkl_cluster import ENGINE, Handle, Handles

# The diagonal of a positive definite matrix is scaled if it varies by more than this factor, since
# the solver perturbs and judges pivots by the largest entry.
_DIAGONAL_RANGE = 16


class DistributedProducts(Products):
    """A x and |A||x|, and the same with Aᵀ, for the share (k, n) of this rank."""

    def __init__(self, rows: Rows, canonical: Tensor):
        arrangement = rows.arrange("general")
        indices = ScipyIndices(arrangement, rows.structure.shape)
        super().__init__(arrangement, canonical, lambda: indices, hermitian=False)
        self._rows, self._canonical = rows, canonical

    def apply(self, x: Tensor, transpose: bool) -> Tensor:
        return self._exchange(super().apply, x, transpose)

    def apply_modulus(self, x: Tensor, transpose: bool) -> Tensor:
        return self._exchange(super().apply_modulus, x, transpose)

    def _exchange(
        self, local: Callable[[Tensor, bool], Tensor], x: Tensor, transpose: bool
    ) -> Tensor:
        if transpose:
            return self._rows.fold(local(x, True))
        return local(self._rows.extend(x), False)

    def column_moduli(self) -> Tensor:
        """(n,) the largest modulus in each column of this block."""
        moduli = self._canonical.abs()
        largest = moduli.new_zeros(self._rows.read.numel())
        largest.scatter_reduce_(0, self._rows.structure.col, moduli, "amax")
        return self._rows.fold_max(largest)


class DistributedFactor(CheckedFactor):
    """The checks on a factor, with numbers of all ranks."""

    _advice = "try assume='general'"

    def __init__(
        self, record: Record, factor: Factor, rows: Rows, canonical: Tensor, largest: float
    ):
        products = DistributedProducts(rows, canonical)
        super().__init__(record, rows.structure, factor, products, largest, 1)
        self.factor: Factor = factor
        self._group, self._start = rows.group, rows.block.start

    def _is_empty(self, rhs: Tensor) -> bool:
        return rhs.shape[0] == 0  # a rank without rows takes part, too

    def _largest_of(self, vectors: Tensor) -> float:
        return float(self._sizes(vectors).amax())

    def _sizes(self, vectors: Tensor) -> Tensor:
        return self._group.reduce_max(_row_moduli(vectors))

    def _ratios(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        none = torch.zeros(len(numerator), dtype=torch.float64)
        return self._group.reduce_max(super()._ratios(numerator, denominator) if self._n else none)

    def _scales(self, k: int) -> Tensor:
        return torch.full((k,), self._largest, dtype=torch.float64)

    def _structural_rank(self) -> None:
        return None  # no rank has the whole pattern


def _row_moduli(vectors: Tensor) -> Tensor:
    """(k,) the largest modulus in each row; zero where there are no columns."""
    if vectors.shape[1]:
        return row_moduli(vectors)
    return torch.zeros(vectors.shape[0], dtype=vectors.real.dtype)


# What a matrix is factored as, and whether the analysis uses values, to match rows with columns.
Rung = tuple[Kind, bool]


def choose_rungs(kind: Kind, dtype: torch.dtype) -> tuple[Rung, ...]:
    """The factorisations to try for a kind, from the fastest to the most robust.

    With LDLᵀ, complex symmetric matrices gain little by matching; `_engines.mkl.pardiso` explains
    why Hermitian ones are not matched.
    """
    last: Rung = "general", True
    if kind == "spd":
        return ((kind, False),)
    if kind == "symmetric" and not dtype.is_complex:
        return (kind, False), (kind, True), last
    return (kind, False), last


class Factor:
    """A factor that is distributed over all ranks; see `_engines.protocol.Factor`.

    number : the number of the pattern
    largest : the largest modulus of an entry
    lowest : the smallest diagonal entry of a positive definite matrix
    fresh : whether to make a new analysis, of these values
    """

    flops: int | None = None
    negative_eigenvalues: int | None = None

    def __init__(
        self,
        rows: Rows,
        number: int,
        rung: Rung,
        canonical: Tensor,
        largest: float,
        lowest: float,
        fresh: bool,
    ):
        kind, dtype = rung[0], canonical.dtype
        self.values, self.arrangement = canonical, rows.arrange(kind)
        self._scales: Tensor | None = None
        self._is_padding = rows.numbering.is_padding
        values = self.arrangement.gather(canonical, False)
        if kind == "spd" and not lowest > largest / _DIAGONAL_RANGE:
            values, largest = self._scale(rows, canonical, values), 1.0
        if self._is_padding:
            values = canonical.new_tensor([largest])
        self._handle = handle = self._take_handle(rows, (number, dtype, rung), values, fresh)
        started = time.perf_counter()
        sound = handle.factor(values)
        self.factorization_seconds = time.perf_counter() - started
        if not sound and kind == "spd":
            raise not_positive_definite(ENGINE, "LDLᵀ", None)
        if not sound:
            message = "a pivot is zero: the matrix is singular"
            raise SingularMatrixError(message, engine=ENGINE, row=None)
        self.nnz: int | None = handle.nnz
        self.memory_bytes: int | None = handle.memory_bytes
        self.perturbed_pivots: int | None = handle.perturbed_pivots
        self.stable = kind == "spd"
        self.doubtful = not self.stable or is_doubtful(handle.smallest_pivot / largest, dtype)

    def _scale(self, rows: Rows, canonical: Tensor, values: Tensor) -> Tensor:
        """S A S with a diagonal near one, by powers of two."""
        self._scales = scaling_power(rows.diagonal_of(canonical).real.sqrt())
        everywhere, at = rows.extend(self._scales.unsqueeze(0))[0], self.arrangement
        return values * self._scales[at.rows] * everywhere[at.col]

    def _take_handle(
        self, rows: Rows, key: tuple[int, torch.dtype, Rung], values: Tensor, fresh: bool
    ) -> Handle:
        """An idle handle with the analysis, unless a `fresh` one is wanted, or a new one."""
        started, handles = time.perf_counter(), Handles.of(rows.group)
        handle = None if fresh else handles.take(rows.group, key)
        self.analysis_seconds, self.is_fresh = 0.0, handle is None
        if handle is None:
            numbering, at = rows.numbering, self.arrangement
            indices = at.crow, numbering.number(rows.read[at.col])
            if self._is_padding:
                indices = torch.tensor([0, 1]), torch.tensor([numbering.block.start])
            kind, match = key[2]
            handle = Handle(rows.group, numbering, kind, *indices, values, match)
            self.analysis_seconds = time.perf_counter() - started
        number = handles.register(key, handle)
        weakref.finalize(self, handles.note_dead, number).atexit = False
        return handle

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        """Apply A⁻¹ or A⁻ᵀ to the rows of the contiguous (k, n) `rhs`, in a new tensor."""
        if self._is_padding:
            padding = rhs.new_zeros(rhs.shape[0], 1)
            return self._handle.substitute(padding, transpose)[:, :0]
        if self._scales is None:
            return self._handle.substitute(rhs.contiguous(), transpose)
        return self._handle.substitute(rhs * self._scales, transpose).mul_(self._scales)


def factor_distributed(
    rows: Rows, number: int, values: Tensor, assume: Assume
) -> DistributedFactor | EmptyFactor:
    """Factor the matrix of which this rank has the contiguous values (nnz,).

    `number` is that of the pattern. Raises an error on all ranks if there is no factorisation.
    """
    canonical = rows.structure.canonical(values)  # aliases the values if they are in order
    if canonical.data_ptr() == values.data_ptr():
        canonical = canonical.clone()
    largest = float(rows.group.reduce_max(_row_moduli(canonical.unsqueeze(0)))[0])
    if not largest < math.inf:
        message = "values are too large: the sum of some is infinite"
        raise NonFiniteError(message, argument="values", index=None)
    matrix = _Matrix(rows, number, canonical, largest)
    ladder = matrix.choose_kinds(assume)
    record = Record(ladder.kinds[0], ladder.reason, ENGINE, "distributed")
    if rows.shape[0] == 0:
        return EmptyFactor(record)
    for line in rows.group.comm.allgather(rows.empty_line):
        if line is not None:
            raise empty_line_error(*line)
    if largest == 0:
        message = "the matrix is singular: all its values are zero"
        raise SingularMatrixError(message, engine=None, row=None)
    for kind in ladder:
        with ladder.attempt(kind):
            record.kind, record.kind_reason = kind, ladder.reason
            return matrix.factor_as(record)
    raise AssertionError("the last attempt returns or raises")


class _Matrix:
    """The values of one distributed matrix, and what they show."""

    def __init__(self, rows: Rows, number: int, canonical: Tensor, largest: float):
        self._rows, self._number = rows, number
        self._canonical, self._largest = canonical, largest
        self._lowest = -math.inf  # the smallest diagonal entry, unless assume="general"

    def choose_kinds(self, assume: Assume) -> KindLadder:
        """The kinds to try; raise if the values are not what `assume` says."""
        if assume == "general":
            return KindLadder(("general",), ASKED_FOR)
        is_complex = self._canonical.is_complex()
        self._lowest, row = self._find_lowest()
        if assume == "auto":
            return find_kinds(is_complex, self._find_asymmetry, lambda: self._lowest > 0)
        conjugate = is_complex and assume != "symmetric"
        place = self._find_asymmetry(conjugate)
        if place is not None:
            raise not_symmetric(place, conjugate, assume)
        kind = Options(assume).kind(self._canonical.dtype)
        if kind == "spd" and self._lowest <= 0:
            raise not_positive_diagonal(row, self._lowest)
        return KindLadder((kind,), ASKED_FOR)

    def _find_lowest(self) -> tuple[float, int]:
        """The smallest diagonal entry on all ranks and its row; infinity if there are no rows."""
        diagonal, lowest = self._rows.diagonal_of(self._canonical).real, (math.inf, -1)
        if diagonal.numel():
            at = int(diagonal.argmin())
            lowest = float(diagonal[at]), self._rows.block.start + at
        found: tuple[float, int] = min(self._rows.group.comm.allgather(lowest))
        return found

    def _find_asymmetry(self, conjugate: bool) -> Asymmetry | None:
        """The worst violation of A = Aᵀ (or Aᴴ) on the first rank that has one."""
        rows, canonical, comm = self._rows, self._canonical, self._rows.group.comm
        opposite = rows.gather_opposite(canonical)
        if conjugate:
            opposite = opposite.conj().resolve_conj()
        if all(comm.allgather(torch.equal(canonical, opposite))):  # the common case
            return None
        root = rows.diagonal_of(canonical).abs().sqrt()
        other = rows.extend(root.unsqueeze(0))[0]
        roots = root[rows.structure.canonical_rows] * other[rows.structure.col]
        excess, difference = excess_over_rounding(canonical, opposite, roots)
        found = None
        if excess.numel() and float(excess.max()) > 0:
            worst = int(excess.argmax())
            place = int(rows.rows[worst]), int(rows.cols[worst])
            found = Asymmetry(*place, float(difference[worst]))
        return next((one for one in comm.allgather(found) if one is not None), None)

    def factor_as(self, record: Record) -> DistributedFactor:
        """Factor by the first rung that is accurate, starting from the last one that was needed."""
        rows, known = self._rows, (record.kind, self._canonical.dtype)
        rungs, first = choose_rungs(*known), rows.first_rungs.get(known, 0)
        checked, accurate = self._try(rungs[first], record, fresh=False)
        failure: EngineError | None = None
        for at in range(max(first, 1), len(rungs)):
            # If pivots were perturbed, the second rung may be more accurate still.
            if accurate and not (at == 1 and checked.factor.perturbed_pivots):
                break
            if at == first and checked.factor.is_fresh:
                continue
            try:
                better, is_better = self._try(rungs[at], record, fresh=True)
            except EngineError as error:  # the matrix may turn out to be singular below
                failure = error
                continue
            if is_better >= accurate:
                checked, accurate, rows.first_rungs[known] = better, is_better, at
        try:
            if checked.factor.doubtful:
                checked.refuse_singular()
            if failure is not None and not accurate:
                raise failure
            return checked
        finally:
            failure = None  # its traceback holds this frame, hence the factor

    def _try(self, rung: Rung, record: Record, fresh: bool) -> tuple[DistributedFactor, bool]:
        """A factor, and whether it is accurate."""
        given = self._rows, self._number, rung, self._canonical, self._largest, self._lowest
        factor = Factor(*given, fresh)
        record.analysis_seconds += factor.analysis_seconds
        record.factorization_seconds += factor.factorization_seconds
        checked = DistributedFactor(record, factor, self._rows, self._canonical, self._largest)
        return checked, factor.stable or checked.is_accurate()
