"""A training step without MKL, relative to PARDISO's in the same run.

    python -m benchmarks.without_mkl [--quick] [--rounds 7] [--threads 2]

Two processes take turns with the same fresh values: one in which MKL is hidden, with the engine
that is then chosen to factor, and one with PARDISO. A step is the solve, its loss, and the
gradient. Times are medians, and the target is a ratio of at most 3.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import torch
from torch import Tensor
from tqdm import tqdm

import sparse_solver as ss
from sparse_solver._engines.analysis import analyze
from sparse_solver._engines.mkl.library import LIBRARY_VARIABLE
from sparse_solver._engines.registry import engine_named
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import structure_of

from .contenders import Step
from .problems import Makers, Problem, convection, grid, helmholtz, saddle_point

PARDISO = "pardiso"
# The threads of OpenMP wait for work for so many seconds, and would slow down the other process.
REST_SECONDS = 0.25

MAKERS: Makers = [
    functools.partial(grid, 300, 300),
    functools.partial(grid, 500, 500),
    functools.partial(grid, 40, 40, 40),
    functools.partial(saddle_point, 200),
    functools.partial(convection, 300),
    functools.partial(helmholtz, 200),
]
QUICK: Makers = [
    functools.partial(grid, 20, 20),
    functools.partial(saddle_point, 12),
    functools.partial(convection, 12),
    functools.partial(helmholtz, 12),
]


class ByEngine(Step):
    """A step by PARDISO or, where there is no MKL, by the engine that is chosen to factor."""

    name = "step"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        shape = (problem.n, problem.n)
        structure = structure_of(problem.rows, problem.cols, shape)
        matrix = Matrix(structure, problem.values(problem.fresh()))
        has_mkl = engine_named(PARDISO).availability().installed
        asked = PARDISO if has_mkl else None
        self.engine = analyze(matrix, problem.kind, None, asked).engine
        self.pattern = ss.Pattern(problem.rows, problem.cols, shape)

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        return self.pattern.solve(values, b, assume=self.problem.kind, engine=self.engine)


def serve(pipe: Connection, makers: Makers, threads: int, hidden: bool) -> None:
    """Answer each number of a problem by the engine, and then each θ by seconds and gradient."""
    if hidden:  # MKL is loaded when an engine is first looked for
        os.environ[LIBRARY_VARIABLE] = "/nowhere"
    torch.set_num_threads(threads)
    contender: ByEngine | None = None
    while (message := pipe.recv()) is not None:
        if isinstance(message, int):
            torch.manual_seed(0)
            contender = None  # so that only one factor is in memory
            contender = ByEngine(makers[message]())
            pipe.send(contender.engine)
            continue
        assert contender is not None
        theta = contender.fresh(torch.from_numpy(message))
        start = time.perf_counter()
        gradient = contender.run(theta)
        pipe.send((time.perf_counter() - start, gradient.numpy()))


class Partner:
    """A process that takes its turns; with MKL, or without."""

    def __init__(self, makers: Makers, threads: int, hidden: bool):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        given = other, makers, threads, hidden
        self._process = context.Process(target=serve, args=given, daemon=True)
        self._process.start()

    def begin(self, number: int) -> str:
        """Analyse this problem; the engine."""
        self._pipe.send(number)
        engine: str = self._pipe.recv()
        return engine

    def step(self, theta: Tensor) -> tuple[float, Tensor]:
        """The milliseconds of a step, and its gradient."""
        self._pipe.send(theta.numpy())
        seconds, gradient = self._pipe.recv()
        time.sleep(REST_SECONDS)
        return 1e3 * seconds, torch.from_numpy(gradient)

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def compare(makers: Makers, rounds: int, threads: int) -> Iterator[str]:
    """The rows of the table, in Markdown."""
    yield "| problem | n | engine | without MKL, ms | PARDISO, ms | ratio |"
    yield "|---|---|---|---|---|---|"
    without, with_mkl = (Partner(makers, threads, hidden) for hidden in (True, False))
    for number, make in enumerate(tqdm(makers)):
        torch.manual_seed(0)
        problem = make()
        engine, other = without.begin(number), with_mkl.begin(number)
        assert other == PARDISO, "MKL must be installed"
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(rounds + 1):
            theta = problem.fresh()
            (a, found), (b, expected) = without.step(theta), with_mkl.step(theta)
            error = float((found - expected).abs().max() / expected.abs().max())
            assert error < 1e-8, (problem.name, engine, error)
            if turn:  # the first one warms up
                times[0].append(a)
                times[1].append(b)
        ours, theirs = map(statistics.median, times)
        cells = problem.name, problem.n, engine, f"{ours:.4g}", f"{theirs:.4g}"
        yield "| " + " | ".join(map(str, cells)) + f" | {ours / theirs:.2f} |"
    without.close()
    with_mkl.close()


def main(arguments: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="small problems")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    makers = QUICK if options.quick else MAKERS
    print(*compare(makers, options.rounds, options.threads), sep="\n")


if __name__ == "__main__":
    main()
