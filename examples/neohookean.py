"""A swinging rubber beam, and its stiffness from its motion.

A time step h of implicit Euler, from positions X and velocities V to X⁺ and (X⁺ − X) / h, is the
minimisation

    X⁺ = argmin  Σ_v m_v |X_v − Y_v|² / (2 h²) + Σ_t W(F_t) area_t,    Y = X + h V + h² g,

with the deformation gradients F of triangles t, and the neo-Hookean energy density W(F) =
μ/2 (|F|² − 2 − 2 log det F) + λ/2 log² det F, which is infinite where a triangle inverts.
`ss.minimize` computes a step, and the trajectory of fifty steps is differentiable: L-BFGS finds the
stiffness of both halves of the beam from the paths of a few marked points.

J. Bonet and R. D. Wood, "Nonlinear continuum mechanics for finite element analysis", 2008;
E. Hairer, S. P. Nørsett and G. Wanner, "Solving ordinary differential equations", for the
integrator, which loses energy in proportion to h.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawing import label, new_figure
from progress import show_progress
from scipy.optimize import minimize
from torch import Tensor

import sparse_solver as ss

LENGTH, HEIGHT, DENSITY, GRAVITY = 4.0, 0.5, 1.0, 1.0
POISSON, SIDES = 0.4, ("clamped half", "free half")
DURATION, STEPS = 5.0, 50
NOISE = 1e-4  # of the observed positions, relative to the length


def edges(x: Tensor) -> Tensor:
    return torch.stack((x[1] - x[0], x[2] - x[0]), 1)


def elastic(x: Tensor, constants: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """W(F) area, for a triangle with Young's modulus E, and F = edges · rest⁻¹."""
    inverse, area, E = constants
    mu, lam = E / (2 * (1 + POISSON)), E * POISSON / ((1 + POISSON) * (1 - 2 * POISSON))
    F = edges(x) @ inverse
    log_det = torch.log(F[0, 0] * F[1, 1] - F[0, 1] * F[1, 0])
    density: Tensor = mu / 2 * (F.square().sum() - 2 - 2 * log_det) + lam / 2 * log_det**2
    return area * density


