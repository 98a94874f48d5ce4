"""Topology optimisation of a beam by the density method: where to put half of the material.

The MBB beam rests on both ends and is loaded in the middle; one half is computed, by symmetry. A
square element of density ρ has the stiffness ρ³ + 10⁻⁹; densities are local means of the variables,
so that no detail is finer than this filter. The displacements u minimise ½ uᵀ K u − fᵀ u, and the
design minimises the compliance fᵀ u, by the optimality criteria, with the gradient of the sparse
solve. The compliance is compared with the published one, and the gradient with the textbook's.

O. Sigmund, "A 99 line topology optimization code written in Matlab", Struct. Multidisc. Optim. 21,
2001; E. Andreassen, A. Clausen, M. Schevenels, B. S. Lazarov and O. Sigmund, "Efficient topology
optimization in MATLAB using 88 lines of code", Struct. Multidisc. Optim. 43, 2011.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from drawing import new_figure
from progress import show_progress
from scipy.sparse import coo_array
from scipy.sparse.linalg import spsolve
from torch import Tensor

import sparse_solver as ss

POWER, VOID, POISSON = 3, 1e-9, 0.3
SHARE, MOVE = 0.5, 0.2  # of the domain that is filled; the largest change of a variable
PUBLISHED = {20: 233.71, 50: 235.73}  # compliances of grids of this height, by Andreassen et al.


def element_stiffness() -> Tensor:
    """(8, 8) the stiffness of a square in plane stress with E = 1, by 2 × 2 Gauss points."""
    nu, stiffness = POISSON, torch.zeros(8, 8, dtype=torch.double)
    D = torch.tensor([[1, nu, 0], [nu, 1, 0], [0, 0, (1 - nu) / 2]]).double() / (1 - nu**2)
    corners = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]]).double()
    for point in corners / 3**0.5:
        slopes = corners * (1 + corners * point).flip(1) / 2  # of the shape functions
        strain = torch.zeros(3, 4, 2, dtype=torch.double)
        strain[0, :, 0], strain[1, :, 1], strain[2] = slopes[:, 0], slopes[:, 1], slopes.flip(1)
        stiffness += strain.view(3, 8).T @ D @ strain.view(3, 8) / 4
    return stiffness


class Beam:
    """Half of the MBB beam, of `height` by `width` elements."""

    def __init__(self, height: int, width: int, radius: float):
        nodes = torch.arange((height + 1) * (width + 1)).reshape(height + 1, width + 1)
        corners = nodes[:-1, :-1], nodes[:-1, 1:], nodes[1:, 1:], nodes[1:, :-1]
        dofs = [2 * corner + axis for corner in corners for axis in (0, 1)]
        self.dofs = torch.stack(dofs, 2).reshape(-1, 8)
        self.rows = self.dofs.repeat_interleave(8, 1).reshape(-1)
        self.cols = self.dofs.repeat(1, 8).reshape(-1)
        # The plane of symmetry, on the left, moves vertically, and the support horizontally.
        self.fixed = torch.cat((2 * nodes[:, 0], 2 * nodes[-1:, -1] + 1))
        self.load = torch.zeros(2 * nodes.numel(), dtype=torch.double)
        self.load[2 * nodes[0, 0] + 1] = 1.0
        pattern = ss.Pattern(self.rows, self.cols, 2 * self.load.shape)  # duplicates are summed
        self.program = ss.QuadraticProgram(pattern, fixed=self.fixed)
        self.element, self.shape = element_stiffness(), (height, width)
        away = torch.arange(-int(radius), int(radius) + 1).double()
        self.cone = (radius - torch.hypot(away[:, None], away)).clamp(min=0)[None, None]
        self.weights = self.sum_around(torch.ones(self.shape, dtype=torch.double))
        self.volumes = self.sum_around(1 / self.weights)  # the gradient of the sum of densities

    def sum_around(self, x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x[None, None], self.cone, padding="same")[0, 0]

    def density(self, x: Tensor) -> Tensor:
        return self.sum_around(x) / self.weights

    def values(self, x: Tensor) -> Tensor:
        modulus = VOID + (1 - VOID) * self.density(x).reshape(-1) ** POWER
        return (modulus[:, None, None] * self.element).reshape(-1)

    def compliance(self, x: Tensor) -> Tensor:
        return self.load @ self.program.solve(self.values(x), self.load)


def update(beam: Beam, x: Tensor, gradient: Tensor) -> Tensor:
    """Move towards x √(−∂c/∂x / (λ ∂v/∂x)), with the multiplier λ that keeps the volume v."""
    low, high = 0.0, 1e9
    while high - low > 1e-4 * (high + low):
        middle = (low + high) / 2
        wanted = x * (-gradient / (middle * beam.volumes)).clamp(min=0).sqrt()
        new = wanted.clamp(x - MOVE, x + MOVE).clamp(0, 1)
        low, high = (middle, high) if (beam.volumes * new).mean() > SHARE else (low, middle)
    return new


def optimize(beam: Beam, steps: int) -> list[tuple[Tensor, float]]:
    """The variables and compliances of all steps, until no variable moves by 0.01."""
    x, designs = torch.full(beam.shape, SHARE, dtype=torch.double), []
    with show_progress("topology", steps) as report:
        for _ in range(steps):
            gradient, compliance = torch.func.grad_and_value(beam.compliance)(x)
            designs.append((x, compliance.item()))
            report(f"compliance {compliance.item():.2f}")
            old, x = x, update(beam, x, gradient)
            if (x - old).abs().max() < 0.01:
                break
    return designs


def check(beam: Beam, x: Tensor) -> tuple[float, float]:
    """The errors of compliance and gradient, beside SciPy and the textbook's −p ρᵖ⁻¹ uᵀ k u."""
    gradient, compliance = torch.func.grad_and_value(beam.compliance)(x)
    K = coo_array((beam.values(x).numpy(), (beam.rows.numpy(), beam.cols.numpy()))).tocsc()
    u, free = torch.zeros_like(beam.load), np.setdiff1d(beam.rows, beam.fixed)
    u[free] = torch.from_numpy(spsolve(K[free][:, free], beam.load[free].numpy()))
    energies = ((u[beam.dofs] @ beam.element) * u[beam.dofs]).sum(1).reshape(beam.shape)
    slopes = -(1 - VOID) * POWER * beam.density(x) ** (POWER - 1)
    expected = beam.sum_around(slopes * energies / beam.weights)
    errors = compliance / (beam.load @ u) - 1, (gradient - expected).norm() / expected.norm()
    return abs(float(errors[0])), float(errors[1])


