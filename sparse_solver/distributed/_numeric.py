"""One distributed matrix, factored: what it is, the factor, and whether to trust its solutions.

Whatever is decided here is decided by numbers that all ranks have reduced together, so that all of them take the same way.
"""

from __future__ import annotations

import time
import weakref

import torch
from torch import Tensor

from .. import _trust
from .._engines import Kind, is_doubtful, not_positive_definite, scattered
from .._kinds import (
    ASKED_FOR,
    Assume,
    Options,
    Place,
    asked_for,
    excess,
    kinds_found,
    not_positive_diagonal,
    not_symmetric,
)
from .._layout import Layout
from .._matrix import power_of_two
from .._plain import resolved
from .._products import Products as LocalProducts
from .._structure import row_pointers
from ..errors import (
    EngineError,
    NonFiniteError,
    NotPositiveDefiniteError,
    SingularMatrixError,
)
from ._cluster import ENGINE, Handle, Handles
from ._rows import Rows


class Products:
    """A x and |A||x|, and the same with Aᵀ, for the rows of `x` (k, n): as the core's, distributed."""

    def __init__(self, rows: Rows, canonical: Tensor):
        self._rows, self._canonical = rows, canonical
        self._local = LocalProducts(rows.structure, None, _layout(rows, "general"), canonical, False)

    def apply(self, x: Tensor, transpose: bool) -> Tensor:
        return self._product(self._local.apply, x, transpose)

    def magnitude(self, x: Tensor, transpose: bool) -> Tensor:
        return self._product(self._local.magnitude, x, transpose)

    def _product(self, local: object, x: Tensor, transpose: bool) -> Tensor:
        assert callable(local)
        if transpose:
            return self._rows.fold(local(x, True))
        product: Tensor = local(self._rows.extend(x), False)
        return product

    def column_sizes(self) -> Tensor:
        """(n,) the largest modulus in each column of this block."""
        moduli = self._canonical.abs()
        sizes = moduli.new_zeros(self._rows.read.numel())
        return self._rows.most(sizes.scatter_reduce(0, self._rows.structure.col, moduli, "amax"))


