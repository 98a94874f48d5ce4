"""Factorisations, conjugate gradients, and what is chosen, on well and ill-conditioned matrices.

    python -m benchmarks.methods [WORKLOAD ...] [--quick] [--memory]

A row is one problem: milliseconds of a training step with the method that is chosen, by the direct
engine, by conjugate gradients, and by those of torch-sla if it is installed, with its own tolerance
and until its residuals are as small as ours. The numbers in parentheses are ratios of our step to
another one. Figures are medians over fresh values, the contenders in turn; gradients are checked
first. What is predicted to take minutes is left out, and the reason is printed below the table.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Iterator
from functools import partial

import torch
from tqdm import tqdm

import sparse_solver as ss
from sparse_solver.__main__ import describe_machine

from .contenders import METHODS, Contender, Ours, OursCg, OursDirect, is_installed
from .peers import ITERATING, TorchSlaCgAsAccurate
from .problems import (
    SMALL_SHIFT,
    SMOOTH,
    STIFF,
    Makers,
    Problem,
    cubes,
    graph,
    grid,
    grid_name,
    mesh,
)
from .processes import peak_memory
from .targets import Row, Target, format_milliseconds
from .timing import measure

SECONDS = 2.0  # of samples for one problem, after at least three rounds
# A gradient of ours differs by less, relative to the largest entry, whatever the method is.
TOLERANCE = 1e-7
# The grid on which the peak memory is measured.
MEMORY_SIDES = (100, 100, 100)

WORKLOADS: dict[str, Makers] = {
    "graph": [partial(graph, n) for n in (300, 1000, 3000, 10_000, 100_000)],
    "grid2d": [
        *(partial(grid, side, side) for side in (100, 300, 1000)),
        partial(grid, 300, 300, shift=SMALL_SHIFT),
    ],
    "grid3d": cubes(20, 40, 60),
    "large": cubes(80, 100),
    "mesh": [
        *(partial(mesh, *size, 1) for size in ((100, 100), (300, 333))),
        partial(mesh, 300, 333, 32),
        *(partial(mesh, *size, 3, True, t) for size in ((100, 100), (300, 333)) for t in
          (SMOOTH, STIFF)),
    ],
}  # fmt: skip
QUICK: dict[str, Makers] = {
    "graph": [partial(graph, 300)],
    "grid3d": cubes(8),
    "mesh": [partial(mesh, 20, 20, 3), partial(mesh, 20, 20, 3, True, STIFF)],
}


def describe_choice(problem: Problem) -> str:
    """The engine that is chosen, and the iterations of a solve if it iterates."""
    pattern = ss.Pattern(problem.rows, problem.cols, (problem.n, problem.n))
    F = pattern.factorize(problem.values(problem.fresh()).detach(), assume="spd")
    F.solve(problem.rhs)
    iterations = F.info.iterations
    return F.info.engine if iterations is None else f"{F.info.engine}, {iterations} iterations"


def over_the_faster(row: Row) -> float | None:
    """The step over the faster one of both methods."""
    both = [row.of(make.name) for make in (OursDirect, OursCg)]
    fastest = min((time for time in both if time is not None), default=None)
    step = row.of(Ours.name)
    return None if step is None or fastest is None else step / fastest


def format_row(row: Row, choice: str, peers: list[type[Contender]]) -> str:
    step, ratio = row.of(Ours.name), over_the_faster(row)

    def cell(name: str, with_ratio: bool = False) -> str:
        time = row.of(name)
        if time is None or step is None:
            return "–"
        return format_milliseconds(time) + (f" ({step / time:.2f})" if with_ratio else "")

    cells = [row.name, choice, *(cell(make.name) for make in METHODS)]
    cells.append("–" if ratio is None else f"{ratio:.2f}")
    cells += [cell(make.name, with_ratio=True) for make in peers]
    return f"| {' | '.join(cells)} |"


def absences(rows: list[Row]) -> Iterator[str]:
    """Why contenders are absent from rows: an item of a list for each of them and each reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, timed in row.times.items():
            if timed.median is None:
                reason = timed.absent or f"wrong by {timed.error:.0e}"
                found.setdefault((name, reason), []).append(row.name)
    for (name, reason), problems in found.items():
        yield f"- {name}: {reason} ({'; '.join(problems)})"


