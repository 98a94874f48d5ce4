"""Time log-determinants, marginal variances and samples, relative to a bare factorisation.

    python -m benchmarks.gaussian [--quick]

All contenders take turns on fresh values; a figure is the median. "factor" is PARDISO called on
prepared arrays, and the unit of the other columns but of samples, whose unit is one substitution by
PARDISO. "Hutchinson" estimates the variances from solves with random signs, as many as take as long
as the exact ones; the column is the error of the estimate, relative to the largest variance.

M. F. Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian
smoothing splines", Communications in Statistics 18, 1989.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import sparse_solver as ss

from .bare import SPLU_OPTIONS, BarePardiso
from .problems import Makers, Problem, grid, mesh
from .targets import Target

SAMPLES = 100
ENOUGH_SECONDS, FEWEST_ROUNDS = 6.0, 3
MOST_ROWS_DENSE = 5000
# SciPy's SuperLU takes minutes for more operations.
MOST_FLOPS_SPLU = 2e9
MAKERS: Makers = [
    *(partial(grid, side, side) for side in (60, 100, 300, 500)),
    *(partial(grid, side, side, side) for side in (30, 40)),
    partial(mesh, 300, 333, 1),
]
QUICK: Makers = [partial(grid, 12, 12), partial(grid, 5, 5, 5)]
LARGE = "grid 500²", "grid 40³"
COLUMNS = (
    *("factor", "logdet", "logdet and gradient", "variances", f"{SAMPLES} samples, each"),
    *("splu logdet", "dense logdet and gradient", "Hutchinson, error"),
)


class Field:
    """A problem, and what is computed of it."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.bare = BarePardiso(problem)
        self.pattern = ss.Pattern(problem.rows, problem.cols, (problem.n, problem.n))

    def fresh(self) -> tuple[Tensor, Tensor]:
        """New values, and the array that PARDISO reads."""
        theta = self.problem.fresh()
        return self.problem.values(theta).detach(), self.bare.fresh(theta)

    def logdet(self, values: Tensor) -> Tensor:
        return self.pattern.logdet(values)

    def logdet_with_gradient(self, values: Tensor) -> Tensor:
        values = values.clone().requires_grad_()
        return torch.autograd.grad(self.pattern.logdet(values), values)[0]

    def variances(self, values: Tensor) -> Tensor:
        return ss.GaussianField(self.pattern, values).variance

    def splu_logdet(self, values: Tensor) -> float:
        from scipy.sparse.linalg import splu

        lu = splu(self.problem.scipy_matrix(values).tocsc(), **SPLU_OPTIONS)
        return float(np.log(np.abs(lu.U.diagonal())).sum())

    def dense_gradient(self, values: Tensor) -> Tensor:
        values = values.clone().requires_grad_()
        P = self.problem
        dense = values.new_zeros(P.n, P.n).index_put((P.rows, P.cols), values, accumulate=True)
        return torch.autograd.grad(torch.logdet(dense), values)[0]

    def estimate(self, values: Tensor, count: int) -> Tensor:
        signs = torch.randint(0, 2, (self.problem.n, count)).double() * 2 - 1
        solved = self.pattern.factorize(values, assume="spd").solve(signs)
        return (signs * solved).mean(1)


def check(field: Field) -> None:
    """Compare with SciPy and dense torch, as far as the matrix is small.

    For all matrices, the gradient times the values is n, since log det cA = log det A + n log c.
    """
    (values, _), n = field.fresh(), field.problem.n
    gradient = field.logdet_with_gradient(values)
    assert abs(float(gradient @ values) - n) < 1e-9 * n
    if field.problem.factor_flops <= MOST_FLOPS_SPLU:
        logdet = float(field.logdet(values))
        assert abs(logdet - field.splu_logdet(values)) < 1e-9 * abs(logdet)
    if n <= MOST_ROWS_DENSE:
        torch.testing.assert_close(gradient, field.dense_gradient(values), rtol=1e-9, atol=1e-11)


