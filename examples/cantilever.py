"""Inverse design of a mass-spring cantilever: first its stiffnesses, then its rest lengths.

A truss, clamped on the left, carries its own weight and a load at its tip, and bends far. Its
position at rest minimises E(X) = Σ_e k_e (|x_j − x_i| − l_e)² / (2 l_e) + Σ_v m_v g y_v over
springs e = (i, j) and nodes v. `ss.minimize` finds the position by Newton's method and passes
gradients through it, each of which is one solve with the last factor. In the first design, the
material Σ_e k_e l_e, whose amount is fixed, is moved among the springs so that the tip sinks least
(M. P. Bendsøe and O. Sigmund, "Topology optimization", 2003). In the second, the springs of the
uniform truss are made longer or shorter until its axis, under load, follows a given curve.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from drawing import label, new_figure, new_movie
from progress import show_progress
from scipy.optimize import minimize
from torch import Tensor

import sparse_solver as ss

LENGTH = 10.0  # of the truss
STIFFNESS = 60.0  # k of the uniform truss
WEIGHT, LOAD = 0.35, 0.10  # of all nodes together, and at the tip
LEAST = 0.02  # the smallest stiffness, relative to that of the uniform truss
CHANGE = 0.2  # the largest change of a rest length, relative to that of the uniform truss

# The positions, stiffnesses and rest lengths of a design, and the measure of its quality.
Frame = tuple[Tensor, Tensor, Tensor, float]
Loss = Callable[[Tensor], Tensor]


def spring(x: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
    k, length = constants
    return (x[1] - x[0]).square().sum().sqrt().sub(length).square() * k / (2 * length)


def weight(x: Tensor, mg: Tensor) -> Tensor:
    return mg * x[0, 1]


class Truss:
    """Nodes in `columns` of `rows`, joined to their neighbours, also diagonally."""

    def __init__(self, columns: int, rows: int):
        cell = LENGTH / (columns - 1)
        at = torch.arange(columns * rows).reshape(columns, rows)
        x, y = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="ij")
        self.rest = cell * torch.stack((x.reshape(-1), y.reshape(-1)), 1).double()
        pairs = (
            (at[:-1], at[1:]),
            (at[:, :-1], at[:, 1:]),
            (at[:-1, :-1], at[1:, 1:]),
            (at[1:, :-1], at[:-1, 1:]),
        )
        self.springs = torch.cat([torch.stack((i.reshape(-1), j.reshape(-1)), 1) for i, j in pairs])
        self.clamped, self.tip, self.axis = at[0], at[-1], at[:, rows // 2]
        self.lengths = (self.rest[self.springs[:, 1]] - self.rest[self.springs[:, 0]]).norm(dim=1)
        self.uniform = torch.full_like(self.lengths, STIFFNESS)
        loads = torch.full((columns * rows,), WEIGHT / (columns * rows), dtype=torch.double)
        loads[self.tip] += LOAD / rows
        self.weight = ss.IndexedSum(weight, at.reshape(-1, 1), per_term=loads)
        x, y = self.rest[self.axis].unbind(1)
        waves = 0.08 * x * torch.sin(2 * torch.pi * x / LENGTH)
        # The curve that the axis is to follow.
        self.curve = torch.stack((x - 0.03 * x**2 / LENGTH, y + waves), 1)
        self.last = self.rest  # the last position at rest, a good initial guess

    def sag(self, k: Tensor, lengths: Tensor) -> Tensor:
        """(nodes, 2) positions at rest."""
        energy = ss.IndexedSum(spring, self.springs, per_term=(k, lengths)) + self.weight
        X, _ = ss.minimize(energy, self.last, fixed=self.clamped)
        self.last = X.detach()
        return X

    def stiffer(self, design: Tensor) -> tuple[Tensor, Tensor]:
        """Stiffnesses that use the given material, for any (springs,) numbers; rest lengths."""
        share = (1 - LEAST) * torch.softmax(design, 0) * (self.uniform @ self.lengths)
        return LEAST * self.uniform + share / self.lengths, self.lengths

    def longer(self, design: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform stiffnesses; rest lengths that differ by up to CHANGE, for any numbers."""
        return self.uniform, self.lengths * (1 + CHANGE * torch.tanh(design))

    def misses(self, X: Tensor) -> Tensor:
        """(columns,) distances of the axis from the curve, in units of the length."""
        return (X[self.axis] - self.curve).square().sum(1).add(1e-12).sqrt().div(LENGTH)

    def deflection(self, X: Tensor) -> Tensor:
        """How far the nodes of the tip sink on average, in units of the length."""
        return (self.rest - X)[self.tip, 1].mean().div(LENGTH)

    def frame(self, k: Tensor, lengths: Tensor, measure: Callable[[Tensor], Tensor]) -> Frame:
        with torch.no_grad():
            X = self.sag(k, lengths)
            return X, k, lengths, float(measure(X))


