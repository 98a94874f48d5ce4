"""Symmetry: what the values of a matrix show, and the kinds of factorisation to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ..._engines.analysis import ASKED_FOR
from ..._engines.protocol import Kind
from ..._engines.registry import engine_named
from ..._sparse.matrix import Matrix
from ..._sparse.structure import Structure, find_empty_line, find_outside
from ...errors import (
    NotPositiveDefiniteError,
    NotSymmetricError,
    SingularMatrixError,
    TriangleError,
)
from ..options import Assume, Options, Triangle

# Entries that differ by this many ε are equal up to rounding: the perturbation is below the error
# bound of a factorisation.
ASYMMETRY_LIMIT = 64


class Asymmetry(NamedTuple):
    """An entry that differs from the opposite one, and the modulus of the difference."""

    row: int
    col: int
    difference: float


class KindLadder:
    """The kinds of factorisation to try, from the fastest on, and why.

        for kind in ladder:
            with ladder.attempt(kind):
                return factor(kind)

    The context suppresses NotPositiveDefiniteError while there is another kind to try.
    """

    def __init__(self, kinds: tuple[Kind, ...], reason: str):
        self.kinds, self.reason = kinds, reason

    def __iter__(self) -> Iterator[Kind]:
        return iter(self.kinds)

    @contextmanager
    def attempt(self, kind: Kind) -> Iterator[None]:
        """Try one kind; add to the reason why it did not succeed."""
        try:
            yield
        except NotPositiveDefiniteError as error:
            if kind == self.kinds[-1]:
                raise
            self.reason += ", but " + str(error).split(";")[0]


def check_triangle(structure: Structure, triangle: Triangle | None) -> None:
    """Raise TriangleError if an entry lies outside the triangle."""
    outside = None if triangle is None else structure.remember(find_outside, triangle)
    if outside is not None:
        row, col = outside
        raise TriangleError(
            f"triangle={triangle!r}, but the entry at ({row}, {col}) is not in that triangle; "
            f"store one triangle only, or omit triangle=",
            row=row,
            col=col,
        )


def check_lines(structure: Structure, triangle: Triangle | None) -> None:
    """Raise SingularMatrixError if a row or a column has no stored entry."""
    empty = structure.remember(find_empty_line, triangle)
    if empty is not None:
        raise empty_line_error(*empty)


def empty_line_error(line: str, number: int) -> SingularMatrixError:
    """The error for a row or column (`line`) without a stored entry."""
    message = f"the matrix is structurally singular: {line} {number} has no stored entry"
    return SingularMatrixError(message, engine=None, row=number if line == "row" else None)


def choose_kinds(matrix: Matrix, options: Options) -> KindLadder:
    """The kinds to try; raise if the values are not finite, or not what the options assume."""
    n, triangle = matrix.structure.shape[0], options.triangle
    if options.assume == "auto":
        found = find_kinds(
            matrix.dtype.is_complex,
            lambda conjugate: None if triangle else find_asymmetry(matrix, conjugate),
            lambda: n == 0 or float(matrix.diagonal.real.min()) > 0,
        )
        return found if options.engine is None else _leave_out(found, options.engine, matrix.dtype)
    if options.assume == "general":
        return KindLadder(("general",), ASKED_FOR)
    kind = options.kind(matrix.dtype)
    check_symmetry(matrix, options)
    if kind == "spd" and n:
        diagonal = matrix.diagonal.real
        if float(diagonal.min()) <= 0:
            row = int(diagonal.argmin())
            raise not_positive_diagonal(row, float(diagonal[row]))
    return KindLadder((kind,), ASKED_FOR)


def _leave_out(ladder: KindLadder, engine: str, dtype: torch.dtype) -> KindLadder:
    """The ladder from the first kind on that the engine supports, if it supports one."""
    for at, kind in enumerate(ladder.kinds):
        if engine_named(engine).supports(kind, dtype):
            return KindLadder(ladder.kinds[at:], ladder.reason)
    return ladder


def find_kinds(
    is_complex: bool,
    find_asymmetry: Callable[[bool], Asymmetry | None],
    has_positive_diagonal: Callable[[], bool],
) -> KindLadder:
    """The kinds to try under ``assume="auto"``.

    `find_asymmetry` gives the worst violation of A = Aᵀ (called with True: of A = Aᴴ), if any.
    """
    place = find_asymmetry(is_complex)
    if place is not None:
        if is_complex and find_asymmetry(False) is None:
            return KindLadder(("symmetric",), "complex symmetric")
        neither = "neither symmetric nor Hermitian" if is_complex else "not symmetric"
        return KindLadder(("general",), f"{neither} at ({place.row}, {place.col})")
    indefinite: Kind = "hermitian" if is_complex else "symmetric"
    what = "Hermitian" if is_complex else "symmetric"
    if has_positive_diagonal():
        return KindLadder(("spd", indefinite), f"{what} with a positive diagonal")
    return KindLadder((indefinite,), f"{what} with a diagonal that is not positive")


def check_symmetry(matrix: Matrix, options: Options) -> None:
    """Raise NotSymmetricError unless the matrix is symmetric (Hermitian) as ``assume=`` says."""
    conjugate = matrix.dtype.is_complex and options.assume != "symmetric"
    if options.triangle is None:
        place = find_asymmetry(matrix, conjugate)
        if place is not None:
            raise not_symmetric(place, conjugate, options.assume)
    elif conjugate:
        _check_real_diagonal(matrix, options)


def find_asymmetry(matrix: Matrix, conjugate: bool) -> Asymmetry | None:
    """The worst violation of A = Aᵀ (or Aᴴ); None if the matrix is symmetric up to rounding.

    Entries are equal up to rounding if |a_ij − a_ji| ≤ 64 ε max(|a_ij|, |a_ji|, √|a_ii a_jj|),
    which is judged entry by entry and does not depend on how the matrix is scaled.
    """
    if matrix.values.numel() == 0 or matrix.match_triangles(conjugate):
        return None
    structure = matrix.structure
    matrix.check_finite()  # NaN cannot be compared
    excess, difference = measure_asymmetry(matrix, conjugate)
    worst = int(excess.argmax())
    if not float(excess[worst]) > 0:
        return None
    row, col = int(structure.canonical_rows[worst]), int(structure.col[worst])
    return Asymmetry(structure.label(row), structure.label(col), float(difference[worst]))


def measure_asymmetry(matrix: Matrix, conjugate: bool) -> tuple[Tensor, Tensor]:
    """(canonical_nnz,) the excess of |a_ij − a_ji| over rounding errors, and |a_ij − a_ji|."""
    structure, canonical = matrix.structure, matrix.canonical
    at = structure.transpose_map
    opposite = canonical.index_select(0, at.clamp(min=0)).masked_fill(at < 0, 0)
    if conjugate and opposite.is_complex():
        opposite = opposite.conj().resolve_conj()
    root = structure.diagonal_of(canonical).abs().sqrt()
    roots = root[structure.canonical_rows] * root[structure.col]
    return excess_over_rounding(canonical, opposite, roots)


def excess_over_rounding(entries: Tensor, opposite: Tensor, roots: Tensor) -> tuple[Tensor, Tensor]:
    """The excess of |entries − opposite| over rounding errors, and the difference itself.

    `roots` are the √|a_ii a_jj| of the places.
    """
    scale = torch.maximum(torch.maximum(entries.abs(), opposite.abs()), roots)
    difference = (entries - opposite).abs()
    return difference - ASYMMETRY_LIMIT * torch.finfo(entries.dtype).eps * scale, difference


def imaginary_diagonal(matrix: Matrix) -> Tensor:
    """(n,) the excess of the imaginary parts of a Hermitian diagonal over rounding errors."""
    diagonal = matrix.diagonal
    limit = ASYMMETRY_LIMIT * torch.finfo(matrix.dtype).eps * diagonal.real.abs()
    excess: Tensor = diagonal.imag.abs() - limit
    return excess


def _check_real_diagonal(matrix: Matrix, options: Options) -> None:
    diagonal, excess = matrix.diagonal, imaginary_diagonal(matrix)
    if excess.numel() and not bool((excess <= 0).all()):
        row = int(excess.argmax())
        label = matrix.structure.label(row)
        raise NotSymmetricError(
            f"assume={options.assume!r}, but the diagonal entry of row {label} is not real",
            row=label,
            col=label,
            difference=2 * abs(float(diagonal.imag[row])),
        )


def not_positive_diagonal(row: int, entry: float) -> NotPositiveDefiniteError:
    """The error for a diagonal entry that is not positive under ``assume="spd"``."""
    return NotPositiveDefiniteError(
        f"assume='spd', but the diagonal entry of row {row} is {entry:g}; a positive definite "
        f"matrix has a positive diagonal",
        row=row,
        engine=None,
    )


def not_symmetric(place: Asymmetry, conjugate: bool, assume: Assume) -> NotSymmetricError:
    """The error for a matrix that ``assume=`` takes for symmetric."""
    return NotSymmetricError(
        f"assume={assume!r}, but {describe_asymmetry(place, conjugate)}; use assume='general' for "
        f"LU, or triangle= if one triangle is stored",
        **place._asdict(),
    )


def describe_asymmetry(place: Asymmetry, conjugate: bool) -> str:
    """A violation of symmetry in words."""
    row, col, difference = place
    other = "the conjugate of the entry" if conjugate else "the entry"
    return f"the entry at ({row}, {col}) differs from {other} at ({col}, {row}) by {difference:g}"
