"""Quasi-harmonic weights: smooth weights of handles that are guaranteed to lie in [0, 1].

A shape is deformed by a few handles, x ↦ Σ_j w_j(x) T_j x. A weight is one at its own handle and
zero at the others, and the weights sum to one. Harmonic weights minimise Σ_e c_e (w_i − w_k)² over
the edges e = (i, k) of a mesh, with cotangents for c: they are computed quickly and lie in [0, 1],
but have spikes at the handles. The minimisers of ‖Δw‖² are smooth, but leave [0, 1]. This example
finds the coefficients c for which the minimisers of the first energy make the second small. For
any positive coefficients, the weights obey a maximum principle, and one factorisation gives the
weights of all handles.

Y. Wang and J. Solomon, "Fast Quasi-Harmonic Weights for Geometric Data Interpolation", ACM Trans.
Graph. 40 (4), 2021.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from drawing import new_figure
from progress import show_progress
from scipy.optimize import minimize
from scipy.spatial import Delaunay, cKDTree
from torch import Tensor

import sparse_solver as ss

# A figure: bones (x, y, x, y, radius) with round ends, and its handles: head, hands, feet, hips.
BONES = np.array(
    [[0, 0.2, 0, 0.75, 0.2], [0, 1.15, 0, 1.2, 0.23], [0, 0.6, 0, 1.1, 0.1],
     [-0.9, 0.95, 0, 0.75, 0.1], [0.9, 0.95, 0, 0.75, 0.1],
     [-0.45, -0.9, -0.08, 0.2, 0.12], [0.45, -0.9, 0.08, 0.2, 0.12]]
)  # fmt: skip
HANDLES = np.array(
    [[0, 1.2], [-0.85, 0.94], [0.85, 0.94], [-0.43, -0.85], [0.43, -0.85], [0, 0.75], [0, 0.2]]
)
# The transformations T_j: rotations about the handles, in degrees, and translations.
TURNS = (20, 20, 45, 0, 10, -15, -15)
MOVES = np.array(
    [[0.1, -0.05], [0.15, 0.3], [0.0, 0.3], [-0.1, 0.05], [0.3, 0.15], [0.05, 0.0], [0.25, -0.05]]
)


class Mesh(NamedTuple):
    """A triangle mesh.

    points : (n, 2)
    triangles : (·, 3)
    edges : (2, ·)
    cotangents : (edges,) half the sum of the cotangents of the opposite angles
    areas : (n,) a third of the areas of the triangles at each vertex
    handles : (k,) vertices
    """

    points: Tensor
    triangles: Tensor
    edges: Tensor
    cotangents: Tensor
    areas: Tensor
    handles: Tensor


def distance(points: np.ndarray) -> np.ndarray:
    """(·,) the signed distances of points to the outline of the figure, negative inside."""
    a, b, radius = BONES[:, None, :2], BONES[:, None, 2:4], BONES[:, None, 4]
    along = ((points - a) * (b - a)).sum(-1) / ((b - a) ** 2).sum(-1)
    nearest = a + np.clip(along, 0, 1)[..., None] * (b - a)
    found: np.ndarray = (np.linalg.norm(points - nearest, axis=-1) - radius).min(0)
    return found


def figure(h: float) -> Mesh:
    """A mesh with edges of length about h: a hexagonal grid, the outline, and the handles."""
    x, y = np.meshgrid(np.arange(-1.2, 1.2, h), np.arange(-1.2, 1.6, h * math.sqrt(3) / 2))
    x[1::2] += h / 2
    grid = np.stack((x.ravel(), y.ravel()), 1)
    rim = grid[abs(distance(grid)) < h]
    for _ in range(5):  # move the points to the outline, along the gradient
        step = 1e-6 * np.eye(2)
        gradient = np.stack([distance(rim + s) - distance(rim - s) for s in step], 1) / 2e-6
        rim = rim - distance(rim)[:, None] * gradient
    kept, tree = np.ones(len(rim), dtype=bool), cKDTree(rim)
    for i in range(len(rim)):
        if kept[i]:  # drop its near neighbours
            kept[tree.query_ball_point(rim[i], 0.75 * h)] = False
            kept[i] = True
    inside = grid[distance(grid) < -0.5 * h]
    inside = inside[cKDTree(HANDLES).query(inside)[0] > 0.6 * h]
    points = np.concatenate((HANDLES, rim[kept], inside))
    triangles = Delaunay(points).simplices.astype(np.int64)
    triangles = triangles[distance(points[triangles].mean(1)) < -0.05 * h]
    used, triangles = np.unique(triangles, return_inverse=True)  # the handles remain first
    return measure(torch.from_numpy(points[used]), torch.from_numpy(triangles.reshape(-1, 3)))


def measure(points: Tensor, triangles: Tensor) -> Mesh:
    """The mesh with these points and triangles, whose first points are the handles."""
    corner = points[triangles]
    u, v = corner.roll(-1, 1) - corner, corner.roll(-2, 1) - corner
    double = (u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]).abs()  # twice the area
    cotangent = (u * v).sum(-1) / double / 2
    opposite = torch.stack((triangles.roll(-1, 1), triangles.roll(-2, 1)), -1).sort(-1)[0]
    edges, number = torch.unique(opposite.reshape(-1, 2), dim=0, return_inverse=True)
    zeros = torch.zeros(len(edges), dtype=torch.double)
    cotangents = zeros.index_add(0, number, cotangent.reshape(-1))
    zeros = torch.zeros(len(points), dtype=torch.double)
    areas = zeros.index_add(0, triangles.reshape(-1), double.reshape(-1) / 6)
    return Mesh(points, triangles, edges.T, cotangents, areas, torch.arange(len(HANDLES)))


class Weights:
    """(n, k) the weights of the handles, from the logarithms of the coefficients of the edges."""

    def __init__(self, mesh: Mesh):
        i, k = mesh.edges
        n = len(mesh.points)
        rows, cols = torch.cat((i, k, i, k)), torch.cat((k, i, i, k))
        laplacian = ss.Pattern(rows, cols, (n, n))  # duplicates are summed
        self.program = ss.QuadraticProgram(laplacian, fixed=mesh.handles)
        self.ones = torch.eye(len(mesh.handles), dtype=torch.double)

    def __call__(self, log_coefficients: Tensor) -> Tensor:
        c = log_coefficients.exp()
        return self.program.solve(torch.cat((-c, -c, c, c)), fixed_values=self.ones)


def roughness(mesh: Mesh, weights: Tensor) -> Tensor:
    """½ Σ_j ∫ (Δ w_j)², with the cotangent Laplacian."""
    i, k = mesh.edges
    flow = mesh.cotangents.unsqueeze(1) * (weights[i] - weights[k])
    laplacian = torch.zeros_like(weights).index_add(0, i, flow).index_add(0, k, -flow)
    return (laplacian**2 / mesh.areas.unsqueeze(1)).sum() / 2


def optimize(mesh: Mesh, steps: int) -> tuple[Tensor, Tensor]:
    """The harmonic weights and the optimised ones."""
    weights, start = Weights(mesh), mesh.cotangents.clamp(min=1e-3).log()

    def energy_and_gradient(theta: np.ndarray) -> tuple[float, np.ndarray]:
        variables = torch.from_numpy(theta).requires_grad_()
        energy = roughness(mesh, weights(variables))
        (gradient,) = torch.autograd.grad(energy, variables)
        return energy.item(), gradient.numpy()

    with show_progress("quasi-harmonic weights", steps) as report:

        def show(intermediate_result: Any) -> None:
            report(f"energy {intermediate_result.fun:.1f}")

        options = {"maxiter": steps, "maxcor": 20}
        settings = {"jac": True, "method": "L-BFGS-B", "callback": show, "options": options}
        found = minimize(energy_and_gradient, start, **settings)
    return weights(start), weights(torch.from_numpy(found.x))


def deformed(mesh: Mesh, weights: Tensor) -> Tensor:
    """(n, 2) x ↦ Σ_j w_j(x) T_j x, where T_j rotates about handle j, and translates."""
    angles = torch.deg2rad(torch.tensor(TURNS, dtype=torch.double))
    turns = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1)
    handles = mesh.points[mesh.handles]
    arms = mesh.points.unsqueeze(1) - handles
    images = (
        torch.einsum("jab,njb->nja", turns.view(-1, 2, 2), arms) + handles + torch.from_numpy(MOVES)
    )
    return (weights.unsqueeze(-1) * images).sum(1)


def draw(mesh: Mesh, harmonic: Tensor, optimized: Tensor, shown: int, file: Path) -> None:
    x, y = mesh.points.T
    levels, red = np.linspace(0, 1, 21), {"marker": "o", "ls": "", "color": "C1", "markersize": 3}
    board = (torch.floor(mesh.points[mesh.triangles].mean(1) / 0.08).sum(1) % 2).numpy()
    with new_figure(file, 1, 4, 2.6, sharex=True, sharey=True) as (figure, axes):
        names = {"harmonic": harmonic, "quasi-harmonic": optimized}
        for k, (name, weights) in enumerate(names.items()):
            shape = (x, y, mesh.triangles, weights[:, shown])
            image = axes[k].tricontourf(*shape, levels=levels)
            axes[k].tricontour(*shape, levels=levels[2::2], colors="w", linewidths=0.4)
            axes[k].plot(*mesh.points[mesh.handles].T, **red)
            axes[k].set_title(f"{name}\nweights of the hip")
            u, v = deformed(mesh, weights).T
            axes[k + 2].tripcolor(u, v, mesh.triangles, board, cmap="Blues", vmin=-0.5, vmax=1.5)
            axes[k + 2].plot(u[mesh.handles], v[mesh.handles], **red)
            axes[k + 2].set_title(f"deformed by\n{name} weights")
        for axis in axes:
            axis.set_aspect("equal")
            axis.set_axis_off()
        figure.colorbar(image, ax=axes[1], shrink=0.6, ticks=[0, 0.5, 1])


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="a coarser mesh and fewer steps")
    where = "where to draw, e.g. quasi_harmonic_weights.png"
    parser.add_argument("--picture", type=Path, help=where)
    arguments = parser.parse_args()
    mesh = figure(0.04 if arguments.quick else 0.0175)
    harmonic, optimized = optimize(mesh, 30 if arguments.quick else 100)
    before, after = roughness(mesh, harmonic).item(), roughness(mesh, optimized).item()
    outside = max(0.0, -optimized.min().item(), optimized.max().item() - 1)
    off_one = (optimized.sum(1) - 1).abs().max().item()
    vertices, edges = len(mesh.points), mesh.edges.shape[1]
    print(f"{vertices:,} vertices, {edges:,} coefficients, {len(mesh.handles)} handles")
    print(
        f"energy {before:.0f} -> {after:.1f}, {after / before:.3f} of that of the harmonic weights"
    )
    print(f"weights leave [0, 1] by {outside:.0e}, their sums differ from one by {off_one:.0e}")
    assert after <= before / 2
    assert max(outside, off_one) <= 1e-9
    if arguments.picture:
        draw(mesh, harmonic, optimized, shown=6, file=arguments.picture)


if __name__ == "__main__":
    main()
