"""One distributed matrix, factored and checked.

The ladder of kinds and the checks are those of `_factor`, with numbers that all ranks have reduced
together, so that all of them take the same decisions.
"""

from __future__ import annotations

import math
import time
import weakref

import torch
from torch import Tensor

from .._engines.analysis import ASKED_FOR
from .._engines.protocol import METHODS, Factor, Kind, is_doubtful, not_positive_definite
from .._factor.accuracy.checked_factor import CheckedFactor, EmptyFactor, Record, Rung
from .._factor.accuracy.systems import Systems
from .._factor.ladder.starting_method import Start
from .._factor.ladder.symmetry import (
    Asymmetry,
    KindLadder,
    empty_line_error,
    excess_over_rounding,
    find_kinds,
    not_positive_diagonal,
    not_symmetric,
)
from .._factor.options import Assume, Options
from .._sparse.matvec import Products, ScipyIndices
from .._sparse.values import CPU, row_moduli, scaling_power, to_double
from ..errors import EngineError, NonFiniteError, SingularMatrixError, SparseSolverError
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

    def _product(self, values: Tensor, x: Tensor, transpose: bool, hermitian: bool) -> Tensor:
        if transpose:
            return self._rows.fold(super()._product(values, x, True, hermitian))
        return super()._product(values, self._rows.extend(x), False, hermitian)

    def line_moduli(self, divisors: Tensor | None, of_columns: bool) -> Tensor:
        """(n,) the largest modulus in each row, or column, of this block; see `Products`."""
        rows, cols = self._rows.structure.canonical_rows, self._rows.structure.col
        moduli = to_double(self._canonical).abs()
        if of_columns:
            sizes = moduli if divisors is None else moduli / divisors[rows]
            largest = moduli.new_zeros(self._rows.read.numel())
            return self._rows.fold_max(largest.scatter_reduce_(0, cols, sizes, "amax"))
        if divisors is not None:
            moduli = moduli / self._rows.extend(divisors.unsqueeze(0))[0][cols]
        largest = moduli.new_zeros(self._rows.n)
        return largest.scatter_reduce_(0, rows, moduli, "amax")


