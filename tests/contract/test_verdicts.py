"""The bed of matrices at a fixed seed, and tests of its judge."""

from __future__ import annotations

import warnings
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import structural_rank

import sparse_solver as ss
from tests.contract import verdicts
from tests.contract.matrix_kinds import DTYPES, KINDS, make_matrix
from tests.contract.reference import Reference, is_exactly_singular, match_columns
from tests.contract.verdicts import FAULTS, Case, Judge, Options, judge

MATRICES_OF_A_KIND = 6
SHOWN = 12
SIZES = (3, 5, 9, 17, 33, 60, 110, 200)


def cases_of(kind: str) -> list[Case]:
    """Some sizes, and the dtypes in turn."""
    rng = np.random.default_rng([20260, *kind.encode()])
    dtypes = KINDS[kind].dtypes
    start = int(rng.integers(len(dtypes)))
    return [
        Case(kind, int(rng.choice(SIZES)), i, dtypes[(start + i) % len(dtypes)])
        for i in range(MATRICES_OF_A_KIND)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_right_and_every_refusal_is_fair(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judged = [verdict for case in cases_of(kind) for verdict in judge(case)]
    faults = [verdict for verdict in judged if verdict.verdict in FAULTS]
    counts = dict(Counter(verdict.verdict for verdict in judged))
    assert not faults, "\n".join([str(counts), *map(str, faults[:SHOWN])])
    assert counts.get("undecided", 0) <= len(judged) / 4


def test_there_are_many_kinds_of_every_dtype() -> None:
    for dtype in DTYPES:
        assert sum(dtype in kind.dtypes for kind in KINDS.values()) >= 30


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_as_their_kind_says(kind: str) -> None:
    for case in cases_of(kind):
        A, symmetry = make_matrix(KINDS[kind], case.n, case.seed, case.dtype)
        again, _ = make_matrix(KINDS[kind], case.n, case.seed, case.dtype)
        assert A.dtype == case.dtype
        assert A.shape[0] == A.shape[1] > 0
        assert (again != A).nnz == 0
        assert A.data.all()
        if symmetry != "general":
            opposite = A.T if symmetry == "symmetric" else A.conj().T
            assert (opposite != A).nnz == 0


# The judge


def exact_solution(A: Any, b: Any) -> list[Fraction]:
    """Gaussian elimination with fractions."""
    n = len(b)
    M = [[Fraction(float(v)) for v in (*A[i], b[i])] for i in range(n)]
    for k in range(n):
        pivot = next(i for i in range(k, n) if M[i][k])
        M[k], M[pivot] = M[pivot], M[k]
        for i in range(n):
            if i != k and M[i][k]:
                factor = M[i][k] / M[k][k]
                M[i] = [a - factor * c for a, c in zip(M[i], M[k], strict=True)]
    return [M[i][n] / M[i][i] for i in range(n)]


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    "kind", ["small_integers", "vandermonde", "kahan", "scaled_rows_and_columns", "tiny_pivots"]
)
def test_the_reference_is_the_exact_solution(kind: str, transpose: bool) -> None:
    regular = 0
    for seed in range(8):
        A, _ = make_matrix(KINDS[kind], 9, seed, "float64")
        reference = Reference(A)
        if reference.singular:
            continue
        assert reference.certified
        regular += 1
        b = np.random.default_rng(seed).standard_normal(A.shape[0])
        dense = A.toarray().T if transpose else A.toarray()
        exact = np.array(
            [
                np.longdouble(v.numerator) / np.longdouble(v.denominator)
                if abs(v) < 1e300
                else np.longdouble(float(v))
                for v in exact_solution(dense, b)
            ]
        )
        x, skeel, error = reference.solve(b[:, None], transpose)
        assert error[0] < 0.05
        assert abs(x[:, 0] - exact).max() <= max(error[0], 1e-15) * abs(exact).max()
        inverse = abs(np.linalg.inv(dense))
        bound = inverse @ (abs(dense) @ abs(exact.astype(float)) + abs(b))
        if np.isfinite(inverse).all():
            expected = bound.max() / float(abs(exact).max())
            assert skeel[0] == pytest.approx(expected, rel=0.3) or expected > 1e12
    assert regular >= 3


@pytest.mark.parametrize("kind", ["low_rank", "kronecker_of_ones", "duplicated_rows"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_exactly_singular_matrices_are_recognised(kind: str, dtype: str) -> None:
    A, _ = make_matrix(KINDS[kind], 30, 0, dtype)
    assert is_exactly_singular(A)
    reference = Reference(A)
    assert reference.singular
    nudged = sp.csr_matrix(A + sp.eye(A.shape[0], dtype=A.dtype) * 1e-2)
    assert not is_exactly_singular(nudged)


def test_rows_are_matched_with_columns() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 40))
        A = sp.csr_matrix((rng.random((n, n)) < 2.5 / n) * 1.0)
        matched = match_columns(A)
        rows = np.flatnonzero(matched >= 0)
        assert len(rows) == structural_rank(A)
        assert len(set(matched[rows])) == len(rows)
        assert A.toarray()[rows, matched[rows]].all()


def verdict_on(
    A: Any, answer: Any, b: Any = None, singular: bool = False, assume: str = "auto"
) -> str:
    A = sp.csr_matrix(A)
    b = np.ones(A.shape[0], A.dtype) if b is None else b
    found = answer if isinstance(answer, Exception) else torch.from_numpy(answer)
    [(verdict, _)] = Judge(A, singular).judge_columns(b[:, None], [found], False, assume)
    return verdict


def test_answers_are_judged_by_their_errors() -> None:
    A, b = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([3.0, 4.0])
    x = np.array([1.0, 1.0])
    assert verdict_on(A, x, b) == "right"
    assert verdict_on(A, x * (1 + 1e-15), b) == "right"
    assert verdict_on(A, x * (1 + 1e-9), b) == "wrong"
    assert verdict_on(A, x * np.nan, b) == "wrong"
    assert verdict_on(A, np.zeros(2), b) == "wrong"


def test_errors_that_the_condition_number_explains() -> None:
    D = np.array([1.0, 1e-17])
    A = np.array([[2.0, 1.0], [1.0, 3.0]]) * D
    b = np.array([2.0, 1.0])  # x = (1, 0), but for rounding errors of the size of 1e17 ε
    assert verdict_on(A, np.array([1.0, 1e3]), b) == "no digit"
    assert verdict_on(A, np.array([1.0, 1e30]), b) == "wrong"


def test_refusals_are_judged_by_dense_torch() -> None:
    refusal = ss.SingularMatrixError("singular")
    assert verdict_on(np.array([[2.0, 1.0], [1.0, 3.0]]), refusal) == "refused"
    assert verdict_on(np.array([[1.0, 1.0], [1.0, 1.0 + 1e-15]]), refusal) == "refused fairly"
    assert verdict_on(np.eye(2), ValueError("untyped")) == "crash"


def test_singular_matrices_must_raise_singular_matrix_errors() -> None:
    A = np.ones((2, 2))
    assert verdict_on(A, np.ones(2)) == "wrong"
    assert verdict_on(A, ss.SingularMatrixError("singular")) == "right"
    assert verdict_on(A, ss.EngineError("inaccurate")) == "other error"
    indefinite = ss.NotPositiveDefiniteError("a pivot is 0")
    assert verdict_on(A, indefinite) == "other error"
    assert verdict_on(A, indefinite, assume="spd") == "right"
    rounded = np.array([[1.0, 3.0], [1 / 3, 1.0 + 4e-16]])  # singular but for rounding
    assert verdict_on(rounded, np.array([1.0, 5.0]), singular=True) == "wrong"


def test_one_hard_system_excuses_a_call_that_solves_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One error refuses all right-hand sides of the call."""

    def refuse(A: Any, B: Any, options: Options, transpose: bool) -> list[Any]:
        assert options.is_joint == (options.way in ("block", "batch"))
        return [ss.SingularMatrixError("singular")] * B.shape[1]

    monkeypatch.setattr(verdicts, "solve_all", refuse)
    found: dict[tuple[bool, bool], set[str]] = {}
    for seed in range(60):
        judged = judge(Case("scaled_symmetric", 9, seed, "float32"))
        for transpose in (False, True):
            side = [v for v in judged if v.transpose == transpose]
            kinds = {v.verdict for v in side}
            mixed = "refused fairly" in kinds
            found.setdefault((side[0].options.is_joint, mixed), set()).update(kinds)
    assert found[True, True] == {"refused fairly"}
    assert found[False, True] == {"refused", "refused fairly"}
    assert found[True, False] == {"refused"}
