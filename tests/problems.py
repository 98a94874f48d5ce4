"""The matrices that the tests solve with, by kind, small enough for dense torch to check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import sparse_solver as ss

REAL = (torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)
DTYPES = REAL + COMPLEX

# Right-hand sides for matrices with five rows: vectors, columns and batches, and some misfits.
RHS_SHAPES = (
    (5,), (5, 1), (5, 2), (5, 0), (3, 5), (3, 5, 2), (1, 5, 2), (2, 3, 5), (2, 3, 5, 2),
    (4, 2, 3, 5, 2), (2, 1, 5, 1), (0, 5, 2), (5, 5), (5, 5, 5),
)  # fmt: skip

TOLERANCE = {
    torch.float32: 2e-4,
    torch.complex64: 2e-4,
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
}


@dataclass(frozen=True)
class Problem:
    """A matrix of a `kind`, with its entries in row-major order and as a `dense` tensor."""

    kind: str
    dense: Tensor
    rows: Tensor
    cols: Tensor
    values: Tensor

    @property
    def n(self) -> int:
        return self.dense.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.n, self.n)

    def to(self, device: torch.device) -> Problem:
        return Problem(
            self.kind,
            *(part.to(device) for part in (self.dense, self.rows, self.cols, self.values)),
        )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _random(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """About four entries a row."""
    g = generator(seed)
    return torch.randn(n, n, dtype=dtype, generator=g) * (
        torch.rand(n, n, generator=g) < 4 / max(n, 1)
    )


def spd(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    random = _random(n, dtype, seed)
    return random @ random.mH + torch.eye(n, dtype=dtype)


def symmetric(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A = Aᵀ, indefinite."""
    random = _random(n, dtype, seed)
    signs = torch.where(torch.arange(n) % 2 == 0, 3.0, -3.0).to(dtype)
    return (random + random.mT) / 4 + torch.diag(signs)


def hermitian(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A = Aᴴ, indefinite."""
    random = _random(n, dtype, seed)
    signs = torch.where(torch.arange(n) % 2 == 0, 3.0, -3.0).to(dtype)
    return (random + random.mH) / 4 + torch.diag(signs)


def general(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """No symmetry, not even of the places, and some zeros on the diagonal."""
    permutation = torch.eye(n, dtype=dtype)[torch.randperm(n, generator=generator(seed + 1))]
    return _random(n, dtype, seed) / 4 + 3 * permutation


MAKERS: dict[str, Callable[..., Tensor]] = {
    "spd": spd,
    "symmetric": symmetric,
    "hermitian": hermitian,
    "general": general,
}


def problem(kind: str, dtype: torch.dtype, n: int = 12, seed: int = 0) -> Problem:
    dense = MAKERS[kind](n, dtype, seed)
    rows, cols = dense.nonzero().T
    return Problem(kind, dense, rows, cols, dense[rows, cols])


def kinds_of(dtype: torch.dtype) -> tuple[str, ...]:
    return tuple(MAKERS) if dtype.is_complex else ("spd", "symmetric", "general")


def rhs(*shape: int, dtype: torch.dtype, seed: int = 100) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=generator(seed))


def independent(
    kind: str, values: Tensor, rows: Tensor, cols: Tensor
) -> Callable[[Tensor], Tensor]:
    """A map from free parameters, as many as values, to values of a matrix of this kind.

    For gradcheck: the package checks symmetry, so that no entry can be varied on its own.
    """
    if kind == "general":
        return lambda free: free
    n = int(rows.max()) + 1
    at = torch.full((n, n), -1, device=rows.device)
    at[rows, cols] = torch.arange(values.numel(), device=rows.device)
    opposite = at[cols, rows]
    conjugate = values.is_complex() and kind in ("spd", "hermitian")
    half = torch.full_like(values, 0.5)
    return lambda free: (free + (free[opposite].conj() if conjugate else free[opposite])) * half


def grid(m: int) -> tuple[Tensor, int]:
    """The edges (2, ·) and the number of nodes of an m-by-m grid."""
    node = torch.arange(m * m).reshape(m, m)
    right = torch.stack([node[:, :-1].reshape(-1), node[:, 1:].reshape(-1)])
    down = torch.stack([node[:-1].reshape(-1), node[1:].reshape(-1)])
    return torch.cat([right, down], 1), m * m


def random_graph(n: int, each: int, seed: int = 0) -> tuple[Tensor, int]:
    """The edges (2, ·), about `each` for a node, and the number of nodes of a random graph."""
    edges = torch.randint(n, (2, each * n), generator=generator(seed))
    return edges[:, edges[0] != edges[1]], n


def laplacian_places(edges: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The places, with duplicates, of `laplacian_values`: a weighted graph Laplacian."""
    i, j = edges
    nodes = torch.arange(n)
    return torch.cat([nodes, i, j, i, j]), torch.cat([nodes, j, i, i, j])


def laplacian_values(weights: Tensor, n: int, anchor: float = 1.0) -> Tensor:
    return torch.cat(
        [torch.full((n,), anchor, dtype=weights.dtype), -weights, -weights, weights, weights]
    )


def laplacian(m: int = 12) -> tuple[ss.Pattern, Tensor, int]:
    """The pattern, the edges and the number of nodes of the Laplacian of an m-by-m grid."""
    edges, n = grid(m)
    return ss.Pattern(*laplacian_places(edges, n), (n, n)), edges, n
