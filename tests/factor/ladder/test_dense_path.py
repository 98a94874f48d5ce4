"""The fast path for small general matrices: it must show all that the ladder would show."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from problems import COMPLEX, REAL, generator
from torch import Tensor

import sparse_solver as ss
from sparse_solver import _testing
from sparse_solver._factor.ladder.dense_path import SoundDenseFactor
from sparse_solver._factor.ladder.ladder import _fast_paths_of
from sparse_solver._factor.options import Options

N = 12
G = generator(5)
MASK = (torch.rand(N, N, generator=G) < 0.4) | torch.eye(N, dtype=torch.bool)
MASK = MASK | MASK.mT
ROWS, COLS = MASK.nonzero().T
P = ss.Pattern(ROWS, COLS, (N, N))


def good(dtype: torch.dtype) -> Tensor:
    """Dense entries of a matrix that is beyond doubt."""
    return (torch.randn(N, N, dtype=dtype, generator=generator(1)) + 4 * torch.eye(N)) * MASK


def changed(row: int, col: int, value: float) -> Callable[[Tensor], Tensor]:
    def change(A: Tensor) -> Tensor:
        A[row, col] = value
        return A

    return change


def with_row(row: int, make: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def change(A: Tensor) -> Tensor:
        A[row] = make(A)
        return A

    return change


def scale_rows(A: Tensor) -> Tensor:
    return 10 ** torch.linspace(-15, 15, N).unsqueeze(1).to(A.dtype) * A


def grow(A: Tensor) -> Tensor:
    """A matrix whose LU with partial pivoting has entries that double from column to column."""
    B = torch.eye(N, dtype=A.dtype) - torch.ones(N, N, dtype=A.dtype).tril(-1)
    B[:, -1] = 1
    return B * MASK


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": changed(2, 2, math.nan),
    "infinite": changed(2, 2, math.inf),
    "both infinities": lambda A: changed(2, 2, math.inf)(changed(3, 3, -math.inf)(A)),
    "row of zeros": with_row(3, lambda A: A[3] * 0),
    "column of zeros": lambda A: with_row(3, lambda B: B[3] * 0)(A.mT.contiguous()).mT,
    "zeros": torch.zeros_like,
    "equal rows": lambda A: torch.ones_like(A) * MASK,
    "symmetric": lambda A: A + A.mT,
    "symmetric and definite": lambda A: A + A.mT + 40 * torch.eye(N),
    "Hermitian": lambda A: A + A.mH,
    "symmetric up to rounding": lambda A: (
        (A + A.mT) * (1 + torch.finfo(A.dtype).eps * A.real.sgn())
    ),
    "skew": lambda A: A - A.mT,
    "zero diagonal": lambda A: A - torch.diag(A.diagonal()),
    "singular": lambda A: (A - torch.diag(A.sum(1))) * MASK,
    "nearly singular": lambda A: (A - torch.diag(A.sum(1) * (1 + 1e-13))) * MASK,
    "scaled rows": scale_rows,
    "scaled columns": lambda A: scale_rows(A.mT).mT,
    "growth": grow,
    "tiny": lambda A: A * 1e-37,
    "huge": lambda A: A * 1e37,
}


def entries(A: Tensor) -> Tensor:
    return A[ROWS, COLS].contiguous()


def set_path(dtype: torch.dtype, assume: str, closed: bool) -> bool:
    """Close the path, and say whether it was open."""
    fast_paths = _fast_paths_of(P._structure, Options(assume), dtype)  # type: ignore[arg-type] # a plain string
    was_open = fast_paths.path is not None
    if closed:
        fast_paths.path = None
    return was_open


def outcome(values: Tensor, b: Tensor, assume: str, adjoint: bool) -> Tensor | str:
    try:
        return P.solve(values, b, assume=assume, adjoint=adjoint)  # type: ignore[arg-type] # as above
    except ss.SparseSolverError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("dtype", REAL + COMPLEX, ids=str)
@pytest.mark.parametrize("assume", ["general", "auto"])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("what", CHANGES)
def test_the_fast_path_ends_as_the_ladder_does(
    dtype: torch.dtype, assume: str, adjoint: bool, what: str
) -> None:
    b = torch.arange(1, 2 * N + 1, dtype=torch.float64).reshape(N, 2).to(dtype)
    first = entries(good(dtype))
    values = entries(CHANGES[what](good(dtype)))
    set_path(dtype, assume, closed=True)
    expected = outcome(values, b, assume, adjoint)
    set_path(dtype, assume, closed=True)
    for _ in range(40):  # a pattern that needed another method starts with that for a while
        P.solve(first, b, assume=assume)  # type: ignore[arg-type] # a plain string
    assert set_path(dtype, assume, closed=False)
    found = outcome(values, b, assume, adjoint)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert isinstance(found, Tensor)
        if what not in ("nearly singular", "scaled columns"):  # which entries are determined
            torch.testing.assert_close(
                found,
                expected,
                rtol=1e-3 if what == "growth" else None,
                atol=1e-3 if what == "growth" else None,
            )
    A = P.tensor(first).to_dense()
    again = P.solve(first, b, assume=assume, adjoint=adjoint)  # type: ignore[arg-type] # as above
    torch.testing.assert_close(again, torch.linalg.solve(A.mH if adjoint else A, b))


def test_a_matrix_that_became_symmetric_is_taken_for_what_it_is() -> None:
    A = good(torch.float64)
    for _ in range(2):
        info = P.factorize(entries(A)).info
        assert (info.assume, info.engine) == ("general", "lapack")
    assert info.assume_reason == "not symmetric"
    assert info.factor_nnz == N * N
    assert info.factorization_seconds > 0
    assert P.factorize(entries(A + A.mT)).info.assume == "symmetric"
    B = A + A.mT
    B[ROWS[1], COLS[1]] += 0.5  # not symmetric at one place only
    for _ in range(3):
        assert P.factorize(entries(B)).info.assume == "general"


@pytest.mark.parametrize("dtype", REAL + COMPLEX, ids=str)
def test_later_right_hand_sides_may_need_another_factor(dtype: torch.dtype) -> None:
    values = entries(good(dtype))
    for _ in range(40):
        F = P.factorize(values)
    [factor] = _testing.checked_factors(F)
    assert isinstance(factor, SoundDenseFactor)
    expected = F.solve(torch.ones(N, dtype=dtype))
    values.zero_()  # the factor has a copy
    factor._limit = 0.0  # as if it were not accurate
    found = F.solve(torch.ones(N, dtype=dtype))
    assert factor._checked is not None
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_right_hand_sides_that_are_no_numbers(dtype: torch.dtype, number: float) -> None:
    values = entries(good(dtype))
    P.factorize(values)
    F = P.factorize(values)
    b = torch.ones(N, 3, dtype=dtype)
    b[5, 1] = number
    with pytest.raises(ss.NonFiniteError, match=r"b\[5\]"):
        F.solve(b)
    rhs = torch.ones(N, 3, dtype=dtype, requires_grad=True)
    F.solve(rhs).backward(b)
    assert rhs.grad is not None
    assert torch.isfinite(rhs.grad).all(0).tolist() == [True, False, True]
    assert torch.equal(F.solve(torch.zeros(N, dtype=dtype)), torch.zeros(N, dtype=dtype))


def test_solutions_that_single_precision_cannot_hold() -> None:
    values = entries(good(torch.float32)) * 1e-30
    P.factorize(values)
    with pytest.raises(ss.NonFiniteError, match="too large"):
        P.factorize(values).solve(torch.full((N,), 1e20))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_duplicates_are_summed(dtype: torch.dtype) -> None:
    twice = ss.Pattern(ROWS.repeat(2), COLS.repeat(2), (N, N))
    values, share = entries(good(dtype)), torch.rand(P.nnz, generator=generator(2)).to(dtype)
    parts = torch.cat((share * values, (1 - share) * values)).requires_grad_()
    b = torch.ones(N, dtype=dtype)
    for _ in range(3):
        x = twice.solve(parts, b)
        torch.testing.assert_close(x, P.solve(values, b))
    assert torch.autograd.gradcheck(twice.solve, (parts, b))


def test_threads_share_the_fast_path() -> None:
    b = torch.ones(N, dtype=torch.float64)

    def solve(k: int) -> bool:
        A = good(torch.float64) + k * torch.eye(N)
        if k % 5 == 0:
            A[2, 2] = math.nan
        found = outcome(entries(A), b, "auto", False)
        if k % 5 == 0:
            return isinstance(found, str) and "NonFiniteError" in found
        return isinstance(found, Tensor) and torch.allclose(found, torch.linalg.solve(A, b))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(solve, range(60)))
