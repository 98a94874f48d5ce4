"""This version and an earlier one, loaded beside it, against the bare engine.

    git worktree add ../before COMMIT
    python -m benchmarks.versions ../before [WORKLOAD ...] [--quick]

A row is one problem: the step from values to their gradient by `Pattern.solve` of both versions, by
the bare engine, and by klujax if it is installed; or a solve with small general matrices, without
gradient, against SciPy's `splu` and a solve; or `F.solve` with three right-hand sides against the
solve of cholespy. Numbers in parentheses are ratios to the bare engine. Figures are medians over
fresh values, the contenders in turn in one process; gradients are checked first.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import sparse_solver as ss
from sparse_solver.__main__ import describe_machine

from .contenders import BARE, Contender, OursFromValues, is_installed
from .peers import KluJax
from .problems import Makers, Problem, batch, chain, convection, grid, helmholtz, mesh, saddle_point
from .small import System, medians
from .timing import measure

SECONDS = 4.0  # of samples for one row, after at least three rounds
MOST_ROWS_FOR_KLU = 10_000  # it is made for circuits, and not for grids

STEPS: dict[str, Makers] = {
    "ring": [partial(chain, n) for n in (256, 1000, 4096)],
    "chain": [partial(chain, 2**power) for power in (16, 18, 20)],
    "kinds": [partial(make, 300) for make in (convection, helmholtz, saddle_point)],
    "grid": [partial(grid, side, side) for side in (300, 1000)],
    "mesh": [partial(mesh, 550, 550, k) for k in (3, 32)],
    "batch": [partial(batch, *sizes) for sizes in ((1024, 7), (256, 14), (64, 20))],
}
GENERAL = (14, 50, 118)
MESHES = ((24, 27), (50, 51))  # of the factorisations that solve: about 640 and 2,560 vertices
WORKLOADS = (*STEPS, "general", "factorization")


def load_version(directory: Path, name: str = "sparse_solver_before") -> ModuleType:
    """Import the package in `directory` under another name, beside the installed one."""
    path = directory / "sparse_solver"
    found = importlib.util.spec_from_file_location(
        name, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    if found is None or found.loader is None or not path.is_dir():
        raise SystemExit(f"there is no package sparse_solver in {directory}")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def step_of(version: ModuleType, label: str) -> type[Contender]:
    """The contender that takes a step with `Pattern.solve` of a version."""

    class OfVersion(OursFromValues):
        name = label

        def __init__(self, problem: Problem):
            super().__init__(problem)
            self.pattern = version.Pattern(problem.rows, problem.cols, (problem.n, problem.n))

    return OfVersion


def print_row(name: str, unit: str, times: Mapping[str, float | None]) -> None:
    """Print the medians of one row, with their ratios to the bare one."""
    bare = times.get("bare")

    def cell(label: str) -> str:
        time = times.get(label)
        if time is None:
            return "–"
        ratio = "" if label == "bare" or bare is None else f" ({time / bare:.2f})"
        return f"{time:.4g} {unit}{ratio}"

    cells = [name, *map(cell, ("before", "after", "bare", KluJax.name))]
    print(f"| {' | '.join(cells)} |", flush=True)


def measure_step(make: Callable[[], Problem], before: ModuleType, seconds: float) -> None:
    """A row of a step from values to their gradient."""
    torch.manual_seed(0)
    problem = make()
    ours = [step_of(before, "before"), step_of(ss, "after")]
    peers = [KluJax] if problem.n <= MOST_ROWS_FOR_KLU else []
    timed = measure(problem, BARE, ours, peers, set(), seconds, lambda _: None)
    times = {label: found.median for label, found in timed.items()}
    bare = [time for engine in BARE if (time := times[engine.name]) is not None]
    print_row(problem.name, "ms", times | {"bare": min(bare, default=None)})


def measure_general(n: int, before: ModuleType, seconds: float) -> None:
    """A row of solves with a small general matrix, without gradient."""
    system = System(n, False, torch.float64)

    def solve_by(version: ModuleType) -> Callable[[], Any]:
        pattern = version.Pattern(system.rows, system.cols, (n, n))
        return lambda: pattern.solve(next(system.fresh), system.b, assume="general")

    calls = {"before": solve_by(before), "after": solve_by(ss), "bare": system.by_scipy()}
    print_row(f"general, {n} rows, no gradient", "µs", medians(calls, seconds))


def measure_factorization(rings: int, segments: int, before: ModuleType, seconds: float) -> None:
    """A row of solves with a positive definite matrix that is factored once."""
    problem = mesh(rings, segments, 3)
    n, values = problem.n, problem.values(problem.fresh())

    def solve_by(version: ModuleType) -> Callable[[], Any]:
        pattern = version.Pattern(problem.rows, problem.cols, (n, n))
        F = pattern.factorize(values, assume="spd")
        return lambda: F.solve(problem.rhs)

    calls = {"before": solve_by(before), "after": solve_by(ss)}
    if is_installed("cholespy"):
        calls["bare"] = solve_by_cholespy(problem, values)
    print_row(f"F.solve, mesh of {n} vertices", "µs", medians(calls, seconds))


def solve_by_cholespy(problem: Problem, values: Tensor) -> Callable[[], Any]:
    """A solve by cholespy with a matrix that is factored once."""
    from cholespy import CholeskySolverD, MatrixType

    A = problem.scipy_matrix(values).tocoo()
    solver = CholeskySolverD(problem.n, A.row, A.col, A.data, MatrixType.COO)
    x = torch.empty_like(problem.rhs)
    return lambda: solver.solve(problem.rhs, x)


def main(arguments: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("before", type=Path, help="a checkout of the earlier version")
    names = f"of {', '.join(WORKLOADS)}; all by default"
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=names)
    parser.add_argument("--quick", action="store_true", help="the first row of each, for a moment")
    given = parser.parse_intermixed_args(arguments)
    if unknown := set(given.workloads) - set(WORKLOADS):
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    before, seconds = load_version(given.before), 0.05 if given.quick else SECONDS
    rows: dict[str, list[Callable[..., None]]] = {
        name: [partial(measure_step, make) for make in makers] for name, makers in STEPS.items()
    }
    rows["general"] = [partial(measure_general, n) for n in GENERAL]
    rows["factorization"] = [partial(measure_factorization, *sizes) for sizes in MESHES]
    print(describe_machine(), "", sep="\n")
    print("| problem | before | after | bare | klujax |", "|---" * 5 + "|", sep="\n")
    for name in given.workloads or (("ring", "general", "factorization") if given.quick else rows):
        for measure_row in rows[name][: 1 if given.quick else None]:
            measure_row(before, seconds)


if __name__ == "__main__":
    main()
