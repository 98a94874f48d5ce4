"""NVIDIA cuDSS: Cholesky, LDLᵀ and LU on the GPU, from the `nvidia-cudss-cu12` or `-cu13` wheel.

The first analysis uses the pattern alone and serves all values. cuDSS exchanges pivots within
blocks only, and enlarges tiny ones. So matrices are scaled by powers of two: for Cholesky to a
diagonal near one, else to a largest entry near one. Where the result is not accurate,
`analyze_values` makes an analysis with weighted matching, which uses the values too, and factors
symmetric matrices by LU. Equal blocks on the diagonal are a "uniform batch" of cuDSS.

With `torch.use_deterministic_algorithms`, cuDSS repeats its results to the last bit; it then solves
for one right-hand side at a time, and a batch is factored as one large matrix.

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
from ..protocol import (
    METHODS,
    Availability,
    Kind,
    availability_of,
    is_hermitian,
    not_positive_definite,
)
from . import library as native
from .library import Config, Data, Library
from .library import library as cudss_library
from .workspace import Plan, recently_used, retry_with_memory

# The entries of a positive definite matrix whose diagonal was scaled to at most one are below one,
# and below this with rounding errors.
_LARGEST_SPD_ENTRY = 1.01
# cuDSS enlarges pivots below ε to this power, far below the pivots of matrices that are positive
# definite to working precision.
_SPD_PIVOT_POWER = 1.5


class CudssSymbolic:
    """An analysis of a pattern, and plans with and without deterministic algorithms.

    match : the matrix to match rows with columns by; None for an analysis of the pattern alone
    lu : whether a symmetric matrix is factored by LU
    """

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
        self.engine, self.kind, self.dtype, self._triangle = engine, kind, dtype, triangle
        self.factored_as: Kind = "general" if lu else kind
        self.is_hermitian = is_hermitian(kind, dtype)
        coverage: Coverage = "full" if self.factored_as == "general" else "upper"
        self.arrangement = arrangement_of(structure, coverage, triangle)
        block, self.blocks = structure.block
        self._block_arrangement = arrangement_of(block, coverage, triangle)
        self._match = None if match is None else self.arrange(match)
        self.method = METHODS[self.factored_as] + (" with matching" if match else "")
        self._plans: dict[bool, Plan] = {}
        self._lock = ForkSafeLock()
        retry_with_memory(self._analyze)

    def _analyze(self) -> None:
        plan = self.plan()
        plan.give_back(plan.take_workspace())

    def arrange(self, matrix: Matrix) -> Tensor:
        return matrix.arrange(self.arrangement, self.is_hermitian)

    def scale(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """S A S, or s A, with powers of two, and the power (n,) for each row of the solution."""
        if self.kind == "spd":
            scales = scaling_power(values.index_select(0, self.arrangement.at_diagonal).real.sqrt())
            return values * scales[self.arrangement.rows] * scales[self.arrangement.col], scales
        blocks = values.view(self.blocks, -1)
        scales = scaling_power(blocks.abs().amax(-1, keepdim=True))
        n = self.arrangement.crow.numel() - 1
        return (blocks * scales).view(-1), scales.expand(-1, n // self.blocks).reshape(-1)

    def plan(self) -> Plan:
        """How to factor under torch's present choice of algorithms."""
        deterministic = torch.are_deterministic_algorithms_enabled()
        with self._lock:
            if deterministic not in self._plans:
                self._plans[deterministic] = self._make_plan(deterministic)
            return self._plans[deterministic]

    def _make_plan(self, deterministic: bool) -> Plan:
        name, hybrid, matching = self.engine.name, self.engine.hybrid, self._match is not None
        if deterministic and hybrid:
            raise EngineUnsupportedError(
                f"cuDSS has no deterministic algorithm for factors in the memory of the host; use "
                f"engine='cudss', or turn torch.use_deterministic_algorithms off for "
                f"engine={name!r}",
                engine=name,
            )
        alg = native.MATCHING_MAX_DIAG_PRODUCT if matching else native.MATCHING_NONE
        configuration: dict[Config, float] = {Config.MATCHING_ALG: alg}
        if self.kind == "spd":
            epsilon = torch.finfo(self.dtype).eps ** _SPD_PIVOT_POWER
            configuration[Config.PIVOT_EPSILON] = epsilon
        if deterministic:
            configuration[Config.DETERMINISTIC_MODE] = 1
        if hybrid:
            configuration[Config.HYBRID_MEMORY_MODE] = 1
        arrangement, count = self._block_arrangement, self.blocks
        if deterministic or hybrid or matching:  # which exclude uniform batches
            arrangement, count = self.arrangement, 1
        library = cudss_library()
        assert isinstance(library, Library)  # an engine that is not available analyses nothing
        matrix_type = (
            "hpd" if self.factored_as == "spd" and self.dtype.is_complex else self.factored_as
        )
        # Scaled like the values that will be factored.
        match = None if self._match is None else self.scale(self._match)[0]
        return Plan(library, arrangement, count, matrix_type, self.dtype, configuration, match)

    def factor_nnz(self, matrix: Matrix) -> int | None:
        return None  # which only a choice between engines would need

    def factor(self, matrix: Matrix) -> CudssFactor:
        return retry_with_memory(lambda: CudssFactor(self, self.arrange(matrix), wait=True))

    def factor_non_blocking(self, matrix: Matrix) -> CudssFactor:
        return retry_with_memory(lambda: CudssFactor(self, self.arrange(matrix), wait=False))

    def analyze_values(self, matrix: Matrix) -> CudssSymbolic | None:
        known, kind = self._match, self.kind
        if kind == "spd" or (known is not None and torch.equal(self.arrange(matrix), known)):
            return None
        given = self.engine, matrix.structure, kind, self.dtype, self._triangle
        return CudssSymbolic(*given, match=matrix, lu=kind != "general")


