"""Ground water on several ranks: its conductivity, from water levels in wells.

    mpiexec -n 2 python examples/distributed_conductivity.py

Water flows through a square of m-by-m cells. Neighbouring cells i and k exchange c_e (u_i − u_k),
with the harmonic mean c_e of their conductivities; cells on the left and right sides border lakes
of level zero. Six wells are pumped, one after the other, and each time the levels u are measured,
with noise, in every fourth cell along both axes. One distributed factorisation serves all six
right-hand sides and the gradient. L-BFGS finds the logarithms of the conductivities, with a penalty
on their steepness.

Each rank has a block of rows of the matrix. The conductivities are few beside the entries of the
factor, and all ranks hold them: `replicate` adds the gradients of the ranks, `all_sum` adds the
misfits in their cells, and each rank takes the same step. At the end, the loss and the gradient,
away from the minimum, are compared with those of one process that solves the whole system.

The equations are those of steady flow in a confined aquifer; see J. Bear, "Hydraulics of
Groundwater", 1979.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from mpi4py import MPI
from progress import show_progress
from torch import Tensor

import sparse_solver as ss
from sparse_solver import distributed

COMM = MPI.COMM_WORLD
WELLS = 6
NOISE = 1e-3  # relative to the largest level of a well
PENALTY = 5.0


class Aquifer:
    """The rows in `block` of the matrix for an m-by-m square, and the wells and sensors there."""

    def __init__(self, m: int, block: range):
        cells = torch.arange(m * m).reshape(m, m)
        i = torch.cat((cells[:, :-1].reshape(-1), cells[:-1].reshape(-1)))
        k = torch.cat((cells[:, 1:].reshape(-1), cells[1:].reshape(-1)))
        lake = torch.cat((cells[:, 0], cells[:, -1]))
        # A conductance enters the diagonal, and with a minus sign the column of the neighbour.
        to, other = torch.cat((i, k)), torch.cat((k, i))
        rows, cols = torch.cat((to, to, lake)), torch.cat((to, other, lake))
        one = torch.ones(len(to), dtype=torch.double)
        sign = torch.cat((one, -one, one[: len(lake)]))
        pair = torch.stack((torch.cat((to, to, lake)), torch.cat((other, other, lake))))
        mine = (rows >= block.start) & (rows < block.stop)
        self.rows, self.cols, self.sign, self.pair = (
            rows[mine],
            cols[mine],
            sign[mine],
            pair[:, mine],
        )

        angle = 2 * math.pi * torch.arange(WELLS) / WELLS
        at = (m * (0.5 + 0.3 * torch.stack((torch.sin(angle), torch.cos(angle))))).long()
        pumped = torch.zeros(m * m, WELLS, dtype=torch.double)
        pumped[cells[at[0], at[1]], torch.arange(WELLS)] = 1.0
        self.pumped = pumped[block.start : block.stop]
        sensors = cells[2::4, 2::4].reshape(-1)
        self.sensors = sensors[(sensors >= block.start) & (sensors < block.stop)] - block.start

    def values(self, log_conductivity: Tensor) -> Tensor:
        """The values of the matrix, for (m, m) logarithms."""
        resistivity = (-log_conductivity).exp().reshape(-1)
        i, k = self.pair
        return self.sign * 2 / (resistivity[i] + resistivity[k])


def truth(m: int) -> Tensor:
    """The logarithms to find: a channel of high conductivity, and a lens of clay."""
    y, x = torch.meshgrid(*(2 * [torch.linspace(-1, 1, m, dtype=torch.double)]), indexing="ij")
    channel = torch.exp(-(((y - 0.5 * torch.sin(2 * x)) / 0.2) ** 2))
    clay = torch.exp(-(((x - 0.4) ** 2 + (y + 0.5) ** 2) / 0.1))
    return 1.5 * channel - 2.0 * clay


def penalty(log_conductivity: Tensor) -> Tensor:
    """The sum of the squared differences of neighbouring cells."""
    down, across = (log_conductivity.diff(dim=dim) for dim in (0, 1))
    return PENALTY * (down.square().sum() + across.square().sum())


def recover(loss: Callable[[Tensor], Tensor], m: int, steps: int) -> Tensor:
    """Minimise the loss; return the logarithms, the same on all ranks."""
    log_conductivity = torch.zeros(m, m, dtype=torch.double, requires_grad=True)
    settings = {"max_iter": steps, "max_eval": 2 * steps, "history_size": 20}
    optimizer = torch.optim.LBFGS([log_conductivity], **settings, line_search_fn="strong_wolfe")
    first = COMM.rank == 0
    progress = show_progress("conductivity", 2 * steps) if first else nullcontext(lambda text: None)

    with progress as report:

        def closure() -> float:
            optimizer.zero_grad()
            value = loss(log_conductivity)
            value.backward()
            report(f"loss {float(value.detach()):.1f}")
            return float(value.detach())

        optimizer.step(closure)
    return log_conductivity.detach()


class Problem:
    """The measurements in a block of rows, and the misfit of a guess.

    solve : gives the levels for an aquifer and logarithms, on one process or on many
    scale : the standard deviation of the noise of each well, if it is known
    """

    def __init__(
        self,
        m: int,
        block: range,
        solve: Callable[[Aquifer, Tensor], Tensor],
        scale: Tensor | None = None,
    ):
        self.aquifer, self._solve = Aquifer(m, block), solve
        u = solve(self.aquifer, truth(m))
        if scale is None:  # the same on all ranks, some of which may have no rows
            largest = torch.cat((u.abs(), u.new_zeros(1, WELLS))).amax(0)
            scale = NOISE * torch.stack(COMM.allgather(largest)).amax(0)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(m * m, WELLS, dtype=torch.double, generator=generator)
        u = u + scale * noise[block.start : block.stop]
        self.scale, self.measured = scale, u[self.aquifer.sensors]

    def misfit(self, log_conductivity: Tensor) -> Tensor:
        """The misfit at the sensors in this block."""
        u = self._solve(self.aquifer, log_conductivity)[self.aquifer.sensors]
        return ((u - self.measured) / self.scale).square().sum() / 2


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--side", type=int, default=100, help="cells along a side")
    parser.add_argument("--steps", type=int, default=200, help="the most steps of L-BFGS")
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
        misfit = distributed.all_sum(problem.misfit(log_conductivity), comm=COMM)
        return misfit + penalty(log_conductivity)

    found = recover(loss, m, options.steps)
    halfway = (found / 2).requires_grad_()  # at the minimum, the gradient is a rounding error
    value = loss(halfway)
    value.backward()
    assert halfway.grad is not None
    gradients, final = COMM.allgather(halfway.grad), float(loss(found))
    if COMM.rank == 0:
        check(m, problem.scale, halfway.detach(), value.detach(), gradients)
        error = float((found - truth(m)).norm() / truth(m).norm())
        print(
            f"{COMM.size} ranks, {m * m:,} cells: loss {final:.4f}, relative error of the "
            f"logarithms {error:.2%}; loss and gradient equal those of one process"
        )


def check(
    m: int, scale: Tensor, log_conductivity: Tensor, value: Tensor, gradients: list[Tensor]
) -> None:
    """Compare the loss and the gradient of each rank with those of one process."""
    log_conductivity = log_conductivity.clone().requires_grad_()

    def solve(aquifer: Aquifer, log_conductivity: Tensor) -> Tensor:
        pattern = ss.Pattern(aquifer.rows, aquifer.cols, (m * m, m * m))
        return pattern.solve(aquifer.values(log_conductivity), aquifer.pumped, assume="spd")

    misfit = Problem(m, range(m * m), solve, scale).misfit(log_conductivity)
    alone = misfit + penalty(log_conductivity)
    (expected,) = torch.autograd.grad(alone, log_conductivity)
    torch.testing.assert_close(value, alone.detach(), rtol=1e-9, atol=0)
    atol = 1e-9 * float(expected.abs().max())
    for gradient in gradients:
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=atol)


if __name__ == "__main__":
    main()
