"""The systems A(θ) x = b that are timed: one pattern each, and a fresh θ for every sample."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sparse_solver._engines.iterate_or_factor import estimate_flops
from sparse_solver._sparse.structure import Structure

from . import graphs

# Contenders are left out where a factorisation is predicted to take more operations than this, a
# minute of two cores, or conjugate gradients more iterations than this for one solve.
MOST_FLOPS, MOST_ITERATIONS = 4e11, 5000

Kind = Literal["spd", "symmetric", "general"]


class Absent(Exception):
    """A contender cannot solve a problem; the message is the reason."""


@dataclass(frozen=True)
class Problem:
    """Systems A(values(θ)) x = b with the loss ‖x‖².

    rows, cols : (nnz,) the places of the values; duplicates are to be summed
    fresh : makes a new θ
    values : θ to (nnz,) or (batch, nnz) values
    rhs : (n,), (n, k) or (batch, n)
    condition : the order of the condition number, if it is so large that it rules iterations out
    """

    workload: str
    name: str
    n: int
    rows: Tensor
    cols: Tensor
    fresh: Callable[[], Tensor]
    values: Callable[[Tensor], Tensor]
    rhs: Tensor
    kind: Kind = "spd"
    batch: int = 0
    condition: float | None = None

    @functools.cached_property
    def factor_flops(self) -> float:
        """The operations of a Cholesky factorisation of one matrix, as its graph predicts them.

        No factorisation takes more than a dense one, n³ / 3.
        """
        estimate = estimate_flops(Structure(self.rows, self.cols, (self.n, self.n)))
        return float(min(estimate, self.n**3 / 3))

    @property
    def iterations(self) -> float:
        """The bound ½ √κ log(2 / ε) of the iterations of conjugate gradients, zero without κ."""
        eps = torch.finfo(torch.float64).eps
        return 0.5 * math.sqrt(self.condition or 0.0) * math.log(2 / eps)

    @property
    def rhs_rows(self) -> Tensor:
        """(·, n) the right-hand sides as rows."""
        rows = self.rhs if self.batch or self.rhs.dim() == 1 else self.rhs.T
        return rows.reshape(-1, self.n)

    def scipy_matrix(self, values: Tensor) -> Any:
        """The CSR matrix of SciPy with these (nnz,) values, duplicates summed."""
        from scipy.sparse import csr_matrix

        places = (self.rows.numpy(), self.cols.numpy())
        return csr_matrix((values.numpy(), places), shape=(self.n, self.n))

    def loss(self, x: Tensor) -> Tensor:
        return (x * x).sum() if not x.is_complex() else (x * x.conj()).real.sum()

    def solved_by(self, step: Callable[[Tensor, Tensor], Tensor], theta: Tensor) -> Tensor:
        """One training step with this solve: the gradient of the loss with respect to θ."""
        x = step(self.values(theta), self.rhs)
        return torch.autograd.grad(self.loss(x), theta)[0]


Makers = list[Callable[[], Problem]]


def refuse_to_factor(problem: Problem) -> None:
    """Raise `Absent` where a factorisation would take too long, and too much memory."""
    if problem.factor_flops > MOST_FLOPS:
        raise Absent(f"a factorisation takes about {problem.factor_flops:.0e} operations")


def refuse_to_iterate(problem: Problem) -> None:
    """Raise `Absent` where the condition number asks for too many iterations."""
    if problem.iterations > MOST_ITERATIONS:
        raise Absent(f"a solve takes about {problem.iterations:,.0f} iterations")


def laplacian(
    edges: Tensor, n: int, shift: float = 1.0
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Rows and columns of L + shift · I, and the map from the weights of the edges to values."""
    i, j = edges
    nodes = torch.arange(n)
    one = torch.full((n,), shift, dtype=torch.float64)

    def values(w: Tensor) -> Tensor:
        return torch.cat((one.expand(*w.shape[:-1], n), -w, -w, w, w), -1)

    return torch.cat((nodes, i, j, i, j)), torch.cat((nodes, j, i, i, j)), values


def on_graph(
    workload: str, name: str, edges: Tensor, n: int, batch: int = 0, shift: float = 1.0
) -> Problem:
    """A = shift · I + L(θ), θ the weights of the edges."""
    rows, cols, values = laplacian(edges, n, shift)
    shape = (batch, edges.shape[1]) if batch else (edges.shape[1],)
    rhs = torch.randn((batch, n) if batch else (n,), dtype=torch.float64)

    def fresh() -> Tensor:
        return 0.5 + torch.rand(shape, dtype=torch.float64)

    return Problem(workload, name, n, rows, cols, fresh, values, rhs, batch=batch)


