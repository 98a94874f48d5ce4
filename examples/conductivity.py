"""Electrical impedance tomography: conductivities inside a square from voltages on its rim.

Sixteen patterns of current are sent through the rim, where voltages are measured. The potential u
of a current f minimises ½ Σ_e c_e (u_i − u_k)² − fᵀ u over a grid of cells, whose neighbours
e = (i, k) are joined by the harmonic mean c_e of their conductivities; one cell is grounded. One
factorisation serves all sixteen currents and their gradients. L-BFGS finds the logarithms of the
conductivities, with a penalty on the total variation, which separates edges from noise. The
measurements are simulated on the same grid, with noise: the model would fit real ones less well.

L. Borcea, "Electrical impedance tomography", Inverse Problems 18 (6), 2002; L. I. Rudin, S. Osher
and E. Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D 60, 1992.
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
from torch import Tensor

import sparse_solver as ss

SOURCES = 16
NOISE = 1e-3  # relative to the voltages of a source
PENALTY = 3e-4  # the weight of the total variation; relative misfits have the weight one
SMOOTHING = 1e-2  # smaller differences of neighbours enter the total variation as squares


class Tank:
    """A square of m-by-m cells, with the currents through its rim."""

    def __init__(self, m: int):
        cells = torch.arange(m * m).reshape(m, m)
        self.i = torch.cat((cells[:, :-1].reshape(-1), cells[:-1].reshape(-1)))
        self.k = torch.cat((cells[:, 1:].reshape(-1), cells[1:].reshape(-1)))
        sides = (cells[0, :-1], cells[:-1, -1], cells[-1, 1:].flip(0), cells[1:, 0].flip(0))
        self.rim = torch.cat(sides)
        angle = 2 * math.pi * torch.arange(len(self.rim), dtype=torch.double) / len(self.rim)
        harmonics = range(1, SOURCES // 2 + 1)
        waves = [wave(h * angle) for h in harmonics for wave in (torch.cos, torch.sin)]
        currents = torch.stack(waves, 1) * 4 / len(self.rim)  # each wave sums to zero
        zeros = torch.zeros(m * m, SOURCES, dtype=torch.double)
        self.currents = zeros.index_add(0, self.rim, currents)
        laplacian = ss.Pattern(  # duplicates are summed
            torch.cat((self.i, self.k, self.i, self.k)),
            torch.cat((self.k, self.i, self.i, self.k)),
            (m * m, m * m),
        )
        self.program = ss.QuadraticProgram(laplacian, fixed=self.rim[:1])

    def voltages(self, log_conductivity: Tensor) -> Tensor:
        """(rim cells, sources) voltages of zero mean, for (m, m) logarithms of conductivities."""
        resistivity = (-log_conductivity).exp().reshape(-1)
        c = 2 / (resistivity[self.i] + resistivity[self.k])
        u = self.program.solve(torch.cat((-c, -c, c, c)), self.currents)[self.rim]
        return u - u.mean(0)


def phantom(m: int) -> Tensor:
    """(m, m) conductivities: a disc and an ellipse of high, and a block of low conductivity."""
    centers = (torch.arange(m, dtype=torch.double) + 0.5) / m
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    truth = torch.ones(m, m, dtype=torch.double)
    truth[(x - 0.28) ** 2 + (y - 0.28) ** 2 < 0.16**2] = 2.5
    truth[((x - 0.3) / 0.2) ** 2 + ((y - 0.78) / 0.11) ** 2 < 1] = 2.0
    truth[((x - 0.74).abs() < 0.13) & ((y - 0.62).abs() < 0.2)] = 0.4
    return truth


def total_variation(field: Tensor) -> Tensor:
    """∫ |∇ field| over the unit square, smoothed where the gradient is near zero."""
    across, down = field[:-1, 1:] - field[:-1, :-1], field[1:, :-1] - field[:-1, :-1]
    return (across**2 + down**2 + SMOOTHING**2).sqrt().sum() / field.shape[0]


def recover(tank: Tank, measured: Tensor, m: int, steps: int) -> Tensor:
    """(m, m) conductivities, found from a constant initial guess."""
    start = torch.zeros(m, m, dtype=torch.double)
    with torch.no_grad():
        unit = (tank.voltages(start) - measured).std()

    def loss_and_gradient(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        field = torch.from_numpy(numbers).reshape(m, m).requires_grad_()
        misfit = ((tank.voltages(field) - measured) / unit).square().mean()
        loss = misfit + PENALTY * total_variation(field)
        (gradient,) = torch.autograd.grad(loss, field)
        return loss.item(), gradient.reshape(-1).numpy()

    with show_progress("conductivity", steps) as report:

        def show(intermediate_result: Any) -> None:
            report(f"loss {intermediate_result.fun:.5f}")

        options = {"maxiter": steps, "maxcor": 30, "ftol": 0.0, "gtol": 0.0}
        settings = {"jac": True, "method": "L-BFGS-B", "callback": show, "options": options}
        found = minimize(loss_and_gradient, start.reshape(-1).numpy(), **settings)
    return torch.from_numpy(found.x).reshape(m, m).exp()


def relative_error(field: Tensor, truth: Tensor) -> float:
    return float((field - truth).norm() / truth.norm())


def draw(truth: Tensor, recovered: Tensor, file: Path) -> None:
    fields = {"truth": truth, "recovered from the rim": recovered, "error": recovered - truth}
    with new_figure(file, 1, 3, 3.2) as (figure, axes):
        for axis, (name, field) in zip(axes, fields.items(), strict=True):
            colors, limits = ("RdBu_r", (-1.5, 1.5)) if name == "error" else ("viridis", (0.3, 2.6))
            image = axis.imshow(field.numpy(), origin="lower", cmap=colors, clim=limits)
            figure.colorbar(image, ax=axis, orientation="horizontal", aspect=25, pad=0.03)
            axis.set(title=name, xticks=[], yticks=[])


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="a coarser grid")
    parser.add_argument("--picture", type=Path, help="where to draw, e.g. conductivity.png")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    m, steps = (40, 80) if arguments.quick else (200, 150)
    tank, truth = Tank(m), phantom(m)
    exact = tank.voltages(truth.log())
    measured = exact + NOISE * exact.std(0) * torch.randn_like(exact)
    start = torch.ones_like(truth)
    recovered = recover(tank, measured, m, steps)
    before, after = relative_error(start, truth), relative_error(recovered, truth)
    print(f"{m * m:,} conductivities from {exact.numel():,} voltages of {SOURCES} sources")
    ratio = f"{after / before:.2f} of that of the initial guess"
    print(f"relative error {before:.3f} -> {after:.3f}, {ratio}")
    assert after <= before / 2
    if arguments.picture:
        draw(truth, recovered, arguments.picture)


if __name__ == "__main__":
    main()