def optimize(loss: Loss, steps: int, size: int, what: str, show: Callable[[Tensor], Any]) -> None:
    """Minimise the loss of a design of this size by L-BFGS from zero, and show each iterate."""

    def loss_and_gradient(numbers: Any) -> tuple[float, Any]:
        design = torch.from_numpy(numbers.copy()).requires_grad_()
        value = loss(design)
        (gradient,) = torch.autograd.grad(value, design)
        return value.item(), gradient.numpy()

    with show_progress(what, steps) as report:

        def show_iterate(intermediate_result: Any) -> None:
            report(f"{intermediate_result.fun:.3e}")
            show(torch.from_numpy(intermediate_result.x.copy()))

        options = {"maxiter": steps, "maxcor": 30, "ftol": 0.0, "gtol": 0.0}
        settings = {"jac": True, "method": "L-BFGS-B", "callback": show_iterate, "options": options}
        minimize(loss_and_gradient, [0.0] * size, **settings)


def gradient_error(loss: Loss, size: int) -> float:
    """The relative error of the gradient at zero, by central differences in a random direction."""
    design = torch.zeros(size, dtype=torch.double, requires_grad=True)
    direction = torch.randn(size, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss(design), design)
    with torch.no_grad():
        difference = (loss(design + 1e-4 * direction) - loss(design - 1e-4 * direction)) / 2e-4
    return abs(float(gradient @ direction / difference - 1))


def draw(axis: Any, truss: Truss, frame: Frame, title: str, curve: bool) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("lengths", ["#0072b2", "0.3", "#d55e00"])
    X, k, lengths, _ = frame
    widths = (0.9 * k / STIFFNESS).clamp(0.15, 4).numpy()
    lines = LineCollection(list(X[truss.springs].numpy()), linewidths=widths)
    changes = (lengths / truss.lengths - 1).numpy()
    lines.set(array=changes, cmap=colors, clim=(-CHANGE / 2, CHANGE / 2))
    axis.add_collection(lines)
    if curve:
        axis.plot(*truss.curve.unbind(1), "k--", lw=1.5)
    axis.autoscale_view()
    axis.set(aspect="equal", xticks=[], yticks=[], frame_on=False, title=title)


def pictures(truss: Truss, stages: list[tuple[str, list[Frame], bool]], file: Path) -> None:
    """Draw the first and last designs and the convergence as `file`, and all designs as a GIF."""
    with new_figure(file, 2, 2, 3.3, height_ratios=(2, 1)) as (_, axes):
        first = stages[0][1][0]
        draw(axes[0, 0], truss, first, f"uniform: the tip sinks by {first[3]:.2f}", False)
        for axis, (name, frames, curve) in zip(axes[1], stages, strict=True):
            draw(axis, truss, frames[-1], f"{name}: {frames[-1][3]:.4f}", curve)
            (line,) = axes[0, 1].semilogy([measure for *_, measure in frames])
            label(axes[0, 1], line, name, down=6 if curve else -18)
        axes[0, 1].set(xlabel="steps of L-BFGS", ymargin=0.25)

    with new_movie(file.with_suffix(".gif"), 3.4) as (axis, add_frame):
        for name, frames, curve in stages:
            for number in sorted({int(len(frames) ** (j / 24)) - 1 for j in range(25)}):
                axis.clear()  # the frames above are dense at the beginning
                title = f"{name}: {frames[number][3]:.4f} after {number} steps"
                draw(axis, truss, frames[number], title, curve)
                axis.set(xlim=(-0.2, LENGTH * 1.02), ylim=(-0.32 * LENGTH, 0.12 * LENGTH))
                add_frame()


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="fewer springs and steps")
    where = "where to draw, e.g. cantilever.png; a GIF is drawn beside it"
    parser.add_argument("--picture", type=Path, help=where)
    arguments = parser.parse_args()
    truss = Truss(*((24, 3) if arguments.quick else (60, 5)))
    size = len(truss.springs)
    stages, steps = [], 25 if arguments.quick else 80
    tip, curve = "stiffnesses, deflection of the tip", "rest lengths, distance from the curve"
    for name, make, objective, measure in (
        (tip, truss.stiffer, truss.deflection, truss.deflection),
        (curve, truss.longer, lambda X: truss.misses(X).sum(), lambda X: truss.misses(X).max()),
    ):

        def loss(design: Tensor) -> Tensor:
            return objective(truss.sag(*make(design))) + 1e-5 * design.square().sum()  # noqa: B023

        error = gradient_error(loss, size)
        frames = [truss.frame(*make(torch.zeros(size, dtype=torch.double)), measure)]
        optimize(loss, steps, size, name, lambda x: frames.append(truss.frame(*make(x), measure)))  # noqa: B023
        stages.append((name, frames, name == curve))
        change = f"{frames[0][3]:.4f} -> {frames[-1][3]:.4f} of the length"
        print(f"{name}: {change}; relative error of the gradient {error:.1e}")
        assert error < 1e-5
    (_, (first, *_, last), _), (_, (*_, shaped), _) = stages
    used = float(last[1] @ truss.lengths / (truss.uniform @ truss.lengths))
    print(f"{size:,} springs; stiffnesses use {used:.6f} of the material of the uniform ones")
    assert last[3] <= first[3] / 2
    assert shaped[3] <= 0.01
    if arguments.picture:
        pictures(truss, stages, arguments.picture)


if __name__ == "__main__":
    main()
