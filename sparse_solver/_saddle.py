"""The matrix of a minimisation: what its factorisation has to show, and what is wrong where it does not.

x minimises ½ xᴴ Q x − Re bᴴ x subject to C x = d, with C of m independent rows, if and only if

    K [x; μ] = [b; d],    K = [[Q, Cᴴ], [C, 0]],

and Q is positive definite on the null space of C. With Z a basis of that, the eigenvalues of K have the signs of those
of Zᴴ Q Z, and m more of either sign. So K must have m negative eigenvalues, and not one more.
(N. I. M. Gould, "On practical conditions for the existence and uniqueness of solutions to the general equality quadratic
programming problem", Math. Programming 32, 1985; J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd ed., 16.3.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._dependence import Dependences
from ._engines import is_hermitian
from ._inertia import Objective, equilibrating, negative_eigenvalues, whole
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


class Minimization(Numeric):
    """The factorisation of K, whose last ``options.constraints`` rows are those of C; without constraints, of Q.

    Raises NotPositiveDefiniteError where there is no minimum, SingularMatrixError or RedundantConstraintsError where it is
    not unique, EngineUnsupportedError where that cannot be told, and `Doubtful`.
    """

    def __init__(self, structure: Structure, values: Tensor, options: Options, blocks: int = 1):
        assert options.constraints is not None
        self._constraints, self._unknowns = options.constraints, structure.shape[0] // blocks - options.constraints
        self._structure, self._stored = structure, options.triangle
        try:
            super().__init__(structure, values, options, blocks)
        except (NotPositiveDefiniteError, SingularMatrixError) as error:
            if blocks > 1:
                raise
            raise self._explained(error, *_upper(structure, values, options)) from None
        if self._constraints and self.trusted is not None:
            self._require_minimum(structure, values, options)

    def solve(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        try:
            return super().solve(rhs, transpose, strict)
        except SingularMatrixError as error:
            assert self.trusted is not None
            if self._blocks > 1:
                raise
            raise self._explained(error, self.trusted.factor.layout, self.trusted.factor.values) from None
        except NonFiniteError as error:
            if error.argument != "b" or error.index is None:
                raise
            name, index = ("b", error.index) if error.index < self._unknowns else ("d", error.index - self._unknowns)
            index = self._structure.label(index) if name == "b" else index
            raise NonFiniteError(
                f"{name}[{index}] less what the known entries contribute is not finite", argument=name, index=index
            ) from None

    def _require_minimum(self, structure: Structure, values: Tensor, options: Options) -> None:
        assert self.trusted is not None
        factor, count = self.trusted.factor, self._blocks * self._constraints
        negative = factor.negative_eigenvalues
        if negative is None:
            upper, dtype = _upper(structure, values, options), values.dtype
            objective = self._objective(*upper)
            try:
                negative = negative_eigenvalues(
                    whole(*upper),
                    lambda v: factor.solve(v.to(values.device, dtype), False).cpu(),
                    torch.finfo(dtype).eps,
                    objective,
                )
            except SingularMatrixError as error:
                if self._blocks > 1:
                    raise
                raise self._explained(error, *upper) from None
        if negative == count:
            return
        if self._blocks > 1:
            raise Doubtful
        if negative is None:
            raise EngineUnsupportedError(
                f"whether Q, which is not positive semidefinite, is positive definite on the null space of the constraints "
                f"cannot be told: {self.engine} does not count negative eigenvalues here, and without exchanges of rows "
                f"the pivots of [[Q, Cᴴ], [C, 0]] are too inaccurate to",
                engine=self.engine,
            )
        raise self._no_minimum(None, self.engine)

    def _explained(
        self, error: NotPositiveDefiniteError | SingularMatrixError, layout: Layout, values: Tensor
    ) -> SparseSolverError:
        """What it means that there is no factorisation."""
        row = None if error.row is None or error.row >= self._unknowns else self._structure.label(error.row)
        if isinstance(error, NotPositiveDefiniteError):
            # Of a singular matrix, rounding errors may make a pivot negative.
            if not self._is_semidefinite(layout, values):
                return self._no_minimum(row, error.engine)
            reason = "a pivot of its factorisation is zero" + ("" if row is None else f", at row {row}")
        else:
            reason = str(error) if error.row is None else f"row {row} has no entry among those that are not known"
        if self._constraints:
            C = whole(layout, values)[self._unknowns :, : self._unknowns]
            rows = Dependences(C, torch.finfo(values.dtype).eps).rows()
            if rows:
                return RedundantConstraintsError(_described(rows), rows=rows)
        return SingularMatrixError(
            f"Q is singular{self._where}, so that the minimum is not unique: let entries of x be known=, or add a constraint "
            f"on what is not determined, or a multiple of the identity or of the mass matrix to Q ({reason})",
            engine=error.engine,
            row=row,
        )

    def _is_semidefinite(self, layout: Layout, values: Tensor) -> bool:
        shift = max(1e4 * torch.finfo(torch.float64).eps, 64 * torch.finfo(values.dtype).eps)
        return self._objective(layout, values).is_definite(equilibrating(whole(layout, values)), shift)

    def _objective(self, layout: Layout, values: Tensor) -> Objective:
        return Objective(layout, values, self._constraints, self._blocks, self._structure, self._stored)

    @property
    def _where(self) -> str:
        return " on the null space of the constraints" if self._constraints else ""

    def _no_minimum(self, row: int | None, engine: str | None) -> NotPositiveDefiniteError:
        place = "" if row is None else f" (found at row {row})"
        return NotPositiveDefiniteError(
            f"Q is not positive definite{self._where}{place}: the energy falls without bound, its stationary point is no "
            f"minimum; solve() finds stationary points",
            row=row,
            engine=engine,
        )


def refuse_non_finite(error: NonFiniteError, structure: Structure, matrices: Tensor, constraints: int) -> None:
    """Raises an error that names the entry of Q or C that is to blame, if there is one.

    `matrices` (batch, nnz) are the values of K, in which the entries of Q come first, and then those of C.
    """
    bad = torch.nonzero(~torch.isfinite(matrices))
    if not bad.numel():
        return
    n = structure.shape[0] - constraints
    in_Q = int(((structure.rows < n) & (structure.cols < n)).sum())
    in_C = int(((structure.rows >= n) & (structure.cols < n)).sum()) or structure.nnz - in_Q
    at = int(bad[0, 1])
    name, index = ("Q", at) if at < in_Q else ("C", (at - in_Q) % in_C)
    raise NonFiniteError(
        f"{name}_values[{index}] is {matrices[tuple(bad[0])].item()}", argument=name, index=index
    ) from error


def named(rows: tuple[int, ...]) -> str:
    """Constraints in words."""
    if len(rows) == 1:
        return f"constraint {rows[0]}"
    if len(rows) > 10:
        return f"constraints {', '.join(map(str, rows[:10]))} and {len(rows) - 10} more"
    return f"constraints {', '.join(map(str, rows[:-1]))} and {rows[-1]}"


def _described(rows: tuple[int, ...]) -> str:
    if len(rows) == 1:
        return f"{named(rows)} has no entry of C among the entries of x that are not known: leave it out"
    return (
        f"{named(rows)} depend on each other, as far as the entries of x that are not known go: if they do not contradict "
        f"each other, leave out one of them, and another until the rest is independent"
    )


def _upper(structure: Structure, values: Tensor, options: Options) -> tuple[Layout, Tensor]:
    """The upper triangle of K; raises where it is not finite."""
    matrix, layout = Matrix(structure, values), layout_of(structure, "upper", options.triangle)
    _ = matrix.largest
    return layout, layout.gather(matrix.canonical, is_hermitian("hermitian", values.dtype))
