"""Programs and their dense counterparts, which the tests of quadratics share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import rhs, spd
from torch import Tensor

import sparse_solver as ss

N, FIXED = 10, torch.tensor([7, 2, 4])
M = 2
DOUBLE = (torch.float64, torch.complex128)


def energy(dtype: torch.dtype, seed: int = 0) -> Tensor:
    return spd(N, dtype, seed)


def constraints(dtype: torch.dtype) -> Tensor:
    C = rhs(M, N, dtype=dtype, seed=3)
    C[0, 1::2] = 0  # sparse, and each row with unknown entries
    return C


def dense_minimum(
    Q: Tensor, b: Tensor, fixed: Tensor, y: Tensor, C: Tensor, d: Tensor
) -> tuple[Tensor, ...]:
    """x and the multipliers, with the fixed entries as constraints like the others."""
    n, p = Q.shape[-1], fixed.numel()
    chosen = torch.eye(n, dtype=Q.dtype)[fixed]
    A = torch.cat((chosen.expand(*C.shape[:-2], p, n), C), -2)
    zero = A.new_zeros((*A.shape[:-1], A.shape[-2]))
    K = torch.cat((torch.cat((Q, A.mH), -1), torch.cat((A, zero), -1)), -2)
    z = torch.linalg.solve(K, torch.cat((b, y, d), -1 if b.dim() == 1 else -2))
    return z.split((n, p, C.shape[-2]), -1 if b.dim() == 1 else -2)


def triangle_of(Q: Tensor, triangle: str | None) -> Tensor:
    return {None: Q, "lower": Q.tril(), "upper": Q.triu()}[triangle]


class Case:
    """A program and values for it, whose free parameters keep Q Hermitian."""

    def __init__(
        self,
        dtype: torch.dtype,
        triangle: str | None = None,
        fixed: bool = True,
        constrained: bool = True,
    ):
        Q, C = energy(dtype), constraints(dtype)
        self.fixed, self.triangle = FIXED if fixed else FIXED[:0], triangle
        self.C = C if constrained else C[:0]
        self.rows, self.cols = triangle_of(Q, triangle).nonzero().T
        self.C_rows, self.C_cols = self.C.nonzero().T
        self.program = ss.QuadraticProgram(
            ss.Pattern(self.rows, self.cols, Q.shape),
            fixed=self.fixed if fixed else None,
            C=ss.Pattern(self.C_rows, self.C_cols, self.C.shape) if constrained else None,
            triangle=triangle,
        )
        self.Q_values = Q[self.rows, self.cols]
        self.C_values = self.C[self.C_rows, self.C_cols]

    def minimize(
        self,
        Q_values: Tensor,
        b: Tensor | None = None,
        y: Tensor | None = None,
        C_values: Tensor | None = None,
        d: Tensor | None = None,
        **options: Any,
    ) -> Any:
        given = {"fixed_values": y, "C_values": C_values, "d": d}
        return self.program.solve(Q_values, b, **given, **options)

    def right(self, *columns: int) -> tuple[Tensor, Tensor, Tensor]:
        sizes = (N, self.fixed.numel(), self.C.shape[0])
        return tuple(
            rhs(size, *columns, dtype=self.Q_values.dtype, seed=i) for i, size in enumerate(sizes)
        )  # type: ignore[return-value]

    def hermitian(self, Q_values: Tensor) -> Tensor:
        """Values of a Hermitian matrix, from as many free numbers."""
        if self.triangle is not None:
            return torch.where(self.rows == self.cols, Q_values.real.to(Q_values.dtype), Q_values)
        at = torch.full((N, N), -1)
        at[self.rows, self.cols] = torch.arange(self.rows.numel())
        return (Q_values + Q_values[at[self.cols, self.rows]].conj()) / 2

    def solve(
        self, Q_values: Tensor, b: Tensor, y: Tensor, C_values: Tensor, d: Tensor
    ) -> tuple[Tensor, ...]:
        y_or_none, C_or_none, d_or_none = (t if t.numel() else None for t in (y, C_values, d))
        given = b, y_or_none, C_or_none, d_or_none
        x, (forces, multipliers) = self.minimize(
            self.hermitian(Q_values), *given, return_multipliers=True
        )
        return x, forces, multipliers

    def dense(
        self, Q_values: Tensor, b: Tensor, y: Tensor, C_values: Tensor, d: Tensor
    ) -> tuple[Tensor, ...]:
        Q = torch.zeros(N, N, dtype=b.dtype).index_put(
            (self.rows, self.cols), self.hermitian(Q_values)
        )
        if self.triangle is not None:
            Q = Q + Q.mH - torch.diag(torch.diag(Q))
        C = torch.zeros(self.C.shape, dtype=b.dtype).index_put((self.C_rows, self.C_cols), C_values)
        return dense_minimum(Q, b, self.fixed, y, C, d)


cases = pytest.mark.parametrize(
    ("triangle", "fixed", "constrained"),
    [
        (None, True, True),
        (None, True, False),
        (None, False, True),
        ("lower", True, True),
        ("upper", True, True),
    ],
)


def diagonal(values: list[float], dtype: torch.dtype, *couplings: tuple[int, int, float]) -> Tensor:
    Q = torch.diag(torch.tensor(values, dtype=dtype))
    for i, j, value in couplings:
        Q[i, j] = Q[j, i] = value
    return Q.to_sparse()
