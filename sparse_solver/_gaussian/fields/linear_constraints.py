"""The linear constraints C x = d of a field: what users pass, and whether it makes sense."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from ..._solve.shapes import check_rhs
from ..._sparse.index_checks import describe_type
from ..._sparse.torch_tensors import LAYOUTS
from ..._sparse.values import CPU, check_finite, row_powers, to_double
from ..._torch.modes import is_transformed, outlast_inference, unwrap
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
        """The point of the subspace that is nearest to x, in double precision."""
        C, d, x = to_double(self.C), to_double(self.d), to_double(x)
        basis, triangle = torch.linalg.qr(C.mT)
        residual = (d - x @ C.mT).unsqueeze(-1)
        coordinates = torch.linalg.solve_triangular(triangle.mT, residual, upper=False)
        nearest: Tensor = x + (basis @ coordinates).squeeze(-1)
        return nearest

    def find_basis(self) -> Tensor:
        """(n, m) orthonormal vectors that span the rows of C, in double precision."""
        basis: Tensor = torch.linalg.qr(to_double(self.C).mT)[0]
        return basis

    def restrict(self, rest: Tensor, known: Tensor) -> LinearConstraints | None:
        """What the constraints say about the entries `rest`, given all others.

        Rows that say nothing more are left out; None if all are.

        rest, known : (k,) indices and (..., n) the known entries, which are zero at these
        """
        C = self.C.index_select(1, rest)
        kept = _find_independent(C)
        left = LinearConstraints(C[kept], self.find_residual(known)[..., kept])
        if len(kept) < len(C) and not is_transformed(known, *left):
            some = left.find_nearest(known.index_select(-1, rest)).to(known.dtype)
            if not bool(self.support.check(known.index_copy(-1, rest, some)).all()):
                lost = tuple(sorted(set(range(len(C))) - set(kept.tolist())))
                raise InfeasibleConstraintsError(
                    f"y contradicts the constraints: C x = d does not hold for any other entries "
                    f"of x ({_list_rows(lost)} of C)",
                    rows=lost,
                )
        return left if len(kept) else None


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
    found = LinearConstraints(outlast_inference(C), outlast_inference(d))
    if not is_transformed(C, d):
        check_finite("C", C.detach())
        check_finite("d", d.detach())
        _check_independent(found)
    return found


def _check_independent(given: LinearConstraints) -> None:
    """Raise where a combination y of rows of C is zero; if y·d is not zero, no x exists."""
    m, n = given.C.shape
    C, d = (to_double(each.detach().to(CPU)) for each in given)
    if m == 0:
        return
    if n > 0:
        powers = row_powers(C)
        C, d = C * powers, d * powers.squeeze(-1)
    sizes = torch.linalg.vector_norm(C, dim=1)
    sizes = torch.where(sizes > 0, sizes, 1)
    triangle = torch.linalg.qr((C / sizes.unsqueeze(1)).mT, mode="r")[1]
    Y, singular, _ = torch.linalg.svd(triangle.mT, full_matrices=True)
    whole = torch.zeros(m, dtype=torch.float64, device=CPU)
    whole[: len(singular)] = singular
    limit = _least_size(given.C)
    Y = Y[:, whole <= limit]
    if Y.shape[1] == 0:
        return
    rows = tuple(torch.nonzero((Y.abs() > _NEGLIGIBLE).any(1)).flatten().tolist())
    right = d / sizes
    left = (right @ Y).abs()
    is_feasible = bool(
        (left <= limit * torch.linalg.vector_norm(right, dim=-1, keepdim=True)).all()
    )
    raise _dependence(rows, is_feasible)


def _least_size(C: Tensor) -> float:
    """The size of a combination of unit rows of C that is zero but for rounding.

    It is the rounding of the entries, and of computations with them in double precision.
    """
    entries, computation = torch.finfo(C.dtype).eps, torch.finfo(torch.float64).eps
    return len(C) * entries + max(C.shape) * computation


def _find_independent(C: Tensor) -> Tensor:
    """The rows of C that do not depend on earlier ones."""
    rows = to_double(unwrap(C).to(CPU))
    if rows.dim() > 2 or rows.numel() == 0:  # matrices of a vmap, of which all rows are kept
        return torch.arange(len(C) if rows.numel() else 0, device=C.device)
    rows = rows * row_powers(rows)
    limit, kept, basis = _least_size(C), [], rows.new_zeros(0, rows.shape[1])
    for number, row in enumerate(rows):
        size = torch.linalg.vector_norm(row)
        for _ in range(2):  # the second time removes the rounding errors of the first
            row = row - (basis @ row) @ basis
        left = torch.linalg.vector_norm(row)
        if float(left) > limit * float(size):
            kept.append(number)
            basis = torch.cat((basis, (row / left).unsqueeze(0)))
    return torch.tensor(kept, dtype=torch.int64, device=C.device)


def _dependence(rows: tuple[int, ...], is_feasible: bool) -> Exception:
    """The error for rows of C that depend on each other."""
    if len(rows) == 1:
        verdict = "is zero; remove it" if is_feasible else "is zero, but d is not: no x exists"
    elif is_feasible:
        verdict = "depend on each other; remove some"
    else:
        verdict = "contradict each other: no x exists"
    kind = RedundantConstraintsError if is_feasible else InfeasibleConstraintsError
    return kind(f"{_list_rows(rows)} of C {verdict}", rows=rows)


def _list_rows(rows: tuple[int, ...]) -> str:
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))}"


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
