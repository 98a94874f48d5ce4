"""One distributed matrix, factored and checked.

The core's ladder of kinds and its checks are used, with numbers that all ranks have reduced
together, so that all of them take the same decisions.
"""

from __future__ import annotations

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
from .._sparse.structure import row_pointers
from .._sparse.triangle import Arrangement
from .._sparse.values import probe_vector, row_moduli, scaling_power
from ..errors import EngineError, NonFiniteError, SingularMatrixError
from ._halo_exchange import Rows
from ._mkl_cluster import ENGINE, Handle, Handles

# The diagonal of a positive definite matrix is scaled if it varies by more than this factor, since
# the solver perturbs and judges pivots by the largest entry.
_DIAGONAL_RANGE = 16
_PROBE_MEAN = 0.25


class DistributedProducts(Products):
    """A x and |A||x|, and the same with Aᵀ, for the share (k, n) of this rank."""

    def __init__(self, rows: Rows, canonical: Tensor):
        arrangement = _arrangement(rows, "general")
        indices = ScipyIndices(arrangement, rows.structure.shape)
        super().__init__(arrangement, canonical, indices, hermitian=False)
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
        largest = largest.scatter_reduce(0, self._rows.structure.col, moduli, "amax")
        return self._rows.most(largest)


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
        return self._group.most(_row_moduli(vectors))

    def _ratios(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        none = torch.zeros(len(numerator), dtype=torch.float64)
        return self._group.most(super()._ratios(numerator, denominator) if self._n else none)

    def _scales(self, k: int) -> Tensor:
        return torch.full((k,), self._largest, dtype=torch.float64)

    def _probe(self) -> Tensor:
        return probe_vector(self._n, self._dtype, _PROBE_MEAN, start=self._start)

    def _structural_rank(self) -> None:
        return None  # no rank has the whole pattern


def _row_moduli(vectors: Tensor) -> Tensor:
    """(k,) the largest modulus in each row; zero where there are no columns."""
    if vectors.shape[1]:
        return row_moduli(vectors)
    return torch.zeros(vectors.shape[0], dtype=vectors.real.dtype)


# What a matrix is factored as, and whether the analysis uses values, to match rows with columns.
Rung = tuple[Kind, bool]


def rungs_of(kind: Kind, dtype: torch.dtype) -> tuple[Rung, ...]:
    """The factorisations to try for a kind, from the fastest to the most robust.

    With LDLᵀ, complex symmetric matrices gain little by matching; the PARDISO engine says why
    Hermitian ones do without.
    """
    last: Rung = "general", True
    if kind == "spd":
        return ((kind, False),)
    if kind == "symmetric" and not dtype.is_complex:
        return (kind, False), (kind, True), last
    return (kind, False), last


class Factor:
    """A factor whose parts lie on all ranks.

    number : that of the pattern
    largest : the largest modulus of an entry
    lowest : the smallest diagonal entry, if the matrix is positive definite
    fresh : whether there has to be a new analysis, of these values
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
        kind, match = rung
        self.values, self.arrangement = canonical, _arrangement(rows, kind)
        self._scales: Tensor | None = None
        self._is_padding = rows.numbering.is_padding
        values = self.arrangement.gather(canonical, False)
        if kind == "spd" and not lowest > largest / _DIAGONAL_RANGE:
            values, largest = self._scale(rows, canonical, values), 1.0
        if self._is_padding:
            values = canonical.new_tensor([largest])
        handle = self._take_handle(rows, number, rung, values, fresh)
        self._handle = handle
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
        smallest = handle.smallest_pivot / largest
        self.doubtful = not self.stable or is_doubtful(smallest, canonical.dtype)

    def _scale(self, rows: Rows, canonical: Tensor, values: Tensor) -> Tensor:
        """S A S with a diagonal near one, by powers of two."""
        self._scales = scaling_power(rows.diagonal_of(canonical).real.sqrt())
        everywhere = rows.extend(self._scales.unsqueeze(0))[0]
        arrangement = self.arrangement
        return values * self._scales[arrangement.rows] * everywhere[arrangement.col]

    def _take_handle(
        self, rows: Rows, number: int, rung: Rung, values: Tensor, fresh: bool
    ) -> Handle:
        """An idle handle with the analysis, or a new one."""
        handles, numbering = Handles.of(rows.group), rows.numbering
        kind, match = rung
        started, key = time.perf_counter(), (number, values.dtype, rung)
        handle = None if fresh else handles.take(rows.group, key)
        self.analysis_seconds, self.is_fresh = 0.0, handle is None
        if handle is None:
            crow, cols = self.arrangement.crow, numbering.columns(rows.read[self.arrangement.col])
            if self._is_padding:
                crow, cols = torch.tensor([0, 1]), torch.tensor([numbering.block.start])
            handle = Handle(rows.group, numbering, kind, crow, cols, values, match)
            self.analysis_seconds = time.perf_counter() - started
        weakref.finalize(self, handles.bury, handles.use(key, handle)).atexit = False
        return handle

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        rhs = rhs.contiguous() if self._scales is None else rhs * self._scales
        if self._is_padding:
            return self._handle.substitute(rhs.new_zeros(rhs.shape[0], 1), transpose)[:, :0]
        x = self._handle.substitute(rhs, transpose)
        return x if self._scales is None else x.mul_(self._scales)


def _arrangement(rows: Rows, method: Kind) -> Arrangement:
    """The entries that the solver wants, in the columns that this rank reads.

    All entries, or the upper triangle with every diagonal entry.
    """
    structure = rows.structure
    if method == "general":
        return Arrangement("full", structure.canonical_rows, structure.crow, structure.col)
    if rows.upper is None:
        rows.upper = _arrange_upper(rows)
    return rows.upper


def _arrange_upper(rows: Rows) -> Arrangement:
    structure = rows.structure
    kept = torch.nonzero(rows.rows <= rows.cols).squeeze(-1)
    missing = torch.nonzero(rows.diagonal < 0).squeeze(-1)
    at = torch.cat((structure.canonical_rows[kept], missing))
    # The columns of this rank's rows are read columns, in one block.
    col = torch.cat((structure.col[kept], missing + rows.before))
    source = torch.cat((kept, torch.full_like(missing, -1)))
    order = torch.sort(at * (rows.read.numel() + 1) + col)[1]
    at, has_gaps = at[order], bool(missing.numel())
    pointers = row_pointers(at, rows.n)
    return Arrangement("upper", at, pointers, col[order], source[order], None, has_gaps)


def factor_distributed(
    rows: Rows, number: int, values: Tensor, assume: Assume
) -> DistributedFactor | EmptyFactor:
    """Factor the matrix of which this rank has the contiguous values (nnz,).

    `number` is that of the pattern. Raises, on all ranks, where there is no factorisation.
    """
    canonical = rows.structure.canonical(values)  # a copy, unless they are in order
    if canonical.data_ptr() == values.data_ptr():
        canonical = canonical.clone()
    largest = float(rows.group.most(_row_moduli(canonical.unsqueeze(0)))[0])
    if not largest < float("inf"):
        message = "values are too large: the sum of some is infinite"
        raise NonFiniteError(message, argument="values", index=None)
    factoring = _Factoring(rows, number, canonical, largest)
    ladder = factoring.choose_kinds(assume)
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
            return factoring.factor_as(record)
    raise AssertionError("the last attempt returns or raises")


class _Factoring:
    """One matrix, on its way to a factor."""

    def __init__(self, rows: Rows, number: int, canonical: Tensor, largest: float):
        self._rows, self._number = rows, number
        self._canonical, self._largest = canonical, largest
        self._lowest = -float("inf")  # of the diagonal, where it matters

    def choose_kinds(self, assume: Assume) -> KindLadder:
        """The kinds to try."""
        if assume == "general":
            return KindLadder(("general",), ASKED_FOR)
        rows, is_complex = self._rows, self._canonical.is_complex()
        diagonal = rows.diagonal_of(self._canonical)
        lowest = _find_lowest(diagonal.real, rows.block.start)
        self._lowest, row = min(rows.group.comm.allgather(lowest))

        def find_asymmetry(conjugate: bool) -> Asymmetry | None:
            return self._find_asymmetry(diagonal, conjugate)

        if assume == "auto":
            return find_kinds(is_complex, find_asymmetry, lambda: self._lowest > 0)
        conjugate = is_complex and assume != "symmetric"
        place = find_asymmetry(conjugate)
        if place is not None:
            raise not_symmetric(place, conjugate, assume)
        kind = Options(assume).kind(self._canonical.dtype)
        if kind == "spd" and self._lowest <= 0:
            raise not_positive_diagonal(row, self._lowest)
        return KindLadder((kind,), ASKED_FOR)

    def _find_asymmetry(self, diagonal: Tensor, conjugate: bool) -> Asymmetry | None:
        """The worst violation of A = Aᵀ (or Aᴴ) on the first rank that has one."""
        rows, canonical = self._rows, self._canonical
        opposite = rows.opposite(canonical)
        if conjugate:
            opposite = opposite.conj().resolve_conj()
        if all(rows.group.comm.allgather(torch.equal(canonical, opposite))):  # the common case
            return None
        root = diagonal.abs().sqrt()
        other = rows.extend(root.unsqueeze(0))[0]
        roots = root[rows.structure.canonical_rows] * other[rows.structure.col]
        beyond, difference = excess_over_rounding(canonical, opposite, roots)
        found = None
        if beyond.numel() and float(beyond.max()) > 0:
            worst = int(beyond.argmax())
            place = int(rows.rows[worst]), int(rows.cols[worst])
            found = Asymmetry(*place, float(difference[worst]))
        return next((one for one in rows.group.comm.allgather(found) if one is not None), None)

    def factor_as(self, record: Record) -> DistributedFactor:
        """Factor by the first rung that is good enough, from the one that was needed before on."""
        rows, known = self._rows, (record.kind, self._canonical.dtype)
        rungs = rungs_of(*known)
        first = rows.needed.get(known, 0)
        checked, accurate = self._try(rungs[first], record, fresh=False)
        failure: EngineError | None = None
        for at in range(max(first, 1), len(rungs)):
            # Accurate is good enough; but where pivots were perturbed, the second rung is better.
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
                checked, accurate, rows.needed[known] = better, is_better, at
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


def _find_lowest(diagonal: Tensor, start: int) -> tuple[float, int]:
    """The smallest entry and its row; infinity where there are none."""
    if not diagonal.numel():
        return float("inf"), -1
    at = int(diagonal.argmin())
    return float(diagonal[at]), start + at
