"""Conjugate gradients and factorisations, and the choice of `_engines/iterate_or_factor.py`.

    python -m benchmarks.iterate_or_factor [--quick]

A row is one matrix, I · shift + L with the Laplacian L of a graph whose edges weigh one to two, or
one to 10^jump: milliseconds of a factorisation with two solves, and of conjugate gradients for two
solves (medians over fresh values); both in iterations, as measured and as modelled; the iterations
of a solve, and their bound; what the choice takes, and its time over that of the better method. The
constants of the rule were chosen by the first group of matrices, and not by the second one.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_solver._engines.analysis import Analysis, analyze
from sparse_solver._engines.cg.attempt import CgAttempt
from sparse_solver._engines.iterate_or_factor import estimate_cost, find_iterations
from sparse_solver._engines.protocol import IterativeSymbolic
from sparse_solver._engines.select import direct_cost
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import Structure
from sparse_solver.errors import ConvergenceError

from .calibrate import fresh_values, laplacian
from .graphs import cotangent_weights, grid, random, ring, torus

# No further sample is taken after so many seconds.
ENOUGH_SECONDS = 0.6
# Iterations after which conjugate gradients are the slower method in any case.
MOST_ITERATIONS = 3000

Graph = Callable[[], tuple[Tensor, int]]


def mesh(rings: int, segments: int) -> tuple[Tensor, int]:
    """The edges of a triangle mesh, and the number of its vertices."""
    return cotangent_weights(*torus(rings, segments))[0], rings * segments


class Case(NamedTuple):
    """A matrix of a graph with this shift; weights are in [1, 2] · 10^(jump · [0, 1])."""

    name: str
    graph: Graph
    shift: float
    jump: float = 0.0


def cases(graphs: dict[str, Graph], shifts: tuple[float, ...], jump: float = 0.0) -> list[Case]:
    return [Case(name, graph, shift, jump) for name, graph in graphs.items() for shift in shifts]


def grids(power: int, *sides: int) -> dict[str, Graph]:
    marks = {2: "²", 3: "³"}
    return {f"grid {m}{marks[power]}": partial(grid, *power * (m,)) for m in sides}


TUNED = [
    *cases(grids(2, 30, 100, 300), (10.0, 1.0, 1e-2)),
    *cases(grids(2, 700), (10.0, 1.0, 1e-1)),
    *cases(grids(3, 10, 20, 40), (1.0, 1e-2, 1e-6)),
    *cases({f"graph {n}": partial(random, n, 6) for n in (400, 1000, 4000)}, (1.0, 1e-2)),
    *cases({f"graph {n}, 2": partial(random, n, 2) for n in (2000, 10_000)}, (1.0, 1e-4)),
    *cases({"torus 150²": lambda: mesh(150, 150)}, (1.0, 1e-2)),
    *cases({"grid 100²×6": lambda: grid(100, 100, 6)}, (1.0, 1e-2)),
    *cases(grids(3, 30), (1.0, 1e-4), jump=4.0),
    *cases({"ring 10⁵, chords": lambda: ring(100_000, 50_000)}, (1.0,)),
]
HELD_OUT = [
    *cases(grids(2, 60), (3.0,)),
    *cases(grids(2, 450), (3.0, 1e-3)),
    *cases(grids(3, 30), (1e-1, 1e-5)),
    *cases({"grid 60×60×15": lambda: grid(60, 60, 15)}, (1e-2,)),
    *cases({"graph 3000, 4": lambda: random(3000, 4)}, (1e-1,)),
    *cases({"graph 700, 10": lambda: random(700, 10)}, (1e-3,)),
    *cases({"torus 300×80": lambda: mesh(300, 80)}, (1e-1,)),
    *cases(grids(3, 35), (1e-2,), jump=6.0),
]
QUICK = [case for case in TUNED if case.name in ("grid 30²", "grid 10³", "graph 400")]


class Measured(NamedTuple):
    """Medians of milliseconds, of a step by each method and of an iteration, and iterations."""

    direct: float
    iterative: float
    iteration: float
    iterations: int


def measure(structure: Structure, case: Case, direct: Any, iterative: Any) -> Measured:
    b = torch.randn(1, structure.shape[0], dtype=torch.float64)
    samples: dict[Any, list[float]] = {direct: [], iterative: []}
    iterations, began = 0, time.perf_counter()
    while len(samples[direct]) < 2 or time.perf_counter() - began < ENOUGH_SECONDS:
        matrix = Matrix(structure, fresh_values(structure, case.shift, case.jump))
        for symbolic, times in samples.items():
            start = time.perf_counter()
            try:
                factor = symbolic.factor(matrix)
                for transpose in (False, True):
                    factor.substitute(b, transpose)
            except ConvergenceError:
                times.append(math.inf)
                continue
            times.append(1e3 * (time.perf_counter() - start))
            if symbolic is iterative:
                iterations = factor.iterations
    one, other = (statistics.median(times) for times in samples.values())
    return Measured(one, other, other / (2 * max(iterations, 1)), iterations)


class Row(NamedTuple):
    """A line of the table.

    cost, estimate : of a factorisation with two solves, in iterations: as modelled with the
        analysis, and without it
    budget : the iterations that are tried; zero for none
    """

    case: Case
    n: int
    found: Measured
    bound: float
    cost: float
    estimate: float
    budget: int

    @property
    def chosen(self) -> float:
        """The milliseconds of the choice."""
        found = self.found
        if self.budget == 0:
            return found.direct
        if 2 * found.iterations <= self.budget and found.iterative < math.inf:
            return found.iterative
        return self.budget * found.iteration + found.direct

    @property
    def ratio(self) -> float:
        return self.chosen / min(self.found.direct, self.found.iterative)

    def __str__(self) -> str:
        found, case = self.found, self.case
        unit = found.iteration if found.iterations else math.nan
        taken = "factor" if self.budget == 0 else "iterate"
        if self.budget and 2 * found.iterations > self.budget:
            taken = "give up"
        return (
            f"{case.name:<18}{case.shift:>7.0e}{case.jump:>5.0f}{self.n:>9}{found.direct:>10.2f}"
            f"{found.iterative:>10.2f}{found.direct / unit:>9.0f}{self.cost:>9.0f}"
            f"{self.estimate:>9.0f}{found.iterations:>7}"
            f"{self.bound:>9.0f}   {taken:<8}{self.ratio:>6.2f}"
        )


def measure_case(case: Case) -> Row:
    torch.manual_seed(0)
    edges, n = case.graph()
    structure = laplacian(edges, n)
    matrix = Matrix(structure, fresh_values(structure, case.shift, case.jump))
    direct = analyze(matrix, "spd", None, None)
    iterative = analyze(matrix, "spd", None, "cg").symbolic
    assert isinstance(iterative, IterativeSymbolic)
    candidate = iterative.examine(matrix)
    found = measure(structure, case, direct.symbolic, Limited(iterative))
    unit = candidate.iteration_cost
    factor_nnz = direct.symbolic.factor_nnz(matrix) or 0
    cost = direct_cost(direct.engine, n, factor_nnz, single=False) / unit
    estimate = estimate_cost(structure, torch.float64)
    attempt: Analysis | None = find_iterations(matrix, None)
    budget = attempt.symbolic.budget if attempt and isinstance(attempt.symbolic, CgAttempt) else 0
    return Row(case, n, found, candidate.iteration_bound, cost, estimate / unit, budget)


class Limited:
    """An analysis that gives up after `MOST_ITERATIONS`."""

    def __init__(self, symbolic: IterativeSymbolic):
        self._symbolic = symbolic

    def factor(self, matrix: Matrix) -> Any:
        return self._symbolic.examine(matrix).limit(MOST_ITERATIONS).factor(matrix)


def summary(rows: list[Row]) -> str:
    """The mean and the worst ratio of the choice and of both methods."""
    best = [min(row.found.direct, row.found.iterative) for row in rows]
    parts = []
    for name, times in (
        ("choice", [row.chosen for row in rows]),
        ("always factor", [row.found.direct for row in rows]),
        ("always iterate", [row.found.iterative for row in rows]),
    ):
        ratios = [time / least for time, least in zip(times, best, strict=True)]
        parts.append(f"{name} {statistics.geometric_mean(ratios):.2f} ({max(ratios):.1f})")
    return ", ".join(parts)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="a few matrices instead of all")
    groups = [QUICK] if parser.parse_args().quick else [TUNED, HELD_OUT]
    print(
        f"{'matrix':<18}{'shift':>7}{'jump':>5}{'n':>9}{'factor':>10}{'iterate':>10}"
        f"{'ratio':>9}{'model':>9}{'estimate':>9}{'iter.':>7}{'bound':>9}   choice, over best"
    )
    for group in groups:
        rows = []
        for case in tqdm(group):
            rows.append(measure_case(case))
            tqdm.write(str(rows[-1]))
        print(f"over the better method, geometric mean (worst): {summary(rows)}\n")


if __name__ == "__main__":
    main()
