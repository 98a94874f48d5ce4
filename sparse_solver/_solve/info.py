"""`Info`: what is known about a factorisation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch

from .._engines.protocol import IterativeFactor
from .._factor.accuracy.checked_factor import InverseOperator
from .._sparse.structure import Structure


@dataclass(frozen=True)
class Info:
    """What is known about a factorisation.

    Values that the engine does not report are None. Counts of a batch are sums.

    Attributes
    ----------
    assume : str
        What the matrix was taken for: "spd", "symmetric", "hermitian" or "general" ("mixed" in a
        batch of several kinds).
    assume_reason : str
        Why it was taken for that.
    engine : str
        The engine that factored ("mixed" in a batch with several).
    engine_reason : str
        Why this engine was chosen.
    method : str
        How the engine factored, such as "Cholesky", "LU", or "LU with scaling and matching".
    method_reason : str
        Why it factored in this way: a method that is not the fastest one follows where the factor
        of a faster one was not accurate, or had to enlarge pivots.
    device : str
        Where the factor is: with the matrix or, where no engine solves accurately there, on the
        "cpu" ("mixed" in a batch with both).
    n : int
        Rows of the matrix.
    nnz : int
        Stored entries, duplicates counted once; in a batch with different patterns, of all
        matrices.
    factor_nnz : int or None
        Entries of the factor or factors.
    factor_flops : int or None
        Floating-point operations of the factorisation: Σ c_j², with c_j the entries of column j of
        the factor.
    memory_bytes : int or None
        Memory of the factor, in bytes.
    perturbed_pivots : int or None
        Pivots that were too small and were enlarged.
    analysis_seconds : float
        Time of the symbolic analysis in seconds; 0 if an earlier one was used.
    factorization_seconds : float
        Time of the numeric factorisation in seconds.
    iterations : int or None
        Iterations of the latest solve, forward or backward, of the right-hand side that took most
        of them. None for an engine that factors, and before the first solve; so are the next two.
    backward_error : float or None
        The largest backward error of the latest solve: relative changes of the matrix and of b by
        so much, measured with a diagonal of ones, make the solution an exact one.
    proof : str or None
        What shows that the matrix is not singular ("mixed" in a batch with several proofs).

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> info = ss.factorize(torch.eye(2).to_sparse(), engine="superlu").info
    >>> print(str(info).splitlines()[0])
    assume                 spd
    """

    assume: str
    assume_reason: str
    engine: str
    engine_reason: str
    method: str
    method_reason: str
    device: str
    n: int
    nnz: int
    factor_nnz: int | None
    factor_flops: int | None
    memory_bytes: int | None
    perturbed_pivots: int | None
    analysis_seconds: float
    factorization_seconds: float
    iterations: int | None = None
    backward_error: float | None = None
    proof: str | None = None

    def __str__(self) -> str:
        names = [field.name for field in fields(self)]
        if self.proof is None:  # the engine does not iterate
            names = [name for name in names if name not in _OF_ITERATIONS]
        width = max(map(len, names))

        def cell(value: object) -> str:
            if value is None:
                return "not known"
            return f"{value:.3g}" if isinstance(value, float) else str(value)

        return "\n".join(f"{name:<{width}}  {cell(getattr(self, name))}" for name in names)


# What only engines that iterate have.
_OF_ITERATIONS = "iterations", "backward_error", "proof"


def collect_info(
    structure: Structure, factors: list[InverseOperator], device: torch.device
) -> Info:
    """What is known about these factorisations of matrices with one structure."""
    records = [factor.record for factor in factors]

    def same(values: Iterable[str]) -> str:
        different = set(values)
        return different.pop() if len(different) == 1 else "mixed" if different else "none"

    def total(name: str) -> int | None:
        each = [getattr(one.factor, name) for one in factors if one.factor is not None]
        return None if None in each else sum(each)

    iterative: list[IterativeFactor] = []
    for one in factors:
        if isinstance(one.factor, IterativeFactor):
            iterative.append(one.factor)
    iterations = [one.iterations for one in iterative if one.iterations is not None]
    errors = [one.backward_error for one in iterative if one.backward_error is not None]
    devices = [one.factor.values.device for one in factors if one.factor is not None]
    return Info(
        assume=same(record.kind for record in records),
        assume_reason=same(record.kind_reason for record in records),
        engine=same(record.engine for record in records),
        engine_reason=same(record.engine_reason for record in records),
        method=same(record.method for record in records),
        method_reason=same(record.method_reason for record in records),
        device=same(map(str, devices or [device])),
        n=(structure.batch_shape or structure.shape)[-1],
        nnz=structure.canonical_nnz,
        factor_nnz=total("nnz"),
        factor_flops=total("flops"),
        memory_bytes=total("memory_bytes"),
        perturbed_pivots=total("perturbed_pivots"),
        analysis_seconds=sum(record.analysis_seconds for record in records),
        factorization_seconds=sum(record.factorization_seconds for record in records),
        iterations=max(iterations, default=None),
        backward_error=max(errors, default=None),
        proof=same(one.proof for one in iterative) if iterative else None,
    )
