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

from ..._sparse.matrix import Matrix
from ..._sparse.structure import Structure
from ..._sparse.triangle import Coverage, arrangement_of
from ..._sparse.values import DTYPES, scaling_power
from ..._torch.fork_safe_lock import ForkSafeLock
from ..._torch.modes import record_current_stream
from ...errors import EngineError, EngineUnsupportedError, NotPositiveDefiniteError
from ..protocol import Availability, Kind, is_hermitian, not_positive_definite
from . import library as native
from .library import Config, Data, Library
from .library import library as cudss_library
from .workspace import Plan, recently_used, with_room

_DEFINITE = 1.01  # entries of a positive definite matrix whose diagonal is scaled to one or less stay below it


class CudssSymbolic:
    """`match`: the matrix to match rows and columns by; None: an analysis of the pattern alone. `lu`: whether a symmetric
    matrix is factored by LU. `hybrid`: whether the factor may be in the memory of the host."""

    def __init__(
        self,
        engine: Cudss,
        structure: Structure,
        kind: Kind,
        dtype: torch.dtype,
        triangle: str | None,
        match: Matrix | None = None,
        lu: bool = False,
    ):
        # Not the structure itself, which remembers this object.
        self.engine, self.kind, self.dtype, self._stored = engine, kind, dtype, triangle
        self.method: Kind = "general" if lu else kind
        coverage: Coverage = "full" if self.method == "general" else "upper"
        self.arrangement, self._device = (
            arrangement_of(structure, coverage, triangle),
            structure.device,
        )
        block, count = structure.block
        self._block_arrangement, self.blocks = arrangement_of(block, coverage, triangle), count
        self._match = None if match is None else self.arrange(match)
        self._plans: dict[bool, Plan] = {}
        self._lock = ForkSafeLock()
        with_room(self._analyse)

    def _analyse(self) -> None:
        plan = self.plan()
        plan.give_back(plan.workspace())

    @property
    def is_hermitian(self) -> bool:
        return is_hermitian(self.kind, self.dtype)

    def arrange(self, matrix: Matrix) -> Tensor:
        return matrix.arrange(self.arrangement, self.is_hermitian)

    def scaled(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """S A S, or s A, with powers of two, and these for each row of what is solved."""
        if self.kind == "spd":
            scales = scaling_power(values.index_select(0, self.arrangement.at_diagonal).real.sqrt())
            return values * scales[self.arrangement.rows] * scales[self.arrangement.col], scales
        scales = scaling_power(values.abs().view(self.blocks, -1).amax(-1, keepdim=True))
        of_rows = scales.expand(-1, (self.arrangement.crow.numel() - 1) // self.blocks).reshape(-1)
        return (values.view(self.blocks, -1) * scales).view(-1), of_rows

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
        arrangement, count = self._block_arrangement, self.blocks
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
        if (
            deterministic or self.engine.hybrid or self._match is not None
        ):  # which exclude uniform batches
            arrangement, count = self.arrangement, 1
        library = cudss_library()
        assert isinstance(
            library, Library
        )  # nothing is analysed by an engine that is not available
        matrix_type = "hpd" if self.method == "spd" and self.dtype.is_complex else self.method
        match = (
            None if self._match is None else self.scaled(self._match)[0]
        )  # as what will be factored
        return Plan(
            library, self._device, arrangement, count, matrix_type, self.dtype, configuration, match
        )

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return None  # which would matter if there were engines to choose from

    def factor(self, matrix: Matrix) -> CudssFactor:
        return with_room(lambda: CudssFactor(self, self.arrange(matrix)))

    def factor_non_blocking(self, matrix: Matrix) -> CudssFactor:
        return with_room(lambda: CudssFactor(self, self.arrange(matrix), wait=False))

    def analyze_values(self, matrix: Matrix) -> CudssSymbolic | None:
        if self.kind == "spd" or (
            self._match is not None and torch.equal(self.arrange(matrix), self._match)
        ):
            return None
        return CudssSymbolic(
            self.engine,
            matrix.structure,
            self.kind,
            self.dtype,
            self._stored,
            match=matrix,
            lu=self.kind != "general",
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
        self.values, self.arrangement, self._symbolic = values, symbolic.arrangement, symbolic
        self._plan = symbolic.plan()
        self._stream = self._plan.gpu.current_stream(self._plan.device)
        scaled, self._scales = symbolic.scaled(values)
        # The diagonal is below one now. Values far from it would not fit into the dtype, and none of this is looked at.
        if wait and symbolic.kind == "spd" and not bool(scaled.abs().amax() < _DEFINITE):
            raise self._indefinite()
        self._workspace = self._plan.workspace()
        weakref.finalize(self, self._plan.give_back, self._workspace).atexit = False
        self._has_failed = False
        try:
            self._workspace.factor(scaled)
        except EngineError as error:
            if symbolic.kind != "spd" or error.out_of_memory:
                raise
            if wait and not self._workspace.get(Data.INFO).value > 0:
                raise
            if wait:
                raise self._indefinite() from error
            self._has_failed = True
        # Where nobody reads what became of it, the next factorisation does not rest on this one.
        if wait:
            self._read()

    def _indefinite(self) -> NotPositiveDefiniteError:
        # INFO is the number of a pivot in an order that is not known.
        return not_positive_definite(self._symbolic.engine.name, "Cholesky", None)

    def _read(self) -> None:
        """What cuDSS tells; raises where it could not factor."""
        kind, engine, work = self._symbolic.kind, self._symbolic.engine.name, self._workspace
        info = work.get(Data.INFO).value
        work.is_factored = info == 0
        if info and kind == "spd":
            raise self._indefinite()
        if info:
            raise EngineError(
                f"cuDSS reports error {info} of the factorisation", engine=engine, code=info
            )
        self.memory_bytes = work.memory_bytes or None
        if self._plan.count > 1:  # of a batch nothing is told
            return
        self.nnz = work.get(Data.LU_NNZ).value
        self.perturbed_pivots = work.get(Data.NPIVOTS).value
        if kind == "spd":
            self.negative_eigenvalues = 0
        elif self._symbolic.method != "general" and (
            not self.values.is_complex() or kind == "hermitian"
        ):
            self.negative_eigenvalues = None if self.perturbed_pivots else work.get(Data.INERTIA)[1]

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        current = self._plan.gpu.current_stream(self._plan.device)
        if current != self._stream:
            current.wait_stream(self._stream)
            record_current_stream(self.values, self._scales)
        if self._has_failed:
            return torch.full_like(rhs, float("nan"))
        is_symmetric = self._symbolic.method != "general"
        conjugate = transpose and is_symmetric and self._symbolic.is_hermitian  # Aᵀ = conj(A)
        rhs = (rhs.conj().resolve_conj() if conjugate else rhs) * self._scales
        x = with_room(lambda: self._workspace.substitute(rhs, transpose and not is_symmetric))
        if self._symbolic.kind == "spd":
            x *= self._scales
        return x.conj().resolve_conj() if conjugate else x


class Cudss:
    device_types: tuple[str, ...] = ("cuda",)

    def __init__(self, name: str, hybrid: bool):
        self.name, self.hybrid = name, hybrid

    def availability(self) -> Availability:
        return Availability.of(cudss_library())

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return dtype in DTYPES

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> CudssSymbolic:
        return CudssSymbolic(self, structure, kind, dtype, triangle)

    def release_idle(self) -> None:
        recently_used.release()


ENGINE = Cudss("cudss", hybrid=False)


# The factor lies in the memory of the device and of the host: for factors that the device has no room for.
HYBRID = Cudss("cudss_hybrid", hybrid=True)