def chain(n: int) -> Problem:
    return on_graph("chain", f"chain {n}", *graphs.ring(n))


def graph(n: int) -> Problem:
    return on_graph("graph", f"graph {n}", *graphs.random(n, 6))


SMALL_SHIFT = 1e-2  # condition numbers of L + shift · I near 10³ instead of 10


def grid_name(*sides: int, shift: float = 1.0) -> str:
    power = {2: "²", 3: "³"}[len(sides)]
    return f"grid {sides[0]}{power}" + ("" if shift == 1 else f", shift {shift:g}")


def grid(*sides: int, shift: float = 1.0) -> Problem:
    name = grid_name(*sides, shift=shift)
    return on_graph(f"grid{len(sides)}d", name, *graphs.grid(*sides), shift=shift)


def cubes(*sides: int) -> Makers:
    """Grids in three dimensions, well conditioned and less so."""
    shifts = (1.0, SMALL_SHIFT)
    return [
        functools.partial(grid, *3 * (side,), shift=shift) for side in sides for shift in shifts
    ]


def batch(count: int, side: int) -> Problem:
    return on_graph("batch", f"{count} × grid {side}²", *graphs.grid(side, side), batch=count)


@functools.lru_cache(maxsize=1)
def _mesh(rings: int, segments: int) -> tuple[Tensor, Tensor, Tensor]:
    return graphs.cotangent_weights(*graphs.torus(rings, segments))


# t: the diagonal decides alone, or the condition number is about 10⁶; see `benchmarks.conditions`.
SMOOTH, STIFF = 1e-2, 40.0


def mesh(rings: int, segments: int, k: int, squared: bool = False, t: float = SMOOTH) -> Problem:
    """Smoothing on a mesh, with lumped masses M and the cotangent Laplacian L.

    (M + t L(θ)) x = b with the weights θ; `squared`: (t² L M⁻¹ L + diag θ) x = b.
    """
    edges, weights, masses = _mesh(rings, segments)
    n = rings * segments
    masses = masses / masses.mean()
    rhs = torch.randn((n, k) if k > 1 else (n,), dtype=torch.float64)
    stiff = "stiff " if t == STIFF else ""
    name = f"{stiff}{'bi-Laplacian' if squared else 'Laplacian'} {n}, {k} rhs"
    rows, cols, of_weights = laplacian(edges, n)
    if not squared:

        def values(theta: Tensor) -> Tensor:
            scaled = of_weights(theta)
            return torch.cat((masses, t * scaled[n:]))

        def fresh() -> Tensor:
            return weights * (1 + 0.1 * torch.rand_like(weights))

        return Problem("mesh", name, n, rows, cols, fresh, values, rhs)
    from scipy.sparse import coo_matrix, diags

    places = (rows[n:].numpy(), cols[n:].numpy())
    L = coo_matrix((of_weights(weights)[n:].numpy(), places), shape=(n, n)).tocsr()
    squared_laplacian = (t**2 * L @ diags(1 / masses.numpy()) @ L).tocoo()
    # Make it exactly equal to its transpose, which a floating-point product is not.
    half = (squared_laplacian + squared_laplacian.T).tocoo()
    entries = torch.from_numpy(half.data / 2)
    nodes = torch.arange(n)
    return Problem(
        "mesh", name, n,
        torch.cat((torch.from_numpy(half.row).long(), nodes)),
        torch.cat((torch.from_numpy(half.col).long(), nodes)),
        lambda: masses * (0.5 + torch.rand(n, dtype=torch.float64)),
        lambda theta: torch.cat((entries, theta)),
        rhs, condition=1e6 if t == STIFF else None,
    )  # fmt: skip


def convection(side: int) -> Problem:
    """Convection and diffusion, not symmetric: an edge has one weight for each direction."""
    edges, n = graphs.grid(side, side)
    i, j = edges
    nodes = torch.arange(n)
    one = torch.ones(n, dtype=torch.float64)

    def values(w: Tensor) -> Tensor:
        there, back = w
        return torch.cat((one, -there, -back, there, back))

    return Problem(
        "general", f"convection–diffusion {side}²", n,
        torch.cat((nodes, i, j, i, j)), torch.cat((nodes, j, i, i, j)),
        lambda: 0.5 + torch.rand(2, edges.shape[1], dtype=torch.float64), values,
        torch.randn(n, dtype=torch.float64), kind="general",
    )  # fmt: skip


