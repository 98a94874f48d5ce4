"""NVIDIA cuDSS: Cholesky, LDLᵀ and LU on the GPU, from the `nvidia-cudss-cu12` or `-cu13` wheel, called through ctypes.

The first analysis looks at the pattern alone and serves all values. Pivots are not exchanged beyond blocks; tiny ones are
replaced, relative to a matrix that is scaled by powers of two: for Cholesky to a diagonal near one, else to a largest entry
near one. Where that is not accurate, `retry` makes an analysis with weighted matching, which looks at the values too, and
factors symmetric matrices by LU. Equal blocks on the diagonal are what cuDSS calls a uniform batch.

`torch.use_deterministic_algorithms` has cuDSS repeat its results to the last bit; it then solves one right-hand side at a
time, and takes a batch for one large matrix.

Source: NVIDIA cuDSS 1.0 documentation.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from .._layout import layout_of
from .._matrix import Matrix
from .._structure import Structure
from .._sync import ForkSafeLock
from ..errors import EngineError, EngineUnsupportedError
from . import _cudss as native
from ._cudss import ALLOC_FAILED, Config, Data, Library
from ._cudss import library as cudss_library
from ._protocol import DTYPES, Availability, Kind, is_hermitian, not_positive_definite
from ._workspace import Plan, handle_of, recently_used


class CudssSymbolic:
    """`match`: the matrix to match rows and columns by; None: an analysis of the pattern alone. `lu`: whether a symmetric
    matrix is factored by LU. `hybrid`: whether the factor may be in the memory of the host."""

    def __init__(
        self,
        engine: Cudss,
        structure: Structure,
        kind: Kind,
        dtype: torch.dtype,
        stored: str | None,
        match: Matrix | None = None,
        lu: bool = False,
    ):
        # Not the structure itself, which remembers this object.
        self.engine, self.kind, self.dtype, self._stored = engine, kind, dtype, stored
        self.method: Kind = "general" if lu else kind
        part = "full" if self.method == "general" else "upper"
        self.layout, self._device = layout_of(structure, part, stored), structure.device
        block, count = structure.block
        self._block_layout, self.blocks = layout_of(block, part, stored), count
        self._match = None if match is None else self.arranged(match)
        self._plans: dict[bool, Plan] = {}
        self._lock = ForkSafeLock()
        self.plan().give_back(self.plan().workspace())  # the analysis

    @property
    def is_hermitian(self) -> bool:
        return is_hermitian(self.kind, self.dtype)

    def arranged(self, matrix: Matrix) -> Tensor:
        return matrix.arranged(self.layout, self.is_hermitian)

    def plan(self) -> Plan:
        """How to factor under torch's present choice of algorithms."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        with self._lock:
            if deterministic not in self._plans:
                self._plans[deterministic] = self._planned(deterministic)
            return self._plans[deterministic]

    def _planned(self, deterministic: bool) -> Plan:
        configuration: dict[Config, float] = {Config.MATCHING_ALG: native.MATCHING_NONE}
        if self.kind == "spd":  # a pivot that small is not one to be replaced
            configuration[Config.PIVOT_EPSILON] = torch.finfo(self.dtype).eps ** 1.5
        layout, count = self._block_layout, self.blocks
        if self._match is not None:
            configuration[Config.MATCHING_ALG] = native.MATCHING_MAX_DIAG_PRODUCT
        if deterministic and self.engine.hybrid:
            raise EngineUnsupportedError(
                f"cuDSS has no deterministic algorithm for factors in the memory of the host; use engine='cudss', or turn "
                f"torch.use_deterministic_algorithms off for engine={self.engine.name!r}",
                engine=self.engine.name,
            )
        if deterministic:
            configuration[Config.DETERMINISTIC_MODE] = 1
        if self.engine.hybrid:
            configuration[Config.HYBRID_MEMORY_MODE] = 1
        if deterministic or self.engine.hybrid or self._match is not None:  # which exclude uniform batches
            layout, count = self.layout, 1
        library = cudss_library()
        assert isinstance(library, Library)  # nothing is analysed by an engine that is not available
        matrix_type = "hpd" if self.method == "spd" and self.dtype.is_complex else self.method
        handle = handle_of(library, self._device, self.dtype)
        return Plan(handle, layout, count, matrix_type, self.dtype, configuration, self._match)

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return None  # which would matter if there were engines to choose from

    def factor(self, matrix: Matrix) -> CudssFactor:
        try:
            return CudssFactor(self, self.arranged(matrix))
        except EngineError as error:
            if error.code != ALLOC_FAILED:
                raise
        recently_used.release()
        self.plan().release_idle()  # the workspace that had no room
        return CudssFactor(self, self.arranged(matrix))

    def factor_ahead(self, matrix: Matrix) -> CudssFactor:
        return CudssFactor(self, self.arranged(matrix), wait=False)

    def retry(self, matrix: Matrix) -> CudssSymbolic | None:
        if self.kind == "spd" or (self._match is not None and torch.equal(self.arranged(matrix), self._match)):
            return None
        return CudssSymbolic(
            self.engine, matrix.structure, self.kind, self.dtype, self._stored, match=matrix, lu=self.kind != "general"
        )


