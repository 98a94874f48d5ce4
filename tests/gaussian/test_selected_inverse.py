"""`selected_inverse` and `inverse_diagonal`."""

from __future__ import annotations

import pytest
import torch
from gaussian.gaussian_cases import CASES, dense_of, grid, half, pattern_of
from torch.func import jacfwd, jacrev, vmap

import sparse_solver as ss

SHAPE = (4, 3)  # of a grid


@pytest.mark.parametrize("case", ["comb", "cube", "two parts", "one row", "arrow"])
def test_entries_are_in_the_order_of_the_values(case: str) -> None:
    P, values = pattern_of(CASES[case]().tocsr())
    mixed = torch.randperm(P.nnz, generator=torch.Generator().manual_seed(0))
    Q = ss.Pattern(P.rows[mixed], P.cols[mixed], P.shape)
    inverse = torch.linalg.inv(P.tensor(values).to_dense())
    found = Q.selected_inverse(values[mixed])
    torch.testing.assert_close(found, inverse[Q.rows, Q.cols], rtol=1e-11, atol=1e-13)
    F = Q.factorize(values[mixed], assume="spd")
    torch.testing.assert_close(F.inverse_diagonal(), inverse.diagonal(), rtol=1e-11, atol=0)


@pytest.mark.parametrize("triangle", ["lower", "upper"])
def test_derivatives_with_one_triangle(triangle: str) -> None:
    P, values = pattern_of(grid(*SHAPE))
    T, keep = half(P, triangle)
    stored = values[keep].requires_grad_()

    def inverse(v):
        return T.selected_inverse(v, triangle=triangle)

    torch.testing.assert_close(
        inverse(stored), torch.linalg.inv(dense_of(T, stored))[T.rows, T.cols]
    )
    assert torch.autograd.gradcheck(inverse, stored)
    assert torch.autograd.gradgradcheck(inverse, stored)


def test_derivatives_with_both_triangles() -> None:
    P, values = pattern_of(grid(*SHAPE))
    T, keep = half(P, "lower")

    def inverse(stored):
        return P.selected_inverse(dense_of(T, stored)[P.rows, P.cols])

    stored = values[keep].requires_grad_()
    assert torch.autograd.gradcheck(inverse, stored)
    assert torch.autograd.gradgradcheck(inverse, stored)


def test_the_gradient_of_the_variances() -> None:
    P, values = pattern_of(grid(13, 13, 13))
    values.requires_grad_()
    F = P.factorize(values, assume="spd")
    weights = torch.linspace(0, 1, P.shape[0], dtype=torch.float64)
    (found,) = torch.autograd.grad((weights * F.inverse_diagonal()).sum(), values)
    Z = torch.linalg.inv(P.tensor(values.detach()).to_dense())
    expected = (-(Z * weights) @ Z)[P.rows, P.cols]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_duplicates_have_the_entry_of_their_place() -> None:
    P, values = pattern_of(grid(*SHAPE))
    twice = ss.Pattern(P.rows.repeat(2), P.cols.repeat(2), P.shape)
    shares = torch.cat((0.25 * values, 0.75 * values)).requires_grad_()
    expected = P.selected_inverse(values)
    torch.testing.assert_close(twice.selected_inverse(shares), expected.repeat(2))
    weights = torch.linspace(-1, 1, P.nnz, dtype=torch.float64)
    values.requires_grad_()
    (one,) = torch.autograd.grad((weights * P.selected_inverse(values)).sum(), values)
    weighted = (weights.repeat(2) * twice.selected_inverse(shares)).sum() / 2
    torch.testing.assert_close(torch.autograd.grad(weighted, shares)[0], one.repeat(2))


def test_transforms_and_batches() -> None:
    P, values = pattern_of(grid(*SHAPE))
    T, keep = half(P, "lower")
    batch = torch.stack((values[keep], 3 * values[keep]))

    def sparse(v):
        return T.selected_inverse(v, triangle="lower")

    def dense(v):
        return torch.linalg.inv(dense_of(T, v))[T.rows, T.cols]

    expected = torch.stack([dense(row) for row in batch])
    torch.testing.assert_close(sparse(batch), expected)
    torch.testing.assert_close(sparse(batch.view(2, 1, -1)), expected.view(2, 1, -1))
    torch.testing.assert_close(vmap(sparse)(batch), expected)
    jacobians = torch.stack([jacrev(dense)(row) for row in batch])
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(vmap(transform(sparse))(batch), jacobians)
    whole = jacrev(sparse)(batch)
    torch.testing.assert_close(torch.stack((whole[0, :, 0], whole[1, :, 1])), jacobians)
    assert not whole[0, :, 1].any()


def test_one_factorisation_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_solver._engines.supernodal import factor

    made = []
    original = factor.SupernodalFactor.__init__

    def count(self, *given) -> None:
        made.append(self)
        original(self, *given)

    monkeypatch.setattr(factor.SupernodalFactor, "__init__", count)
    P, values = pattern_of(grid(*SHAPE))
    values.requires_grad_()
    F = P.factorize(values, assume="spd")
    loss = F.logdet() + F.inverse_diagonal().sum()
    (gradient,) = torch.autograd.grad(loss, values, create_graph=True)
    gradient.square().sum().backward()
    assert len(made) == 1


def test_a_copy_of_a_factorisation_does_not_share_the_graph() -> None:
    import copy

    P, values = pattern_of(grid(*SHAPE))
    F = P.factorize(values.requires_grad_(), assume="spd")
    assert F.inverse_diagonal().requires_grad
    assert not copy.deepcopy(F).inverse_diagonal().requires_grad
