"""Shapes and values of b, fixed_values and d."""

from __future__ import annotations

import pytest
import torch
from quadratic_cases import Case, N

import sparse_solver as ss


def test_shapes() -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    B, Y, D = case.right(4)
    solve = case.minimize
    assert solve(case.Q_values, b, y, case.C_values, d).shape == (N,)
    assert solve(case.Q_values, None, None, case.C_values, None).eq(0).all()
    x = solve(case.Q_values, b, Y, case.C_values, d)  # vectors are the same for all columns
    assert x.shape == (N, 4)
    torch.testing.assert_close(x[:, 1], solve(case.Q_values, b, Y[:, 1], case.C_values, d))
    assert solve(case.Q_values, B[:, :1], y, case.C_values, d).shape == (N, 1)
    assert solve(case.Q_values, B[:, :0], y, case.C_values, d).shape == (N, 0)

    values = torch.stack((case.Q_values, 2 * case.Q_values, 3 * case.Q_values))
    batch = solve(values, b, Y, case.C_values, d)
    assert batch.shape == (3, N, 4)
    torch.testing.assert_close(batch[2], solve(values[2], b, Y, case.C_values, d))
    assert solve(values, b, y, case.C_values, d).shape == (3, N)
    vectors = torch.stack((b, 2 * b, 3 * b))
    torch.testing.assert_close(
        solve(values, vectors, y, case.C_values, d)[1],
        solve(values[1], vectors[1], y, case.C_values, d),
    )
    batch = solve(
        case.Q_values, B.expand(5, 1, N, 4), Y, torch.stack((case.C_values, -case.C_values)), D
    )
    assert batch.shape == (5, 2, N, 4)
    x, multipliers = solve(values, B, Y, case.C_values, D, return_multipliers=True)
    assert (multipliers.fixed.shape, multipliers.constraints.shape) == ((3, 3, 4), (3, 2, 4))
    assert solve(values[:0], b, y, case.C_values, d).shape == (0, N)


def test_columns_beside_columns_are_columns() -> None:
    fixed, y = torch.tensor([0, 3]), torch.tensor([[1.0, 2], [3, 4]], dtype=torch.float64)
    for batch in (1, 2, 3):
        Q = torch.stack([2 * torch.eye(6, dtype=torch.float64)] * batch).to_sparse_csr()
        x = ss.minimize_quadratic(
            Q, torch.zeros(6, 2, dtype=torch.float64), fixed=fixed, fixed_values=y
        )
        assert torch.equal(x[:, fixed], y.expand(batch, 2, 2))
    # Alone, it is what torch.linalg.solve takes it for: vectors, one a matrix.
    Q = torch.stack([2 * torch.eye(6, dtype=torch.float64)] * 2).to_sparse_csr()
    assert torch.equal(ss.minimize_quadratic(Q, fixed=fixed, fixed_values=y)[:, fixed], y)


def test_what_is_not_finite_is_named() -> None:
    case = Case(torch.float64)
    nan = float("nan")
    for name in ("Q", "C", "b", "fixed_values", "d"):
        b, y, d = case.right()
        arguments = {
            "Q": case.Q_values.clone(), "b": b, "fixed_values": y,
            "C": case.C_values.clone(), "d": d,
        }  # fmt: skip
        arguments[name][1] = nan
        with pytest.raises(ss.NonFiniteError, match=name) as caught:
            case.minimize(*arguments.values())
        assert (caught.value.argument, caught.value.index) == (name, 1)
