"""What a preconditioner must not hide: eigenvectors that are nearly missed, and negative signs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from problems import laplacian, laplacian_values, rhs
from test_cg_generated import (
    INDEFINITE,
    ROUNDING,
    generate,
    right_hand_sides,
    smallest_eigenvalue,
    solve_columns,
)
from torch import Tensor

import sparse_solver as ss
from sparse_solver._sparse.values import PROBE_MEAN, probe_vector
from tests.contract.verdicts import Judge, to_torch

F64 = torch.float64
N = 120
REFUSED = ss.SingularMatrixError, ss.NotPositiveDefiniteError
COUNT = 54  # generated matrices, with one preconditioner each
# With the engine named, a useless preconditioner is iterated with for long: these are the others.
USEFUL = 4


def nearly_missed(eigenvalue: float, replaced: float, part: float) -> tuple[Tensor, Tensor]:
    """Two matrices that differ in one eigenvalue only, whose eigenvector the probe nearly misses.

    The other eigenvalues are between 0.9 and 1.1.
    """
    g = torch.Generator().manual_seed(0)
    probe = probe_vector(N, F64, PROBE_MEAN)[0]
    probe = probe / probe.norm()
    other = torch.randn(N, dtype=F64, generator=g)
    other -= probe * (probe @ other)
    v = part * probe + (1 - part**2) ** 0.5 * other / other.norm()
    columns = torch.cat([v.unsqueeze(1), torch.randn(N, N - 1, dtype=F64, generator=g)], 1)
    Q = torch.linalg.qr(columns)[0]
    rest = (Q[:, 1:] * torch.linspace(0.9, 1.1, N - 1, dtype=F64)) @ Q[:, 1:].mT
    rest, v = (rest + rest.mT) / 2, Q[:, 0]
    return rest + eigenvalue * torch.outer(v, v), rest + replaced * torch.outer(v, v)


@pytest.mark.parametrize("engine", [None, "cg"])
@pytest.mark.parametrize("replaced", [0.5, 1.0])
@pytest.mark.parametrize("part", [1e-3, 5e-2])
@pytest.mark.parametrize("eigenvalue", [0.0, -1e-12, -1e-3, -0.3])
def test_eigenvalues_that_the_preconditioner_does_not_have(
    eigenvalue: float, part: float, replaced: float, engine: str | None
) -> None:
    A, M = nearly_missed(eigenvalue, replaced, part)
    F = ss.factorize(M.to_sparse(), assume="spd")
    b = A @ rhs(N, dtype=F64)  # so that a singular system has a solution
    error = REFUSED if eigenvalue == 0 else ss.NotPositiveDefiniteError
    with pytest.raises(error):
        ss.solve(A.to_sparse(), b, assume="spd", engine=engine, preconditioner=F)


@pytest.mark.parametrize("engine", [None, "cg"])
def test_a_small_eigenvalue_that_the_preconditioner_does_not_have(engine: str | None) -> None:
    A, M = nearly_missed(1e-5, 1.0, 1e-3)
    G = ss.factorize(
        A.to_sparse(), assume="spd", engine=engine, preconditioner=ss.factorize(M.to_sparse())
    )
    x = rhs(N, dtype=F64)
    assert float((G.solve(A @ x) - x).norm() / x.norm()) < 1e-9
    assert G.info.engine == "cg"
    assert G.info.proof is not None
    bound = float(G.info.proof.split()[-1])
    assert 0.5e-5 < bound < 2e-5


@pytest.mark.parametrize("negative", [1, 3])
def test_factors_that_are_not_positive_definite_do_not_show_that_the_matrix_is(
    negative: int,
) -> None:
    g = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(N, N, dtype=F64, generator=g))[0]
    values = torch.linspace(1, 3, N, dtype=F64)
    values[:negative] = -0.5
    dense = (Q * values) @ Q.mT
    dense = (dense + dense.mT) / 2
    assert float(dense.diagonal().min()) > 0
    A, b = dense.to_sparse(), rhs(N, dtype=F64)
    F = ss.factorize(A)
    for engine in (None, "cg"):
        with pytest.raises(ss.NotPositiveDefiniteError):
            ss.solve(A, b, assume="spd", engine=engine, preconditioner=F)
    G = ss.factorize(A, preconditioner=F)
    torch.testing.assert_close(G.solve(b), torch.linalg.solve(dense, b))
    assert G.info.assume == "symmetric"
    assert "preconditioner= is for positive definite matrices" in G.info.method_reason


def test_a_vector_proves_m_matrices_that_are_not_diagonally_dominant() -> None:
    P, edges, n = laplacian(10)
    ones = torch.ones(edges.shape[1], dtype=F64)
    old, new = (laplacian_values(weight * ones, n, 0.0) for weight in (1.0, 1.1))
    old[0], new[0] = 1.0, 2.0  # an anchor at one vertex
    F, b = P.factorize(old), rhs(n, dtype=F64)
    G = P.factorize(new, engine="cg", assume="spd", preconditioner=F)
    assert G.info.proof is not None
    assert "A v > 0" in G.info.proof
    torch.testing.assert_close(G.solve(b), torch.linalg.solve(P.tensor(new).to_dense(), b))


def test_a_preconditioner_that_fails_is_not_the_fault_of_the_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    P, edges, n = laplacian(6)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=F64), n, 0.1)
    F, b = P.factorize(values), rhs(n, dtype=F64)

    def fail(*arguments: Any, **options: Any) -> Tensor:
        raise ss.SingularMatrixError("no digit")

    monkeypatch.setattr(F._factors, "apply_inverse", fail)
    G = P.factorize(2 * values, preconditioner=F)
    torch.testing.assert_close(G.solve(b), torch.linalg.solve(2 * P.tensor(values).to_dense(), b))
    assert "the preconditioner could not be applied: no digit" in G.info.method_reason
    with pytest.raises(ss.ConvergenceError, match="could not be applied: no digit"):
        P.solve(2 * values, b, assume="spd", engine="cg", preconditioner=F)


@pytest.mark.parametrize("shift", [1e-9, 1e-12, 1e-14])
def test_nearly_singular_matrices_are_factored_at_once(
    shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judging their solutions took thousands of substitutions."""
    P, edges, n = laplacian(12)
    signs = 1.0 - 2.0 * (torch.arange(n) % 2)
    weights = signs[edges[0]] * signs[edges[1]] * torch.rand(edges.shape[1], dtype=F64)
    values, near = (laplacian_values(weights, n, s) for s in (shift, 0.1))
    values[-2 * len(weights) :], near[-2 * len(weights) :] = (weights.abs().repeat(2),) * 2
    F, calls = P.factorize(near), Counter[str]()
    apply_inverse = F._factors.apply_inverse

    def count(*arguments: Any, **options: Any) -> Tensor:
        calls["substitutions"] += 1
        return apply_inverse(*arguments, **options)

    monkeypatch.setattr(F._factors, "apply_inverse", count)
    x = rhs(n, dtype=F64)
    found = P.solve(values, P.tensor(values) @ x, assume="spd", preconditioner=F)
    assert float((found - x).norm() / x.norm()) < 1e-14 / shift
    assert calls["substitutions"] < 200


