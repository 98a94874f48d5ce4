"""The KKT matrix of a minimisation: its factorisation, and what is wrong where that fails.

x minimises ½ xᴴ Q x − Re bᴴ x subject to C x = d, with C of m independent rows, if and only if

    K [x; μ] = [b; d],    K = [[Q, Cᴴ], [C, 0]],

and Q is positive definite on the null space of C. With Z a basis of that, the eigenvalues of K have
the signs of those of Zᴴ Q Z, and m more of either sign. So K must have exactly m negative
eigenvalues. (N. I. M. Gould, "On practical conditions for the existence and uniqueness of solutions
to the general equality quadratic programming problem", Math. Programming 32, 1985; J. Nocedal and
S. J. Wright, "Numerical Optimization", 2nd ed., 16.3.)
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .._engines.protocol import Factor, is_hermitian
from .._factor.accuracy.checked_factor import (
    BlockInDoubt,
    CheckedFactor,
    EmptyFactor,
    InverseOperator,
)
from .._factor.ladder.ladder import factor_matrix
from .._factor.ladder.symmetry import Asymmetry, describe_asymmetry
from .._factor.options import Options
from .._factor.purposes import Purpose, register_purpose
from .._sparse.matrix import Matrix
from .._sparse.structure import Structure
from .._sparse.triangle import Arrangement, arrangement_of
from .._sparse.values import double_of
from ..errors import (
    EngineUnsupportedError,
    NonFiniteError,
    NotPositiveDefiniteError,
    NotSymmetricError,
    RedundantConstraintsError,
    SingularMatrixError,
    SparseSolverError,
)
from .dependent_constraints import Dependences, describe_dependence
from .inertia import Objective, assemble_hermitian, count_negative_eigenvalues, equilibrate

# Q is semidefinite if Q plus this many eps is definite, in its precision and in that of the test.
_DTYPE_ERRORS, _DOUBLE_ERRORS = 64, 1e4


class _Upper(NamedTuple):
    """The upper triangle of K; entries below the diagonal, if there are some, are ignored."""

    arrangement: Arrangement
    values: Tensor


class _Diagnosis:
    """What is wrong with a KKT matrix, in terms of Q and C.

    constraints : how many there are; they are the last rows of each of the `blocks`
    """

    def __init__(self, structure: Structure, options: Options, blocks: int, constraints: int):
        self.structure, self.triangle, self.blocks = structure, options.triangle, blocks
        self.constraints = constraints
        self.unknowns = structure.shape[0] // blocks - constraints
        self._where = " on the null space of the constraints" if constraints else ""

    def gather_upper(self, values: Tensor) -> _Upper:
        """The upper triangle of K; raises NonFiniteError where it is not finite."""
        matrix = Matrix(self.structure, values)
        arrangement = arrangement_of(self.structure, "upper", self.triangle)
        matrix.check_finite()
        hermitian = is_hermitian("hermitian", values.dtype)
        return _Upper(arrangement, arrangement.gather(matrix.canonical, hermitian))

    def find_objective(self, upper: _Upper) -> Objective:
        """Q, as a submatrix of K."""
        count, blocks = self.constraints, self.blocks
        return Objective(self.structure, self.triangle, upper.values, count, blocks)

    def explain(
        self, error: NotPositiveDefiniteError | SingularMatrixError, upper: _Upper
    ) -> SparseSolverError:
        """The error that a failed factorisation means for the minimisation."""
        is_of_Q = error.row is not None and error.row < self.unknowns
        row = self.structure.label(error.row) if is_of_Q and error.row is not None else None
        if isinstance(error, NotPositiveDefiniteError):
            # Rounding errors may make a pivot of a singular matrix negative.
            if not self._is_semidefinite(upper):
                return self.explain_no_minimum(row, error.engine)
            place = "" if row is None else f", at row {row}"
            reason = f"a pivot of its factorisation is zero{place}"
        elif error.row is None:
            reason = str(error)
        else:
            reason = f"row {row} has no entry among the free entries"
        if self.constraints:
            C = assemble_hermitian(*upper)[self.unknowns :, : self.unknowns]
            eps = torch.finfo(upper.values.dtype).eps
            rows, nearly = Dependences(C, eps).find_rows(), False
            if not rows and self._is_definite(upper):
                # Then C alone makes K singular, which contains the squares of its singular values.
                rows, nearly = Dependences(C, eps**0.5).find_rows(), True
            if rows:
                return RedundantConstraintsError(describe_dependence(rows, nearly), rows=rows)
        return SingularMatrixError(
            f"Q is singular{self._where}, so that the minimum is not unique: fix entries of x with "
            f"fixed=, or add a constraint on what is not determined, or a multiple of the identity "
            f"or of the mass matrix to Q ({reason})",
            engine=error.engine,
            row=row,
        )

    def explain_no_minimum(self, row: int | None, engine: str | None) -> NotPositiveDefiniteError:
        """The error for Q that is not positive definite on the null space of C."""
        place = "" if row is None else f" (found at row {row})"
        return NotPositiveDefiniteError(
            f"Q is not positive definite{self._where}{place}: the energy is not bounded below, and "
            f"its stationary point is no minimum; solve() finds stationary points",
            row=row,
            engine=engine,
        )

    def _is_semidefinite(self, upper: _Upper) -> bool:
        eps, eps_double = (torch.finfo(t).eps for t in (upper.values.dtype, torch.float64))
        return self._is_definite(upper, max(_DTYPE_ERRORS * eps, _DOUBLE_ERRORS * eps_double))

    def _is_definite(self, upper: _Upper, shift: float = 0.0) -> bool:
        scales = equilibrate(assemble_hermitian(*upper))
        return self.find_objective(upper).is_definite(scales, shift)


class KktFactor:
    """The factor of K, whose errors speak of Q, C, b and d; used like a `CheckedFactor`."""

    def __init__(self, checked: InverseOperator, diagnosis: _Diagnosis):
        self._checked, self._diagnosis = checked, diagnosis
        self.record = checked.record

    @property
    def factor(self) -> Factor | None:
        """The factor that solves."""
        return self._checked.factor

    def apply_inverse(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """Apply K⁻¹ or K⁻ᵀ to the rows of `rhs`; see `CheckedFactor.apply_inverse`."""
        diagnosis = self._diagnosis
        try:
            return self._checked.apply_inverse(rhs, transpose, strict)
        except SingularMatrixError as error:
            if diagnosis.blocks > 1:
                raise
            factor = self.factor
            assert factor is not None
            upper = _Upper(factor.arrangement, factor.values)
            raise diagnosis.explain(error, upper) from None
        except NonFiniteError as error:
            if error.argument != "b" or error.index is None:
                raise
            is_of_b = error.index < diagnosis.unknowns
            name = "b" if is_of_b else "d"
            index = error.index - (0 if is_of_b else diagnosis.unknowns)
            index = diagnosis.structure.label(index) if is_of_b else index
            message = f"{name}[{index}] minus the contribution of the fixed entries is not finite"
            raise NonFiniteError(message, argument=name, index=index) from None


def factor_kkt(
    structure: Structure, values: Tensor, options: Options, blocks: int = 1, *, constraints: int
) -> KktFactor | EmptyFactor:
    """Factor K, whose last `constraints` rows are those of C; without constraints, factor Q.

    Raises NotPositiveDefiniteError if there is no minimum, SingularMatrixError or
    RedundantConstraintsError if it is not unique, EngineUnsupportedError if that cannot be
    determined, and BlockInDoubt.
    """
    diagnosis = _Diagnosis(structure, options, blocks, constraints)
    try:
        checked = factor_matrix(structure, values, options, blocks)
    except (NotPositiveDefiniteError, SingularMatrixError) as error:
        if blocks > 1:
            raise
        raise diagnosis.explain(error, diagnosis.gather_upper(values)) from None
    if isinstance(checked, EmptyFactor):
        return checked
    if constraints:
        assert isinstance(checked, CheckedFactor)  # K is indefinite: no pivots show that it is good
        _check_minimum(checked, diagnosis, values)
    return KktFactor(checked, diagnosis)


def _check_minimum(checked: CheckedFactor, diagnosis: _Diagnosis, values: Tensor) -> None:
    """Raise unless K has as many negative eigenvalues as there are constraints."""
    judge, count = checked.judge, diagnosis.blocks * diagnosis.constraints
    negative, engine = judge.factor.negative_eigenvalues, checked.record.engine
    if negative is None or not judge.clean:
        upper = diagnosis.gather_upper(values)

        def apply_inverse(v: Tensor) -> Tensor:
            return judge.inverse.substitute(
                v.to(values.device, double_of(values.dtype)), False
            ).cpu()

        eps = torch.finfo(judge.factor.values.dtype).eps
        objective = diagnosis.find_objective(upper)
        try:
            K = assemble_hermitian(*upper)
            negative = count_negative_eigenvalues(K, apply_inverse, eps, objective)
        except SingularMatrixError as error:
            if diagnosis.blocks > 1:
                raise
            raise diagnosis.explain(error, upper) from None
    if negative == count:
        return
    if diagnosis.blocks > 1:
        raise BlockInDoubt
    if negative is None:
        raise EngineUnsupportedError(
            f"Q is not positive semidefinite, and whether it is positive definite on the null "
            f"space of the constraints cannot be determined: {engine} does not count negative "
            f"eigenvalues here, and without exchanges of rows the pivots of [[Q, Cᴴ], [C, 0]] are "
            f"too inaccurate to count them",
            engine=engine,
        )
    raise diagnosis.explain_no_minimum(None, engine)


def _explain_values(
    error: SparseSolverError, structure: Structure, matrices: Tensor, *, constraints: int
) -> None:
    """Raise an error in terms of Q and C, if they explain `error`.

    `matrices` (batch, nnz) are the values of K, in which the entries of Q come first, then C's.
    """
    if isinstance(error, NotSymmetricError):
        raise _explain_asymmetry(error, matrices.dtype) from None
    bad = torch.nonzero(~torch.isfinite(matrices))
    if not bad.numel():
        return
    n = structure.shape[0] - constraints
    in_Q = int(((structure.rows < n) & (structure.cols < n)).sum())
    in_C = int(((structure.rows >= n) & (structure.cols < n)).sum()) or structure.nnz - in_Q
    at = int(bad[0, 1])
    name, index = ("Q", at) if at < in_Q else ("C", (at - in_Q) % in_C)
    message = f"{name}_values[{index}] is {matrices[tuple(bad[0])].item()}"
    raise NonFiniteError(message, argument=name, index=index) from error


def _explain_asymmetry(error: NotSymmetricError, dtype: torch.dtype) -> NotSymmetricError:
    """The error that names Q instead of ``assume=``."""
    what = "Hermitian" if dtype.is_complex else "symmetric"
    row, col, difference = error.row, error.col, error.difference
    if row is None or col is None or difference is None:
        return error
    if row == col:
        message = f"Q is not Hermitian: the diagonal entry of row {row} is not real"
    else:
        found = describe_asymmetry(Asymmetry(row, col, difference), dtype.is_complex)
        message = (
            f"Q is not {what}: {found}; the energy depends on the symmetric part (Q + Qᵀ) / 2 only "
            f"(complex: Qᴴ): pass that, or triangle= if one triangle is stored"
        )
    return NotSymmetricError(message, row=row, col=col, difference=difference)


def _build_purpose(constraints: str) -> Purpose:
    count = int(constraints)
    explain = partial(_explain_values, constraints=count)
    return Purpose(partial(factor_kkt, constraints=count), explain)


_NAME = "minimum"
register_purpose(_NAME, _build_purpose)


def purpose_name(constraints: int) -> str:
    """The name of the purpose of a KKT matrix with so many constraints."""
    return f"{_NAME}:{constraints}"
