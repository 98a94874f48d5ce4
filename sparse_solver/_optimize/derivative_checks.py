"""Whether a Jacobian is the derivative of its residual, and whether the residual has changed.

A residual is zero at a solution, whatever its scale is, but its derivatives are not. Hence both
checks compare uᵀ ∂r/∂a, for one scattered vector u and each argument a, with what it was or with
uᵀ J: one more reverse derivative of the residual.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._sparse.kernels import Places, apply
from .._sparse.values import probe_vector
from ..errors import DerivativeError
from .equations import Equations

# A Jacobian may differ from the derivative by ε to this power, relative to its largest entries in
# the same row and column: difference quotients are less exact than formulas.
_MISMATCH_EXPONENT = 1 / 4


def differentiate_residual(
    equations: Equations, values: Tensor, residual: Tensor, arguments: Sequence[Tensor]
) -> list[Tensor]:
    """uᵀ ∂r/∂a for each argument a, and a scattered vector u that weighs all rows of J equally."""
    if not residual.requires_grad:
        return [torch.zeros_like(argument) for argument in arguments]
    return _pull_back(residual, arguments, _scatter_rows(equations, values))


def _pull_back(residual: Tensor, arguments: Sequence[Tensor], u: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(
        residual,
        arguments,
        u.reshape(residual.shape),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)


def _scatter_rows(equations: Equations, values: Tensor) -> Tensor:
    """(n,) scattered numbers, divided by the largest entries of the rows; zero in fixed rows."""
    problem = equations.problem
    n, rows = problem.structure.shape[0], problem.structure.rows
    largest = values.new_zeros(n).scatter_reduce(0, rows, values.detach().abs(), "amax")
    u = probe_vector(n, values.dtype, 0.0, values.device).squeeze(0) / largest
    u = u.where(largest > 0, 0.0)
    return u if problem.submatrix is None else u.index_fill(0, problem.submatrix.removed, 0.0)


def check_jacobian(
    equations: Equations, values: Tensor, residual: Tensor, x: Tensor, found: Tensor
) -> None:
    """Raise DerivativeError unless J, with these values, is the derivative of the residual in x.

    found : uᵀ ∂r/∂x of `differentiate_residual`
    """
    problem, u = equations.problem, _scatter_rows(equations, values).unsqueeze(0)
    places = Places(problem.structure.cols, problem.structure.rows)
    difference = (found.reshape(1, -1) - apply(values, u, places)).abs().squeeze(0)
    tolerance = torch.finfo(values.dtype).eps ** _MISMATCH_EXPONENT
    excess = difference - tolerance * apply(values.abs(), u.abs(), places).squeeze(0)
    if problem.submatrix is not None:
        excess = excess.index_fill(0, problem.submatrix.removed, 0.0)
    if not bool((excess > 0).any()):  # not so for NaN
        return
    column = int(excess.nan_to_num().argmax())
    row, passed, expected = _find_row(equations, values, residual, x, column)
    name, number = equations.jacobian_name, difference[column].item()
    if row is None:
        where = f"column {column}, where the pattern lacks an entry that is not zero"
    else:
        number = abs(passed - expected)
        where = f"row {row}, column {column}: {passed:.6g} instead of {expected:.6g}"
    raise DerivativeError(
        f"{name} is not the derivative that torch computes of {equations.name}, in {where}. The "
        f"solution would have wrong derivatives; correct the entries, or use torch.no_grad()",
        row=row,
        col=column,
        difference=number,
    )


def _find_row(
    equations: Equations, values: Tensor, residual: Tensor, x: Tensor, column: int
) -> tuple[int | None, float, float]:
    """The entry of a column that differs most: its row, what was passed, and the derivative."""
    structure = equations.problem.structure
    worst: tuple[int | None, float, float] = (None, 0.0, 0.0)
    removed = equations.problem.submatrix and equations.problem.submatrix.removed.tolist()
    stored = structure.cols == column
    for row in structure.rows[stored].unique().tolist():
        if removed and row in removed:
            continue
        unit = torch.zeros_like(residual).reshape(-1)
        unit[row] = 1
        (gradient,) = _pull_back(residual, (x,), unit)
        passed = values[stored & (structure.rows == row)].sum().item()
        expected = gradient.reshape(-1)[column].item()
        tolerance = torch.finfo(values.dtype).eps ** _MISMATCH_EXPONENT * abs(passed)
        if abs(passed - expected) > max(tolerance, abs(worst[1] - worst[2])):
            worst = row, passed, expected
    return worst