def measure(field: Field) -> dict[str, float]:
    """Medians of milliseconds, and the error of the estimate."""
    tasks: dict[str, Callable[[Tensor], Any]] = {
        "logdet": field.logdet,
        "logdet and gradient": field.logdet_with_gradient,
        "variances": field.variances,
    }
    if field.problem.factor_flops <= MOST_FLOPS_SPLU:
        tasks["splu logdet"] = field.splu_logdet
    if field.problem.n <= MOST_ROWS_DENSE:
        tasks["dense logdet and gradient"] = field.dense_gradient
    noise = torch.randn(field.problem.n, SAMPLES, dtype=torch.float64)
    one, x = field.bare.b[:1].contiguous(), torch.empty_like(field.bare.b[:1])
    found: dict[str, list[float]] = {}

    def run(name: str, task: Callable[[], Any], count: int = 1) -> None:
        start = time.perf_counter()
        task()
        found.setdefault(name, []).append(1e3 * (time.perf_counter() - start) / count)

    began, rounds = time.perf_counter(), 0
    while rounds < FEWEST_ROUNDS or time.perf_counter() - began < ENOUGH_SECONDS:
        values, prepared = field.fresh()
        turns = {name: partial(task, values) for name, task in tasks.items()}
        turns["factor"] = partial(field.bare.factor, prepared)
        for name in np.random.default_rng(rounds).permutation(list(turns)):
            run(name, turns[name])
        field.bare.factor(prepared)
        run("substitution", partial(field.bare.solve, one, x))
        F = field.pattern.factorize(values, assume="spd")
        run(f"{SAMPLES} samples, each", partial(F.solve_factor, noise), SAMPLES)
        rounds += 1
    times = {name: statistics.median(each) for name, each in found.items()}
    probes = max(1, int((times["variances"] - times["factor"]) / (2 * times["substitution"])))
    exact = field.variances(values)
    error = (field.estimate(values, probes) - exact).abs().max() / exact.max()
    return {**times, "Hutchinson, error": float(error)}


def describe(times: dict[str, float]) -> list[str]:
    """The cells of a row."""
    cells = []
    for name in COLUMNS:
        if name not in times:
            cells.append("")
        elif "error" in name:
            cells.append(f"{100 * times[name]:.0f} %")
        elif name == "factor":
            cells.append(f"{times[name]:.3g} ms")
        else:
            unit = times["substitution" if "samples" in name else "factor"]
            cells.append(f"{times[name] / unit:.2f}")
    return cells


def targets(rows: dict[str, dict[str, float]]) -> list[Target]:
    """What is to be reached, and what was measured."""
    large = {name: rows[name] for name in LARGE if name in rows}

    def ratios(name: str, unit: str, among: dict[str, dict[str, float]]) -> dict[str, float]:
        return {problem: times[name] / times[unit] for problem, times in among.items()}

    each = f"{SAMPLES} samples, each"
    return [
        Target("log-determinant over a factorisation", 1.3, ratios("logdet", "factor", large)),
        Target("... with its gradient", 3.0, ratios("logdet and gradient", "factor", large)),
        Target("variances over a factorisation", 2.5, ratios("variances", "factor", large)),
        Target("a sample over a substitution", 0.7, ratios(each, "substitution", rows)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small problems")
    arguments = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    for make in tqdm(QUICK if arguments.quick else MAKERS, disable=None):
        field = Field(make())
        check(field)
        rows[field.problem.name] = measure(field)
        field.bare.close()
    print("| | " + " | ".join(COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS))
    for name, times in rows.items():
        print(f"| {name} | " + " | ".join(describe(times)) + " |")
    print("\n| | at most | worst | |\n|---|---|---|---|")
    for target in targets(rows):
        print(target)


if __name__ == "__main__":
    main()
