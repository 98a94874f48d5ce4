"""Factorisations that go on to a better method, at once or for a later right-hand side."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from problems import rhs
from torch import Tensor

import sparse_solver as ss
from sparse_solver._engines.equilibrated_lu import EquilibratedFactor
from sparse_solver._factor.accuracy.judge import Judge, Outcome
from sparse_solver._testing import installed_engines


def zero_one(n: int, seed: int) -> Tensor:
    """A regular matrix of zeros and ones, for which exchanges within blocks do not suffice."""
    rng = np.random.default_rng([n, seed])
    A = (rng.random((n, n)) < 3.5 / n) * 1.0
    A[np.arange(n), rng.permutation(n)] = 1
    return torch.from_numpy(A)


@pytest.mark.parametrize("engine", [None, *installed_engines("general")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_zeros_and_ones(engine: str | None, dtype: torch.dtype) -> None:
    solved = 0
    for seed in range(12):
        dense = zero_one(40, seed)
        if not torch.linalg.cond(dense) < 1e4:
            continue
        expected = torch.linspace(0.5, 1.5, 40, dtype=torch.float64)
        A, b = dense.to(dtype), (dense @ expected).to(dtype)
        x = ss.solve(A.to_sparse(), b, engine=engine)
        torch.testing.assert_close(x.real.double(), expected, rtol=2e-3, atol=2e-3)
        solved += 1
    assert solved > 5


DENSE = zero_one(30, 1) + 3 * torch.eye(30)


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let the first factor of every matrix solve no right-hand side; lists which it was given."""
    original, given = Judge.solve, list[bool]()

    def solve(self: Judge, b: Tensor, transpose: bool) -> tuple[Tensor, Outcome]:
        x, outcome = original(self, b, transpose)
        if isinstance(self.factor, EquilibratedFactor):
            return x, outcome
        given.append(transpose)
        return x, Outcome.INACCURATE

    monkeypatch.setattr(Judge, "solve", solve)
    return given


def test_a_right_hand_side_that_fails_is_solved_by_the_next_method(failed: list[bool]) -> None:
    """Its derivatives use the factor that answered."""
    F = ss.factorize(DENSE.to_sparse(), assume="general", engine="superlu")
    b = rhs(30, dtype=torch.float64).requires_grad_()
    x = F.solve(b)
    torch.testing.assert_close(x, torch.linalg.solve(DENSE, b))
    assert "in double precision" in F.info.method
    assert "did not solve accurately" in F.info.method_reason
    (gradient,) = torch.autograd.grad(x.sum(), b)
    torch.testing.assert_close(gradient, torch.linalg.inv(DENSE).sum(0))
    assert failed == [False]  # the derivative did not use the first factor again


@pytest.mark.usefixtures("failed")
def test_values_that_are_overwritten_do_not_reach_a_later_method() -> None:
    at = DENSE.nonzero().T
    P, values = ss.Pattern(at[0], at[1], (30, 30)), DENSE[at[0], at[1]].clone()
    F = P.factorize(values, assume="general", engine="superlu")
    values.zero_()
    b = rhs(30, dtype=torch.float64)
    torch.testing.assert_close(F.solve(b), torch.linalg.solve(DENSE, b))


@pytest.mark.usefixtures("failed")
def test_threads_share_the_next_method() -> None:
    F = ss.factorize(DENSE.to_sparse(), assume="general", engine="superlu")
    b, found = rhs(30, dtype=torch.float64), list[Tensor]()
    threads = [threading.Thread(target=lambda: found.append(F.solve(b))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for x in found:
        torch.testing.assert_close(x, torch.linalg.solve(DENSE, b))


def test_badly_scaled_solutions_without_a_digit_are_refused() -> None:
    """The largest entry of x is what rounding b leaves of it, though the matrix is regular."""
    scale = torch.tensor([1.0, 1e-18, 1.0], dtype=torch.float64)
    H = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, 1.0], [0.5, 1.0, 2.0]], dtype=torch.float64)
    A = (scale.unsqueeze(1) * H * scale).to_sparse()
    ones = torch.ones(3, dtype=torch.float64)
    for assume in ("auto", "symmetric", "general"):
        with pytest.raises(ss.SingularMatrixError, match="no correct digit"):
            ss.solve(A, A.to_dense() @ ones, assume=assume)  # type: ignore[arg-type]
        b = scale * (H @ ones)
        torch.testing.assert_close(ss.solve(A, b, assume=assume) * scale, ones)  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", installed_engines("spd"))
