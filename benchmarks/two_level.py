"""PARDISO's two-level factorisation and its improved form, iparm(24) = 1 and 10.

    python -m benchmarks.two_level [--quick]

A row is one matrix: rows, entries of one factor per row, and the times of the first form divided by
those of the second, for a factorisation and for solves of 1, 2, 8 and 32 right-hand sides (medians,
the forms in turn). `_MANY_ROWS` and `_LITTLE_FILL` of `_engines/mkl/pardiso.py` follow from the
table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sparse_solver._engines.mkl.handle import Handle, Settings, most_threads
from sparse_solver._engines.mkl.library import Library, library
from sparse_solver._engines.mkl.parameters import matrix_type
from sparse_solver._engines.mkl.pardiso import _parameters
from sparse_solver._sparse.structure import Structure
from sparse_solver._sparse.triangle import arrangement_of

from .problems import Problem, convection, grid, helmholtz, saddle_point

SAMPLES = 5
COLUMNS = (1, 2, 8, 32)
FULL: tuple[Callable[[], Problem], ...] = (
    lambda: grid(50, 50), lambda: grid(100, 100), lambda: grid(150, 150), lambda: grid(300, 300),
    lambda: grid(500, 500), lambda: grid(1000, 1000), lambda: grid(150, 150, 3),
    lambda: grid(100, 100, 6), lambda: grid(20, 20, 20), lambda: grid(30, 30, 30),
    lambda: grid(40, 40, 40), lambda: convection(100), lambda: convection(300),
    lambda: saddle_point(300), lambda: helmholtz(300),
)  # fmt: skip
QUICK: tuple[Callable[[], Problem], ...] = (lambda: grid(12, 12), lambda: convection(12))


class Form:
    """One form of the factorisation of a problem, on prepared arrays."""

    def __init__(self, problem: Problem, improved: bool):
        kind, n = problem.kind, problem.n
        structure = Structure(problem.rows, problem.cols, (n, n))
        self.values = problem.values(problem.fresh()).detach()
        arrangement = arrangement_of(structure, "full" if kind == "general" else "upper")
        self.values = arrangement.gather(structure.canonical(self.values), False)
        dtype, found = self.values.dtype, library()
        assert isinstance(found, Library), found
        iparm = _parameters(kind, dtype, matching=False, careful=False, improved=improved)
        given = found, matrix_type(kind, dtype), arrangement, n, iparm
        self.handle = Handle(Settings(*given, most_threads()))
        self.entries = (self.handle.analyze(None) or 0) / (2 if kind == "general" else 1)
        slot = self.handle.take(most_threads())
        assert slot is not None
        self.slot = slot

    def factor(self) -> None:
        code, _ = self.handle.factor(self.slot, self.values)
        assert code == 0, code

    def solve(self, b: Tensor) -> None:
        self.handle.substitute(self.slot, self.values, b, False)


def compare(problem: Problem) -> list[float]:
    """The ratios of the times of the first form to those of the second."""
    forms = [Form(problem, improved) for improved in (False, True)]
    dtype = forms[0].values.dtype
    rhs = [torch.randn(k, problem.n, dtype=dtype) for k in COLUMNS]
    calls: list[Callable[[Form], None]] = [Form.factor]
    calls += [lambda form, b=b: form.solve(b) for b in rhs]  # type: ignore[misc] # b is bound now
    ratios = []
    for call in calls:
        times: list[list[float]] = [[], []]
        for _ in range(1 + SAMPLES):
            for form, samples in zip(forms, times, strict=True):
                start = time.perf_counter()
                call(form)
                samples.append(time.perf_counter() - start)
        first, second = (statistics.median(samples[1:]) for samples in times)
        ratios.append(first / second)
    return [forms[0].entries / problem.n, *ratios]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two small matrices")
    quick = parser.parse_args(arguments).quick
    print(f"{torch.get_num_threads()} threads")
    names = ["factor", *(f"solve {k}" for k in COLUMNS)]
    print("| matrix | rows | entries per row | " + " | ".join(names) + " |")
    print("|---" * (3 + len(names)) + "|")
    for make in QUICK if quick else FULL:
        problem = make()
        entries, *ratios = compare(problem)
        cells = [problem.name, f"{problem.n:,}", f"{entries:.0f}", *(f"{r:.2f}" for r in ratios)]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