def inertia(x: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
    y, m = constants
    return m[0] / 2 * (x[0] - y[0]).square().sum()


class Beam:
    """A grid with two triangles in each cell, held on the left."""

    def __init__(self, columns: int, rows: int):
        at = torch.arange((columns + 1) * (rows + 1)).reshape(columns + 1, rows + 1)
        sides = (torch.linspace(0, LENGTH, columns + 1), torch.linspace(0, HEIGHT, rows + 1))
        x, y = torch.meshgrid(*sides, indexing="ij")
        self.rest = torch.stack((x.reshape(-1), y.reshape(-1)), 1).double()
        corners = (at[:-1, :-1], at[1:, :-1], at[1:, 1:], at[:-1, 1:])
        a, b, c, d = (corner.reshape(-1) for corner in corners)
        self.triangles = torch.cat((torch.stack((a, b, c), 1), torch.stack((a, c, d), 1)))
        rest = torch.func.vmap(edges)(self.rest[self.triangles])
        self.inverse, self.area = torch.linalg.inv(rest), torch.linalg.det(rest) / 2
        middle = self.rest[self.triangles, 0].mean(1)
        self.section = (middle / LENGTH * len(SIDES)).long()
        thirds = (DENSITY * self.area / 3).repeat_interleave(3)
        zeros = torch.zeros(len(self.rest), dtype=torch.double)
        self.mass = zeros.index_add(0, self.triangles.reshape(-1), thirds)
        self.held, self.marked = at[0], at[columns // 4 :: columns // 4, -1]
        self.nodes, self.gravity = at.reshape(-1, 1), torch.tensor([0.0, -GRAVITY]).double()

    def elastic(self, moduli: Tensor) -> ss.IndexedSum:
        """The energy of the beam whose sections have these moduli (len(SIDES),)."""
        constants = (self.inverse, self.area, moduli[self.section])
        return ss.IndexedSum(elastic, self.triangles, per_term=constants)

    def swing(self, moduli: Tensor, h: float, steps: int) -> list[Tensor]:
        """The positions at all times, starting from rest."""
        energy = self.elastic(moduli)
        X, V, path = self.rest, torch.zeros_like(self.rest), [self.rest]
        for _ in range(steps):
            Y = X + h * V + h**2 * self.gravity
            step = energy + ss.IndexedSum(inertia, self.nodes, per_variable=(Y, self.mass)) / h**2
            new, _ = ss.minimize(step, X.detach(), fixed=self.held, rtol=1e-16)
            X, V = new, (new - X) / h
            path.append(X)
        return path

    def energies(self, path: list[Tensor], moduli: Tensor, h: float) -> Tensor:
        """(steps,) the sum of elastic, kinetic and potential energy."""
        energy, total = self.elastic(moduli), []
        for before, X in itertools.pairwise(path):
            kinetic = self.mass @ ((X - before) / h).square().sum(1) / 2
            total.append(energy(X) + kinetic - self.mass @ (X @ self.gravity))
        return torch.stack(total)


def recover(beam: Beam, observed: Tensor, steps: int) -> list[Tensor]:
    """All iterates of the moduli, found from the paths (STEPS + 1, marked, 2) of marked points."""

    def loss_and_gradient(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        logs = torch.from_numpy(numbers.copy()).requires_grad_()
        path = torch.stack(beam.swing(logs.exp(), DURATION / STEPS, STEPS))[:, beam.marked]
        loss = 100 * (path - observed).square().mean()
        (gradient,) = torch.autograd.grad(loss, logs)
        return loss.item(), gradient.numpy()

    start = np.full(len(SIDES), math.log(80.0))
    iterates = [torch.from_numpy(start).exp()]
    with show_progress("stiffness", steps) as report:

        def show(intermediate_result: Any) -> None:
            iterates.append(torch.from_numpy(intermediate_result.x.copy()).exp())
            report(f"loss {intermediate_result.fun:.2e}")

        options = {"maxiter": steps, "ftol": 0.0, "gtol": 1e-9}
        settings = {"jac": True, "method": "L-BFGS-B", "callback": show, "options": options}
        minimize(loss_and_gradient, start, **settings)
    return iterates


def draw(
    beam: Beam,
    path: list[Tensor],
    losses: dict[str, Tensor],
    iterates: list[Tensor],
    truth: Tensor,
    file: Path,
) -> None:
    with new_figure(file, 1, 3, 3.0, width_ratios=(1.25, 1, 1)) as (_, axes):
        for X in path[::8]:
            axes[0].triplot(*X.unbind(1), beam.triangles, lw=0.3, color="0.5")
        for point in torch.stack(path)[:, beam.marked].unbind(1):
            axes[0].plot(*point.unbind(1))
        axes[0].set(aspect="equal", title="observed paths", frame_on=False, xticks=[], yticks=[])
        for name, energy in losses.items():
            times = torch.linspace(0, DURATION, len(energy))
            (line,) = axes[1].plot(times, energy)
            label(axes[1], line, name)
        axes[1].set(xlabel="time", title="total energy", ymargin=0.15)
        for number, moduli in enumerate(torch.stack(iterates).T):
            (line,) = axes[2].plot(moduli, "o-")
            axes[2].axhline(float(truth[number]), color=line.get_color(), ls="--", lw=0.8)
            label(axes[2], line, SIDES[number])
        axes[2].set(xlabel="steps of L-BFGS", title="Young's moduli", ylim=(40, 160))
        axes[2].set_xticks(range(0, len(iterates), 2))


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="fewer triangles and steps")
    parser.add_argument("--picture", type=Path, help="where to draw, e.g. neohookean.png")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    beam = Beam(*((16, 2) if arguments.quick else (40, 5)))
    truth, h = torch.tensor([150.0, 60.0]).double(), DURATION / STEPS
    losses, paths = {}, {}
    with torch.no_grad():
        for finer in (1, 2):
            paths[finer] = beam.swing(truth, h / finer, finer * STEPS)
            losses[f"h = {h / finer}"] = beam.energies(paths[finer], truth, h / finer)
    coarse, fine = losses.values()
    rise = max(float(energy.diff().max()) for energy in losses.values())
    ratio = float((coarse[0] - coarse[-1]) / (fine[0] - fine[-1]))
    print(f"{len(beam.triangles)} triangles; the energy rises by {max(rise, 0.0):.1e} at most")
    print(f"with half the time step, the loss of energy is {ratio:.2f} times smaller")
    assert rise <= 0
    assert 1.4 < ratio < 2.1  # 2 in the limit of small steps

    observed = torch.stack(paths[1])[:, beam.marked]
    noisy = observed + NOISE * LENGTH * torch.randn_like(observed)
    iterates = recover(beam, noisy, 9 if arguments.quick else 10)
    error = float((iterates[-1] / truth - 1).abs().max())
    found = zip(iterates[-1].tolist(), truth.tolist(), strict=True)
    text = " and ".join(f"{modulus:.1f} (truth {true:.0f})" for modulus, true in found)
    print(f"recovered moduli {text}: relative error {error:.5f}")
    assert error < 0.01
    if arguments.picture:
        draw(beam, paths[1], losses, iterates, truth, arguments.picture)


if __name__ == "__main__":
    main()