class Trusted(_trust.Trusted):
    """The checks on a factor, with numbers of all ranks."""

    _advice = "try assume='general'"

    def __init__(self, factor: Factor, rows: Rows, canonical: Tensor, kind: Kind, largest: float):
        super().__init__(factor, rows.structure, None, kind, largest, ENGINE, 1)
        self.factor: Factor = factor
        self._group, self._distributed = rows.group, Products(rows, canonical)
        self._start = rows.block.start

    @property
    def _products(self) -> Products:  # type: ignore[override]
        return self._distributed

    def _largest_of(self, vectors: Tensor) -> float:
        return float(self._sizes(vectors).amax())

    def _sizes(self, vectors: Tensor) -> Tensor:
        return self._group.most(_row_sizes(vectors))

    def _ratios(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        local = super()._ratios(numerator, denominator) if self._n else torch.zeros(len(numerator), dtype=torch.float64)
        return self._group.most(local)

    def _scales(self, k: int) -> Tensor:
        return torch.full((k,), self._largest, dtype=torch.float64)

    def _scattered(self) -> Tensor:
        return scattered(self._n, self._dtype, 0.25, start=self._start)

    def _structural_rank(self) -> None:
        return None  # nobody has the whole pattern


def _row_sizes(vectors: Tensor) -> Tensor:
    """(k,) the largest modulus in each row; zero where there are no columns."""
    if vectors.shape[1]:
        return _trust.row_sizes(vectors)
    return torch.zeros(vectors.shape[0], dtype=vectors.real.dtype)


Way = tuple[Kind, bool]  # what a matrix is factored as, and whether values are looked at, to match rows with columns


def ways_of(kind: Kind, dtype: torch.dtype) -> tuple[Way, ...]:
    """From the fastest to the one that takes most.

    With LDLᵀ, complex symmetric matrices gain little by matching; of Hermitian ones, see `_engines.pardiso`.
    """
    last: Way = "general", True
    if kind == "spd":
        return ((kind, False),)
    if kind == "symmetric" and not dtype.is_complex:
        return (kind, False), (kind, True), last
    return (kind, False), last


class Factor:
    """A factor whose parts lie on all ranks.

    `largest` : the largest modulus of an entry; `lowest` : the smallest diagonal entry, if the matrix is positive definite
    `fresh` : whether there has to be a new analysis, of these values
    """

    flops: int | None = None
    negative_eigenvalues: int | None = None

    def __init__(
        self, rows: Rows, number: int, way: Way, canonical: Tensor, largest: float, lowest: float, fresh: bool
    ):
        kind, match = way
        self.values, self.layout = canonical, _layout(rows, kind)
        handles, numbering = Handles.of(rows.group), rows.numbering
        self._scales: Tensor | None = None
        self._made_up = numbering.made_up
        values = self.layout.gather(canonical, False)
        # Pivots are raised, and judged, by the largest entry: none of the diagonal may be far below it.
        if kind == "spd" and not lowest > largest / 16:
            self._scales = power_of_two(rows.diagonal_of(canonical).real.sqrt())
            everywhere = rows.extend(self._scales.unsqueeze(0))[0]
            values = values * self._scales[self.layout.rows] * everywhere[self.layout.col]
            largest = 1.0
        if self._made_up:
            values = canonical.new_tensor([largest])
        started, key = time.perf_counter(), (number, canonical.dtype, way)
        handle = None if fresh else handles.take(rows.group, key)
        self.analysis_seconds, self.is_fresh = 0.0, handle is None
        if handle is None:
            crow, cols = self.layout.crow, numbering.columns(rows.read[self.layout.col])
            if self._made_up:
                crow, cols = torch.tensor([0, 1]), torch.tensor([numbering.block.start])
            handle = Handle(rows.group, numbering.block, numbering.n, kind, crow, cols, canonical.dtype, values, match)
            self.analysis_seconds = time.perf_counter() - started
        weakref.finalize(self, handles.bury, handles.use(key, handle)).atexit = False
        self._handle = handle
        started = time.perf_counter()
        sound = handle.factor(values)
        self.factorization_seconds = time.perf_counter() - started
        if not sound and kind == "spd":
            raise not_positive_definite(ENGINE, "LDLᵀ", None)
        if not sound:
            raise SingularMatrixError("a pivot is zero: the matrix is singular", engine=ENGINE, row=None)
        self.nnz: int | None = handle.nnz  # of this rank, as is
        self.memory_bytes: int | None = handle.memory_bytes
        self.perturbed_pivots: int | None = handle.perturbed_pivots
        self.stable = kind == "spd"
        self.doubtful = not self.stable or is_doubtful(handle.smallest_pivot / largest, canonical.dtype)

    def solve(self, rhs: Tensor, transpose: bool) -> Tensor:
        rhs = rhs.contiguous() if self._scales is None else rhs * self._scales
        if self._made_up:
            return self._handle.solve(rhs.new_zeros(rhs.shape[0], 1), transpose)[:, :0]
        x = self._handle.solve(rhs, transpose)
        return x if self._scales is None else x.mul_(self._scales)


def _layout(rows: Rows, method: Kind) -> Layout:
    """The entries that the solver wants, in read columns: all, or the upper triangle with every diagonal entry."""
    structure = rows.structure
    if method == "general":
        return Layout("full", structure.canonical_rows, structure.crow, structure.col)
    return structure.remember("upper of the whole", lambda: _upper(rows))


def _upper(rows: Rows) -> Layout:
    structure = rows.structure
    kept = torch.nonzero(rows.rows <= rows.cols).squeeze(-1)
    missing = torch.nonzero(rows.diagonal < 0).squeeze(-1)
    at = torch.cat((structure.canonical_rows[kept], missing))
    col = torch.cat((structure.col[kept], missing + rows.before))  # own columns are read ones, in one block
    source = torch.cat((kept, torch.full_like(missing, -1)))
    order = torch.sort(at * (rows.read.numel() + 1) + col)[1]
    at = at[order]
    return Layout("upper", at, row_pointers(at, rows.n), col[order], source[order], None, bool(missing.numel()))


class Numeric:
    """The factorisation of the matrix with the given contiguous values (nnz,), the share of this rank.

    `number` is that of the pattern; `call` its own. Raises, on all ranks, where there is no factorisation.
    """

    def __init__(self, rows: Rows, number: int, values: Tensor, assume: Assume):
        self._rows, self.call = rows, rows.group.calls
        self.analysis_seconds = self.factorization_seconds = 0.0
        self.trusted: Trusted | None = None
        self._lowest = -float("inf")  # of the diagonal, where it matters
        self.kind: Kind = "general"
        canonical = rows.structure.canonical(values)  # a copy, unless they are in order
        if canonical.data_ptr() == values.data_ptr():
            canonical = canonical.clone()
        self.largest = float(rows.group.most(_row_sizes(canonical.unsqueeze(0)))[0])
        if not self.largest < float("inf"):
            raise NonFiniteError("values are too large: the sum of some is infinite", argument="values", index=None)
        kinds, self.kind_reason = self._kinds(canonical, assume)
        if rows.shape[0] == 0:
            return
        self._refuse_empty_lines()
        if self.largest == 0:
            raise SingularMatrixError("the matrix is singular: all its values are zero", engine=None, row=None)
        for self.kind in kinds:
            try:
                self.trusted = self._factored(number, canonical)
                return
            except NotPositiveDefiniteError as error:
                if self.kind == kinds[-1]:
                    raise
                self.kind_reason += ", but " + str(error).split(";")[0]

    def _refuse_empty_lines(self) -> None:
        for line in self._rows.group.comm.allgather(self._rows.empty_line):
            if line is not None:
                raise SingularMatrixError(
                    f"the matrix is structurally singular: {line[0]} {line[1]} has no stored entry",
                    engine=None,
                    row=line[1] if line[0] == "row" else None,
                )

    def _kinds(self, canonical: Tensor, assume: Assume) -> tuple[tuple[Kind, ...], str]:
        """The kinds to try, in order, and why."""
        if assume == "general":
            return ("general",), ASKED_FOR
        rows, is_complex = self._rows, canonical.is_complex()
        diagonal = rows.diagonal_of(canonical)
        self._lowest, row = min(rows.group.comm.allgather(_lowest(diagonal.real, rows.block.start)))

        def asymmetry(conjugate: bool) -> Place | None:
            return self._asymmetry(canonical, diagonal, conjugate)

        if assume == "auto":
            return kinds_found(is_complex, asymmetry, lambda: self._lowest > 0)
        conjugate = is_complex and assume != "symmetric"
        place = asymmetry(conjugate)
        if place is not None:
            raise not_symmetric(place, conjugate, *asked_for(assume))
        kind = Options(assume).kind(canonical.dtype)
        if kind == "spd" and self._lowest <= 0:
            raise not_positive_diagonal(row, self._lowest)
        return (kind,), ASKED_FOR

    def _asymmetry(self, canonical: Tensor, diagonal: Tensor, conjugate: bool) -> Place | None:
        """The place and size of the worst violation of A = Aᵀ (or Aᴴ) on the first rank that has one."""
        rows = self._rows
        opposite = rows.opposite(canonical)
        if conjugate:
            opposite = opposite.conj().resolve_conj()
        if all(rows.group.comm.allgather(torch.equal(canonical, opposite))):  # most are to the last bit
            return None
        root = diagonal.abs().sqrt()
        roots = root[rows.structure.canonical_rows] * rows.extend(root.unsqueeze(0))[0][rows.structure.col]
        beyond, difference = excess(canonical, opposite, roots)
        found = None
        if beyond.numel() and float(beyond.max()) > 0:
            worst = int(beyond.argmax())
            found = int(rows.rows[worst]), int(rows.cols[worst]), float(difference[worst])
        return next((one for one in rows.group.comm.allgather(found) if one is not None), None)

    def _factored(self, number: int, canonical: Tensor) -> Trusted:
        """By the first of the ways that is good enough, beginning with that which once was needed, and will be again."""
        rows, known = self._rows, (self.kind, canonical.dtype)
        ways = ways_of(self.kind, canonical.dtype)
        first = rows.needed.get(known, 0)
        trusted, accurate = self._tried(number, ways[first], canonical, fresh=False)
        failure: EngineError | None = None
        for at in range(max(first, 1), len(ways)):
            # Accurate is good enough, but beside raised pivots the second way is better, if it is.
            if accurate and not (at == 1 and trusted.factor.perturbed_pivots):
                break
            if at == first and trusted.factor.is_fresh:
                continue
            try:
                better, is_better = self._tried(number, ways[at], canonical, fresh=True)
            except EngineError as error:  # perhaps of a matrix that is found singular below
                failure = error
                continue
            if is_better >= accurate:
                trusted, accurate, rows.needed[known] = better, is_better, at
        try:
            if trusted.factor.doubtful:
                trusted.refuse_singular()
            if failure is not None and not accurate:
                raise failure
            return trusted
        finally:
            failure = None  # its traceback holds this frame, hence the factor

    def _tried(self, number: int, way: Way, canonical: Tensor, fresh: bool) -> tuple[Trusted, bool]:
        """A factor, and whether it is accurate."""
        factor = Factor(self._rows, number, way, canonical, self.largest, self._lowest, fresh)
        self.analysis_seconds += factor.analysis_seconds
        self.factorization_seconds += factor.factorization_seconds
        trusted = Trusted(factor, self._rows, canonical, self.kind, self.largest)
        return trusted, factor.stable or trusted.is_accurate()

    def solve(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """A⁻¹ or A⁻ᵀ applied to the rows of `rhs` (k, n), the share of this rank, in a new tensor.

        Rows that hold NaN or infinity, on whichever rank, raise NonFiniteError if `strict`, else they give NaN.
        """
        if rhs.shape[0] == 0 or self._rows.shape[0] == 0:
            return torch.empty_like(rhs)
        assert self.trusted is not None
        rhs = resolved(rhs).contiguous()
        sizes = self._rows.group.most(_row_sizes(rhs))
        finite = sizes < float("inf")
        if bool(finite.all()):
            return self.trusted.solve(rhs, float(sizes.max()), transpose, strict)
        if strict:
            raise NonFiniteError("b is too large: the modulus of an entry is infinite", argument="b", index=None)
        x = self.solve(torch.where(finite.unsqueeze(1), rhs, 0), transpose, strict)
        return torch.where(finite.unsqueeze(1), x, float("nan"))


def _lowest(diagonal: Tensor, start: int) -> tuple[float, int]:
    """The smallest entry and its row; infinity where there are none."""
    if not diagonal.numel():
        return float("inf"), -1
    at = int(diagonal.argmin())
    return float(diagonal[at]), start + at
