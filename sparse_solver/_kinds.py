"""What a matrix is assumed to be, what its values show, and the kinds of factorisation to try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from . import _engines
from ._engines import Kind
from ._matrix import Matrix
from ._structure import Structure
from .errors import (
    NotPositiveDefiniteError,
    NotSymmetricError,
    OptionError,
    SingularMatrixError,
    TriangleError,
)

Assume = Literal["auto", "spd", "symmetric", "hermitian", "general"]
Triangle = Literal["lower", "upper"]
Reporting = Literal["sync", "deferred"]  # the keyword is check=

Place = tuple[int, int, float]  # row and column of an entry that differs from its opposite, and by how much

ASKED_FOR = "asked for"  # why a matrix is of a kind
_TRIANGLE = ", or triangle= if one triangle is stored"


@dataclass(frozen=True)
class Options:
    """How a matrix is stored, what it is assumed to be, which engine factors it (None: a suitable one), and when errors
    are raised.

    `constraints` : for the matrix of a minimisation, how many constraints there are, which are its last rows; see
    `_saddle`.
    """

    assume: Assume = "auto"
    triangle: Triangle | None = None
    engine: str | None = None
    constraints: int | None = None
    reporting: Reporting = "sync"

    def check(self, dtype: torch.dtype) -> None:
        """Raises OptionError where the options contradict each other, or do not exist."""
        if self.assume not in get_args(Assume):
            raise OptionError(f"assume={self.assume!r}: expected one of {', '.join(map(repr, get_args(Assume)))}")
        if self.triangle is not None and self.triangle not in get_args(Triangle):
            raise OptionError(f"triangle={self.triangle!r}: expected 'lower', 'upper' or None")
        if self.engine is not None and self.engine not in _engines.names():
            names = ", ".join(map(repr, _engines.names()))
            raise OptionError(f"engine={self.engine!r}: there is no such engine; the engines are {names}")
        if self.reporting not in get_args(Reporting):
            raise OptionError(f"check={self.reporting!r}: expected 'sync' or 'deferred'")
        if self.reporting == "deferred" and self.assume == "auto":
            raise OptionError(
                "check='deferred' does not wait to see what the values are: say assume='spd', 'symmetric', 'hermitian' or "
                "'general'"
            )
        if self.triangle is not None and self.assume == "general":
            raise OptionError("triangle= stores half of a symmetric matrix, which assume='general' denies")
        if self.triangle is not None and self.assume == "auto" and dtype.is_complex:
            raise OptionError(
                "one triangle of a complex matrix does not tell whether the other one is its transpose or its conjugate "
                "transpose: say assume='symmetric', 'hermitian' or 'spd'"
            )

    def kind(self, dtype: torch.dtype) -> Kind:
        """What a matrix is assumed to be, if that is not found out."""
        assert self.assume != "auto"
        return "symmetric" if self.assume == "hermitian" and not dtype.is_complex else self.assume

    def mirror(self, dtype: torch.dtype) -> str | None:
        """What an entry off the diagonal also stands for at the opposite place."""
        if self.triangle is None:
            return None
        return "hermitian" if dtype.is_complex and self.assume in ("spd", "hermitian") else "symmetric"


def check_triangle(structure: Structure, triangle: Triangle | None) -> None:
    """Raises if an entry is outside of the triangle."""
    if triangle is not None:
        outside = structure.remember(("outside", triangle), lambda: structure.outside(triangle))
        if outside is not None:
            row, col = outside
            raise TriangleError(
                f"triangle={triangle!r}, but the entry at ({row}, {col}) is not in that triangle; "
                f"store one triangle only, or leave triangle= out",
                row=row,
                col=col,
            )


def check_lines(structure: Structure, triangle: Triangle | None) -> None:
    """Raises if a row or a column has no entry."""
    empty = structure.remember(("empty", triangle), lambda: structure.empty_line(triangle))
    if empty is not None:
        raise SingularMatrixError(
            f"the matrix is structurally singular: {empty[0]} {empty[1]} has no stored entry",
            engine=None,
            row=empty[1] if empty[0] == "row" else None,
        )


def kinds_of(matrix: Matrix, options: Options) -> tuple[tuple[Kind, ...], str]:
    """The kinds to try, in order, and why; raises if the values are not what the options say, or not finite."""
    if options.assume == "auto":
        return _found(matrix, options.triangle)
    if options.assume == "general":
        return ("general",), ASKED_FOR
    kind = options.kind(matrix.dtype)
    check_symmetry(matrix, options)
    if kind == "spd" and matrix.structure.shape[0]:
        diagonal = matrix.diagonal.real
        if float(diagonal.min()) <= 0:
            row = int(diagonal.argmin())
            raise not_positive_diagonal(row, float(diagonal[row]))
    return (kind,), ASKED_FOR


def not_positive_diagonal(row: int, entry: float) -> NotPositiveDefiniteError:
    return NotPositiveDefiniteError(
        f"assume='spd', but the diagonal entry of row {row} is {entry:g}; a positive definite matrix has a positive diagonal",
        row=row,
        engine=None,
    )


def check_symmetry(matrix: Matrix, options: Options) -> None:
    """Raises unless the matrix is symmetric (Hermitian), as ``assume=`` says."""
    hermitian = matrix.dtype.is_complex and options.assume != "symmetric"
    if options.triangle is None:
        _require_symmetric(matrix, options, hermitian)
    elif hermitian:
        _require_real_diagonal(matrix, options)


def _found(matrix: Matrix, triangle: Triangle | None) -> tuple[tuple[Kind, ...], str]:
    """``assume="auto"``."""
    return kinds_found(
        matrix.dtype.is_complex,
        lambda conjugate: None if triangle is not None else _asymmetry(matrix, conjugate),
        lambda: matrix.structure.shape[0] == 0 or float(matrix.diagonal.real.min()) > 0,
    )


def kinds_found(
    is_complex: bool, asymmetry: Callable[[bool], Place | None], has_positive_diagonal: Callable[[], bool]
) -> tuple[tuple[Kind, ...], str]:
    """The kinds to try, in order, and why; `asymmetry` finds the worst violation of A = Aᵀ (given True: Aᴴ), if any."""
    place = asymmetry(is_complex)
    if place is not None:
        if is_complex and asymmetry(False) is None:
            return ("symmetric",), "complex symmetric"
        neither = "neither symmetric nor Hermitian" if is_complex else "not symmetric"
        return ("general",), f"{neither} at ({place[0]}, {place[1]})"
    what, indefinite = ("Hermitian", "hermitian") if is_complex else ("symmetric", "symmetric")
    if has_positive_diagonal():
        return ("spd", indefinite), f"{what} with a positive diagonal"  # type: ignore[return-value]
    return (indefinite,), f"{what} with a diagonal that is not positive"  # type: ignore[return-value]


def _asymmetry(matrix: Matrix, conjugate: bool) -> Place | None:
    """The place and size of the worst violation of A = Aᵀ (or Aᴴ), None if there is none.

    Equal up to rounding is equal: |a_ij − a_ji| ≤ 64 ε max(|a_ij|, |a_ji|, √|a_ii a_jj|), a perturbation below
    the error bound of a factorisation, entry by entry, and however the matrix is scaled.
    """
    if matrix.values.numel() == 0 or matrix.is_mirrored(conjugate):
        return None
    structure = matrix.structure
    _ = matrix.largest  # raises where there is NaN, with which nothing can be compared
    excess, difference = asymmetry(matrix, conjugate)
    worst = int(excess.argmax())
    if not float(excess[worst]) > 0:
        return None
    return int(structure.canonical_rows[worst]), int(structure.col[worst]), float(difference[worst])


def asymmetry(matrix: Matrix, conjugate: bool) -> tuple[Tensor, Tensor]:
    """(canonical_nnz,) by how much |a_ij − a_ji| exceeds what rounding explains, and that difference itself."""
    structure, canonical = matrix.structure, matrix.canonical
    at = structure.transpose_map
    opposite = canonical.index_select(0, at.clamp(min=0)).masked_fill(at < 0, 0)
    if conjugate and opposite.is_complex():
        opposite = opposite.conj().resolve_conj()
    root = structure.diagonal_of(canonical).abs().sqrt()
    return excess(canonical, opposite, root[structure.canonical_rows] * root[structure.col])


def excess(entries: Tensor, opposite: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
    """By how much entries exceed those at the opposite places, or their conjugates, more than rounding explains, and the
    difference itself; `roots` are the √|a_ii a_jj|."""
    scale = torch.maximum(torch.maximum(entries.abs(), opposite.abs()), roots)
    difference = (entries - opposite).abs()
    return difference - 64 * torch.finfo(entries.dtype).eps * scale, difference


def _require_symmetric(matrix: Matrix, options: Options, conjugate: bool) -> None:
    place = _asymmetry(matrix, conjugate)
    if place is not None and options.constraints is not None:
        what = "Q is not Hermitian:" if conjugate else "Q is not symmetric:"
        hint = "an energy knows its symmetric part only, (Q + Qᵀ) / 2 (complex: Qᴴ): pass that"
        raise not_symmetric(place, conjugate, what, hint + _TRIANGLE)
    if place is not None:
        raise not_symmetric(place, conjugate, *asked_for(options.assume, _TRIANGLE))


def asked_for(assume: Assume, more: str = "") -> tuple[str, str]:
    """What `not_symmetric` says where ``assume=`` is to blame."""
    return f"assume={assume!r}, but", f"use assume='general' for LU{more}"


def not_symmetric(place: Place, conjugate: bool, what: str, hint: str) -> NotSymmetricError:
    row, col, difference = place
    other = "the conjugate of " if conjugate else ""
    return NotSymmetricError(
        f"{what} the entry at ({row}, {col}) differs from {other}the one at ({col}, {row}) by {difference:g}; {hint}",
        row=row,
        col=col,
        difference=difference,
    )


def _require_real_diagonal(matrix: Matrix, options: Options) -> None:
    diagonal, excess = matrix.diagonal, imaginary_diagonal(matrix)
    if excess.numel() and not bool((excess <= 0).all()):
        row = int(excess.argmax())
        raise NotSymmetricError(
            f"{'Q is not Hermitian:' if options.constraints is not None else f'assume={options.assume!r}, but'} "
            f"the diagonal entry of row {row} is not real",
            row=row,
            col=row,
            difference=2 * abs(float(diagonal.imag[row])),
        )


def imaginary_diagonal(matrix: Matrix) -> Tensor:
    """(n,) by how much the diagonal of a Hermitian matrix is less real than rounding explains."""
    diagonal = matrix.diagonal
    excess: Tensor = diagonal.imag.abs() - 64 * torch.finfo(matrix.dtype).eps * diagonal.real.abs()
    return excess