def test_a_factorisation_of_a_complex_matrix_is_refused() -> None:
    A = torch.eye(3, dtype=F64).to_sparse()
    F = ss.factorize(A.to(torch.complex128))
    with pytest.raises(ss.DtypeError, match=r"complex128; expected that of a real one"):
        ss.solve(A, torch.ones(3, dtype=F64), preconditioner=F)


def draw_preconditioner(A: Any, number: int, rng: np.random.Generator) -> ss.Factorization | None:
    """The factorisation of another matrix that is near to `A` in some way, or not near at all."""
    n, diagonal = A.shape[0], sp.diags(A.diagonal())
    v = rng.standard_normal((n, 1)) * np.sqrt(A.diagonal())[:, None]
    near = (
        lambda: A + shift * diagonal,
        lambda: A + v @ v.T / n,
        lambda: diagonal,
        lambda: A,
        lambda: A + shift * sp.triu(diagonal, k=0) + sp.triu(A, k=1),  # not symmetric
        lambda: A - 0.3 * diagonal,  # mostly indefinite
    )
    shift = float(10.0 ** rng.uniform(-6, 0))
    M = sp.csr_matrix(near[number % len(near)]().astype(np.float64))
    dtype = torch.float32 if number % 5 == 4 else F64
    try:
        return ss.factorize(to_torch(M, None).to(dtype))
    except ss.SparseSolverError:
        return None


@pytest.mark.parametrize(
    ("way", "engine"), [("preconditioner", None), ("preconditioner", "cg"), ("mixed", None)]
)
def test_no_wrong_solution_of_generated_matrices_is_accepted(way: str, engine: Any) -> None:
    counts: Counter[str] = Counter()
    for number in range(COUNT // 3 if engine else COUNT):
        name, A, rng = generate(number)
        if A.diagonal().min() <= 0 or (way == "mixed" and A.dtype == np.float32):
            continue
        options: dict[str, Any] = {"precision": "mixed"}
        if way == "preconditioner":
            F = draw_preconditioner(A, number // 9 % (USEFUL if engine else 6), rng)
            if F is None:
                continue
            options = {"preconditioner": F, "engine": engine}
        b, lowest = right_hand_sides(A, rng), smallest_eigenvalue(A)
        answers = solve_columns(A, b, **options)
        judge = Judge(A, singular_by_construction=name == "free")
        verdicts = judge.judge_columns(b, answers, False, "spd")
        for answer, verdict in zip(answers, verdicts, strict=True):
            about = f"{name} {number}: {verdict}, smallest eigenvalue {lowest:.0e}, {answer}"
            if lowest < -INDEFINITE:
                expected = (ss.NotPositiveDefiniteError,)
                expected += (ss.ConvergenceError,) if engine == "cg" else ()
                assert isinstance(answer, expected), about
                counts["indefinite"] += 1
                continue
            gave_up = engine == "cg" and isinstance(answer, ss.ConvergenceError)
            is_doubtful = isinstance(answer, ss.SparseSolverError) and lowest <= ROUNDING
            if not gave_up and not is_doubtful:
                assert verdict[0] in ("right", "loose", "refused fairly", "undecided"), about
            counts["solved" if isinstance(answer, torch.Tensor) else "refused"] += 1
    assert counts["solved"] > counts["refused"] > 0, counts
    assert counts["indefinite"] > 5, counts
