"""Disease mapping: the relative risk in the districts of a synthetic map, from counts of cases.

A district with E expected cases has a Poisson number y of cases, with the mean E exp(x). The
logarithms x of the risks are smooth: the differences x_i − x_k of neighbours are normal, with the
precision τ. That is an intrinsic conditional autoregression, whose precision matrix τ L, with the
Laplacian L of the map, is singular: it says nothing about the mean of x.

`ss.minimize` finds the most probable x, and the Laplace approximation is the Gaussian field around
it, with the Hessian for its precision matrix. From

    log p(y | τ) ≈ log p(y | x) + log p(x | τ) − log p(x | y, τ)      at the most probable x

τ is found by Newton's method, and its standard error; all derivatives, also that of x, are exact.

J. Besag, J. York, A. Mollié, "Bayesian image restoration, with two applications in spatial
statistics", Ann. Inst. Statist. Math. 43, 1991; H. Rue, S. Martino, N. Chopin, "Approximate
Bayesian inference for latent Gaussian models", J. R. Stat. Soc. B 71, 2009.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from drawing import new_figure
from scipy.spatial import Voronoi
from torch import Tensor

import sparse_solver as ss

PRECISION = 8.0  # of the differences of neighbours
CASES = 10.0  # the median of the expected cases in a district


class Map:
    """Districts: the Voronoi cells of random points in the unit square."""

    def __init__(self, n: int, rng: np.random.Generator):
        points = rng.uniform(0, 1, (n, 2))
        # Mirror images beyond the sides bound the cells.
        axes = np.eye(2, dtype=bool)
        images = [np.where(axis, 2 * side - points, points) for axis in axes for side in (0, 1)]
        self.cells = Voronoi(np.concatenate((points, *images)))
        pairs = self.cells.ridge_points
        self.edges = torch.from_numpy(pairs[(pairs < n).all(1)]).long()
        i, k = self.edges.T
        self.n, self.nodes = n, torch.arange(n)
        self.pattern = ss.Pattern(torch.cat((i, k, i, k)), torch.cat((k, i, i, k)), (n, n))
        self.laplacian = torch.tensor([-1.0, -1, 1, 1]).double().repeat_interleave(len(i))

    def prior(self, precision: Tensor) -> ss.GaussianField:
        """The field of the deviations of x from its mean."""
        sum_of_all = torch.ones(1, self.n, dtype=torch.float64)
        return ss.GaussianField(self.pattern, precision * self.laplacian, constraints=sum_of_all)

    def energy(self, precision: Tensor, expected: Tensor, y: Tensor) -> ss.Energy:
        """The negative logarithm of the density of x, up to constants."""
        each, data = precision.expand(len(self.edges)), torch.stack((expected, y), 1)
        springs = ss.IndexedSum(lambda x, t: t / 2 * (x[0] - x[1]) ** 2, self.edges, per_term=each)
        nodes = self.nodes.unsqueeze(1)
        return springs + ss.IndexedSum(
            lambda x, t: t[0] * x.exp()[0] - t[1] * x[0], nodes, per_term=data
        )


def approximate(
    districts: Map, log_precision: Tensor, expected: Tensor, y: Tensor
) -> tuple[ss.GaussianField, Tensor]:
    """The Laplace approximation of x given y, and that of log p(y | τ), up to a constant."""
    precision, P = log_precision.exp(), districts.pattern
    start = ((y.sum() + 1) / expected.sum()).log().expand(districts.n)
    x, _ = ss.minimize(districts.energy(precision, expected, y), start)
    means = expected * x.exp()
    rows, cols = (torch.cat((places, districts.nodes)) for places in (P.rows, P.cols))
    hessian = torch.cat((precision * districts.laplacian, means))
    posterior = ss.GaussianField(ss.Pattern(rows, cols, P.shape), hessian, x)
    likelihood = torch.distributions.Poisson(means).log_prob(y).sum()
    prior = districts.prior(precision).log_prob(x - x.mean())
    return posterior, likelihood + prior - posterior.log_prob(x)


def estimate(districts: Map, expected: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithm of τ, and its standard error."""
    log_precision = torch.zeros((), dtype=torch.float64)
    for step in range(1, 21):
        log_precision.requires_grad_()
        _, evidence = approximate(districts, log_precision, expected, y)
        (slope,) = torch.autograd.grad(evidence, log_precision, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, log_precision)
        change = slope.detach() / curvature.abs().clamp(min=1.0)
        log_precision = log_precision.detach() + change.clamp(-1, 1)
        print(f"step {step}: precision {float(log_precision.exp()):.4f}", flush=True)
        if abs(float(change)) < 1e-6:
            break
    return log_precision, (-curvature).rsqrt()


def draw(districts: Map, fields: dict[str, Tensor], file: Path) -> None:
    from matplotlib.collections import PolyCollection

    cells = districts.cells
    corners = [cells.vertices[cells.regions[cells.point_region[i]]] for i in range(districts.n)]
    with new_figure(file, 1, 4, 2.5) as (figure, axes):
        for axis, (name, numbers) in zip(axes, fields.items(), strict=True):
            image = PolyCollection(corners, array=numbers.numpy(), edgecolors="face")
            image.set_clim(*((0, 0.3) if "deviation" in name else (0.25, 2.25)))
            axis.add_collection(image)
            figure.colorbar(image, ax=axis, orientation="horizontal", aspect=25, pad=0.03)
            axis.set(title=name, xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[], yticks=[])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a map of fewer districts")
    parser.add_argument("--picture", type=Path, help="where to draw, e.g. disease_map.png")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    districts = Map(300 if arguments.quick else 3000, rng)
    truth = districts.prior(torch.tensor(PRECISION, dtype=torch.float64)).sample()
    expected = CASES * torch.from_numpy(rng.lognormal(0, 0.7, districts.n))
    y = torch.poisson(expected * truth.exp())
    print(f"{districts.n:,} districts, {int(y.sum()):,} cases")
    log_precision, error = estimate(districts, expected, y)
    away = abs(float((log_precision - np.log(PRECISION)) / error))
    print(
        f"precision {float(log_precision.exp()):.2f}, {away:.2f} standard errors from {PRECISION}"
    )
    assert away < 3
    with torch.no_grad():
        posterior, _ = approximate(districts, log_precision, expected, y)
        x, deviation = posterior.mean, posterior.stddev
    inside = ((x - truth).abs() < 1.96 * deviation).double().mean()
    errors = [(risk - truth.exp()).square().mean().sqrt() for risk in (y / expected, x.exp())]
    print(f"true risks in the intervals of 95 %: {100 * float(inside):.1f} %")
    print(f"error of the risks {float(errors[0]):.3f} -> {float(errors[1]):.3f}")
    if arguments.picture:
        fields = {"true risk": truth.exp(), "counts / expected": y / expected}
        fields |= {"smoothed risk": x.exp(), "std. deviation of log": deviation}
        draw(districts, fields, arguments.picture)


if __name__ == "__main__":
    main()
