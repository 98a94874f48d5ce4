"""Inverse design of a mass-spring cantilever: stiffnesses against sagging, then rest lengths for a shape that it sags into.

A truss, clamped on the left, carries its own weight and a load at its tip, and bends far. Where it comes to rest minimises

    E(X) = Σ_e k_e (|x_j − x_i| − l_e)² / (2 l_e) + Σ_v m_v g y_v,

over springs e = (i, j) and nodes v. `ss.minimize` finds it by Newton's method, and passes gradients through it: a solve with
the last factor each. First the material Σ_e k_e l_e, which is fixed, is moved among the springs so that the tip sinks least; then
the springs of the uniform truss are made longer or shorter, until its axis, under load, follows a given curve.

M. P. Bendsøe and O. Sigmund, "Topology optimization", 2003, for the first; A. Derouet-Jourdan, F. Bertails-Descoubes and J.
Thollot, "Stable inverse dynamic curves", ACM Transactions on Graphics 29 (6), 2010, is about the second, for rods.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from tqdm import tqdm

import sparse_solver as ss

LENGTH = 10.0  # of the truss
STIFFNESS, WEIGHT, LOAD = 60.0, 0.35, 0.10  # k of the uniform truss; of all nodes, and of what hangs at the tip
LEAST, CHANGE = 0.02, 0.3  # stiffness of any spring, and changes of rest lengths, beside those of the uniform truss

Frame = tuple[Tensor, Tensor, Tensor, float]  # positions, stiffnesses and rest lengths of a design, and what counts
Loss = Callable[[Tensor], Tensor]


def spring(x: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
    k, length = constants
    term: Tensor = k * ((x[1] - x[0]).norm() - length) ** 2 / (2 * length)
    return term


def weight(x: Tensor, mg: Tensor) -> Tensor:
    return mg * x[0, 1]


class Truss:
    """Nodes in `columns` of `rows`, joined to their neighbours, diagonal ones too."""

    def __init__(self, columns: int, rows: int):
        cell = LENGTH / (columns - 1)
        at = torch.arange(columns * rows).reshape(columns, rows)
        x, y = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="ij")
        self.rest = cell * torch.stack((x.reshape(-1), y.reshape(-1)), 1).double()
        pairs = ((at[:-1], at[1:]), (at[:, :-1], at[:, 1:]), (at[:-1, :-1], at[1:, 1:]), (at[1:, :-1], at[:-1, 1:]))
        self.springs = torch.cat([torch.stack((i.reshape(-1), j.reshape(-1)), 1) for i, j in pairs])
        self.clamped, self.tip, self.axis = at[0], at[-1], at[:, rows // 2]
        self.lengths = (self.rest[self.springs[:, 1]] - self.rest[self.springs[:, 0]]).norm(dim=1)
        self.uniform = torch.full_like(self.lengths, STIFFNESS)
        loads = torch.full((columns * rows,), WEIGHT / (columns * rows), dtype=torch.double)
        loads[self.tip] += LOAD / rows
        self.weight = ss.IndexedSum(weight, at.reshape(-1, 1), per_term=loads)
        self.last = self.rest  # where it came to rest before: a good start

    def sag(self, k: Tensor, lengths: Tensor) -> Tensor:
        """(nodes, 2) positions at rest."""
        energy = ss.IndexedSum(spring, self.springs, per_term=(k, lengths)) + self.weight
        X, _ = ss.minimize(energy, self.last, fixed=self.clamped)
        self.last = X.detach()
        return X

    def stiffnesses(self, design: Tensor) -> Tensor:
        """Positive ones of all the material that there is, for any (springs,) numbers."""
        share = torch.softmax(design, 0)
        k: Tensor = LEAST * self.uniform + (1 - LEAST) * share * (self.uniform @ self.lengths) / self.lengths
        return k

    def deflection(self, X: Tensor) -> Tensor:
        """By how much the tip sinks, on average over its nodes, in units of the length."""
        sinks: Tensor = (self.rest - X)[self.tip, 1].mean() / LENGTH
        return sinks

    def frame(self, k: Tensor, lengths: Tensor, measure: Callable[[Tensor], Tensor]) -> Frame:
        with torch.no_grad():
            X = self.sag(k, lengths)
            return X, k, lengths, float(measure(X))


def wave(truss: Truss) -> Tensor:
    """(columns, 2) where the axis shall be."""
    x, y = truss.rest[truss.axis].unbind(1)
    s = x / LENGTH
    return torch.stack((x * (1 - 0.03 * s), y + 0.08 * LENGTH * torch.sin(2 * torch.pi * s) * s), 1)


def optimize(loss: Loss, steps: int, size: int, what: str, show: Callable[[Tensor], Any]) -> None:
    """Minimises the loss of a design of this size, by L-BFGS from zero, and shows the designs on the way."""

    def loss_and_gradient(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        design = torch.from_numpy(numbers.copy()).requires_grad_()
        value = loss(design)
        (gradient,) = torch.autograd.grad(value, design)
        return value.item(), gradient.numpy()

    with tqdm(total=steps, desc=what) as bar:

        def report(intermediate_result: Any) -> None:
            bar.set_postfix_str(f"{intermediate_result.fun:.3e}", refresh=False)
            bar.update()
            show(torch.from_numpy(intermediate_result.x.copy()))

        options = {"maxiter": steps, "maxcor": 30, "ftol": 0.0, "gtol": 0.0}
        minimize(loss_and_gradient, np.zeros(size), jac=True, method="L-BFGS-B", callback=report, options=options)


def gradient_error(loss: Loss, size: int) -> float:
    """How far the gradient at zero is from central differences, in a random direction."""
    design = torch.zeros(size, dtype=torch.double, requires_grad=True)
    direction = torch.randn(size, dtype=torch.double)
    (gradient,) = torch.autograd.grad(loss(design), design)
    with torch.no_grad():
        difference = (loss(design + 1e-4 * direction) - loss(design - 1e-4 * direction)) / 2e-4
    return abs(float(gradient @ direction / difference - 1))


def draw(axis: Any, truss: Truss, frame: Frame, title: str, target: Tensor | None) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("lengths", ["tab:blue", "0.3", "tab:red"])
    X, k, lengths, _ = frame
    lines = LineCollection(list(X[truss.springs].numpy()), linewidths=(0.7 * k / STIFFNESS).clamp(0.15, 4).numpy())
    lines.set(array=(lengths / truss.lengths - 1).numpy(), cmap=colors, clim=(-CHANGE, CHANGE))
    axis.add_collection(lines)
    if target is not None:
        axis.plot(*target.unbind(1), "k--", lw=1.5)
    axis.set(xlim=(-0.3, LENGTH * 1.03), ylim=(-0.4 * LENGTH, 0.2 * LENGTH), aspect="equal", xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)


def pictures(truss: Truss, stages: list[tuple[str, list[Frame], Tensor | None]], file: Path) -> None:
    """Before, after, and convergence, as `file`, and the designs on the way as a GIF beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.animation import PillowWriter

    picture, axes = plt.subplots(2, 2, figsize=(9.5, 5.6), layout="constrained")
    draw(axes[0, 0], truss, stages[0][1][0], f"uniform: the tip sinks by {stages[0][1][0][3]:.2f} of the length", None)
    for axis, (name, frames, target) in zip((axes[0, 1], axes[1, 0]), stages, strict=True):
        draw(axis, truss, frames[-1], f"{name}: {frames[-1][3]:.4f}", target)
        axes[1, 1].semilogy([measure for *_, measure in frames], label=name)
    axes[1, 1].set_xlabel("steps of L-BFGS")
    axes[1, 1].legend(fontsize=8)
    picture.savefig(file, dpi=110)

    movie, axis = plt.subplots(figsize=(5.2, 3.5), layout="constrained")
    writer = PillowWriter(fps=8)
    with writer.saving(movie, str(file.with_suffix(".gif")), dpi=75):
        for name, frames, target in stages:
            for number in sorted({int(len(frames) ** (j / 24)) - 1 for j in range(25)}):
                axis.clear()
                draw(axis, truss, frames[number], f"{name}, step {number}: {frames[number][3]:.4f}", target)
                writer.grab_frame()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer springs and steps")
    parser.add_argument("--picture", type=Path, help="where to draw, e.g. cantilever.png; a GIF goes beside it")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    truss = Truss(*((24, 3) if arguments.quick else (60, 5)))
    target, size = wave(truss), len(truss.springs)

    def by_stiffness(design: Tensor) -> tuple[Tensor, Tensor]:
        return truss.stiffnesses(design), truss.lengths

    def by_length(design: Tensor) -> tuple[Tensor, Tensor]:
        return truss.uniform, truss.lengths * (1 + CHANGE * torch.tanh(design))

    def misses(X: Tensor) -> Tensor:
        distances: Tensor = (X[truss.axis] - target).norm(dim=1)
        return distances / LENGTH

    def sinks(design: Tensor) -> Tensor:
        return truss.deflection(truss.sag(*by_stiffness(design)))

    def differs(design: Tensor) -> Tensor:
        return 100 * misses(truss.sag(*by_length(design))).square().mean() + 1e-4 * design.square().mean()

    stages, steps = [], 25 if arguments.quick else 80
    for name, make, loss, measure, shown in (
        ("stiffnesses, deflection of the tip", by_stiffness, sinks, truss.deflection, None),
        ("rest lengths, distance from the curve", by_length, differs, lambda X: misses(X).max(), target),
    ):
        error = gradient_error(loss, size)
        frames = [truss.frame(*make(torch.zeros(size, dtype=torch.double)), measure)]
        optimize(loss, steps, size, name, lambda x: frames.append(truss.frame(*make(x), measure)))  # noqa: B023
        stages.append((name, frames, shown))
        print(f"{name}: {frames[0][3]:.4f} -> {frames[-1][3]:.4f} of the length; gradient off by {error:.1e}")
        assert error < 1e-5
    used = float(stages[0][1][-1][1] @ truss.lengths / (truss.uniform @ truss.lengths))
    print(f"{size:,} springs; stiffnesses use {used:.6f} of the material of the uniform ones")
    assert stages[0][1][-1][3] <= stages[0][1][0][3] / 2
    assert stages[1][1][-1][3] <= 0.01
    if arguments.picture:
        pictures(truss, stages, arguments.picture)


if __name__ == "__main__":
    main()
