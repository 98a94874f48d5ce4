"""Five hundred generated matrices, judged against extended precision: none is solved wrongly.

They are the kinds on which conjugate gradients could go wrong without noticing: singular matrices
with consistent and inconsistent right-hand sides, nearly singular, indefinite, badly scaled and
disconnected ones, and coefficients that jump.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import sparse_solver as ss
from tests.contract.verdicts import Judge, to_torch

Matrix = Any
Generator = np.random.Generator

COUNT, SEED = 500, 20
MOST_ROWS = 60
# Refusals are allowed, but conjugate gradients solve at least so many of the regular systems.
LEAST_SOLVED = 0.9
# Smallest eigenvalues of scaled matrices that may be rounding errors, and that are none for sure.
ROUNDING, INDEFINITE = 1e-14, 1e-6


def laplacian(rng: Generator, n: int, weights: Callable[[int], Any] | None = None) -> Matrix:
    """The Laplacian of a connected random graph: a chain, and as many edges again."""
    order = rng.permutation(n)
    i = np.concatenate([order[:-1], rng.integers(n, size=n)])
    j = np.concatenate([order[1:], rng.integers(n, size=n)])
    i, j = i[i != j], j[i != j]
    w = np.ones(len(i)) if weights is None else weights(len(i))
    A = sp.coo_matrix((np.concatenate([w, w]), (np.r_[i, j], np.r_[j, i])), shape=(n, n)).tocsr()
    return sp.csr_matrix(sp.diags(np.asarray(A.sum(1)).ravel()) - A)


def shift(rng: Generator, low: float, high: float) -> float:
    return float(10.0 ** rng.uniform(low, high))


def anchored(rng: Generator, n: int) -> Matrix:
    return laplacian(rng, n) + shift(rng, -6, 1) * sp.eye(n)


def jumps(rng: Generator, n: int) -> Matrix:
    L = laplacian(rng, n, lambda count: 10.0 ** rng.choice([-6.0, 0.0, 6.0], count))
    return L + sp.diags(10.0 ** rng.uniform(-3, 0, n))


def badly_scaled(rng: Generator, n: int) -> Matrix:
    powers = rng.choice([1, 4, 20, 100])
    D = sp.diags(10.0 ** (powers * rng.uniform(-1, 1, n)))
    return D @ anchored(rng, n) @ D


def free(rng: Generator, n: int) -> Matrix:
    """Singular."""
    return laplacian(rng, n, lambda count: rng.integers(1, 9, count).astype(float))


def nearly_singular(rng: Generator, n: int) -> Matrix:
    return laplacian(rng, n) + shift(rng, -17, -8) * sp.eye(n)


def disconnected(rng: Generator, n: int) -> Matrix:
    """Of two components, the second may be singular."""
    m = max(2, n // 3)
    second = free(rng, m) + (shift(rng, -16, 0) if rng.random() < 0.5 else 0.0) * sp.eye(m)
    return sp.block_diag([anchored(rng, max(2, n - m)), second])


def indefinite(rng: Generator, n: int) -> Matrix:
    """With a positive diagonal, and an eigenvalue that is negative, or nearly zero."""
    L = laplacian(rng, n).toarray()
    values = np.linalg.eigvalsh(L)
    return sp.csr_matrix(L - (values[1] + values[0]) * rng.choice([0.5, 1.0]) * np.eye(n))


def with_condition(rng: Generator, n: int) -> Matrix:
    """Dense, with entries of both signs."""
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    A = (Q * 10.0 ** (-rng.uniform(0, 15) * rng.random(n))) @ Q.T
    return sp.csr_matrix((A + A.T) / 2)


def products(rng: Generator, n: int) -> Matrix:
    """B Bᵀ with integers, which is singular where B has too few columns."""
    B = rng.integers(-1, 2, (n, rng.choice([n - 1, n, n + 3]))).astype(float)
    return sp.csr_matrix(B @ B.T)


KINDS: tuple[Callable[[Generator, int], Matrix], ...] = (
    *(anchored, jumps, badly_scaled, free, nearly_singular),
    *(disconnected, indefinite, with_condition, products),
)


def right_hand_sides(A: Matrix, rng: Generator) -> Any:
    """Three columns: consistent whatever the matrix is, a unit vector, and scattered numbers."""
    n = A.shape[0]
    sizes = np.sqrt(np.maximum(A.diagonal(), np.finfo(A.dtype).tiny))
    unit = np.zeros(n)
    unit[rng.integers(n)] = 1.0
    x = rng.standard_normal(n) / sizes
    wide = A.astype(np.longdouble)
    return np.stack([wide @ x, unit, sizes * rng.standard_normal(n)], 1).astype(A.dtype)


def solve_columns(A: Matrix, b: Any, **options: Any) -> list[Any]:
    """The solution of each column, or the error; without options by conjugate gradients."""
    tensor, found = to_torch(A, None), []
    try:
        F = ss.factorize(tensor, assume="spd", **(options or {"engine": "cg"}))
    except ss.SparseSolverError as error:
        return [error] * b.shape[1]
    for column in torch.from_numpy(b).T.contiguous():
        try:
            found.append(F.solve(column))
        except ss.SparseSolverError as error:
            found.append(error)
    return found


def generate(number: int) -> tuple[str, Matrix, Generator]:
    """The name of a kind, a matrix, and the generator of its right-hand sides."""
    rng = np.random.default_rng([SEED, number])
    make = KINDS[number % len(KINDS)]
    A = sp.csr_matrix(make(rng, int(rng.integers(4, MOST_ROWS))))
    is_single = number % 4 == 3 and abs(A.data).max() < 1e30 and A.diagonal().min() > 1e-30
    A = A.astype(np.float32 if is_single else np.float64)
    A = sp.csr_matrix((A + A.T) / 2)
    A.eliminate_zeros()
    return make.__name__, A, rng


def smallest_eigenvalue(A: Matrix) -> float:
    """The smallest eigenvalue after scaling, relative to the largest."""
    roots = np.sqrt(A.diagonal().astype(float))
    values = np.linalg.eigvalsh(A.toarray().astype(float) / roots / roots[:, None])
    return float(values[0] / values[-1])


@pytest.mark.parametrize("part", range(5))
def test_no_wrong_solution_of_500_matrices_is_accepted(part: int) -> None:
    counts: Counter[str] = Counter()
    for number in range(part, COUNT, 5):
        name, A, rng = generate(number)
        if A.diagonal().min() <= 0:
            counts["with a diagonal that is not positive"] += 1
            continue
        b, lowest = right_hand_sides(A, rng), smallest_eigenvalue(A)
        judge, found = Judge(A, singular_by_construction=name == "free"), solve_columns(A, b)
        is_positive = lowest > ROUNDING
        for answer, verdict in zip(found, judge.judge_columns(b, found, False, "spd"), strict=True):
            about = f"{name} {number}: {verdict}, smallest eigenvalue {lowest:.0e}"
            if lowest < -INDEFINITE:
                assert isinstance(answer, ss.NotPositiveDefiniteError), about
                counts["indefinite"] += 1
                continue
            gave_up = isinstance(answer, ss.ConvergenceError)
            is_fair = gave_up or (isinstance(answer, ss.SparseSolverError) and not is_positive)
            if not (verdict[0] == "refused" and is_fair):
                assert verdict[0] in ("right", "loose", "refused fairly", "undecided"), about
            is_solved = isinstance(answer, torch.Tensor)
            counts["solved" if is_solved else verdict[0]] += 1
    assert counts["solved"] > LEAST_SOLVED * (counts["solved"] + counts["refused"]), counts
    assert min(counts["right"], counts["indefinite"]) > 10, counts


def test_the_judge_notices_wrong_solutions() -> None:
    rng = np.random.default_rng(SEED)
    A = sp.csr_matrix(anchored(rng, 20))
    b = right_hand_sides(A, rng)
    found = solve_columns(A, b)
    assert all(isinstance(x, torch.Tensor) for x in found)
    judge = Judge(A, singular_by_construction=False)
    verdicts = judge.judge_columns(b, [x * (1 + 1e-6) for x in found], False, "spd")
    assert {verdict for verdict, _ in verdicts} == {"wrong"}
    singular = Judge(sp.csr_matrix(free(rng, 20)), singular_by_construction=True)
    verdicts = singular.judge_columns(b, found, False, "spd")
    assert {verdict for verdict, _ in verdicts} == {"wrong"}
