"""The matrix of a minimisation: what its factorisation has to show, and what is wrong where it does not.

x minimises ½ xᴴ Q x − Re bᴴ x subject to C x = d, with C of m independent rows, if and only if

    K [x; μ] = [b; d],    K = [[Q, Cᴴ], [C, 0]],

and Q is positive definite on the null space of C. With Z a basis of that, the eigenvalues of K have the signs of those
of Zᴴ Q Z, and m more of either sign. So K must have m negative eigenvalues, and not one more.
(N. I. M. Gould, "On practical conditions for the existence and uniqueness of solutions to the general equality quadratic
programming problem", Math. Programming 32, 1985; J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd ed., 16.3.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._engines import is_hermitian, scattered
from ._kinds import Options
from ._layout import Layout, layout_of
from ._matrix import Matrix
from ._numeric import Doubtful, Numeric
from ._structure import Structure
from .errors import (
    EngineUnsupportedError,
    NonFiniteError,
    NotPositiveDefiniteError,
    RedundantConstraintsError,
    SingularMatrixError,
    SparseSolverError,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_MOST = 2**26  # entries of products of constraints


class Minimization(Numeric):
    """The factorisation of K, whose last ``options.constraints`` rows are those of C; without constraints, of Q.

    Raises NotPositiveDefiniteError where there is no minimum, SingularMatrixError or RedundantConstraintsError where it is
    not unique, and `Doubtful`.
    """

    def __init__(self, structure: Structure, values: Tensor, options: Options, blocks: int = 1):
        assert options.constraints is not None
        self._constraints = options.constraints
        try:
            super().__init__(structure, values, options, blocks)
        except NotPositiveDefiniteError as error:
            if blocks == 1 and _is_convex(structure, values, options):  # a pivot of zero, but for rounding errors
                raise self._singular(error.engine, "a pivot of its factorisation is zero") from None
            row = None if error.row is None else structure.label(error.row % (structure.shape[0] // blocks))
            raise _no_minimum(row, "is not positive definite", error.engine) from None
        except SingularMatrixError as error:
            if blocks == 1:
                raise self._explained(*_of_structure(structure, values, options), error) from None
            raise
        if self._constraints and self.trusted is not None:
            self._require_minimum(structure, values, options)

    def solve(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        try:
            return super().solve(rhs, transpose, strict)
        except SingularMatrixError as error:
            assert self.trusted is not None
            if self._blocks == 1:
                raise self._explained(self.trusted.factor.layout, self.trusted.factor.values, error) from None
            raise

    def _require_minimum(self, structure: Structure, values: Tensor, options: Options) -> None:
        assert self.trusted is not None
        negative = self.trusted.factor.negative_eigenvalues
        if negative == self._blocks * self._constraints:
            return
        if self._blocks > 1:
            raise Doubtful
        if negative is not None or not (
            _is_convex(structure, values, options)
            or _is_convex_with_penalty(*_parts(*_of_structure(structure, values, options), self._constraints))
        ):
            raise _no_minimum(None, "is not positive definite on the null space of the constraints", self.engine)

    def _explained(self, layout: Layout, values: Tensor, error: SingularMatrixError) -> SparseSolverError:
        """What a singular matrix means."""
        rows: tuple[int, ...] = ()
        if self._constraints:
            rows = dependent_rows(_parts(layout, values, self._constraints)[1])
        if rows:
            return RedundantConstraintsError(
                f"{named(rows)} of C (in the entries of x that are not known) depend on each other: if they do not contradict "
                f"each other, leave out one of them, and another until the rest is independent",
                rows=rows,
            )
        return self._singular(error.engine, str(error))

    def _singular(self, engine: str | None, reason: str) -> SingularMatrixError:
        where = " on the null space of the constraints" if self._constraints else ""
        return SingularMatrixError(
            f"Q is singular{where}, so that the minimum is not unique: let entries of x be known=, or add a constraint on "
            f"what is not determined, or a multiple of the identity or of the mass matrix to Q ({reason})",
            engine=engine,
            row=None,
        )


def _no_minimum(row: int | None, what: str, engine: str | None) -> NotPositiveDefiniteError:
    place = "" if row is None else f" (found at row {row})"
    return NotPositiveDefiniteError(
        f"Q {what}{place}: the energy falls without bound, its stationary point is no minimum; "
        f"solve() finds stationary points",
        row=row,
        engine=engine,
    )


@contextmanager
def names_of_entries(structure: Structure, options: Options) -> Iterator[None]:
    """In here, errors about the entries of K name those of Q and of C, from which its values are joined in this order."""
    try:
        yield
    except NonFiniteError as error:
        if options.constraints is None or error.argument != "values" or error.index is None:
            raise
        n = structure.shape[0] - options.constraints
        in_Q = int(((structure.rows < n) & (structure.cols < n)).sum())
        in_C = structure.nnz - in_Q if options.triangle is not None else (structure.nnz - in_Q) // 2
        name, index = ("Q", error.index) if error.index < in_Q else ("C", (error.index - in_Q) % in_C)
        raise NonFiniteError(
            f"entry {index} of the values of {name} is not finite", argument=name, index=index
        ) from None


def named(rows: tuple[int, ...]) -> str:
    """Constraints in words."""
    if len(rows) == 1:
        return f"constraint {rows[0]}"
    if len(rows) > 10:
        return f"constraints {', '.join(map(str, rows[:10]))} and {len(rows) - 10} more"
    return f"constraints {', '.join(map(str, rows[:-1]))} and {rows[-1]}"


def dependent_rows(C: csr_matrix) -> tuple[int, ...]:
    """The rows that take part in a linear dependence: where a vector of the null space of Cᴴ that is left to chance is
    not zero."""
    y = _null_component(C, scattered(C.shape[0], torch.float64, 0.25).numpy().T, _norms(C))
    return _rows_above(y, 1e-6)


def conflicting_rows(C: Structure, values: Tensor, known: Tensor, y: Tensor, d: Tensor, eps: float) -> tuple[int, ...]:
    """The rows of C that contradict each other: where what remains of the rows of `d` (k, m) after the known entries, the
    rows of `y` (k, p), is not what C can give. A contradiction of the size of rounding errors is none."""
    from scipy.sparse import csc_matrix

    matrix = csc_matrix((values.numpy(), (C.rows.numpy(), C.cols.numpy())), shape=C.shape)
    is_known = torch.zeros(C.shape[1], dtype=torch.bool).index_fill(0, known, True)
    held, free = matrix[:, known.numpy()], matrix[:, torch.nonzero(~is_known).squeeze(-1).numpy()].tocsr()
    norms, right, forced = _norms(free), d.mT.numpy(), y.mT.numpy()
    size = ((abs(right) + abs(held) @ abs(forced)) / norms[:, None]).max(initial=0.0)
    return _rows_above(_null_component(free, right - held @ forced, norms), eps**0.5 * size)


def _rows_above(vectors: Any, bound: float) -> tuple[int, ...]:
    return tuple((abs(vectors) > bound).any(1).nonzero()[0].tolist())


def _norms(C: csr_matrix) -> Any:
    """(m,) the norms of the rows, one for rows of zeros."""
    from scipy.sparse.linalg import norm

    norms = norm(C, axis=1)
    norms[norms == 0] = 1.0
    return norms


def _null_component(C: csr_matrix, right: Any, norms: Any) -> Any:
    """(m, k) the projections of the columns of `right` on the null space of Cᴴ, after the rows of both were divided by
    `norms`: what no x can make of C x.

    δ (C Cᴴ + δ)⁻¹ keeps that space, and multiplies what belongs to a singular value σ by δ / (σ² + δ). The augmented
    system, in which C is not squared, tells σ below the root of the rounding error from zero.
    """
    import numpy as np
    from scipy.sparse import bmat, diags, identity
    from scipy.sparse.linalg import splu

    C = diags(1 / norms) @ C
    m, n = C.shape
    delta = 1e-12
    K = bmat([[identity(n), C.conj().T], [C, -delta * identity(m)]], format="csc", dtype=C.dtype)
    lu = splu(K)
    y = (right / norms[:, None]).astype(C.dtype)
    for _ in range(2):
        y = lu.solve(np.vstack((np.zeros((n, y.shape[1]), C.dtype), -delta * y)))[n:]
    return y


def _is_convex(structure: Structure, values: Tensor, options: Options) -> bool:
    """Whether Q is positive semidefinite up to rounding errors, which is more than is asked, but what most are.

    Then K is not singular only if Q is definite on the null space of C: zᴴ Q z = 0 means Q z = 0, and K [z; 0] = 0.
    """
    N = structure.shape[0]
    assert options.constraints is not None
    n = N - options.constraints
    part = structure.without(torch.arange(n, N))

    def build() -> Structure:
        i = torch.arange(n)
        return Structure(torch.cat((part.structure.rows, i)), torch.cat((part.structure.cols, i)), (n, n))

    shifted = structure.remember("shifted", build)
    entries = values.index_select(0, part.entries)
    entries = entries.to(torch.complex128 if entries.is_complex() else torch.float64)
    shift = _shift(float(entries.abs().max()) if entries.numel() else 1.0)
    return _is_definite(shifted, torch.cat((entries, entries.new_full((n,), shift))), options.triangle)


def _is_convex_with_penalty(Q: csr_matrix, C: csr_matrix) -> bool:
    """Whether Q + ρ CᴴC is positive definite for some ρ, which proves that Q is on the null space of C; if it is, a ρ that
    is large enough shows it. (G. Debreu, "Definite and semidefinite quadratic forms", Econometrica 20, 1952.)"""
    from scipy.sparse import identity

    if int((C.getnnz(1).astype("int64") ** 2).sum()) > _MOST:
        raise EngineUnsupportedError(
            "whether Q, which is not positive semidefinite, is positive definite on the null space of these constraints, "
            "none of the engines here can tell: of real matrices PARDISO can (pip install mkl)",
            engine=None,
        )
    size = abs(Q).max() or 1.0
    Q = Q + _shift(size) * identity(Q.shape[0])
    penalty = (size / abs(C).max() ** 2) * (C.conj().T @ C)
    for rho in (1.0, 1e3, 1e6):
        M = (Q + rho * penalty).tocoo()
        rows, cols = (torch.from_numpy(index.astype("int64")) for index in (M.row, M.col))
        if _is_definite(Structure(rows, cols, M.shape), torch.from_numpy(M.data), None):
            return True
    return False


def _is_definite(structure: Structure, values: Tensor, triangle: Any) -> bool:
    try:
        Numeric(structure, values, Options("spd", triangle))
    except (NotPositiveDefiniteError, SingularMatrixError):
        return False
    return True


def _shift(size: float) -> float:
    """What makes a semidefinite matrix with entries of this size definite in spite of rounding errors."""
    return 1e4 * torch.finfo(torch.float64).eps * size


def _of_structure(structure: Structure, values: Tensor, options: Options) -> tuple[Layout, Tensor]:
    """The upper triangle of K."""
    layout = layout_of(structure, "upper", options.triangle)
    hermitian = is_hermitian("hermitian", values.dtype)
    return layout, layout.gather(Matrix(structure, values).canonical, hermitian)


def _parts(layout: Layout, values: Tensor, constraints: int) -> tuple[csr_matrix, csr_matrix]:
    """Q and C in double precision, from the entries of K, or of its upper triangle."""
    from scipy.sparse import csr_matrix, diags, triu

    numbers = values.to(torch.complex128 if values.is_complex() else torch.float64).numpy()
    N = layout.crow.numel() - 1
    n = N - constraints
    K = triu(csr_matrix((numbers, layout.col.numpy(), layout.crow.numpy()), shape=(N, N)), format="csr")
    upper = K[:n, :n]
    return upper + upper.conj().T - diags(upper.diagonal(), shape=(n, n)), K[:n, n:].conj().T.tocsr()