def targets(rows: list[Row], memory: int | None) -> list[Target]:
    """The limits of the choice of a method, and what these rows and this memory reached."""
    by_name = {row.name: row for row in rows}

    def seconds(name: str) -> dict[str, float]:
        step = by_name[name].of(Ours.name) if name in by_name else None
        return {} if step is None else {name: step / 1e3}

    def over(name: str, *peers: str) -> dict[str, float]:
        row = by_name.get(name)
        fastest = None if row is None else row.fastest_peer(set(peers))
        step = None if row is None else row.of(Ours.name)
        return {} if fastest is None or step is None else {name: step / fastest[1]}

    as_accurate = [over(name, TorchSlaCgAsAccurate.name) for name in ("grid 40³", "grid 60³")]
    ratios = {row.name: ratio for row in rows if (ratio := over_the_faster(row)) is not None}
    mean = {"all": statistics.geometric_mean(ratios.values())} if ratios else {}
    large = grid_name(*MEMORY_SIDES, shift=SMALL_SHIFT)
    found: list[tuple[str, float, dict[str, float]]] = [
        ("graph 10⁴: step over the faster conjugate gradients of torch-sla", 0.8,
         over("graph 10000", *(make.name for make in ITERATING))),
        ("graph 10⁵: seconds of a step", 0.2, seconds("graph 100000")),
        ("grids 40³ and 60³, shift 1: step over torch-sla, as accurate", 0.8,
         as_accurate[0] | as_accurate[1]),
        (f"{large}: seconds of a step", 15, seconds(large)),
        (f"{large}: GB of peak memory", 2, {} if memory is None else {large: memory / 1e9}),
        ("step over the faster of both methods", 1.5, ratios),
        ("the same, geometric mean", 1.1, mean),
    ]  # fmt: skip
    return [Target(*one) for one in found]


def print_table(makers: Makers, seconds: float = SECONDS) -> list[Row]:
    """Measure these problems, and print a table in Markdown, row by row."""
    warnings.filterwarnings("ignore", "Sparse", UserWarning)  # of torch, about sparse tensors
    peers: list[type[Contender]] = [make for make in ITERATING if is_installed(make.needs)]
    names = ["step", "direct", "CG", "over the faster", *(make.name for make in peers)]
    print(f"| problem | chosen | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|", sep="\n")
    rows, bar = [], tqdm(makers, disable=None)
    for make in bar:
        torch.manual_seed(0)
        problem = make()
        times = measure(problem, (), METHODS, peers, set(), seconds, bar.set_description)
        rows.append(Row(problem.workload, problem.name, problem.n, times))
        tqdm.write(format_row(rows[-1], describe_choice(problem), peers))
    print("", *absences(rows), sep="\n")
    return rows


def find_mistakes(rows: list[Row]) -> list[str]:
    """Describe the gradients of ours that are less accurate than promised."""
    return [
        f"{row.name}: {make.name} is wrong by {error:.1e}"
        for row in rows
        for make in METHODS
        if (error := row.times[make.name].error) is not None and not error <= TOLERANCE
    ]


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    names = f"of {', '.join(WORKLOADS)}; all by default"
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=names)
    parser.add_argument("--quick", action="store_true", help="small problems, for the tests")
    memory = "also measure the peak memory of a process that solves on the largest grid"
    parser.add_argument("--memory", action="store_true", help=memory)
    given = parser.parse_args(arguments)
    if unknown := set(given.workloads) - set(WORKLOADS):
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    table = QUICK if given.quick else WORKLOADS
    makers = [make for name in given.workloads or table for make in table.get(name, [])]
    print(describe_machine(), "", sep="\n")
    rows = print_table(makers, 0.1 if given.quick else SECONDS)
    sides = (20, 20, 20) if given.quick else MEMORY_SIDES
    peak = peak_memory(Ours.name, sides, SMALL_SHIFT) if given.memory else None
    if peak is not None:
        name = grid_name(*sides, shift=SMALL_SHIFT)
        print(f"\npeak memory of two steps on the {name}: {peak / 1e9:.2f} GB")
    memory_of_large = None if given.quick else peak
    reached = [target for target in targets(rows, memory_of_large) if target.values]
    if reached:
        print("\n| target | at most | worst | |", "|---|---|---|---|", *map(str, reached), sep="\n")
    mistakes = find_mistakes(rows)
    print(*mistakes, sep="\n", end="")
    return 1 if mistakes else 0


if __name__ == "__main__":
    raise SystemExit(main())