def draw(beam: Beam, designs: list[tuple[Tensor, float]], file: Path) -> None:
    with new_figure(file, 2, 2, 2.1) as (_, axes):
        for axis, step in zip(axes.flat, (1, 5, 20, len(designs) - 1), strict=True):
            half = beam.density(designs[step][0]).numpy()
            axis.imshow(np.hstack((half[:, ::-1], half)), cmap="gray_r", vmin=0, vmax=1)
            axis.set_title(f"step {step}: compliance {designs[step][1]:.1f}")
            axis.set_axis_off()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a coarser grid")
    parser.add_argument("--picture", type=Path, help="where to draw, e.g. topology.png")
    arguments = parser.parse_args()
    height = 20 if arguments.quick else 50
    beam, published = Beam(height, 3 * height, radius=0.12 * height), PUBLISHED[height]
    designs = optimize(beam, steps=500)
    (_, first), *_, (x, last) = designs
    errors = check(beam, x)
    print(f"compliance {first:.2f} -> {last:.4f} in {len(designs)} steps, published: {published}")
    print("relative error of the compliance {:.1e}, of its gradient {:.1e}".format(*errors))
    assert abs(last - published) < 0.01
    assert max(errors) < 1e-6
    if arguments.picture:
        draw(beam, designs, arguments.picture)


if __name__ == "__main__":
    main()
