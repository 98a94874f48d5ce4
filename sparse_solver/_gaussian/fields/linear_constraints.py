"""The linear constraints C x = d of a field: what users pass, and whether it makes sense."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from ..._solve.shapes import check_rhs
from ..._sparse.index_checks import describe_type
from ..._sparse.torch_tensors import LAYOUTS
from ..._sparse.values import CPU, check_finite, to_double
from ..._torch.modes import is_transformed
from ...errors import InfeasibleConstraintsError, LayoutError, RedundantConstraintsError, ShapeError

# A component of a unit vector below this is a rounding error.
_NEGLIGIBLE = 1e-6


class LinearConstraints(NamedTuple):
    """C x = d, with C (m, n) dense and d (..., m)."""

    C: Tensor
    d: Tensor

    @property
    def support(self) -> constraints.Constraint:
        """The affine subspace, as a constraint of torch."""
        return _Affine(self)

    def find_residual(self, x: Tensor) -> Tensor:
        """(..., m) d − C x for vectors x (..., n)."""
        return self.d - x @ self.C.mT

    def find_nearest(self, x: Tensor) -> Tensor:
        """The point of the subspace that is nearest to x."""
        gram = self.C @ self.C.mT
        multipliers = torch.linalg.solve(gram, self.find_residual(x).unsqueeze(-1)).squeeze(-1)
        nearest: Tensor = x + multipliers @ self.C
        return nearest


def read_constraints(given: Any, values: Tensor, n: int) -> LinearConstraints | None:
    """The constraints that were passed: C alone, a pair of C and d, or checked ones.

    Raises InfeasibleConstraintsError or RedundantConstraintsError for rows that depend on each
    other.
    """
    if given is None or isinstance(given, LinearConstraints):
        return given
    C, d = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
    if not isinstance(C, Tensor):
        raise LayoutError(
            f"constraints is {describe_type(given)}; expected a tensor C of shape (m, {n}), or a "
            f"pair (C, d)"
        )
    C = C.to_dense() if C.layout in LAYOUTS else C
    check_rhs("C of the constraints", C, values)
    if C.dim() != 2 or C.shape[1] != n:
        raise ShapeError(
            f"C has shape {tuple(C.shape)}, the precision ({n}, {n}); expected (m, {n})"
        )
    d = C.new_zeros(C.shape[0]) if d is None else d
    check_rhs("d of the constraints", d, values)
    if d.dim() == 0 or d.shape[-1] != C.shape[0]:
        raise ShapeError(
            f"d has shape {tuple(d.shape)}; expected (..., {C.shape[0]}), a number a row of C"
        )
    found = LinearConstraints(C, d)
    if not is_transformed(C, d):
        check_finite("C", C.detach())
        check_finite("d", d.detach())
        _check_independent(found)
    return found


def _check_independent(given: LinearConstraints) -> None:
    """Raise where a combination y of rows of C is zero; if y·d is not zero, no x exists."""
    C, d = (to_double(each.detach().to(CPU)) for each in given)
    eps = torch.finfo(given.C.dtype).eps
    sizes = torch.linalg.vector_norm(C, dim=1)
    scaled = C / torch.where(sizes > 0, sizes, 1).unsqueeze(1)
    triangle = torch.linalg.qr(scaled.mT, mode="r")[1]
    Y, singular, _ = torch.linalg.svd(triangle.mT, full_matrices=True)
    whole = torch.zeros(len(C), dtype=torch.float64)
    whole[: len(singular)] = singular
    Y = Y[:, whole <= max(C.shape) * eps]
    if Y.shape[1] == 0:
        return
    rows = tuple(torch.nonzero((Y.abs() > _NEGLIGIBLE).any(1)).flatten().tolist())
    right = d / torch.where(sizes > 0, sizes, 1)
    left = (right @ Y).abs()
    limits = max(C.shape) * eps * torch.linalg.vector_norm(right, dim=-1, keepdim=True)
    listed = f"rows {', '.join(map(str, rows))} of C" if len(rows) > 1 else f"row {rows[0]} of C"
    if bool((left > limits).any()):
        raise InfeasibleConstraintsError(f"{listed} contradict each other: no x exists", rows=rows)
    raise RedundantConstraintsError(f"{listed} depend on each other; remove some", rows=rows)


class _Affine(constraints.Constraint):
    """The x with C x = d."""

    event_dim = 1

    def __init__(self, given: LinearConstraints):
        self._given = given

    def check(self, value: Tensor) -> Tensor:
        C, d = self._given
        limit = torch.finfo(value.dtype).eps ** 0.5 * (value.abs() @ C.abs().mT + d.abs())
        is_on = self._given.find_residual(value).abs() <= limit
        is_in: Tensor = is_on.all(-1) & torch.isfinite(value).all(-1)
        return is_in

    def __repr__(self) -> str:
        return "C x = d"