class DistributedSystems(Systems):
    """The systems of all ranks, of which each one has the share of its rows."""

    def __init__(self, rows: Rows, canonical: Tensor):
        products, start = DistributedProducts(rows, canonical), rows.block.start
        super().__init__(products, rows.n, 1, canonical.dtype, CPU, start)
        self.order, self._group = rows.shape[0], rows.group

    def is_empty(self, vectors: Tensor) -> bool:
        return vectors.shape[0] == 0  # a rank without rows takes part, too

    def all_finite(self, vectors: Tensor) -> bool:
        return bool((self.sizes(vectors) < math.inf).all())

    def smallest(self, line: Tensor) -> Tensor:
        return -self._group.reduce_max(line.neg().amax() if self.n else -line.new_tensor(math.inf))

    def largest(self, line: Tensor) -> Tensor:
        return self._group.reduce_max(line.amax() if self.n else -line.new_tensor(math.inf))

    def sizes(self, vectors: Tensor) -> Tensor:
        return self._group.reduce_max(_row_moduli(vectors))

    def have_squares(self, vectors: Tensor) -> bool:
        squares = self.sizes(vectors).square()
        tiny = torch.finfo(squares.dtype).tiny
        return bool(((squares > tiny) & (squares < math.inf)).all())

    def spread(self, numbers: Tensor) -> Tensor:
        return numbers.unsqueeze(-1).expand(-1, self.n)

    def ratios(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        if self.n:
            ratio = (numerator.abs() / denominator).masked_fill(numerator == 0, 0).amax(-1)
        else:
            ratio = torch.zeros(len(numerator), dtype=torch.float64)
        return self._group.reduce_max(ratio)

    def unit_at_largest(self, vectors: Tensor) -> Tensor:
        moduli = vectors.abs()
        numbers = torch.arange(self._start, self._start + self.n).expand_as(moduli)
        candidates = torch.where(moduli == self.spread(self.sizes(moduli)), numbers, -1)
        none = candidates.new_full((len(moduli),), -1)
        chosen = self._group.reduce_max(candidates.amax(-1) if self.n else none)
        return (numbers == chosen.unsqueeze(-1)).to(vectors.dtype)


def _row_moduli(vectors: Tensor) -> Tensor:
    """(k,) the largest modulus in each row; zero where there are no columns."""
    if vectors.shape[1]:
        return row_moduli(vectors)
    return torch.zeros(vectors.shape[0], dtype=vectors.real.dtype)


# What a matrix is factored as, and whether the analysis uses values, to match rows with columns.
Approach = tuple[Kind, bool]


def choose_approaches(kind: Kind, dtype: torch.dtype) -> tuple[Approach, ...]:
    """The factorisations to try for a kind, from the fastest to the most robust.

    With LDLᵀ, complex symmetric matrices gain little by matching; `_engines.mkl.pardiso` explains
    why Hermitian ones are not matched.
    """
    last: Approach = "general", True
    if kind == "spd":
        return ((kind, False),)
    if kind == "symmetric" and not dtype.is_complex:
        return (kind, False), (kind, True), last
    return (kind, False), last


class DistributedFactor:
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
        approach: Approach,
        canonical: Tensor,
        largest: float,
        lowest: float,
        fresh: bool,
    ):
        kind, dtype = approach[0], canonical.dtype
        self.values, self.arrangement = canonical, rows.arrange(kind)
        self._scales: Tensor | None = None
        self._is_padding = rows.numbering.is_padding
        values = self.arrangement.gather(canonical, False)
        if kind == "spd" and not lowest > largest / _DIAGONAL_RANGE:
            values, largest = self._scale(rows, canonical, values), 1.0
        if self._is_padding:
            values = canonical.new_tensor([largest])
        self._handle = handle = self._take_handle(rows, (number, dtype, approach), values, fresh)
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
        self.sound = kind == "spd" and not is_doubtful(handle.smallest_pivot / largest, dtype)

    def _scale(self, rows: Rows, canonical: Tensor, values: Tensor) -> Tensor:
        """S A S with a diagonal near one, by powers of two."""
        self._scales = scaling_power(rows.diagonal_of(canonical).real.sqrt())
        everywhere, at = rows.extend(self._scales.unsqueeze(0))[0], self.arrangement
        return values * self._scales[at.rows] * everywhere[at.col]

    def _take_handle(
        self, rows: Rows, key: tuple[int, torch.dtype, Approach], values: Tensor, fresh: bool
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
) -> CheckedFactor | EmptyFactor:
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
    matrix = DistributedMatrix(rows, number, canonical, largest)
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
            methods = DistributedLadder(matrix, record)
            return CheckedFactor(record, methods, methods.climb())
    raise AssertionError("the last attempt returns or raises")


