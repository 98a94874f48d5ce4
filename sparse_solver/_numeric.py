"""One matrix, factored: the only layer that calls an engine. It takes and returns plain tensors."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from . import _engines
from ._engines import Kind
from ._kinds import Options, check_places, kinds_of
from ._structure import Structure
from ._trust import Trusted
from .errors import NonFiniteError, NotPositiveDefiniteError, SingularMatrixError


class Numeric:
    """The factorisation of the matrix with the given contiguous values (nnz,); raises where there is none.

    `kind` is what `assume` became and `kind_reason` why; `engine` and `engine_reason` likewise.
    """

    def __init__(self, structure: Structure, values: Tensor, options: Options):
        self.n = structure.shape[0]
        self.engine, self.engine_reason = "none", "nothing to factor"
        self.analysis_seconds = self.factorization_seconds = 0.0
        self.trusted: Trusted | None = None

        check_places(structure, options.triangle)
        canonical = structure.canonical(values)
        largest = _finite_maximum(values, canonical)
        kinds, self.kind_reason = kinds_of(structure, canonical, options)
        self.kind: Kind = kinds[0]
        if self.n == 0:
            return
        if largest == 0:
            raise SingularMatrixError("the matrix is singular: all its values are zero", engine=None, row=None)
        for self.kind in kinds:
            try:
                self.trusted = self._factor(structure, canonical, options, largest)
                return
            except NotPositiveDefiniteError as error:
                if self.kind == kinds[-1]:
                    raise
                self.kind_reason += ", but " + str(error).split(";")[0]

    def _factor(self, structure: Structure, canonical: Tensor, options: Options, largest: float) -> Trusted:
        kind, dtype, stored = self.kind, canonical.dtype, options.triangle
        analysis = _engines.analyze(structure, kind, dtype, stored, options.engine, canonical)
        self.engine, self.engine_reason = analysis.engine, analysis.reason
        self.analysis_seconds += analysis.seconds

        def factored(symbolic: _engines.Symbolic) -> Trusted:
            started = time.perf_counter()
            factor = symbolic.factor(canonical)
            self.factorization_seconds += time.perf_counter() - started
            return Trusted(factor, self.n, kind, largest, self.engine)

        trusted = factored(analysis.symbolic)
        pivot = trusted.factor.smallest_pivot
        if not trusted.factor.stable:
            accurate = trusted.is_accurate()
            if trusted.factor.perturbed_pivots or not accurate:
                started = time.perf_counter()
                better = analysis.symbolic.retry(canonical)
                self.analysis_seconds += time.perf_counter() - started
                if better is not None:
                    second = factored(better)
                    if second.is_accurate() >= accurate:
                        trusted = second
                        _engines.remember_better(structure, self.engine, kind, dtype, stored, better)
            trusted.refuse_singular()
        # Singular matrices rarely give a zero pivot, mostly one that is a rounding error: up to 600 ε have been seen on
        # Laplacians of 10⁴ unknowns.
        elif pivot is None or not pivot > 1e4 * torch.finfo(dtype).eps:
            trusted.refuse_singular()
        return trusted

    def solve(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """A⁻¹ or A⁻ᵀ applied to the rows of the contiguous `rhs` (k, n), in a new tensor.

        Rows that hold NaN or infinity raise NonFiniteError if `strict`, else they give NaN (a loss that overflowed
        must reach a gradient scaler as what it is).
        """
        if rhs.numel() == 0:
            return torch.empty_like(rhs)
        assert self.trusted is not None
        size = torch.linalg.vector_norm(rhs, float("inf"), dim=-1)
        finite = torch.isfinite(size)
        if bool(finite.all()):
            return self.trusted.solve(rhs, size, transpose, strict)
        if strict:
            _raise_non_finite("b", rhs)
            raise NonFiniteError("b is too large: the modulus of an entry is infinite", argument="b", index=None)
        rows = finite.unsqueeze(-1)
        x = self.solve(torch.where(rows, rhs, torch.zeros_like(rhs)), transpose, strict)
        return torch.where(rows, x, torch.full_like(rhs, float("nan")))


def _finite_maximum(values: Tensor, canonical: Tensor) -> float:
    """The largest modulus of the canonical values; raises NonFiniteError if one is NaN or infinite."""
    if canonical.numel() == 0:
        return 0.0
    largest = float(torch.linalg.vector_norm(canonical, float("inf")))
    if largest != largest or largest == float("inf"):
        _raise_non_finite("values", values)
        raise NonFiniteError(
            "values are too large: the modulus or the sum of some is infinite", argument="values", index=None
        )
    return largest


def _raise_non_finite(argument: str, tensor: Tensor) -> None:
    bad = torch.nonzero(~torch.isfinite(tensor))
    if bad.numel():
        place = tuple(bad[0].tolist())
        # A right-hand side may have been folded out of a batch: what its caller knows is the row.
        raise NonFiniteError(f"{argument}[{place[-1]}] is {tensor[place].item()}", argument=argument, index=place[-1])
