"""oneMKL PARDISO: supernodal Cholesky, LDLᵀ and LU, from the `mkl` wheel, called through ctypes.

The first analysis looks at the pattern alone and serves all values. LU and LDLᵀ: where it leaves pivots so small that
PARDISO perturbs them, `retry` makes one with scaling and weighted matching, which looks at the values too. Hermitian
matrices: 2-by-2 pivots of which one is perturbed make MKL 2026.2 write past its own arrays, so that LDLᴴ has to do
without, and what it cannot factor is factored by LU; so is what the matching for LDLᵀ fails on. Cholesky:
where a pivot is below an absolute bound (10⁻¹⁶ in double precision) or negative, the fast method gives up without saying
where, or makes NaN of it; a slower, careful one, which keeps its pivots, then either succeeds or knows the row.

Numbers in comments are the manual's, which counts from one: iparm(24) is ``iparm[23]``.
Source: Intel oneMKL Developer Reference for C, "oneMKL PARDISO - Parallel Direct Sparse Solver Interface".
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from .._layout import layout_of
from .._matrix import Matrix, largest_modulus
from .._structure import Structure
from .._sync import ForkSafeLock
from ..errors import EngineError
from ._handle import FORWARD, Handle, recently_used
from ._mkl import Library
from ._mkl import library as mkl_library
from ._protocol import DTYPES, Availability, Kind, is_hermitian, not_positive_definite, scattered
from ._settings import engine_error, matrix_type, parameters

_FEW = 2**14  # rows


def _parameters(kind: Kind, dtype: torch.dtype, matching: bool, careful: bool) -> list[int]:
    iparm = parameters(kind, dtype, matching)
    iparm[1] = 3  # (2): parallel nested dissection
    # (24): two-level factorisation, without which two right-hand sides cost twenty times one; it excludes matching.
    iparm[23] = 0 if matching else 1
    iparm[55] = int(careful)  # (56): keep the pivots; on grids of 500² the factorisation then takes a third longer
    return iparm


class PardisoSymbolic:
    """`match`: the matrix to scale and match by; None: an analysis of the pattern alone. `lu`: whether a symmetric matrix
    is factored by LU. `careful`: see above."""

    def __init__(
        self,
        library: Library,
        structure: Structure,
        kind: Kind,
        dtype: torch.dtype,
        stored: str | None,
        match: Matrix | None = None,
        lu: bool = False,
        careful: bool = False,
    ):
        # Not the structure itself, which remembers this object.
        self._library, self.kind, self._dtype, self._stored = library, kind, dtype, stored
        self._n, self.careful = structure.shape[0], careful
        self._method: Kind = "general" if lu else kind
        self.layout = layout_of(structure, "full" if self._method == "general" else "upper", stored)
        self._analysed = None if match is None else self._arranged(match)
        self._probes: Tensor | None = None
        self._slower: PardisoSymbolic | None = None  # the careful method, once it was needed
        self._prefers_slower = False
        self.nnz: int | None = None
        self._lock = ForkSafeLock(reentrant=True)
        self._handles = [self._analyze()]

    def _analyze(self) -> Handle:
        parameters = _parameters(self._method, self._dtype, self._analysed is not None, self.careful)
        handle = Handle(self._library, matrix_type(self._method, self._dtype), self.layout, self._n, parameters)
        self.nnz = handle.analyze(self._analysed)
        return handle

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return self.nnz

    def probes(self) -> Tensor:
        """(1, n) or (2, n) scattered numbers; the second ones, for when the first happen to cancel, are left out where
        they would take time and precision leaves room."""
        if self._probes is None:
            both = scattered(self._n, self._dtype, 0.25), scattered(self._n, self._dtype, 0.0).flip(1)
            single = self._dtype in (torch.float32, torch.complex64)
            self._probes = torch.cat(both if single or self._n <= _FEW else both[:1])
        return self._probes

    def take(self) -> tuple[Handle, int]:
        """A handle for the threads of this call, and a free slot in it."""
        with self._lock:
            for handle in self._handles:
                if (slot := handle.take()) is not None:
                    return handle, slot
            self._handles.append(self._analyze())
            return self.take()

    def _arranged(self, matrix: Matrix) -> Tensor:
        return matrix.arranged(self.layout, is_hermitian(self.kind, self._dtype))

    def factor(self, matrix: Matrix) -> PardisoFactor:
        values = self._arranged(matrix)
        if not self._prefers_slower:
            try:
                return PardisoFactor(self, values)
            except _GaveUp:
                pass
        with self._lock:
            if self._slower is None:
                self._slower = self._another(matrix.structure, careful=True)
        factor = PardisoFactor(self._slower, values)
        self._prefers_slower = True  # badly scaled matrices come in numbers
        return factor

    def retry(self, matrix: Matrix) -> PardisoSymbolic | None:
        if self.kind == "spd" or (self._analysed is not None and torch.equal(self._arranged(matrix), self._analysed)):
            return None
        if self.kind != "hermitian":
            try:
                return self._another(matrix.structure, match=matrix)
            except EngineError:  # seen on symmetric matrices with entries of very different size
                if self.kind == "general":
                    raise
        return self._another(matrix.structure, match=matrix, lu=True)

    def _another(self, structure: Structure, **how: Any) -> PardisoSymbolic:
        """Another analysis of the same pattern."""
        return PardisoSymbolic(self._library, structure, self.kind, self._dtype, self._stored, **how)


class _GaveUp(Exception):
    """The fast Cholesky factorisation met a pivot that it cannot take."""


class PardisoFactor:
    flops: int | None = None  # the two-level method does not count them

    def __init__(self, symbolic: PardisoSymbolic, values: Tensor):
        # PARDISO keeps a pointer to `values` for its iterative refinement.
        self._symbolic, self.values, self.layout = symbolic, values, symbolic.layout
        self.stable = symbolic.kind == "spd"  # LU and LDLᵀ pivot within limits
        self._lock = ForkSafeLock()
        self._place = self._factor()

    def _factor(self) -> tuple[Handle, int]:
        """Factors into a free slot of a handle for the threads of this call."""
        handle, slot = self._symbolic.take()
        weakref.finalize(self, handle.give_back, slot).atexit = False
        kind = self._symbolic.kind
        code, iparm = handle.factor(slot, self.values)
        if code == -4 and kind == "spd" and not self._symbolic.careful:
            raise _GaveUp
        if code == -4 and kind == "spd":
            raise not_positive_definite("pardiso", "Cholesky", iparm[29] - 1)  # (30): the equation, counted from one
        if code:
            raise engine_error(code, "factorisation")
        self.nnz = self._symbolic.nnz
        self.memory_bytes = iparm[16] * 1024 or None  # (17): kilobytes for factorisation and solution
        self.perturbed_pivots = iparm[13]
        # (23) counts negative eigenvalues, of real symmetric matrices only, and of what the pivots were made.
        is_real = self.layout.part == "upper" and not self.values.is_complex()
        self.negative_eigenvalues = 0 if kind == "spd" else iparm[22] if is_real and not iparm[13] else None
        self.doubtful = True
        if kind == "spd":
            growth = self._growth(handle, slot)
            if growth != growth and not self._symbolic.careful:
                raise _GaveUp  # the root of a negative pivot, as if nothing were wrong
            self.doubtful = not growth < 0.1 * torch.finfo(self.values.dtype).eps ** -0.3
        return handle, slot

    def _growth(self, handle: Handle, slot: int) -> float:
        """A number that is large if a pivot of A = L Lᵀ is small beside its diagonal entry, for half a substitution.

        PARDISO can keep its pivots (iparm(56)), but that makes the factorisation up to a third slower. So: let D be A's
        diagonal and s scattered numbers about one. Row i of L y = D^½ s is y_i = r_i / √d_i, where d_i is the pivot
        relative to its diagonal entry, and r_i is s_i and some combination of the s_j before: of order one, unless they
        happen to cancel. A pivot that is a rounding error (some ε) gives 1 / √ε; on sound matrices |y| is of order one.
        """
        diagonal = self.values.index_select(0, self.layout.at_diagonal).real
        y = handle.solve(slot, self.values, self._symbolic.probes() * diagonal.sqrt(), False, phase=FORWARD)
        return largest_modulus(y)

    def solve(self, rhs: Tensor, transpose: bool) -> Tensor:
        if self._place[0].is_lost:
            with self._lock:
                if self._place[0].is_lost:
                    self._place = self._factor()
        handle, slot = self._place
        return handle.solve(slot, self.values, rhs, transpose)


class Pardiso:
    name = "pardiso"
    device_types = ("cpu",)

    def availability(self) -> Availability:
        return Availability.of(mkl_library())

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return dtype in DTYPES

    def analyze(self, structure: Structure, kind: Kind, dtype: torch.dtype, stored: str | None) -> PardisoSymbolic:
        library = mkl_library()
        assert isinstance(library, Library)  # nothing is analysed by an engine that is not available
        return PardisoSymbolic(library, structure, kind, dtype, stored)

    def release_idle(self) -> None:
        recently_used.release()


ENGINE = Pardiso()