def test_voids_in_single_precision(engine: str) -> None:
    """Islands of material in a void of stiffness 10⁻¹⁰, whose stiffness rounding absorbs."""
    n = 12
    i = torch.arange(n - 1)
    stiffness = torch.ones(n - 1, dtype=torch.float64)
    stiffness[[3, 7]] = 1e-10
    A = torch.zeros(n, n, dtype=torch.float64)
    for k, s in zip(i.tolist(), stiffness.tolist(), strict=True):
        A[k : k + 2, k : k + 2] += s * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    A[0, 0] += 1.0
    single = A.float()
    b = torch.zeros(n)
    b[5], b[-1] = 1.0, -1.0
    truth = torch.linalg.solve(single.double(), b.double()) if _is_regular(single) else None
    try:
        x = ss.solve(single.to_sparse(), b, assume="spd", engine=engine)
    except (ss.SingularMatrixError, ss.NotPositiveDefiniteError):
        return
    assert truth is not None
    torch.testing.assert_close(x.double(), truth, rtol=1e-2, atol=float(truth.abs().max()) * 1e-2)


def _is_regular(single: Tensor) -> bool:
    values = torch.linalg.svdvals(single.double())
    return float(values[-1]) > 1e-14 * float(values[0])


@pytest.mark.parametrize("engine", installed_engines("spd"))
def test_solutions_have_the_dtype_of_the_matrix_whatever_the_factor_has(engine: str) -> None:
    """A pivot that single precision leaves in doubt, and double precision does not."""
    n = 30
    A = 2 * torch.eye(n) - torch.diag(torch.ones(n - 1), 1) - torch.diag(torch.ones(n - 1), -1)
    A[0, 0] = A[-1, -1] = 1.0
    A[0, 0] += 2e-5
    b = torch.ones(n, requires_grad=True)
    F = ss.factorize(A.to_sparse(), assume="spd", engine=engine)
    x = F.solve(b)
    assert x.dtype == torch.float32
    torch.testing.assert_close(
        x, torch.linalg.solve(A.double(), b.double()).float(), rtol=2e-2, atol=0
    )
    (gradient,) = torch.autograd.grad(x.sum(), b)
    assert gradient.dtype == torch.float32


def doubtful_matrix() -> Tensor:
    """A free chain with a tiny shift."""
    A = 2 * torch.eye(4) - torch.diag(torch.ones(3), 1) - torch.diag(torch.ones(3), -1)
    A[0, 0] = A[-1, -1] = 1.0
    return A.double() + 1e-11 * torch.eye(4)


@pytest.mark.parametrize("assume", ["auto", "symmetric", "general"])
def test_zeros_have_the_solution_zero_and_the_gradient_zero(assume: Any) -> None:
    """Also where each solution is judged by itself: 0 / 0 is no error."""
    A, b = doubtful_matrix().to_sparse(), torch.zeros(4, dtype=torch.float64, requires_grad=True)
    x = ss.solve(A, b, assume=assume)
    assert not x.any()
    (gradient,) = torch.autograd.grad((0 * x).sum(), b)
    assert not gradient.any()
    both = torch.stack((torch.zeros(4), torch.ones(4)), 1).double()
    assert not ss.solve(A, both, assume=assume)[:, 0].any()


SCALED = torch.tensor(  # rows whose products with small numbers underflow
    [
        [1.2019403380304083e138, -9.083923700117226e137, -8.270800154653402e137],
        [1.6232671947700174e-110, -1.2438682276013213e-110, 5.929882834944078e-111],
        [-1.3863852064245165e-100, 8.461416996402935e-102, -3.0138748728127363e-103],
    ],
    dtype=torch.float64,
)
SUBNORMAL = 1e-320  # so far apart, numbers have no digits in common
BLOCK = torch.tensor([[6.0, 3, 2], [3, 2, 1.5], [2, 1.5, 1.2]], dtype=torch.float64) * 1e8


@pytest.mark.parametrize("engine", [None, *installed_engines("general")])
@pytest.mark.parametrize("A", [SCALED.mT, BLOCK], ids=["scaled", "block"])
def test_right_hand_sides_at_the_ends_of_the_range(engine: str | None, A: Tensor) -> None:
    """The solution of A x = 2ᵏ b is 2ᵏ x, but for numbers that are subnormal."""
    F = ss.factorize(A.to_sparse(), assume="general", engine=engine)
    for b in rhs(60, dtype=torch.float64).view(20, 3):
        x, power = F.solve(b), 2.0**-1020 if A is BLOCK else 2.0**-1000
        for scale in (power, 2.0**1020):
            expected = x * scale
            if expected.isfinite().all():
                found = F.solve(b * scale)
                limit = 1e-9 * float(expected.abs().max()) + SUBNORMAL
                assert float((found - expected).abs().max()) <= limit
