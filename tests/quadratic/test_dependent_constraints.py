"""Constraints that depend on each other, and constraints that contradict each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import DTYPES, rhs
from quadratic_cases import FIXED, N, diagonal, energy, triangle_of
from torch import Tensor

import sparse_solver as ss


def dependent(dtype: torch.dtype, seed: int) -> Tensor:
    """Five constraints, of which the fourth depends on the second and third only."""
    C = rhs(5, N, dtype=dtype, seed=seed)
    C[3] = 0.3 * C[1] - 0.7 * C[2]
    return C


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("triangle", [None, "upper"])
@pytest.mark.parametrize("seed", range(5))
def test_constraints_that_depend_on_each_other_are_named(
    dtype: torch.dtype, triangle: Any, seed: int
) -> None:
    C = dependent(dtype, seed)
    x = rhs(N, 2, dtype=dtype, seed=50)
    Q = triangle_of(energy(dtype), triangle).to_sparse()

    def minimize(d: Tensor, y: Tensor | None = None, fixed: Tensor | None = None) -> Tensor:
        return ss.minimize_quadratic(
            Q, fixed=fixed, fixed_values=y, C=C.to_sparse(), d=d, triangle=triangle
        )

    for fixed in (None, FIXED):
        y = None if fixed is None else x[fixed]
        with pytest.raises(
            ss.RedundantConstraintsError, match="constraints 1, 2 and 3"
        ) as redundant:
            minimize(C @ x, y, fixed)
        assert redundant.value.rows == (1, 2, 3)
        wrong = C @ x
        wrong[3, 1] += 1
        with pytest.raises(
            ss.InfeasibleConstraintsError, match="constraints 1, 2 and 3"
        ) as infeasible:
            minimize(wrong, y, fixed)
        assert infeasible.value.rows == (1, 2, 3)
        wrong[3, 1] -= 1
        wrong[4, 1] += 1  # which no other depends on
        with pytest.raises(ss.RedundantConstraintsError):
            minimize(wrong, y, fixed)


def test_two_dependencies_of_which_one_is_a_contradiction() -> None:
    C = torch.eye(N, dtype=torch.float64)[[0, 1, 0, 1, 5]]
    Q = energy(torch.float64).to_sparse()
    d = torch.tensor([1.0, 2, 1, 3, 0], dtype=torch.float64)
    with pytest.raises(ss.InfeasibleConstraintsError) as caught:
        ss.minimize_quadratic(Q, C=C.to_sparse(), d=d)
    assert caught.value.rows == (1, 3)
    d[3] = 2
    with pytest.raises(ss.RedundantConstraintsError) as redundant:
        ss.minimize_quadratic(Q, C=C.to_sparse(), d=d)
    assert redundant.value.rows == (0, 1, 2, 3)


def test_constraints_on_fixed_entries_alone() -> None:
    C = torch.zeros(2, N, dtype=torch.float64)
    C[0, 0] = C[1, 2] = 1
    Q, fixed = energy(torch.float64).to_sparse(), torch.tensor([2, 4])
    y = torch.tensor([3.0, 0.0], dtype=torch.float64)
    for second, error in (
        (3.0, ss.RedundantConstraintsError),
        (4.0, ss.InfeasibleConstraintsError),
    ):
        with pytest.raises(error) as caught:
            ss.minimize_quadratic(
                Q,
                fixed=fixed,
                fixed_values=y,
                C=C.to_sparse(),
                d=torch.tensor([1.0, second], dtype=torch.float64),
            )
        assert caught.value.rows == (1,)


def test_a_constraint_without_entries_needs_no_fixed_ones() -> None:
    Q, C = energy(torch.float64).to_sparse(), torch.zeros(1, N, dtype=torch.float64).to_sparse()
    with pytest.raises(ss.InfeasibleConstraintsError, match="no free entry of x, and the fixed"):
        ss.minimize_quadratic(Q, C=C, d=torch.ones(1, dtype=torch.float64))


def test_more_constraints_than_unknowns() -> None:
    i = torch.arange(3)
    Q = torch.eye(3).to_sparse()
    C = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]).to_sparse()
    with pytest.raises(ss.InfeasibleConstraintsError):
        ss.minimize_quadratic(Q, C=C, d=torch.ones(4))
    with pytest.raises(ss.RedundantConstraintsError) as caught:
        ss.minimize_quadratic(
            Q, fixed=i, fixed_values=torch.ones(3), C=C, d=torch.tensor([1.0, 1, 1, 3])
        )
    assert caught.value.rows == (0, 1, 2, 3)


def test_contradictions_in_batches() -> None:
    C = dependent(torch.float64, 0).to_sparse()
    x = rhs(N, 2, dtype=torch.float64, seed=50)
    right = torch.stack((C @ x, C @ x))
    right[1, 3, 0] += 1
    Q = energy(torch.float64).to_sparse_csr()
    with pytest.raises(ss.InfeasibleConstraintsError):
        ss.minimize_quadratic(Q, C=C, d=right)
    values = torch.stack((Q.values(), 2 * Q.values()))
    program = ss.QuadraticProgram(ss.Pattern.from_tensor(Q), C=ss.Pattern.from_tensor(C))
    with pytest.raises(ss.InfeasibleConstraintsError):
        program.solve(values, C_values=C.coalesce().values(), d=right)
    with pytest.raises(ss.RedundantConstraintsError):
        torch.vmap(lambda d: program.solve(values[0], C_values=C.coalesce().values(), d=d))(right)


def test_random_dependencies_never_pass() -> None:
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        C = torch.randn(6, N, dtype=torch.float64, generator=g) * (
            torch.rand(6, N, generator=g) < 0.5
        )
        mixing = torch.randn(6, 5, dtype=torch.float64, generator=g)
        C = mixing @ C[:5]  # rank five
        with pytest.raises(ss.RedundantConstraintsError):
            ss.minimize_quadratic(energy(torch.float64, seed).to_sparse(), C=C.to_sparse())


def differences(m: int, doubled: bool) -> Tensor:
    """Second differences, nearly zero on smooth vectors, and perhaps two more equal rows."""
    r = torch.arange(m)
    C = torch.zeros(m + 2 * doubled, m + 10, dtype=torch.float64)
    C[r, r] = 2
    C[r[1:], r[1:] - 1] = C[r[:-1], r[:-1] + 1] = -1
    C[m:, m + 3] = 1
    return C


def test_badly_conditioned_constraints_are_not_dependent() -> None:
    m = 400
    x = torch.zeros(m + 10, dtype=torch.float64)
    x[:m] = torch.sin(torch.arange(1, m + 1) * torch.pi / (m + 1))
    eye = torch.eye(m + 10, dtype=torch.float64)
    C = differences(m, doubled=True)
    with pytest.raises(ss.RedundantConstraintsError) as caught:
        ss.minimize_quadratic(eye.to_sparse(), C=C.to_sparse(), d=C @ x)
    assert caught.value.rows == (m, m + 1)
    C, eye[m + 5, m + 5] = differences(m, doubled=False), 0
    with pytest.raises(ss.SingularMatrixError, match="null space"):
        ss.minimize_quadratic(eye.to_sparse(), C=C.to_sparse(), d=C @ x)


def test_contradictions_beside_large_numbers() -> None:
    C, Q = (
        torch.eye(6, dtype=torch.float64)[[0, 1, 1]].to_sparse(),
        torch.eye(6, dtype=torch.float64).to_sparse(),
    )
    for d in ([[1e10, 0], [0, 1], [0, 2]], [[1e10], [1], [2]]):
        with pytest.raises(ss.InfeasibleConstraintsError) as caught:
            ss.minimize_quadratic(Q, C=C, d=torch.tensor(d, dtype=torch.float64))
        assert caught.value.rows == (1, 2)


@pytest.mark.parametrize("scale", [1e-155, 1e155])
def test_extreme_constraints_are_described_as_they_are(scale: float) -> None:
    C = scale * torch.eye(4, dtype=torch.float64)[[0, 1]]
    with pytest.raises(ss.SingularMatrixError, match="null space"):
        ss.minimize_quadratic(diagonal([1, 1, 1, 0], torch.float64, (2, 3, 0.0)), C=C.to_sparse())


@pytest.mark.parametrize(
    ("dtype", "power"), [(torch.complex64, 9), (torch.float32, 18), (torch.float64, 58)], ids=str
)
def test_equal_constraints_in_different_units_are_dependent(dtype: torch.dtype, power: int) -> None:
    n, row = 9, torch.tensor([1.0, 0, 2, -1, 0, 1, 0, 0, 2])
    C, Q = (
        torch.stack((row, row * 2.0**power)).to(dtype).to_sparse(),
        torch.eye(n, dtype=dtype).to_sparse(),
    )
    for d, error in ((2.0, ss.InfeasibleConstraintsError), (1.0, ss.RedundantConstraintsError)):
        right = torch.tensor([1.0, d * 2.0**power]).to(dtype)
        with pytest.raises(error) as caught:
            ss.minimize_quadratic(Q, torch.linspace(1, 2, n).to(dtype), C=C, d=right)
        assert caught.value.rows == (0, 1)


def test_contradictions_of_constraints_in_different_units_are_complete() -> None:
    scale = torch.tensor([2.0**-9, 8, 2.0**-7])
    C = torch.zeros(3, 13)
    C[0, [0, 1, 5]] = C[1, [0, 1, 12]] = torch.tensor([-1.0, -2, 1])
    C[2, [5, 12]] = torch.tensor([1.0, -1])
    C, d = (C * scale.unsqueeze(1)).to_sparse(), torch.tensor([-4.0, 3, -6]) * scale
    with pytest.raises(ss.InfeasibleConstraintsError) as caught:
        ss.minimize_quadratic(torch.eye(13).to_sparse(), torch.linspace(1, 2, 13), C=C, d=d)
    assert caught.value.rows == (0, 1, 2)


def test_equal_constraints_are_found_wherever_they_are() -> None:
    m = 3000
    i = torch.arange(m)
    for first, second in ((986, 2583), (0, 1), (17, 2999)):
        cols = torch.where(i == second, first, i)
        program = ss.QuadraticProgram(
            ss.Pattern(torch.arange(m + 1), torch.arange(m + 1), (m + 1, m + 1)),
            C=ss.Pattern(i, cols, (m, m + 1)),
        )
        with pytest.raises(ss.RedundantConstraintsError) as caught:
            program.solve(torch.ones(m + 1).double(), C_values=torch.ones(m).double())
        assert caught.value.rows == (first, second)


def solve_or_name(C: Tensor, d: Tensor) -> Tensor | tuple[int, ...]:
    """The x of least norm with C x = d, or the constraints that are refused."""
    try:
        Q = torch.eye(C.shape[1], dtype=C.dtype).to_sparse()
        return ss.minimize_quadratic(Q, C=C.to_sparse(), d=d)
    except ss.RedundantConstraintsError as error:
        return error.rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nearly_dependent_constraints(dtype: torch.dtype) -> None:
    """They are solved as accurately as dense torch does, or named."""
    eps, solved, refused = torch.finfo(dtype).eps, 0, 0
    wide = torch.complex128 if dtype.is_complex else torch.float64
    for power in range(1, 15):
        C = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4 + 10.0**-power]], dtype=dtype)
        d = C @ torch.tensor([1, -1, 2, 0.5], dtype=dtype)
        found = solve_or_name(C, d)
        if isinstance(found, tuple):
            assert found == (0, 1)
            refused += 1
        else:
            truth = torch.linalg.lstsq(C.to(wide), d.to(wide), driver="gelsd", rcond=0).solution
            assert (found.to(wide) - truth).abs().max() < 100 * eps * 10.0**power
            solved += 1
    assert solved >= (5 if eps > 1e-10 else 9)
    assert refused >= 3