class DistributedMatrix:
    """The values of one distributed matrix, and what they show."""

    def __init__(self, rows: Rows, number: int, canonical: Tensor, largest: float):
        self.rows, self._number = rows, number
        self.canonical, self._largest = canonical, largest
        self._lowest = -math.inf  # the smallest diagonal entry, unless assume="general"

    def choose_kinds(self, assume: Assume) -> KindLadder:
        """The kinds to try; raise if the values are not what `assume` says."""
        if assume == "general":
            return KindLadder(("general",), ASKED_FOR)
        is_complex = self.canonical.is_complex()
        self._lowest, row = self._find_lowest()
        if assume == "auto":
            return find_kinds(is_complex, self._find_asymmetry, lambda: self._lowest > 0)
        conjugate = is_complex and assume != "symmetric"
        place = self._find_asymmetry(conjugate)
        if place is not None:
            raise not_symmetric(place, conjugate, assume)
        kind = Options(assume).kind(self.canonical.dtype)
        if kind == "spd" and self._lowest <= 0:
            raise not_positive_diagonal(row, self._lowest)
        return KindLadder((kind,), ASKED_FOR)

    def _find_lowest(self) -> tuple[float, int]:
        """The smallest diagonal entry on all ranks and its row; infinity if there are no rows."""
        diagonal, lowest = self.rows.diagonal_of(self.canonical).real, (math.inf, -1)
        if diagonal.numel():
            at = int(diagonal.argmin())
            lowest = float(diagonal[at]), self.rows.block.start + at
        found: tuple[float, int] = min(self.rows.group.comm.allgather(lowest))
        return found

    def _find_asymmetry(self, conjugate: bool) -> Asymmetry | None:
        """The worst violation of A = Aᵀ (or Aᴴ) on the first rank that has one."""
        rows, canonical, comm = self.rows, self.canonical, self.rows.group.comm
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

    def factor(self, approach: Approach, fresh: bool) -> DistributedFactor:
        """Factor by one approach, with a `fresh` analysis or an earlier one."""
        given = self.rows, self._number, approach, self.canonical, self._largest, self._lowest
        return DistributedFactor(*given, fresh)


class DistributedLadder:
    """The factorisations of one distributed matrix as one kind; see `_factor.ladder`.

    After the last one, a matrix that no rank can hold as a whole has no other method.
    """

    def __init__(self, matrix: DistributedMatrix, record: Record):
        self._matrix, self._record = matrix, record
        self._kind = record.kind, matrix.canonical.dtype
        self._start = matrix.rows.starts.setdefault(self._kind, Start())
        self._systems: DistributedSystems | None = None
        self.failure: SparseSolverError | None = None
        self.obstacle: str | None = None
        approaches = choose_approaches(*self._kind)
        first = approaches.index(self._start.find() or approaches[0])
        # An analysis that matches rows with columns may be one of other values at first.
        self._tries = [
            (approach, fresh)
            for approach in approaches[first:]
            for fresh in (False, True)[: 1 + approach[1]]
        ]

    def climb(self) -> Rung | None:
        """The factor by the next method that gives one; None after the last method."""
        while self._tries:
            approach, fresh = self._tries.pop(0)
            factor = self._attempt(approach, fresh)
            if factor is None:
                continue
            if factor.is_fresh and (approach, True) in self._tries:
                self._tries.remove((approach, True))
            kind, match = approach
            method = METHODS[kind] + (" with scaling and matching" if match else "")
            made = factor, method, ENGINE, approach, factor.sound, not (match and factor.is_fresh)
            return Rung(*made, is_last=not self._tries)
        return None

    def _attempt(self, approach: Approach, fresh: bool) -> DistributedFactor | None:
        record = self._record
        try:
            factor = self._matrix.factor(approach, fresh)
        except (EngineError, SingularMatrixError) as error:
            self.failure = error.with_traceback(None)  # which holds frames, hence factors
            return None
        if self.failure is not None:
            self.obstacle, self.failure = str(self.failure), None
        record.analysis_seconds += factor.analysis_seconds
        record.factorization_seconds += factor.factorization_seconds
        return factor

    def keep(self, rung: Rung, reason: str) -> None:
        """Record this factor, and start with its method for later values of the pattern."""
        first = choose_approaches(*self._kind)[0]
        self._start.keep(None if rung.symbolic == first else rung.symbolic)
        self._record.method, self._record.method_reason = rung.method, reason

    def systems(self, factor: Factor) -> DistributedSystems:
        """The systems that this factor, and every other one, solves."""
        if self._systems is None:
            matrix = self._matrix
            self._systems = DistributedSystems(matrix.rows, matrix.canonical)
        return self._systems

    def explain_structure(self) -> None:
        """No rank has the whole pattern."""
