"""`Factorization`: a matrix that has been factored, to be solved with as often as one likes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._deferred import DeferredNumeric
from ._factors import Factors, Problem
from ._kinds import Options
from ._numeric import Numeric
from ._solve import check_values, solve_values
from ._structure import Structure
from ._untraced import untraced
from .errors import TransformError


@dataclass(frozen=True)
class Info:
    """What is known about a factorisation. ``None`` where the engine does not tell; sums over a batch.

    assume : what the matrix was taken for: "spd", "symmetric", "hermitian" or "general" ("mixed" in a batch)
    assume_reason : why
    engine : the engine ("mixed" in a batch)
    engine_reason : why
    device : where the factor is: with the matrix or, where no engine solves there, on the "cpu"
    n : rows of the matrix
    nnz : stored entries, duplicates counted once
    factor_nnz : entries of the factor or factors
    factor_flops : floating-point operations of the factorisation: Σ c_j², c_j the entries of column j of the factor
    memory_bytes : bytes that the factor holds
    perturbed_pivots : pivots that were too small and were enlarged
    analysis_seconds : time of the symbolic analysis, 0 if an earlier one was used
    factorization_seconds : time of the numeric factorisation
    """

    assume: str
    assume_reason: str
    engine: str
    engine_reason: str
    device: str
    n: int
    nnz: int
    factor_nnz: int | None
    factor_flops: int | None
    memory_bytes: int | None
    perturbed_pivots: int | None
    analysis_seconds: float
    factorization_seconds: float


def _info(structure: Structure, numerics: list[Numeric | DeferredNumeric], device: torch.device) -> Info:
    def same(values: Iterable[str]) -> str:
        different = set(values)
        return different.pop() if len(different) == 1 else "mixed" if different else "none"

    def total(name: str) -> int | None:
        each = [getattr(numeric.trusted.factor, name) for numeric in numerics if numeric.trusted is not None]
        return None if None in each else sum(each)  # type: ignore[arg-type]

    return Info(
        assume=same(numeric.kind for numeric in numerics),
        assume_reason=same(numeric.kind_reason for numeric in numerics),
        engine=same(numeric.engine for numeric in numerics),
        engine_reason=same(numeric.engine_reason for numeric in numerics),
        device=str(device),
        n=structure.shape[0],
        nnz=structure.canonical_nnz,
        factor_nnz=total("nnz"),
        factor_flops=total("flops"),
        memory_bytes=total("memory_bytes"),
        perturbed_pivots=total("perturbed_pivots"),
        analysis_seconds=sum(numeric.analysis_seconds for numeric in numerics),
        factorization_seconds=sum(numeric.factorization_seconds for numeric in numerics),
    )


class Factorization:
    """A factored matrix; made by `factorize` and `Pattern.factorize`.

    It keeps the matrix as it was when it was factored, whatever is written to its values later. Solutions are
    differentiable in those values and in `b`, to any order, and their derivatives use the same factor. The memory of
    the factor is released with the last of this object and the graphs of its solutions.

    >>> import torch, sparse_solver as ss
    >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]]).to_sparse()
    >>> F = ss.factorize(A, assume="spd")
    >>> F.solve(torch.tensor([1.0, 2.0]))
    tensor([0.0909, 0.6364])
    >>> F.info.assume, F.info.n, F.info.perturbed_pivots
    ('spd', 2, 0)
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @untraced
    def __init__(self, structure: Structure, values: Tensor, options: Options):
        check_values(values, structure.nnz, structure.device)
        # A copy, since what is written to `values` later is not part of this matrix, nor of its graph.
        values = values.clone()
        self._structure, self._values, self._options = structure, values, options
        self._factors = Factors(Problem(structure, options))
        self.shape, self.dtype = (*values.shape[:-1], *structure.shape), values.dtype
        # A solve without right-hand sides factors, below whatever transforms of torch.func `values` are part of.
        self.solve(values.new_zeros((structure.shape[0], 0)))

    @property
    def info(self) -> Info:
        """What is known about the factorisation. Raises `TransformError` inside of `torch.vmap` over the values."""
        if self._factors.made is None:
            raise TransformError(
                "inside of torch.vmap a factorisation is one of many; factorize the batch outside of it"
            )
        return _info(self._structure, [numeric for numeric, _ in self._factors.made], self._factors.device)

    def solve(self, b: Tensor, *, transpose: bool = False) -> Tensor:
        """x = A⁻¹ b, or A⁻ᵀ b with ``transpose=True`` (never A⁻ᴴ).

        `b` is (n,), (n, k), or batched, as for `torch.linalg.solve`; its dtype and device are those of the matrix.
        Costs one substitution a right-hand side.

        Raises `ShapeError`, `DtypeError`, `DeviceError`, `NonFiniteError`, `SingularMatrixError`.

        >>> import torch, sparse_solver as ss
        >>> F = ss.factorize(torch.tensor([[2.0, 1.0], [0.0, 1.0]]).to_sparse())
        >>> F.solve(torch.ones(2)), F.solve(torch.ones(2), transpose=True)
        (tensor([0., 1.]), tensor([0.5000, 0.5000]))
        """
        return solve_values(self._structure, self._values, b, self._options, transpose, self._factors)

    def __repr__(self) -> str:
        made = "" if self._factors.made is None else f", assume={self.info.assume!r}, engine={self.info.engine!r}"
        return f"Factorization(shape={self.shape}, dtype={self.dtype}{made})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Factorization lives in the memory of a native library; copy or pickle its Pattern and values"
        )
