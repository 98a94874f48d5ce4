"""One matrix, factored: what kind it is, whether its values may be used, and whether its solutions may be trusted.

This is the only layer that calls an engine. It takes and returns plain tensors; derivatives are above it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from . import _engines
from ._engines import Factor, Kind, is_hermitian
from ._rules import Places, apply
from ._structure import Structure
from .errors import (
    EngineError,
    NonFiniteError,
    NotPositiveDefiniteError,
    NotSymmetricError,
    OptionError,
    SingularMatrixError,
    TriangleError,
)

Assume = Literal["auto", "spd", "symmetric", "hermitian", "general"]
Triangle = Literal["lower", "upper"]

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


@dataclass(frozen=True)
class Options:
    """How a matrix is stored, what it is assumed to be, and which engine factors it (None: a suitable one)."""

    assume: Assume = "auto"
    triangle: Triangle | None = None
    engine: str | None = None

    def check(self, dtype: torch.dtype) -> None:
        """Raises OptionError where the options contradict each other, or do not exist."""
        if self.assume not in get_args(Assume):
            raise OptionError(f"assume={self.assume!r}: expected one of {', '.join(map(repr, get_args(Assume)))}")
        if self.triangle is not None and self.triangle not in get_args(Triangle):
            raise OptionError(f"triangle={self.triangle!r}: expected 'lower', 'upper' or None")
        if self.engine is not None and self.engine not in _engines.names():
            _engines.engine_named(self.engine)  # raises, and says which there are
        if self.triangle is not None and self.assume == "general":
            raise OptionError("triangle= stores half of a symmetric matrix, which assume='general' denies")
        if self.triangle is not None and self.assume == "auto" and dtype.is_complex:
            raise OptionError(
                "one triangle of a complex matrix does not tell whether the other one is its transpose or its conjugate "
                "transpose: say assume='symmetric', 'hermitian' or 'spd'"
            )

    def mirror(self, dtype: torch.dtype) -> str | None:
        """What an entry off the diagonal also stands for at the opposite place."""
        if self.triangle is None:
            return None
        return "hermitian" if dtype.is_complex and self.assume in ("spd", "hermitian") else "symmetric"


class Numeric:
    """The factorisation of the matrix with the given values (nnz,); raises where there is none.

    `kind` is what `assume` became and `kind_reason` why; `engine` and `engine_reason` likewise.
    """

    def __init__(self, structure: Structure, values: Tensor, options: Options):
        self.structure, self.options, self.dtype = structure, options, values.dtype
        self.n = structure.shape[0]
        self.factor: Factor | None = None
        self.engine, self.engine_reason = "none", "nothing to factor"
        self.analysis_seconds = self.factorization_seconds = 0.0
        self._singular: str | None = None  # the verdict of `_judge`, once it was asked: "" or a message

        if options.triangle is not None:
            self._check_triangle(options.triangle)
        canonical = structure.canonical(values)
        self._largest = _finite_maximum(structure, values, canonical)
        kinds, self.kind_reason = self._kinds(canonical)
        self.kind: Kind = kinds[0]
        if self.n == 0:
            return
        self._check_structure(canonical)
        for kind in kinds:
            try:
                self._factor(kind, canonical)
                break
            except NotPositiveDefiniteError as error:
                if kind == kinds[-1]:
                    raise
                self.kind_reason += f", but {error}"

    # What the matrix is.

    def _check_triangle(self, triangle: str) -> None:
        outside = self.structure.remember(("outside", triangle), lambda: self.structure.outside(triangle))
        if outside is not None:
            row, col = outside
            raise TriangleError(
                f"triangle={triangle!r}, but the entry at ({row}, {col}) is not in that triangle; "
                f"store one triangle only, or leave triangle= out",
                row=row,
                col=col,
            )

    def _kinds(self, canonical: Tensor) -> tuple[tuple[Kind, ...], str]:
        """The kinds to try, in order, and why."""
        assume, triangle, is_complex = self.options.assume, self.options.triangle, self.dtype.is_complex
        if assume == "general":
            return ("general",), "asked for"
        if assume == "auto":
            if not is_complex:
                if triangle is None and (found := self._asymmetry(canonical, conjugate=False)) is not None:
                    return ("general",), f"not symmetric at ({found[0]}, {found[1]})"
                what, indefinite = "symmetric", "symmetric"
            elif (found := self._asymmetry(canonical, conjugate=True)) is None:
                what, indefinite = "Hermitian", "hermitian"
            elif self._asymmetry(canonical, conjugate=False) is None:
                return ("symmetric",), "complex symmetric"
            else:
                return ("general",), f"neither symmetric nor Hermitian at ({found[0]}, {found[1]})"
            if self.n and float(self.structure.diagonal_of(canonical).real.min()) <= 0:
                return (indefinite,), f"{what} with a diagonal that is not positive"  # type: ignore[return-value]
            return ("spd", indefinite), f"{what} with a positive diagonal"  # type: ignore[return-value]
        kind: Kind = "symmetric" if assume == "hermitian" and not is_complex else assume
        if triangle is None:
            self._require_symmetric(canonical, conjugate=is_hermitian(kind, self.dtype))
        elif is_hermitian(kind, self.dtype):
            self._require_real_diagonal(canonical)
        if kind == "spd" and self.n:
            diagonal = self.structure.diagonal_of(canonical).real
            row = int(diagonal.argmin())
            if float(diagonal[row]) <= 0:
                raise NotPositiveDefiniteError(
                    f"assume='spd', but the diagonal entry of row {row} is {float(diagonal[row]):g}; "
                    f"a positive definite matrix has a positive diagonal",
                    row=row,
                    engine=None,
                )
        return (kind,), "asked for"

    def _asymmetry(self, canonical: Tensor, conjugate: bool) -> tuple[int, int, float] | None:
        """The place and size of the worst violation of A = Aᵀ (or Aᴴ), None if there is none.

        Equal up to rounding is equal: |a_ij − a_ji| ≤ 64 ε max(|a_ij|, |a_ji|, √|a_ii a_jj|), a perturbation below
        the error bound of a factorisation, entry by entry, and however the matrix is scaled.
        """
        structure = self.structure
        if canonical.numel() == 0:
            return None
        at = structure.transpose_map
        if structure.remember("structurally symmetric", lambda: bool((at >= 0).all())):
            opposite = canonical[at]
        else:
            opposite = canonical[at.clamp(min=0)].masked_fill(at < 0, 0)
        if conjugate and canonical.is_complex():
            opposite = opposite.conj().resolve_conj()
        if torch.equal(canonical, opposite):
            return None
        root = structure.diagonal_of(canonical).abs().sqrt()
        scale = torch.maximum(canonical.abs(), opposite.abs())
        scale = torch.maximum(scale, root[structure.canonical_rows] * root[structure.col])
        difference = (canonical - opposite).abs()
        excess = difference - 64 * torch.finfo(self.dtype).eps * scale
        worst = int(excess.argmax())
        if not float(excess[worst]) > 0:
            return None
        return int(structure.canonical_rows[worst]), int(structure.col[worst]), float(difference[worst])

    def _require_symmetric(self, canonical: Tensor, conjugate: bool) -> None:
        found = self._asymmetry(canonical, conjugate)
        if found is not None:
            row, col, difference = found
            other = "the conjugate of " if conjugate else ""
            raise NotSymmetricError(
                f"assume={self.options.assume!r}, but the entry at ({row}, {col}) differs from {other}the one at "
                f"({col}, {row}) by {difference:g}; use assume='general' for LU, or triangle= if one triangle is stored",
                row=row,
                col=col,
                difference=difference,
            )

    def _require_real_diagonal(self, canonical: Tensor) -> None:
        diagonal = self.structure.diagonal_of(canonical)
        if self.n and bool((diagonal.imag != 0).any()):
            row = int(diagonal.imag.abs().argmax())
            raise NotSymmetricError(
                f"assume={self.options.assume!r}, but the diagonal entry of row {row} is not real",
                row=row,
                col=row,
                difference=2 * abs(float(diagonal.imag[row])),
            )

    def _check_structure(self, canonical: Tensor) -> None:
        triangle = self.options.triangle
        empty = self.structure.remember(("empty", triangle), lambda: self.structure.empty_line(triangle))
        if empty is not None:
            raise SingularMatrixError(
                f"the matrix is structurally singular: {empty[0]} {empty[1]} has no stored entry",
                engine=None,
                row=empty[1] if empty[0] == "row" else None,
            )
        if self._largest == 0:
            raise SingularMatrixError("the matrix is singular: all its values are zero", engine=None, row=None)

    # Its factor.

    def _factor(self, kind: Kind, canonical: Tensor) -> None:
        structure, stored, engine = self.structure, self.options.triangle, self.options.engine
        self.kind = kind
        canonical = canonical.contiguous()
        analysis = _engines.analyze(structure, kind, self.dtype, stored, engine, canonical)
        self.engine, self.engine_reason = analysis.engine, analysis.reason
        self.analysis_seconds += analysis.seconds
        started = time.perf_counter()
        self.factor = factor = analysis.symbolic.factor(canonical)
        if factor.perturbed_pivots:
            again = time.perf_counter()
            better = analysis.symbolic.retry(canonical)
            self.analysis_seconds += time.perf_counter() - again
            if better is not None:
                second = better.factor(canonical)
                if (second.perturbed_pivots or 0) < factor.perturbed_pivots:
                    self.factor = factor = second
                    _engines.remember_better(structure, self.engine, kind, self.dtype, stored, better)
        self.factorization_seconds += time.perf_counter() - started
        # Singular matrices rarely give a zero pivot, mostly one that is a rounding error: up to 600 ε have been seen on
        # Laplacians of 10⁴ unknowns. Where pivots are not known, or may have been perturbed, one substitution tells.
        pivot = factor.smallest_pivot
        if not factor.stable or pivot is None or not pivot > 1e4 * torch.finfo(self.dtype).eps:
            self._refuse_singular()

    # Its solutions.

    def solve(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """A⁻¹ or A⁻ᵀ applied to the rows of the contiguous `rhs` (k, n), in a new tensor.

        Rows that hold NaN or infinity raise NonFiniteError if `strict`, else they give NaN (a loss that overflowed
        must reach a gradient scaler as what it is).
        """
        if rhs.numel() == 0:
            return torch.empty_like(rhs)
        factor = self._required_factor()
        size = torch.linalg.vector_norm(rhs, float("inf"), dim=-1)
        finite = torch.isfinite(size)
        if not bool(finite.all()):
            if strict:
                _raise_non_finite("b", rhs)
            safe = torch.where(finite.unsqueeze(-1), rhs, torch.zeros_like(rhs))
            return torch.where(finite.unsqueeze(-1), self.solve(safe, transpose, strict), torch.full_like(rhs, float("nan")))
        x = factor.solve(rhs, transpose)
        return self._trusted(x, rhs, size, transpose)

    def _required_factor(self) -> Factor:
        assert self.factor is not None
        return self.factor

    def _trusted(self, x: Tensor, rhs: Tensor, rhs_size: Tensor, transpose: bool) -> Tensor:
        """`x` itself if it solves the system as well as the dtype allows; refined, or refused, otherwise.

        A backward stable method leaves a residual of ε‖A‖‖x‖, which is small beside ‖b‖ unless A is nearly singular:
        then, and for methods that are not stable, the residual is formed.
        """
        eps, factor = torch.finfo(self.dtype).eps, self._required_factor()
        x_size = torch.linalg.vector_norm(x, float("inf"), dim=-1)
        if not bool(torch.isfinite(x_size).all()):
            self._refuse_singular()
            raise NonFiniteError(f"the solution is too large for {self.dtype}", argument="x", index=None)
        scale = self._largest * x_size
        if factor.stable and bool((eps * scale <= eps**0.4 * rhs_size).all()):
            return x
        residual = rhs - self._apply(x, transpose)
        error = torch.linalg.vector_norm(residual, float("inf"), dim=-1)
        for _ in range(3):
            if bool((error <= 8 * eps * (scale + rhs_size)).all()):
                break
            refined = x + factor.solve(residual, transpose)
            residual = rhs - self._apply(refined, transpose)
            refined_error = torch.linalg.vector_norm(residual, float("inf"), dim=-1)
            if not bool((refined_error < error).any()):
                break
            better = refined_error < error
            x = torch.where(better.unsqueeze(-1), refined, x)
            error = torch.where(better, refined_error, error)
        if bool((error <= eps**0.5 * rhs_size).all()):
            return x
        self._refuse_singular()
        if not factor.stable and bool((error > 1e4 * eps * (scale + rhs_size)).any()):
            raise EngineError(
                f"{self.engine} could not factor this {self.kind} matrix accurately (residual {float(error.max()):.1e}); "
                f"try another engine=, or scale the rows and columns of the matrix",
                engine=self.engine,
                code=None,
            )
        return x

    def _apply(self, x: Tensor, transpose: bool) -> Tensor:
        factor = self._required_factor()
        layout = factor.layout
        mirror = None
        if layout.part != "full":
            mirror = "hermitian" if is_hermitian(self.kind, self.dtype) else "symmetric"
        places = Places(layout.rows, layout.col, mirror)
        return apply(factor.values, x, places.transposed() if transpose else places)

    def _refuse_singular(self) -> None:
        """Raises if the matrix is singular to working precision.

        Any vector v gives an upper bound ‖A v‖ / (‖A‖ ‖v‖) of the reciprocal condition number. One that is no larger
        than rounding errors means that A is within rounding errors of a singular matrix.
        """
        if self._singular is None:
            bound = self._reciprocal_condition_bound()
            self._singular = "" if bound > 64 * torch.finfo(self.dtype).eps else self._describe_singular(bound)
        if self._singular:
            raise SingularMatrixError(self._singular, engine=self.engine, row=None)

    def _reciprocal_condition_bound(self) -> float:
        """An upper bound of the reciprocal condition number, a tight one if the matrix is nearly singular.

        Inverse iteration leads to a vector that A nearly annihilates, but only as nearly as the factor F is that of A:
        perturbed pivots put it off. Then v − F⁻¹ A v leads further: it maps null vectors of A to themselves.
        """
        factor, bound, eps = self._required_factor(), float("inf"), torch.finfo(self.dtype).eps
        generator = torch.Generator().manual_seed(0)
        Av = v = torch.rand((1, self.n), generator=generator, dtype=torch.float64).mul_(2).sub_(1).to(self.dtype)
        for step in range(4):
            v = factor.solve(v, False) if step < 2 else v - factor.solve(Av, False)
            size = torch.linalg.vector_norm(v, float("inf"))
            if not bool(torch.isfinite(size)) or float(size) == 0:
                return 0.0 if step < 2 else bound
            if step == 0 and not factor.perturbed_pivots and float(size) * self._largest < eps**-0.6:
                return 1 / (float(size) * self._largest)  # far from singular: a random vector hardly grows
            v = v / size
            Av = self._apply(v, False)
            bound = min(bound, float(torch.linalg.vector_norm(Av, float("inf"))) / self._largest)
        return bound

    def _describe_singular(self, bound: float) -> str:
        from scipy.sparse import csr_matrix
        from scipy.sparse.csgraph import structural_rank

        layout = self._required_factor().layout
        if layout.part == "full":
            ones = torch.ones(layout.nnz, dtype=torch.int8).numpy()
            rank = int(structural_rank(csr_matrix((ones, layout.col.numpy(), layout.crow.numpy()), shape=(self.n, self.n))))
            if rank < self.n:
                return f"the matrix is structurally singular: its pattern has rank {rank} of {self.n}, whatever the values"
        return (
            f"the matrix is singular to working precision: it maps some vector of size 1 to one of size "
            f"{bound:.0e} times its largest entry (a graph or mesh Laplacian needs an anchor: a fixed vertex, or a "
            f"multiple of the identity or of the mass matrix added)"
        )


def _finite_maximum(structure: Structure, values: Tensor, canonical: Tensor) -> float:
    """The largest modulus of the canonical values; raises NonFiniteError if one is NaN or infinite."""
    if canonical.numel() == 0:
        return 0.0
    largest = float(torch.linalg.vector_norm(canonical, float("inf")))
    if largest != largest or largest == float("inf"):
        _raise_non_finite("values", values)
        raise NonFiniteError("duplicate entries add up to infinity", argument="values", index=None)
    return largest


def _raise_non_finite(argument: str, tensor: Tensor) -> None:
    bad = torch.nonzero(~torch.isfinite(tensor))
    if bad.numel():
        place = tuple(bad[0].tolist())
        # A right-hand side may have been folded out of a batch: what its caller knows is the row.
        raise NonFiniteError(f"{argument}[{place[-1]}] is {tensor[place].item()}", argument=argument, index=place[-1])