def saddle_point(side: int) -> Problem:
    """The KKT matrix [I + L(θ), Bᵀ; B, 0]; B couples every fourth node with its neighbour."""
    edges, n = graphs.grid(side, side)
    rows, cols, of_weights = laplacian(edges, n)
    held = torch.arange(0, n - 1, 4)
    multiplier = n + torch.arange(held.numel())
    one = torch.ones(held.numel(), dtype=torch.float64)
    pairs = (torch.cat((multiplier, multiplier)), torch.cat((held, held + 1)))
    constraint = torch.cat((one, -0.5 * one))
    return Problem(
        "indefinite", f"KKT {side}²", n + held.numel(),
        torch.cat((rows, *pairs)), torch.cat((cols, pairs[1], pairs[0])),
        lambda: 0.5 + torch.rand(edges.shape[1], dtype=torch.float64),
        lambda w: torch.cat((of_weights(w), constraint, constraint)),
        torch.randn(n + held.numel(), dtype=torch.float64), kind="symmetric",
    )  # fmt: skip


def helmholtz(side: int) -> Problem:
    """The damped Helmholtz equation, complex symmetric: −Δ − k² (1 + 0.1 i) θ.

    θ is the real squared slowness of every node.
    """
    edges, n = graphs.grid(side, side)
    i, j = edges
    nodes = torch.arange(n)
    couplings = -torch.ones(2 * edges.shape[1])
    stencil = torch.cat((couplings, torch.full((n,), 4.0))).to(torch.complex128)
    k2 = (2 * torch.pi / 12) ** 2  # twelve nodes per wavelength

    def values(slowness: Tensor) -> Tensor:
        return torch.cat((stencil[:-n], stencil[-n:] - k2 * slowness * (1 + 0.1j)))

    return Problem(
        "complex", f"Helmholtz {side}²", n,
        torch.cat((i, j, nodes)), torch.cat((j, i, nodes)),
        lambda: 0.9 + 0.2 * torch.rand(n, dtype=torch.float64), values,
        torch.randn(n, dtype=torch.complex128), kind="symmetric",
    )  # fmt: skip


def repeated(side: int, count: int, at_once: bool) -> Problem:
    """One matrix, factored before the clock starts, and fresh right-hand sides θ (count, n)."""
    one = grid(side, side)
    fixed = one.values(one.fresh())
    name = f"grid {side}², {count} rhs {'at once' if at_once else 'one by one'}"
    return Problem(
        "repeat", name, one.n, one.rows, one.cols,
        lambda: torch.randn(count, one.n, dtype=torch.float64), lambda theta: fixed,
        torch.empty(one.n, count if at_once else 1, dtype=torch.float64),
    )  # fmt: skip


def table(quick: bool) -> dict[str, Makers]:
    """The workloads by name: functions that make the problems, from small to large."""

    def each(make: Callable[..., Problem], *arguments: Any) -> Makers:
        return [functools.partial(make, *(a if isinstance(a, tuple) else (a,))) for a in arguments]

    if quick:
        return {
            "chain": each(chain, 2**8, 2**10),
            "graph": each(graph, 100, 300),
            "grid2d": each(grid, (30, 30)),
            "grid3d": each(grid, (8, 8, 8)),
            "mesh": each(mesh, (20, 20, 1), (20, 20, 3), (20, 20, 3, True, STIFF)),
            "batch": each(batch, (5, 8)),
            "repeat": each(repeated, (20, 10, False), (20, 4, True)),
            "general": each(convection, 15),
            "indefinite": each(saddle_point, 15),
            "complex": each(helmholtz, 15),
        }
    meshes = [(100, 100), (300, 333), (550, 550)]
    return {
        "chain": each(chain, *(2**p for p in range(8, 21))),
        "graph": each(graph, 100, 300, 1000, 3000, 10_000, 100_000),
        "grid2d": each(grid, *((side, side) for side in (100, 300, 500, 1000))),
        "grid3d": [
            *each(grid, (20, 20, 20)),
            *cubes(40, 60),
            *each(grid, (80, 80, 80), (100, 100, 100)),
        ],
        "mesh": each(
            mesh,
            *((*size, k) for size in meshes for k in (1, 3, 32)),
            *((*size, 3, True, t) for t in (SMOOTH, STIFF) for size in meshes),
        ),
        "batch": each(batch, (256, 20), (4096, 10)),
        "repeat": each(repeated, (300, 1000, False), (300, 64, True)),
        "general": each(convection, 100, 300),
        "indefinite": each(saddle_point, 100, 300),
        "complex": each(helmholtz, 100, 300),
    }
