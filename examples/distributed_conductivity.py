"""What the ground lets through, from water levels in wells, with the matrix and its factor distributed over ranks.

    mpiexec -n 2 python examples/distributed_conductivity.py

Water flows through a square of m-by-m cells. Neighbouring cells i and k exchange c_e (u_i − u_k), with the harmonic mean c_e of
their conductivities, and those on the left and right lie at lakes, of level zero. Six wells are pumped, one after the other;
then the levels u are measured in every fourth cell along both axes, with noise. One distributed factorisation serves all six, and the
gradient. The logarithms of the conductivities are found by L-BFGS, with a penalty on their steepness.

The matrix has a block of rows on each rank. The conductivities are few beside the entries of its factor, and all ranks hold them:
`replicate` adds up what they all know of the gradient, `sum` the misfits in their cells. Each rank then takes the same step.
At the end, loss and gradient, where they are not small, are compared with those of one process that solves the whole.

The equations are those of steady flow in a confined aquifer; see J. Bear, "Hydraulics of Groundwater", 1979.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from mpi4py import MPI
from torch import Tensor
from tqdm import tqdm

import sparse_solver as ss
from sparse_solver import distributed

COMM = MPI.COMM_WORLD
WELLS = 6
NOISE = 1e-3  # of the largest level of a well
PENALTY = 5.0


class Aquifer:
    """The rows in `block` of the matrix for an m-by-m square, and what happens there."""

    def __init__(self, m: int, block: range):
        cells = torch.arange(m * m).reshape(m, m)
        i = torch.cat((cells[:, :-1].reshape(-1), cells[:-1].reshape(-1)))
        k = torch.cat((cells[:, 1:].reshape(-1), cells[1:].reshape(-1)))
        lake = torch.cat((cells[:, 0], cells[:, -1]))
        # Row by row: the conductance to a neighbour counts for the entry with it, and for the diagonal.
        to, other = torch.cat((i, k)), torch.cat((k, i))
        rows, cols = torch.cat((to, to, lake)), torch.cat((to, other, lake))
        sign = torch.cat(
            (torch.ones(len(to)), -torch.ones(len(to)), torch.ones(len(lake)))
        ).double()
        self.pair = torch.stack((torch.cat((to, to, lake)), torch.cat((other, other, lake))))
        mine = (rows >= block.start) & (rows < block.stop)
        self.rows, self.cols, self.sign, self.pair = (
            rows[mine],
            cols[mine],
            sign[mine],
            self.pair[:, mine],
        )

        angle = 2 * math.pi * torch.arange(WELLS) / WELLS
        at = (m * (0.5 + 0.3 * torch.stack((torch.sin(angle), torch.cos(angle))))).long()
        pumped = torch.zeros(m * m, WELLS, dtype=torch.double)
        pumped[cells[at[0], at[1]], torch.arange(WELLS)] = 1.0
        self.pumped = pumped[block.start : block.stop]
        sensors = cells[2::4, 2::4].reshape(-1)
        self.sensors = sensors[(sensors >= block.start) & (sensors < block.stop)] - block.start

    def values(self, log_conductivity: Tensor) -> Tensor:
        """Those of the matrix, for the (m, m) logarithms."""
        resistivity = (-log_conductivity).exp().reshape(-1)
        i, k = self.pair
        return self.sign * 2 / (resistivity[i] + resistivity[k])


def truth(m: int) -> Tensor:
    """A channel that conducts well, and a lens of clay."""
    y, x = torch.meshgrid(*(2 * [torch.linspace(-1, 1, m, dtype=torch.double)]), indexing="ij")
    channel = torch.exp(-(((y - 0.5 * torch.sin(2 * x)) / 0.2) ** 2))
    clay = torch.exp(-(((x - 0.4) ** 2 + (y + 0.5) ** 2) / 0.1))
    return 1.5 * channel - 2.0 * clay


def penalty(log_conductivity: Tensor) -> Tensor:
    steps = (
        log_conductivity.diff(dim=0).square().sum() + log_conductivity.diff(dim=1).square().sum()
    )
    return PENALTY * steps


def recovered(loss: Callable[[Tensor], Tensor], m: int, steps: int) -> Tensor:
    """The logarithms that make the loss small, the same on all ranks."""
    log_conductivity = torch.zeros(m, m, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_conductivity],
        max_iter=steps,
        max_eval=2 * steps,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    bar = tqdm(disable=COMM.rank != 0, unit=" evaluations")

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(log_conductivity)
        value.backward()
        bar.update()
        bar.set_postfix(loss=f"{float(value.detach()):.1f}")
        return float(value.detach())

    optimizer.step(closure)
    bar.close()
    return log_conductivity.detach()


class Problem:
    """What is measured, and how far a guess is from it; `solve` is that of one process or of many."""

    def __init__(
        self,
        m: int,
        block: range,
        solve: Callable[[Aquifer, Tensor], Tensor],
        scale: Tensor | None = None,
    ):
        self.aquifer, self._solve = Aquifer(m, block), solve
        u = solve(self.aquifer, truth(m))
        if scale is None:
            largest = torch.cat((u.abs(), u.new_zeros(1, WELLS))).amax(
                0
            )  # there may be no rows here
            scale = NOISE * torch.stack(COMM.allgather(largest)).amax(
                0
            )  # of each well, the same on all ranks
        noise = torch.randn(
            m * m, WELLS, dtype=torch.double, generator=torch.Generator().manual_seed(0)
        )
        self.scale, self.measured = (
            scale,
            (u + scale * noise[block.start : block.stop])[self.aquifer.sensors],
        )

    def misfit(self, log_conductivity: Tensor) -> Tensor:
        """That of the sensors in this block."""
        u = self._solve(self.aquifer, log_conductivity)[self.aquifer.sensors]
        return ((u - self.measured) / self.scale).square().sum() / 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=100, help="cells along a side")
    parser.add_argument("--steps", type=int, default=200, help="of L-BFGS, at most")
    options = parser.parse_args()
    m, shape = options.side, (options.side**2,) * 2
    block = distributed.partition(shape, comm=COMM)
    places = Aquifer(m, block)
    pattern = distributed.Pattern(places.rows, places.cols, shape, comm=COMM)

    def solve(aquifer: Aquifer, log_conductivity: Tensor) -> Tensor:
        values = aquifer.values(distributed.replicate(log_conductivity, comm=COMM))
        return pattern.solve(values, aquifer.pumped, assume="spd")

    problem = Problem(m, block, solve)

    def loss(log_conductivity: Tensor) -> Tensor:
        return distributed.all_sum(problem.misfit(log_conductivity), comm=COMM) + penalty(
            log_conductivity
        )

    found = recovered(loss, m, options.steps)
    halfway = (found / 2).requires_grad_()  # at the minimum the gradient is but rounding errors
    value = loss(halfway)
    value.backward()
    assert halfway.grad is not None
    gradients = COMM.allgather(halfway.grad)
    final = float(loss(found))
    if COMM.rank == 0:
        check(m, problem.scale, halfway.detach(), value.detach(), gradients)
        error = float((found - truth(m)).norm() / truth(m).norm())
        print(f"{COMM.size} ranks, {m * m:,} cells: loss {final:.4f}, logarithms right up to {error:.2%}; loss and gradient are "
              "those of one process")  # fmt: skip


def check(
    m: int, scale: Tensor, log_conductivity: Tensor, value: Tensor, gradients: list[Tensor]
) -> None:
    """Compares the loss and the gradient of each rank with what one process finds by itself."""
    log_conductivity = log_conductivity.clone().requires_grad_()

    def solve(aquifer: Aquifer, log_conductivity: Tensor) -> Tensor:
        pattern = ss.Pattern(aquifer.rows, aquifer.cols, (m * m, m * m))
        return pattern.solve(aquifer.values(log_conductivity), aquifer.pumped, assume="spd")

    alone = Problem(m, range(m * m), solve, scale).misfit(log_conductivity) + penalty(
        log_conductivity
    )
    (expected,) = torch.autograd.grad(alone, log_conductivity)
    torch.testing.assert_close(value, alone.detach(), rtol=1e-9, atol=0)
    for gradient in gradients:
        torch.testing.assert_close(
            gradient, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max())
        )


if __name__ == "__main__":
    main()
