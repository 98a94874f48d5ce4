"""Inverse design of a mass-spring cantilever: stiffnesses against sagging, then rest lengths for a shape that it sags into.

A truss, clamped on the left, carries its own weight and a load at its tip, and bends far. Where it comes to rest minimises
E(X) = Σ_e k_e (|x_j − x_i| − l_e)² / (2 l_e) + Σ_v m_v g y_v over springs e = (i, j) and nodes v. `ss.minimize` finds it by
Newton's method, and passes gradients through it: a solve with the last factor each. First the material Σ_e k_e l_e, which is
fixed, is moved among the springs so that the tip sinks least (M. P. Bendsøe and O. Sigmund, "Topology optimization", 2003).
Then the springs of the uniform truss are made longer or shorter, until its axis, under load, follows a given curve.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import minimize
from torch import Tensor
from tqdm import tqdm

import sparse_solver as ss

LENGTH = 10.0  # of the truss
STIFFNESS, WEIGHT, LOAD = (
    60.0,
    0.35,
    0.10,
)  # k of the uniform truss; of all nodes, and of what hangs at the tip
LEAST, CHANGE = (
    0.02,
    0.2,
)  # stiffness of any spring, and changes of rest lengths, beside those of the uniform truss

Frame = tuple[
    Tensor, Tensor, Tensor, float
]  # positions, stiffnesses and rest lengths of a design, and what counts
Loss = Callable[[Tensor], Tensor]


def spring(x: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
    k, length = constants
    return (x[1] - x[0]).square().sum().sqrt().sub(length).square() * k / (2 * length)


def weight(x: Tensor, mg: Tensor) -> Tensor:
    return mg * x[0, 1]


class Truss:
    """Nodes in `columns` of `rows`, joined to their neighbours, diagonal ones too."""

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
        self.curve = torch.stack(
            (x - 0.03 * x**2 / LENGTH, y + waves), 1
        )  # where the axis shall be
        self.last = self.rest  # where it came to rest before: a good start

    def sag(self, k: Tensor, lengths: Tensor) -> Tensor:
        """(nodes, 2) positions at rest."""
        energy = ss.IndexedSum(spring, self.springs, per_term=(k, lengths)) + self.weight
        X, _ = ss.minimize(energy, self.last, fixed=self.clamped)
        self.last = X.detach()
        return X

    def stiffer(self, design: Tensor) -> tuple[Tensor, Tensor]:
        """Stiffnesses of all the material that there is, for any (springs,) numbers, and rest lengths."""
        share = (1 - LEAST) * torch.softmax(design, 0) * (self.uniform @ self.lengths)
        return LEAST * self.uniform + share / self.lengths, self.lengths

    def longer(self, design: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform stiffnesses, and rest lengths that differ by up to CHANGE, for any numbers."""
        return self.uniform, self.lengths * (1 + CHANGE * torch.tanh(design))

    def misses(self, X: Tensor) -> Tensor:
        """How far the axis is from the curve, node by node, in units of the length."""
        return (X[self.axis] - self.curve).square().sum(1).add(1e-12).sqrt().div(LENGTH)

    def deflection(self, X: Tensor) -> Tensor:
        """By how much the tip sinks, on average over its nodes, in units of the length."""
        return (self.rest - X)[self.tip, 1].mean().div(LENGTH)

    def frame(self, k: Tensor, lengths: Tensor, measure: Callable[[Tensor], Tensor]) -> Frame:
        with torch.no_grad():
            X = self.sag(k, lengths)
            return X, k, lengths, float(measure(X))


def optimize(loss: Loss, steps: int, size: int, what: str, show: Callable[[Tensor], Any]) -> None:
    """Minimises the loss of a design of this size, by L-BFGS from zero, and shows the designs on the way."""

    def loss_and_gradient(numbers: Any) -> tuple[float, Any]:
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
        minimize(
            loss_and_gradient,
            [0.0] * size,
            jac=True,
            method="L-BFGS-B",
            callback=report,
            options=options,
        )


def gradient_error(loss: Loss, size: int) -> float:
    """How far the gradient at zero is from central differences, in a random direction."""
    design = torch.zeros(size, dtype=torch.double, requires_grad=True)
    direction = torch.randn(size, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss(design), design)
    with torch.no_grad():
        difference = (loss(design + 1e-4 * direction) - loss(design - 1e-4 * direction)) / 2e-4
    return abs(float(gradient @ direction / difference - 1))


def draw(axis: Any, truss: Truss, frame: Frame, title: str, curve: bool) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("lengths", ["tab:blue", "0.3", "tab:red"])
    X, k, lengths, _ = frame
    lines = LineCollection(
        list(X[truss.springs].numpy()), linewidths=(0.9 * k / STIFFNESS).clamp(0.15, 4).numpy()
    )
    lines.set(
        array=(lengths / truss.lengths - 1).numpy(), cmap=colors, clim=(-CHANGE / 2, CHANGE / 2)
    )
    axis.add_collection(lines)
    if curve:
        axis.plot(*truss.curve.unbind(1), "k--", lw=1.5)
    axis.set(
        xlim=(-0.3, LENGTH * 1.03),
        ylim=(-0.4 * LENGTH, 0.2 * LENGTH),
        aspect="equal",
        xticks=[],
        yticks=[],
    )
    axis.set_title(title, fontsize=9)


def pictures(truss: Truss, stages: list[tuple[str, list[Frame], bool]], file: Path) -> None:
    """Before, after, and convergence, as `file`, and the designs on the way as a GIF beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.animation import PillowWriter

    picture, axes = plt.subplots(2, 2, figsize=(9.5, 5.6), layout="constrained")
    draw(
        axes[0, 0],
        truss,
        stages[0][1][0],
        f"uniform: the tip sinks by {stages[0][1][0][3]:.2f} of the length",
        False,
    )
    for axis, (name, frames, curve) in zip((axes[0, 1], axes[1, 0]), stages, strict=True):
        draw(axis, truss, frames[-1], f"{name}: {frames[-1][3]:.4f}", curve)
        axes[1, 1].semilogy([measure for *_, measure in frames], label=name)
    axes[1, 1].set_xlabel("steps of L-BFGS")
    axes[1, 1].legend(fontsize=8)
    picture.savefig(file, dpi=110)

    movie, axis = plt.subplots(figsize=(5.2, 3.5), layout="constrained")
    writer = PillowWriter(fps=8)
    with writer.saving(movie, str(file.with_suffix(".gif")), dpi=75):
        for name, frames, curve in stages:
            for number in sorted(
                {int(len(frames) ** (j / 24)) - 1 for j in range(25)}
            ):  # most of them early
                axis.clear()
                draw(
                    axis,
                    truss,
                    frames[number],
                    f"{name}, step {number}: {frames[number][3]:.4f}",
                    curve,
                )
                writer.grab_frame()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer springs and steps")
    parser.add_argument(
        "--picture", type=Path, help="where to draw, e.g. cantilever.png; a GIF goes beside it"
    )
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
        print(
            f"{name}: {frames[0][3]:.4f} -> {frames[-1][3]:.4f} of the length; gradient off by {error:.1e}"
        )
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
