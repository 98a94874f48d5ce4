"""The condition numbers of the matrices that are timed.

    python -m benchmarks.conditions [--quick]

A row is one positive definite matrix with fresh values: the ratio of its largest eigenvalue to its
smallest one, of the matrix itself and of the matrix with its diagonal scaled to ones, as conjugate
gradients scale it; two digits are right. The smallest eigenvalue is that of the inverse, which
needs a factorisation, so that the largest grids are left out; the condition number of a grid hardly
depends on its size.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

import sparse_solver as ss

from .problems import SMALL_SHIFT, SMOOTH, STIFF, Makers, Problem, chain, cubes, graph, grid, mesh

EIGENVALUE_TOLERANCE = 1e-3  # relative; more digits would say no more about the iterations

MAKERS: Makers = [
    partial(chain, 2**16),
    *(partial(graph, n) for n in (1000, 3000)),
    *(partial(grid, 300, 300, shift=shift) for shift in (1.0, SMALL_SHIFT)),
    *cubes(40),
    partial(mesh, 300, 333, 1),
    *(
        partial(mesh, *size, 1, True, t)
        for t in (SMOOTH, STIFF)
        for size in ((100, 100), (300, 333), (550, 550))
    ),
]
QUICK: Makers = [partial(grid, 12, 12, shift=SMALL_SHIFT), partial(mesh, 12, 12, 1, True, STIFF)]


def find_condition(A: Any) -> float:
    """The condition number of a positive definite matrix of SciPy in CSR format."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    pattern = ss.Pattern.from_scipy(A)
    F = pattern.factorize(torch.from_numpy(A.data), assume="spd")
    inverse = LinearOperator(
        A.shape, matvec=lambda v: F.solve(torch.from_numpy(v.copy())).numpy(), dtype=A.dtype
    )
    options: dict[str, Any] = {"k": 1, "which": "LA", "return_eigenvectors": False}
    largest, inverse_of_smallest = (
        float(eigsh(operator, tol=EIGENVALUE_TOLERANCE, **options)[0]) for operator in (A, inverse)
    )
    return largest * inverse_of_smallest


def conditions_of(problem: Problem) -> tuple[float, float]:
    """The condition numbers of the matrix, and of the matrix with a diagonal of ones."""
    import numpy as np
    from scipy.sparse import diags

    A = problem.scipy_matrix(problem.values(problem.fresh()).detach())
    scale = diags(1 / np.sqrt(A.diagonal()))
    scaled = (scale @ A @ scale).tocsr()
    # Products of rounded numbers are not exactly symmetric.
    return find_condition(A), find_condition(((scaled + scaled.T) / 2).tocsr())


def main(arguments: list[str] | None = None) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="two small matrices, for the tests")
    makers = QUICK if parser.parse_args(arguments).quick else MAKERS
    print("| matrix | condition number | with a diagonal of ones |", "|---|---|---|", sep="\n")
    for make in tqdm(makers, disable=None):
        torch.manual_seed(0)
        problem = make()
        both = (
            f"{number:,.2f}"
            if number < 10
            else f"{number:,.0f}"
            if number < 1e5
            else f"{number:.1e}"
            for number in conditions_of(problem)
        )
        name = problem.name.removesuffix(", 1 rhs")
        tqdm.write(f"| {name} | {' | '.join(both)} |")


if __name__ == "__main__":
    main()
