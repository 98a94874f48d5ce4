"""Energies, and the same sums written out, which the tests of energies share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sparse_solver as ss

TRIANGLES = torch.tensor([[0, 1, 2], [1, 3, 2], [2, 3, 4], [3, 5, 4]])
EDGES = torch.tensor([[0, 1], [1, 2], [4, 0]])


def spring(x: Tensor, k: Tensor, c: tuple[Tensor, Tensor]) -> Tensor:
    stiffness, length = c
    return stiffness * k.prod() * ((x[1] - x[0]).norm() - length) ** 2


def area(x: Tensor) -> Tensor:
    edges = torch.stack((x[1] - x[0], x[2] - x[0]))
    return torch.log(1 + torch.linalg.det(edges) ** 2)


def vector(x: Tensor, k: Tensor) -> Tensor:  # for X (vertices,)
    return torch.sin(x[0] * x[1] + k[0]) * x[2].exp()


class Case:
    """An energy, the same as a plain sum in Python, X, and the constants."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, **options: Any):
        torch.manual_seed(len(name))
        n, self.shape = 7, (7, 2)
        self.X = torch.randn(n, 2, dtype=dtype)
        self.constants: tuple[Tensor, ...] = ()
        if name == "springs":
            self.constants = tuple(torch.rand(size, dtype=dtype) + 0.5 for size in (n, 3, 3))
            self.make = lambda k, s, l: ss.IndexedSum(
                spring, EDGES, per_variable=k, per_term=(s, l), **options
            )
            self.plain = lambda X, k, s, l: sum(
                spring(X[e], k[e], (s[i], l[i])) for i, e in enumerate(EDGES)
            )
        elif name == "triangles":
            self.make = lambda: ss.IndexedSum(area, TRIANGLES, **options)
            self.plain = lambda X: sum(area(X[e]) for e in TRIANGLES)
        elif name == "vector":
            self.X = torch.randn(n, dtype=dtype)
            self.constants = (torch.rand(n, dtype=dtype),)
            self.make = lambda k: ss.IndexedSum(vector, TRIANGLES, per_variable=k, **options)
            self.plain = lambda X, k: sum(vector(X[e], k[e]) for e in TRIANGLES)
        elif name == "repeated":  # a term that reads a vertex twice
            indices = torch.tensor([[3, 3, 1], [0, 2, 0], [5, 5, 5]], dtype=torch.int32)
            self.make = lambda: ss.IndexedSum(
                lambda x: (x[0] * x[1] * x[2].exp()).sum(), indices, **options
            )
            self.plain = lambda X: sum(
                (X[e][0] * X[e][1] * X[e][2].exp()).sum() for e in indices.long()
            )
        elif name == "sum":
            first, second, third = (
                Case(other, dtype, **options) for other in ("springs", "triangles", "repeated")
            )
            weight = torch.rand((), dtype=dtype)
            self.constants = (*first.constants, weight)
            self.make = lambda *c: (
                c[-1] * first.make(*c[:-1]) - second.make() / 3 + 2 * third.make()
            )
            self.plain = lambda X, *c: (
                c[-1] * first.plain(X, *c[:-1]) - second.plain(X) / 3 + 2 * third.plain(X)
            )
        else:  # no term depends on X
            self.constants = (torch.rand(3, dtype=dtype),)
            self.make = lambda c: ss.IndexedSum(lambda x, c: c * 2, EDGES, per_term=c, **options)
            self.plain = lambda X, c: (c * 2).sum()

    make: Callable[..., ss.IndexedSum]
    plain: Callable[..., Any]


CHUNKS = [None, 1, 2]