class CudssFactor:
    flops: int | None = None
    stable = False  # pivots are exchanged within blocks at most: residuals tell
    doubtful = True

    nnz: int | None = None
    memory_bytes: int | None = None
    perturbed_pivots: int | None = None
    negative_eigenvalues: int | None = None

    def __init__(self, symbolic: CudssSymbolic, values: Tensor, wait: bool = True):
        self.values, self.layout, self._symbolic = values, symbolic.layout, symbolic
        self._plan = symbolic.plan()
        scaled = self._scale(values)
        self._workspace = self._plan.workspace()
        weakref.finalize(self, self._plan.give_back, self._workspace).atexit = False
        self._workspace.factor(scaled)
        recently_used.use(self._plan)
        if wait:
            self._read()

    def _scale(self, values: Tensor) -> Tensor:
        """S A S, or s A, with powers of two that are kept."""
        if self._symbolic.kind == "spd":
            self._scales = _power_of_two(values.index_select(0, self.layout.at_diagonal).real.sqrt())
            return values * self._scales[self.layout.rows] * self._scales[self.layout.col]
        blocks = self._symbolic.blocks
        scales = _power_of_two(values.abs().view(blocks, -1).amax(-1, keepdim=True))
        self._scales = scales.expand(-1, self._plan.n * self._plan.count // blocks).reshape(-1)
        return (values.view(blocks, -1) * scales).view(-1)

    def _read(self) -> None:
        """What cuDSS tells; raises where it could not factor."""
        kind, engine, work = self._symbolic.kind, self._symbolic.engine.name, self._workspace
        info = work.get(Data.INFO).value
        work.is_factored = info == 0
        if info and kind == "spd":  # the number is that of a pivot in an order that is not known
            raise not_positive_definite(engine, "Cholesky", None)
        if info:
            raise EngineError(f"cuDSS reports error {info} of the factorisation", engine=engine, code=info)
        self.memory_bytes = work.memory_bytes or None
        if self._plan.count > 1:  # of a batch nothing is told
            return
        self.nnz = work.get(Data.LU_NNZ).value
        self.perturbed_pivots = work.get(Data.NPIVOTS).value
        if kind == "spd":
            self.negative_eigenvalues = 0
        elif self._symbolic.method != "general" and (not self.values.is_complex() or kind == "hermitian"):
            self.negative_eigenvalues = None if self.perturbed_pivots else work.get(Data.INERTIA)[1]

    def solve(self, rhs: Tensor, transpose: bool) -> Tensor:
        is_symmetric = self._symbolic.method != "general"
        conjugate = transpose and is_symmetric and self._symbolic.is_hermitian  # Aᵀ = conj(A)
        rhs = (rhs.conj().resolve_conj() if conjugate else rhs) * self._scales
        x = self._workspace.solve(rhs, transpose and not is_symmetric)
        if self._symbolic.kind == "spd":
            x *= self._scales
        return x.conj().resolve_conj() if conjugate else x


def _power_of_two(sizes: Tensor) -> Tensor:
    """Those nearest below the reciprocals of `sizes`; one where a size is not positive."""
    most = 126 if sizes.dtype == torch.float32 else 1022
    exponents = torch.frexp(sizes)[1].clamp(-most, most)
    return torch.where(sizes > 0, torch.ldexp(torch.ones_like(sizes), -exponents), 1.0)


class Cudss:
    device_types: tuple[str, ...] = ("cuda",)

    def __init__(self, name: str, hybrid: bool):
        self.name, self.hybrid = name, hybrid

    def availability(self) -> Availability:
        return Availability.of(cudss_library())

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return dtype in DTYPES

    def analyze(self, structure: Structure, kind: Kind, dtype: torch.dtype, stored: str | None) -> CudssSymbolic:
        return CudssSymbolic(self, structure, kind, dtype, stored)

    def release_idle(self) -> None:
        recently_used.release()


ENGINE = Cudss("cudss", hybrid=False)
