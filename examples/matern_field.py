"""A Matérn field on a triangle mesh: its range, its variance, and the noise of observations.

The field solves (κ² − Δ) x = white noise / τ in finite elements, so that its precision is sparse:

    Q = τ² (κ⁴ M + 2 κ² K + K M⁻¹ K)      with the lumped mass matrix M and the stiffness matrix K.

Its range, at which correlations are about 0.1, is √8 / κ, and its variance 1 / (4 π κ² τ²). The
mesh goes on around the unit square, since the variance grows at its rim. L-BFGS maximises the
density of noisy observations; their Hessian gives the standard errors. Both are exact.

F. Lindgren, H. Rue, J. Lindström, "An explicit link between Gaussian fields and Gaussian Markov
random fields: the stochastic partial differential equation approach", J. R. Stat. Soc. B 73, 2011.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawing import new_figure
from progress import show_progress
from scipy.optimize import minimize
from scipy.sparse import coo_array, diags_array
from scipy.spatial import Delaunay
from torch import Tensor

import sparse_solver as ss

NAMES = "range", "standard deviation", "noise"
TRUTH = torch.tensor([0.25, 1.5, 0.3], dtype=torch.float64)
START = torch.tensor([0.1, 1.0, 1.0], dtype=torch.float64)
RIM = 0.25
HOLE, HOLE_RADIUS = (0.65, 0.35), 0.2  # a disc without observations


class Mesh:
    """About n nodes in the unit square and around it, and the finite elements there."""

    def __init__(self, n: int, rng: np.random.Generator):
        side = math.ceil(math.sqrt(n))
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
        inner = ((grid > 0) & (grid < side - 1)).all(1, keepdims=True)
        shifts = inner * rng.uniform(-0.3, 0.3, grid.shape)
        self.nodes = (grid + shifts) * (1 + 2 * RIM) / (side - 1) - RIM
        self.delaunay = Delaunay(self.nodes)
        triangles, n = self.delaunay.simplices, side * side
        edges = self.nodes[triangles[:, [2, 0, 1]]] - self.nodes[triangles[:, [1, 2, 0]]]
        areas = np.abs(np.linalg.det(edges[:, :2])) / 2
        entries = np.einsum("tid,tjd->tij", edges, edges) / (4 * areas[:, None, None])
        at = np.repeat(triangles, 3, 1).ravel(), np.tile(triangles, 3).ravel()
        K = coo_array((entries.ravel(), at), (n, n)).tocsr()
        masses = np.bincount(triangles.ravel(), np.repeat(areas / 3, 3), n)
        parts = diags_array(masses).tocoo(), K.tocoo(), (K @ diags_array(1 / masses) @ K).tocoo()
        self.parts = [torch.from_numpy(part.data) for part in parts]
        i, j = (torch.from_numpy(np.concatenate([p.coords[k] for p in parts])) for k in (0, 1))
        self.pattern = ss.Pattern(i, j, (n, n))  # entries at the same place are summed

    def interpolate(self, points: np.ndarray) -> Tensor:
        """The matrix that interpolates linearly at these points."""
        found = self.delaunay.find_simplex(points)
        transform = self.delaunay.transform[found]
        two = np.einsum("tij,tj->ti", transform[:, :2], points - transform[:, 2])
        weights = np.concatenate((two, 1 - two.sum(1, keepdims=True)), 1)
        at = np.repeat(np.arange(len(points)), 3), self.delaunay.simplices[found].ravel()
        H = coo_array((weights.ravel(), at), (len(points), len(self.nodes)))
        return ss.Pattern.from_scipy(H).tensor(torch.from_numpy(H.data))

    def field(self, logarithms: Tensor) -> ss.GaussianField:
        """The field with this range and this standard deviation."""
        scale, deviation, _ = logarithms.exp()
        kappa = math.sqrt(8) / scale
        tau = 1 / (math.sqrt(4 * math.pi) * kappa * deviation)
        factors = (tau * kappa**2) ** 2, 2 * (tau * kappa) ** 2, tau**2
        values = [factor * part for factor, part in zip(factors, self.parts, strict=True)]
        return ss.GaussianField(self.pattern, torch.cat(values))


def estimate(mesh: Mesh, H: Tensor, y: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The logarithms of the parameters, and their standard errors."""

    def loss(theta: Tensor) -> Tensor:
        return -mesh.field(theta).log_evidence(H, y, (-2 * theta[2]).exp()) / len(y)

    def loss_and_gradient(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.from_numpy(numbers.copy()).requires_grad_()
        value = loss(theta)
        (gradient,) = torch.autograd.grad(value, theta)
        return value.item(), gradient.numpy()

    with show_progress("maximum likelihood", steps) as report:

        def show(intermediate_result: Any) -> None:
            report(f"loss {intermediate_result.fun:.5f}")

        options = {"maxiter": steps, "ftol": 1e-10, "gtol": 1e-6}
        settings = {"jac": True, "method": "L-BFGS-B", "callback": show, "options": options}
        theta = torch.from_numpy(minimize(loss_and_gradient, START.log().numpy(), **settings).x)
    hessian = torch.autograd.functional.hessian(loss, theta)
    return theta, torch.linalg.inv(len(y) * hessian).diagonal().sqrt()


def draw(mesh: Mesh, fields: dict[str, Tensor], file: Path) -> None:
    with new_figure(file, 1, 3, 3.1) as (figure, axes):
        for axis, (name, numbers) in zip(axes, fields.items(), strict=True):
            triangles = mesh.delaunay.simplices
            image = axis.tripcolor(*mesh.nodes.T, numbers, triangles=triangles, shading="gouraud")
            image.set_clim(*((0, 1.5) if "deviation" in name else (-5, 5)))
            figure.colorbar(image, ax=axis, orientation="horizontal", aspect=25, pad=0.03)
            axis.set(title=name, xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[], yticks=[])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a coarser mesh")
    parser.add_argument("--picture", type=Path, help="where to draw, e.g. matern_field.png")
    arguments = parser.parse_args()
    n, count = (2500, 1000) if arguments.quick else (50_000, 10_000)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    mesh, points = Mesh(n, rng), rng.uniform(0, 1, (2 * count, 2))
    points = points[np.linalg.norm(points - HOLE, axis=1) > HOLE_RADIUS][:count]
    H, truth = mesh.interpolate(points), mesh.field(TRUTH.log()).sample()
    y = H @ truth + TRUTH[2] * torch.randn(count, dtype=torch.float64)
    print(f"{len(mesh.nodes):,} nodes, {count:,} observations")
    theta, errors = estimate(mesh, H, y, steps=30)
    for name, exact, found, error in zip(NAMES, TRUTH, theta.exp(), errors, strict=True):
        away = abs(float((found / exact).log() / error))
        print(f"{name} {found:.3f}, {away:.2f} standard errors from {exact:.3f}")
        assert away < 3
    posterior = mesh.field(theta).condition(H, y, (-2 * theta[2]).exp())
    mean, deviation = posterior.mean, posterior.stddev
    scaled = (((truth - mean) / deviation).square().mean()).sqrt()
    print(f"errors of the posterior mean: {scaled:.2f} of its standard deviations")
    if arguments.picture:
        fields = {"truth": truth, "posterior mean": mean, "its standard deviation": deviation}
        draw(mesh, fields, arguments.picture)


if __name__ == "__main__":
    main()
