"""Factorisations, conjugate gradients, and what is chosen, on well and ill-conditioned matrices.

    python -m benchmarks.methods [--quick]

A row is one problem: milliseconds of a training step with the method that is chosen, by the direct
engine, by conjugate gradients, and by those of torch-sla, which stops at residuals of 10⁻¹⁰, a
hundred thousand times as large as ours; medians over fresh values, the contenders in turn.
Gradients are checked first against one that is computed from solutions whose residuals are checked.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import sparse_solver as ss

from .bare import gradient_by_hand
from .peers import TorchSlaCg
from .problems import STIFF, Absent, Problem, graph, grid, mesh

# Rounds after the first one, of which slow contenders take part in fewer.
ROUNDS, SLOW_ROUNDS, SLOW = 5, 1, 5.0
# A gradient differs by less, relative to the largest entry, whatever the method is.
TOLERANCE = 1e-7

Make = Callable[[], Problem]


class Case(NamedTuple):
    """A problem, and whether it can be factored in reasonable time and memory."""

    make: Make
    factored: bool = True


CASES = [
    *(Case(partial(graph, n)) for n in (300, 1000, 3000, 10_000)),
    Case(partial(graph, 100_000), False),
    *(Case(partial(grid, side, side)) for side in (100, 300, 1000)),
    *(Case(partial(grid, *3 * (side,), shift=s)) for side in (20, 40, 60) for s in (1.0, 1e-2)),
    *(Case(partial(grid, *3 * (side,), shift=1e-2), False) for side in (80, 100)),
    *(Case(partial(mesh, 300, 333, k)) for k in (1, 32)),
    *(Case(partial(mesh, *size, 3, True, STIFF)) for size in ((100, 100), (300, 333))),
]
QUICK = [Case(partial(graph, 300)), Case(partial(grid, 8, 8, 8)), Case(partial(mesh, 20, 20, 3))]

# The names of the methods in the table, and the options that ask for them.
CHOSEN, DIRECT, ITERATIVE, PEER = "step", "direct", "CG", TorchSlaCg.name


def direct_engine() -> str:
    """The engine that factors positive definite matrices with much fill here."""
    return "pardiso" if ss.engines()["pardiso"].installed else "superlu"


class Steps:
    """The training steps of one problem by each method."""

    def __init__(self, case: Case):
        problem = self.problem = case.make()
        self.pattern = ss.Pattern(problem.rows, problem.cols, (problem.n, problem.n))
        engines = {CHOSEN: None, DIRECT: direct_engine(), ITERATIVE: "cg"}
        self.by_name: dict[str, Callable[[Tensor], Tensor]] = {
            name: partial(self.take, partial(self.pattern.solve, assume="spd", engine=engine))
            for name, engine in engines.items()
            if case.factored or name != DIRECT
        }
        with suppress(Absent):
            self.by_name[PEER] = partial(self.take, TorchSlaCg(problem).solve)

    def take(self, solve: Callable[[Tensor, Tensor], Tensor], theta: Tensor) -> Tensor:
        return self.problem.solved_by(solve, theta.clone().requires_grad_())

    def expected(self, theta: Tensor) -> Tensor:
        """The gradient from solutions whose residuals are checked."""
        problem = self.problem
        F = self.pattern.factorize(problem.values(theta).detach(), assume="spd")
        x = F.solve(problem.rhs)
        y = F.solve(2 * x, transpose=True)
        rows = (v if v.dim() == 1 else v.mT for v in (x, y))
        return gradient_by_hand(problem, theta, *rows)

    def choice(self, theta: Tensor) -> str:
        """The engine that is chosen, and the iterations of a solve if it iterates."""
        F = self.pattern.factorize(self.problem.values(theta).detach(), assume="spd")
        F.solve(self.problem.rhs)
        iterations = F.info.iterations
        return F.info.engine if iterations is None else f"{F.info.engine}, {iterations} iterations"


class Row(NamedTuple):
    """What was measured for a problem: medians of milliseconds, None for what was left out."""

    name: str
    choice: str
    times: dict[str, float]

    @property
    def ratio(self) -> float | None:
        """The step over the faster one of both methods."""
        both = [self.times[name] for name in (DIRECT, ITERATIVE) if name in self.times]
        return self.times[CHOSEN] / min(both) if both else None

    def __str__(self) -> str:
        def cell(name: str) -> str:
            time = self.times.get(name)
            return "–" if time is None else f"{time:,.0f}" if time >= 100 else f"{time:.3g}"

        cells = [self.name, self.choice, *map(cell, (CHOSEN, DIRECT, ITERATIVE))]
        cells.append("–" if self.ratio is None else f"{self.ratio:.2f}")
        peer = self.times.get(PEER)
        cells += [cell(PEER), "–" if peer is None else f"{self.times[CHOSEN] / peer:.2f}"]
        return f"| {' | '.join(cells)} |"


def measure(case: Case) -> Row:
    torch.manual_seed(0)
    steps = Steps(case)
    theta = steps.problem.fresh()
    expected = steps.expected(theta)
    rounds: dict[str, int] = {}
    for name, step in steps.by_name.items():
        began = time.perf_counter()
        try:
            found = step(theta)
        except ss.ConvergenceError:  # conjugate gradients where a factorisation is needed
            continue
        is_slow = time.perf_counter() - began > SLOW
        error = float((found - expected).abs().max() / expected.abs().max())
        if error < TOLERANCE:
            rounds[name] = SLOW_ROUNDS if is_slow else ROUNDS
        else:
            assert name == PEER, f"{steps.problem.name}: {name} is wrong by {error:.1e}"
    samples: dict[str, list[float]] = {name: [] for name in rounds}
    for k in range(ROUNDS):
        theta = steps.problem.fresh()
        for name in (name for name, count in rounds.items() if k < count):
            start = time.perf_counter()
            steps.by_name[name](theta)
            samples[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(times) for name, times in samples.items()}
    return Row(steps.problem.name, steps.choice(theta), medians)


def print_table(cases: list[Case]) -> None:
    """Measure these problems, and print a table in Markdown."""
    warnings.filterwarnings("ignore", "Sparse", UserWarning)  # of torch, about sparse tensors
    print(f"| problem | chosen | {CHOSEN} | {DIRECT} | {ITERATIVE} | ratio | {PEER} | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for case in tqdm(cases, disable=None):
        rows.append(measure(case))
        tqdm.write(str(rows[-1]))
    ratios = [row.ratio for row in rows if row.ratio is not None]
    mean, worst = statistics.geometric_mean(ratios), max(ratios)
    print(f"\nthe step over the faster method: geometric mean {mean:.2f}, at worst {worst:.2f}")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="small problems, for the tests")
    print_table(QUICK if parser.parse_args().quick else CASES)


if __name__ == "__main__":
    main()