class CudssFactor:
    """A factorisation in a workspace; if the host does not `wait`, nothing about it is known."""

    flops: int | None = None
    nnz: int | None = None
    memory_bytes: int | None = None
    perturbed_pivots: int | None = None
    negative_eigenvalues: int | None = None
    sound = False  # cuDSS does not report pivots, and exchanges rows within blocks only

    def __init__(self, symbolic: CudssSymbolic, values: Tensor, wait: bool):
        self.values, self.arrangement, self._symbolic = values, symbolic.arrangement, symbolic
        self._plan = symbolic.plan()
        self._stream = self._plan.gpu.current_stream(self._plan.device)
        scaled, self._scales = symbolic.scale(values)
        is_spd = symbolic.kind == "spd"
        # Entries far beyond the diagonal might overflow in the factorisation.
        if wait and is_spd and not bool(scaled.abs().amax() < _LARGEST_SPD_ENTRY):
            raise self._not_positive_definite()
        self._workspace = self._plan.take_workspace()
        weakref.finalize(self, self._plan.give_back, self._workspace).atexit = False
        self._has_failed = False
        try:
            self._workspace.factor(scaled)
        except EngineError as error:
            if not is_spd or error.out_of_memory:
                raise
            if wait and not self._workspace.read(Data.INFO).value > 0:
                raise
            if wait:
                raise self._not_positive_definite() from error
            self._has_failed = True
        if wait:
            self._read_report()

    def _not_positive_definite(self) -> NotPositiveDefiniteError:
        # INFO is the number of a pivot in an order that cuDSS does not report.
        return not_positive_definite(self._symbolic.engine.name, "Cholesky", None)

    def _read_report(self) -> None:
        """Read what cuDSS reports about the factorisation; raise if it failed."""
        kind, method, work = self._symbolic.kind, self._symbolic.factored_as, self._workspace
        info = work.read(Data.INFO).value
        work.is_factored = info == 0
        if info and kind == "spd":
            raise self._not_positive_definite()
        if info:
            message = f"cuDSS reports error {info} of the factorisation"
            raise EngineError(message, engine=self._symbolic.engine.name, code=info)
        self.memory_bytes = work.memory_bytes or None
        if self._plan.count > 1:  # cuDSS reports nothing else about a batch
            return
        self.nnz = work.read(Data.LU_NNZ).value
        self.perturbed_pivots = work.read(Data.NPIVOTS).value
        has_inertia = not self.values.is_complex() or kind == "hermitian"
        if kind == "spd":
            self.negative_eigenvalues = 0
        elif method != "general" and has_inertia and not self.perturbed_pivots:
            self.negative_eigenvalues = work.read(Data.INERTIA)[1]

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        current = self._plan.gpu.current_stream(self._plan.device)
        if current != self._stream:
            current.wait_stream(self._stream)
            record_current_stream(self.values, self._scales)
        if self._has_failed:
            return torch.full_like(rhs, float("nan"))
        is_symmetric = self._symbolic.factored_as != "general"
        conjugate = transpose and is_symmetric and self._symbolic.is_hermitian  # Aᵀ = conj(A)
        rhs = (rhs.conj().resolve_conj() if conjugate else rhs) * self._scales
        by_lu = transpose and not is_symmetric
        x = retry_with_memory(lambda: self._workspace.substitute(rhs, by_lu))
        if self._symbolic.kind == "spd":
            x *= self._scales
        return x.conj().resolve_conj() if conjugate else x


class Cudss:
    """The engine; `hybrid` factors may lie in the memory of the device and of the host."""

    device_types: tuple[str, ...] = ("cuda",)

    def __init__(self, name: str, hybrid: bool):
        self.name, self.hybrid = name, hybrid

    def availability(self) -> Availability:
        return availability_of(cudss_library())

    def supports(self, kind: Kind, dtype: torch.dtype) -> bool:
        return dtype in DTYPES

    def analyze(
        self, structure: Structure, kind: Kind, dtype: torch.dtype, triangle: str | None
    ) -> CudssSymbolic:
        return CudssSymbolic(self, structure, kind, dtype, triangle)

    def release_idle(self) -> None:
        recently_used.release()


ENGINE = Cudss("cudss", hybrid=False)
# For factors that do not fit into the memory of the device.
HYBRID = Cudss("cudss_hybrid", hybrid=True)
