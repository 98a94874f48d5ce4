"""Sparse matrices of all kinds, as dense tensors and as they are stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import sparse_solver as ss

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
# The name of a kind, with "lower" or "upper" where one triangle is stored.
KINDS = (
    "general",
    "symmetric",
    "symmetric lower",
    "hermitian",
    "hermitian upper",
    "spd",
    "spd lower",
)


def matrix_of(kind: str, n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A well-conditioned dense matrix, most of whose entries are zero if it is large."""
    generator = torch.Generator().manual_seed(seed + n)
    kind = kind.split()[0]
    work = torch.complex128 if dtype.is_complex else torch.float64
    D = torch.randn(n, n, generator=generator, dtype=work)
    keep = torch.rand(n, n, generator=generator) < 4 / n
    D = torch.where(keep, D, 0)
    if kind == "symmetric":
        D = D + D.mT
    elif kind in ("hermitian", "spd"):
        D = D + D.mH
    diagonal = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
    if kind == "spd":
        diagonal = diagonal + D.abs().sum(1)
    else:  # of both signs
        diagonal = diagonal * (1 - 2 * (torch.arange(n) % 3 % 2)) * 4
    return (D - torch.diag(D.diagonal()) + torch.diag(diagonal).to(work)).to(dtype)


def stored(D: Tensor, kind: str) -> tuple[ss.Pattern, Tensor, dict[str, Any]]:
    """The pattern and the values of a matrix, and the options that say what it is."""
    assume, *triangle = kind.split()
    kept = D if not triangle else D.tril() if triangle[0] == "lower" else D.triu()
    rows, cols = torch.nonzero(kept, as_tuple=True)
    options: dict[str, Any] = {"assume": assume}
    if triangle:
        options["triangle"] = triangle[0]
    return ss.Pattern(rows, cols, tuple(D.shape)), D[rows, cols].clone(), options


def dense_of(P: ss.Pattern, values: Tensor, options: dict[str, Any]) -> Tensor:
    """The matrix with these stored values; differentiable."""
    A = values.new_zeros(*P.shape).index_put((P.rows, P.cols), values, accumulate=True)
    if "triangle" not in options:
        return A
    off = A - torch.diag(A.diagonal())
    return A + (off.mT if options["assume"] == "symmetric" else off.mH)


def double(D: Tensor) -> Tensor:
    """The same numbers in double precision."""
    return D.to(torch.complex128 if D.is_complex() else torch.float64)
