"""Learning on triangle meshes: a network whose layers spread features by heat diffusion.

A layer spreads its channels u over a surface for times t, by one step of implicit Euler each,

    (M + t L) v = M u      with the lumped masses M and the cotangent Laplacian L of the mesh,

and perceptrons act on each vertex alone. The times are learned through the entries of the matrices.
The network finds thick and thin arms by noisy curvatures, also of new bodies with finer meshes.

N. Sharp, S. Attaiki, K. Crane and M. Ovsjanikov, "DiffusionNet: Discretization agnostic learning on
surfaces", ACM Trans. Graph. 41 (3), 2022.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from drawing import new_figure
from progress import show_progress
from scipy.spatial import ConvexHull
from torch import Tensor, nn

import sparse_solver as ss

KINDS, CHANNELS, NOISE = 3, 8, 0.03  # noise of the positions, in distances of neighbours
PALETTE = torch.tensor([[0.8, 0.8, 0.8], [0.2, 0.55, 0.8], [0.9, 0.5, 0.1], [0.4, 0, 0.5]]).double()


class Bodies:
    """Balls with three thick and three thin arms each, whose meshes share n vertices."""

    def __init__(self, count: int, n: int):
        nodes = torch.arange(n)  # on a Fibonacci spiral
        turns, z = nodes.double() * torch.pi * (3 - 5**0.5), 1 - (2 * nodes.double() + 1) / n
        ring = torch.stack((turns.cos(), turns.sin(), z / (1 - z**2).sqrt()), 1)
        sphere = nn.functional.normalize(ring, dim=1)
        axes = torch.linalg.qr(torch.randn(count, 3, 3).double())[0]
        widths = torch.tensor([0.38, 0.2]).double().repeat_interleave(3)
        bumps = torch.exp((sphere @ torch.cat((axes, -axes), 1).mT - 1) / widths**2)
        self.labels = torch.where(bumps.amax(2) > 0.3, 1 + bumps.argmax(2) // 3, 0)
        points = sphere * (1 + bumps @ (0.5 + 0.3 * torch.rand(count, 6, 1).double()))
        self.points = points + NOISE * (4 * torch.pi / n) ** 0.5 * torch.randn_like(points)
        self.triangles = torch.from_numpy(ConvexHull(sphere.numpy()).simplices).long()
        at, corner = self.triangles.reshape(-1), self.points[:, self.triangles]
        u, v = corner.roll(-1, 2) - corner, corner.roll(-2, 2) - corner
        double, dot = torch.linalg.cross(u, v).norm(dim=-1).flatten(1), (u * v).sum(-1).flatten(1)
        self.cotangents = dot / double / 2  # `double` is twice the area
        parts = torch.stack((double / 6, torch.atan2(double, dot)))  # thirds of areas, angles
        sums = torch.zeros(2, count, n).double().index_add(2, at, parts)
        self.masses, self.curvature = sums[0], (2 * torch.pi - sums[1]) / sums[0]
        i, k = self.triangles.roll(-1, 1).reshape(-1), self.triangles.roll(-2, 1).reshape(-1)
        rows, cols = torch.cat((i, k, i, k, nodes)), torch.cat((k, i, i, k, nodes))
        self.pattern = ss.Pattern(rows, cols, (n, n))  # duplicates are summed

    def values(self, times: Tensor) -> Tensor:  # (bodies, times, nnz), of M + t L
        w, masses = times[:, None] * self.cotangents[:, None], self.masses[:, None]
        return torch.cat((-w, -w, w, w, masses.expand(-1, len(times), -1)), 2)

    def diffuse(self, u: Tensor, times: Tensor) -> Tensor:
        """Spread the features u (bodies, channels, n) for a time for each channel."""
        return self.pattern.solve(self.values(times), self.masses[:, None] * u, assume="spd")


class Network(nn.Module):
    """Two layers of diffusion, with perceptrons before, between and after them."""

    def __init__(self, diffuses: bool):
        super().__init__()
        self.diffuses, c = diffuses, CHANNELS
        self.log_times = nn.Parameter(torch.linspace(-6, -2, 2 * c).double().view(2, c))
        self.parts = nn.ModuleList()
        for a, b in ((1, c), (2 * c, c), (2 * c, KINDS)):
            self.parts.append(nn.Sequential(nn.Linear(a, 16), nn.SiLU(), nn.Linear(16, b)).double())

    def forward(self, bodies: Bodies) -> Tensor:
        u: Tensor = self.parts[0](bodies.curvature.asinh()[..., None])
        for part, log_times in zip(self.parts[1:], self.log_times, strict=True):
            spread = bodies.diffuse(u.mT, log_times.exp()).mT if self.diffuses else u
            u = part(torch.cat((u, spread), 2))
        return u


def train(network: Network, bodies: Bodies, name: str, steps: int) -> Network:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    with show_progress(name, steps) as report:
        for _ in range(steps):
            loss = nn.functional.cross_entropy(network(bodies).mT, bodies.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            report(f"loss {loss.item():.3f}")
    return network


def check(bodies: Bodies, t: float) -> float:
    """The error of diffusion and its derivative in t, beside sums over all eigenvectors."""
    u, times = torch.randn_like(bodies.curvature), torch.tensor([t]).double().requires_grad_()
    found = bodies.diffuse(u[:, None], times)[0, 0]
    (slope,) = torch.autograd.grad(found.sum(), times)
    A, m = bodies.pattern.tensor(bodies.values(times.detach())[0, 0]), bodies.masses[0].sqrt()
    eigenvalues, vectors = torch.linalg.eigh(A.to_dense() / m / m[:, None])  # 1 + t λ
    c = vectors.T @ (m * u[0]) / eigenvalues
    error = (m * found.detach() - vectors @ c).norm() / c.norm()
    exact = (vectors @ (c * (1 / eigenvalues - 1)) / m).sum() / t
    return max(float(error), abs(float(slope / exact - 1)))


def draw(bodies: Bodies, colors: dict[str, Tensor], file: Path) -> None:
    """Draw the first body in these colours of vertices, (n, 3), far triangles first."""
    from matplotlib.collections import PolyCollection

    faces = bodies.points[0, bodies.triangles]
    order = faces[..., 2].mean(1).argsort()
    normals = nn.functional.normalize(torch.linalg.cross(*faces.diff(dim=1).unbind(1)), dim=1)
    bright = 0.5 + 0.5 * (normals @ torch.tensor([0.3, 0.5, 0.8]).double()).abs().clamp(max=1)
    with new_figure(file, 1, len(colors), 2.2) as (_, axes):
        for axis, (name, color) in zip(axes, colors.items(), strict=True):
            shade = (color[bodies.triangles].mean(1) * bright[:, None])[order].numpy()
            axis.add_collection(PolyCollection(faces[order][..., :2], color=shade))
            axis.autoscale_view()
            axis.set(title=name, aspect="equal", frame_on=False, xticks=[], yticks=[])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="coarser meshes and fewer steps")
    parser.add_argument("--picture", type=Path, help="where to draw, e.g. learn_on_a_mesh.png")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    count, n, steps = (3, 500, 60) if arguments.quick else (6, 1000, 120)
    bodies, new, error = Bodies(count, n), Bodies(4, 2 * n), check(Bodies(1, 300), 0.1)
    print(f"diffusion and its derivative differ from sums over eigenvectors by {error:.1e}")
    assert error < 1e-6
    bent, wrong = (new.curvature[0, :, None] / 12).clamp(0, 1), []
    colors = {"noisy curvature": PALETTE[0].lerp(PALETTE[3], bent), "truth": PALETTE[new.labels[0]]}
    for name in ("without diffusion", "with diffusion"):
        guess = train(Network(name == "with diffusion"), bodies, name, steps)(new).argmax(2)
        wrong.append(float((guess != new.labels).double().mean()))
        colors[f"{name}: {1 - wrong[-1]:.0%}"] = PALETTE[guess[0]]
    print("wrong labels of new bodies: {:.4f} without diffusion, {:.4f} with".format(*wrong))
    assert wrong[1] < wrong[0] / 2
    if arguments.picture:
        draw(new, colors, arguments.picture)


if __name__ == "__main__":
    main()
