"""oneMKL PARDISO: supernodal Cholesky, LDLᵀ and LU, from the `mkl` wheel, called through ctypes.

The first analysis uses the pattern alone and serves all values.

LU and LDLᵀ: where that analysis leaves pivots so small that PARDISO perturbs them, or solutions
that are not accurate, `analyze_values` makes one with scaling and weighted matching, which uses the
values too: for real symmetric matrices LDLᵀ, which counts eigenvalues, and then LU, which is the
more accurate one. For Hermitian matrices, MKL 2026.2 writes past its own arrays when one of its
2-by-2 pivots is perturbed; so LDLᴴ uses 1-by-1 pivots only.

Cholesky: where a pivot is negative or below an absolute bound (10⁻¹⁶ in double precision), the
fast method gives up without naming the row, or produces NaN. A slower, careful method, which keeps
its pivots, then either succeeds or names the row. Complex matrices are always factored by the
careful one: in columns that form no block with others, such as those of a chain, the fast method
takes imaginary roots of negative pivots, and solves another system (MKL 2026.2).

Numbers in comments are the manual's, which counts from one: iparm(24) is ``iparm[23]``. Source:
Intel oneMKL Developer Reference for C, "oneMKL PARDISO - Parallel Direct Sparse Solver Interface".
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from ..._sparse.both_triangles import BothTriangles
from ..._sparse.matrix import Matrix
from ..._sparse.structure import Structure
from ..._sparse.triangle import Arrangement, Coverage, arrangement_of
from ..._sparse.values import (
    DTYPES,
    PROBE_MEAN,
    is_finite,
    is_single,
    largest_modulus,
    probe_vector,
)
from ..._torch.fork_safe_lock import ForkSafeLock
from ...errors import EngineError, NonFiniteError
from ..free_memory import check_memory
from ..protocol import (
    METHODS,
    Availability,
    Kind,
    is_hermitian,
    not_positive_definite,
    pivot_growth_in_doubt,
)
from .handle import BACKWARD, FORWARD, Handle, Settings, find_order, most_threads, recently_used
from .library import Library
from .library import library as mkl_library
from .parameters import ZERO_PIVOT, engine_error, matrix_type, parameters

# From so many rows on, and up to so many entries of each factor per row, the improved two-level
# factorisation is faster with several threads: 1.3 to 2.1 times on grids, slower where there is
# more fill. ``benchmarks.two_level`` measured it.
_MANY_ROWS, _LITTLE_FILL = 2**14, 56
# Up to so many operations, one thread is as fast as two, and waits for none where the cores are
# busy. On a mesh of 642 vertices (5e5 operations), one and two threads took 75 and 102 µs for three
# right-hand sides, 0.60 and 0.65 ms for a factorisation; with 2,562 vertices (3e6), 3.6 and 2.0 ms.
_FEW_FLOPS = 1e6
# Up to this many rows, a second probe vector costs next to nothing.
_FEW_ROWS = 2**14


def _parameters(
    kind: Kind, dtype: torch.dtype, matching: bool, careful: bool, improved: bool = False
) -> list[int]:
    iparm = parameters(kind, dtype, matching)
    iparm[1] = 3  # (2): parallel nested dissection
    # (24): two-level factorisation, without which two right-hand sides cost twenty times one, or
    # its improved form. Both exclude matching.
    iparm[23] = 0 if matching else 10 if improved else 1
    # (56): keep the pivots; on grids of 500² the factorisation then takes a third longer.
    iparm[55] = int(careful)
    return iparm


class PardisoSymbolic:
    """An analysis of a pattern, and a handle for each number of threads that uses it.

    match : the matrix to scale and match by; None for an analysis of the pattern alone
    lu : whether a symmetric matrix is factored by LU
    careful : whether a Cholesky factorisation keeps its pivots
    """

    def __init__(
        self,
        library: Library,
        structure: Structure,
        kind: Kind,
        dtype: torch.dtype,
        triangle: str | None,
        match: Matrix | None = None,
        lu: bool = False,
        careful: bool = False,
    ):
        # Not the structure itself, which remembers this object.
        self._library, self.kind, self._dtype, self._triangle = library, kind, dtype, triangle
        self._n, self.careful = structure.shape[0], careful
        self._factored_as: Kind = "general" if lu else kind
        coverage: Coverage = "full" if self._factored_as == "general" else "upper"
        self.arrangement = arrangement_of(structure, coverage, triangle)
        self._analyzed_values = None if match is None else self._arrange(match)
        self._probes: Tensor | None = None
        self._careful_method: PardisoSymbolic | None = None  # made when it is needed
        self._lu_method: PardisoSymbolic | None = None  # likewise
        self._prefers_careful = False
        self.nnz: int | None = None
        self._lock = ForkSafeLock(reentrant=True)
        self.method = METHODS[self._factored_as] + (" with scaling and matching" if match else "")
        self._improves, self._is_small = True, False
        self._handles = [self._analyze()]

    def _analyze(self) -> Handle:
        is_first = self.nnz is None
        handle = self._analyze_with(self._may_improve() and (is_first or self._has_little_fill()))
        if is_first and self.nnz is not None:
            self._is_small = self.nnz**2 <= _FEW_FLOPS * self._n
        has_too_much_fill = handle.is_improved and not self._has_little_fill()
        if has_too_much_fill or handle.threads != self._threads():
            handle = self._analyze_with(improved=False)
        return handle

    def _analyze_with(self, improved: bool) -> Handle:
        matching = self._analyzed_values is not None
        mtype = matrix_type(self._factored_as, self._dtype)
        iparm = _parameters(self._factored_as, self._dtype, matching, self.careful, improved)
        given = self._library, mtype, self.arrangement, self._n, iparm
        handle = Handle(Settings(*given, self._threads()))
        self.nnz = handle.analyze(self._analyzed_values)
        return handle

    def _may_improve(self) -> bool:
        """Whether the improved two-level factorisation is right, and perhaps faster.

        MKL 2026.2 solves transposed Hermitian systems wrongly with it.
        """
        is_right = self._improves and self._analyzed_values is None and not self.careful
        is_right &= not self._dtype.is_complex or self._factored_as == "symmetric"
        return is_right and self._n >= _MANY_ROWS and most_threads() > 1

    def _threads(self) -> int:
        """The threads of this call."""
        return 1 if self._is_small else most_threads()

    def _has_little_fill(self) -> bool:
        factors = 2 if self._factored_as == "general" else 1
        return self.nnz is not None and self.nnz <= factors * _LITTLE_FILL * self._n

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return self.nnz

    def probes(self) -> Tensor:
        """(1, n) or (2, n) scattered numbers; the second row serves if the first cancels.

        The second row is left out where it would take time and precision leaves room.
        """
        if self._probes is None:
            first = probe_vector(self._n, self._dtype, PROBE_MEAN)
            if is_single(self._dtype) or self._n <= _FEW_ROWS:
                second = probe_vector(self._n, self._dtype, 0.0).flip(1)
                self._probes = torch.cat((first, second))
            else:
                self._probes = first
        return self._probes

    def take(self) -> tuple[Handle, int]:
        """A handle for the threads of this call, and a free slot in it."""
        with self._lock:
            for handle in self._handles:
                if handle.is_improved and not self._improves:
                    continue
                if (slot := handle.take(self._threads())) is not None:
                    return handle, slot
            self._handles.append(self._analyze())
            return self.take()

    def stop_improving(self) -> None:
        """Factor from now on by the method that counts eigenvalues."""
        self._improves = False

    def _arrange(self, matrix: Matrix) -> Tensor:
        return matrix.arrange(self.arrangement, is_hermitian(self.kind, self._dtype))

    def _may_overflow(self, matrix: Matrix) -> bool:
        """Whether MKL 2026.2 might end the process instead of factoring the matrix.

        Where squares of pivots of indefinite Hermitian matrices overflow, it reads from addresses
        that are none. Pivots that it perturbs may have grown by 1/ε.
        """
        if self._factored_as != "hermitian":
            return False
        info = torch.finfo(self._dtype)
        return bool(matrix.check_finite() > info.max**0.5 * info.eps)

    def factor(self, matrix: Matrix) -> PardisoFactor:
        if self._may_overflow(matrix):
            with self._lock:
                if self._lu_method is None:
                    self._lu_method = self._analyze_again(matrix.structure, lu=True)
            return self._lu_method.factor(matrix)
        if not self._prefers_careful:
            factor = PardisoFactor(self, self._arrange(matrix))
            if factor.compute():
                return factor
        with self._lock:
            if self._careful_method is None:
                self._careful_method = self._analyze_again(matrix.structure, careful=True)
        factor = self._careful_method.factor(matrix)
        self._prefers_careful = True  # badly scaled matrices rarely come alone
        return factor

    def reorder(self, triangles: BothTriangles) -> BothTriangles:
        return triangles

    def factor_upper(self, upper: Tensor, diagonal: Tensor) -> PardisoFactor:
        if not is_finite(upper):
            raise NonFiniteError("values are not finite", argument="values", index=None)
        careful = self._careful_method if self._prefers_careful else None
        factor = PardisoFactor(careful or self, upper)
        if not factor.compute(diagonal):
            raise not_positive_definite("pardiso", "Cholesky", None)
        return factor

    def analyze_values(self, matrix: Matrix) -> PardisoSymbolic | None:
        known, is_lu = self._analyzed_values, self._factored_as == "general"
        if self.kind == "spd":
            return None
        is_new = known is None or not torch.equal(self._arrange(matrix), known)
        if not is_new and is_lu:
            return None
        if is_new and self._factored_as == "symmetric" and not self._dtype.is_complex:
            try:
                return self._analyze_again(matrix.structure, match=matrix)
            except EngineError:  # seen where entries have very different sizes
                pass
        return self._analyze_again(matrix.structure, match=matrix, lu=True)

    def _analyze_again(self, structure: Structure, **how: Any) -> PardisoSymbolic:
        """Another analysis of the same pattern."""
        given = self._library, structure, self.kind, self._dtype, self._triangle
        return PardisoSymbolic(*given, **how)


class PardisoFactor:
    """A factorisation in a slot of a handle."""

    flops: int | None = None  # the two-level method does not count them
    nnz: int | None = None
    memory_bytes: int | None = None
    perturbed_pivots: int | None = None
    _negative: int | None = None
    sound = False  # LU and LDLᵀ exchange rows within blocks only

    def __init__(self, symbolic: PardisoSymbolic, values: Tensor):
        # PARDISO keeps a pointer to `values` for its iterative refinement.
        self._symbolic, self.values, self.arrangement = symbolic, values, symbolic.arrangement
        self._lock = ForkSafeLock()

    @property
    def _may_count(self) -> bool:
        is_ldlt = self.arrangement.coverage == "upper" and not self.values.is_complex()
        return is_ldlt and not self.perturbed_pivots

    @property
    def negative_eigenvalues(self) -> int | None:
        if self._negative is None and self._may_count and self._place[0].is_improved:
            self._symbolic.stop_improving()
            counting = PardisoFactor(self._symbolic, self.values)
            counting.compute()
            self._negative = counting._negative
        return self._negative

    def compute(self, diagonal: Tensor | None = None) -> bool:
        """Factor into a free slot of a handle for the threads of this call; raise if that fails.

        `diagonal` is that of the matrix, if it is at hand.

        Returns False where the fast Cholesky method met a pivot that it cannot take.
        """
        symbolic, is_spd = self._symbolic, self._symbolic.kind == "spd"
        check_memory("pardiso", symbolic.nnz or 0, self.values.dtype)
        self._place = handle, slot = symbolic.take()
        weakref.finalize(self, handle.give_back, slot).atexit = False
        code, iparm = handle.factor(slot, self.values)
        if code == ZERO_PIVOT and is_spd:
            if not symbolic.careful:
                return False
            row = iparm[29] - 1  # (30): the equation of the bad pivot, counted from one
            raise not_positive_definite("pardiso", "Cholesky", row)
        if code:
            raise engine_error(code, "factorisation")
        self.nnz = symbolic.nnz
        self.memory_bytes = iparm[16] * 1024 or None  # (17): kilobytes of factor and solution
        self.perturbed_pivots = iparm[13]
        if not is_spd:
            # (22), (23): the positive and negative eigenvalues of real symmetric matrices, as
            # perturbed; the improved factorisation leaves both at zero in double precision.
            if self._may_count and iparm[21] + iparm[22]:
                self._negative = iparm[22]
            return True
        self._negative = 0
        y = handle.substitute(slot, self.values, self._probes(diagonal), False, phase=FORWARD)
        growth = largest_modulus(y)
        self.sound = growth < pivot_growth_in_doubt(self.values.dtype)
        # NaN is the root of a negative pivot, which the fast method takes without an error.
        return growth == growth or symbolic.careful

    def _probes(self, diagonal: Tensor | None) -> Tensor:
        """D^½ s, whose forward substitution is large if a pivot is small beside its diagonal entry.

        Let A = L Lᵀ, D its diagonal and s scattered numbers about one. Row i of L y = D^½ s is
        y_i = r_i / √d_i, where d_i is the pivot relative to its diagonal entry, and r_i is s_i and
        some combination of the s_j before: of order one, unless they happen to cancel. A pivot that
        is a rounding error (some ε) gives 1 / √ε. That costs half a substitution; PARDISO can keep
        its pivots (iparm(56)), but then the factorisation takes up to a third longer.
        """
        if diagonal is None:
            diagonal = self.values.index_select(0, self.arrangement.at_diagonal)
        return self._symbolic.probes() * diagonal.real.sqrt()

    @property
    def has_halves(self) -> bool:
        # The phases of LDLᵀ and LU do not compose to a solve.
        return self._symbolic.kind == "spd"

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        handle, slot = self._find_place()
        return handle.substitute(slot, self.values, rhs, transpose)

    def substitute_half(self, rhs: Tensor, adjoint: bool) -> Tensor:
        handle, slot = self._find_place()
        phase = FORWARD if adjoint else BACKWARD
        return handle.substitute(slot, self.values, rhs, False, phase)

    def _find_place(self) -> tuple[Handle, int]:
        """Where the factor is; a forked child cannot use the factor of its parent."""
        if self._place[0].is_lost:
            with self._lock:
                if self._place[0].is_lost:
                    self.compute()
        return self._place


class Pardiso:
    name = "pardiso"
    device_types: tuple[str, ...] = ("cpu",)
    ordering, dissects = "nested dissection by oneMKL", True

    def availability(self) -> Availability:
        library = mkl_library()
        if isinstance(library, str):
            return Availability(missing=library)
        return Availability(library.version, instruction_set=library.instruction_set)

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return dtype in DTYPES

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> PardisoSymbolic:
        library = mkl_library()
        assert isinstance(library, Library)  # an engine that is not available analyses nothing
        careful = kind == "spd" and dtype.is_complex
        return PardisoSymbolic(library, structure, kind, dtype, triangle, careful=careful)

    def order_rows(self, arrangement: Arrangement, n: int) -> Tensor:
        library = mkl_library()
        assert isinstance(library, Library)  # an engine that is not available orders nothing
        iparm = _parameters("spd", torch.float64, matching=False, careful=False)
        iparm[4] = 2  # (5): report the permutation
        mtype = matrix_type("spd", torch.float64)
        return find_order(Settings(library, mtype, arrangement, n, iparm, most_threads()))

    def release_idle(self) -> None:
        recently_used.release()


ENGINE = Pardiso()
