from __future__ import annotations

import math
import operator
from fractions import Fraction
from typing import Any

import pytest
import scipy.sparse as sp
import torch
from field_cases import (
    Dense,
    dense_field,
    full,
    intrinsic,
    n,
    proper,
    scattered,
    symmetric_part,
    without_sums,
)
from gaussian_cases import chain, grid, pattern_of
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import sparse_solver as ss

ONES = torch.ones(1, n, dtype=torch.float64)
ONE_AND_A_BIT = torch.arange(n, dtype=torch.float64).unsqueeze(0) / n
MEAN = scattered(n, seed=3)
CASES = {
    "sum of an intrinsic field": (intrinsic, ONES, torch.zeros(1).double()),
    "sum that is not zero": (intrinsic, ONES, torch.tensor([3.0]).double()),
    "more constraints than null vectors": (
        intrinsic,
        torch.cat((ONES, scattered(2, n))),
        scattered(3),
    ),
    "known values": (intrinsic, torch.eye(n).double()[[3, 17]], scattered(2)),
    "proper field": (proper, scattered(2, n), scattered(2)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[ss.Pattern, Tensor, Tensor, Tensor]:
    make, C, d = CASES[request.param]
    return *make(), C, d


def compare(field: ss.GaussianField, dense: Dense, Q: Tensor, C: Tensor, d: Tensor) -> None:
    torch.testing.assert_close(field.mean, dense.mean)
    torch.testing.assert_close(field.variance, dense.covariance.diagonal(), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(field.covariance_matrix, dense.covariance, atol=1e-12, rtol=1e-9)
    torch.manual_seed(0)
    samples = field.sample((20000,))
    torch.testing.assert_close(samples @ C.mT, d.expand(20000, -1), atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.cov(samples.mT), dense.covariance, atol=0.1, rtol=0)
    torch.testing.assert_close(field.log_prob(samples), dense.log_prob(samples, Q))
    entropy = dense.dimension / 2 - dense.log_prob(dense.mean, Q)
    torch.testing.assert_close(field.entropy(), entropy)


@pytest.mark.parametrize("form", ["loc", "information"])
def test_moments_and_densities(case: Any, form: str) -> None:
    P, values, C, d = case
    Q, center = full(P, values), scattered(n, seed=3)
    field = ss.GaussianField(P, values, constraints=(C, d), **{form: center})
    information = Q @ center if form == "loc" else center
    compare(field, dense_field(Q, information, C, d), Q, C, d)


def test_sparse_constraints_and_those_without_a_right_hand_side() -> None:
    P, values = intrinsic()
    field = ss.GaussianField(P, values, constraints=ONES.to_sparse())
    same = ss.GaussianField(P, values, constraints=(ONES, torch.zeros(1).double()))
    torch.testing.assert_close(field.variance, same.variance)


def test_derivatives(case: Any) -> None:
    P, values, C, d = case
    h, right = scattered(n, seed=3), d
    x = dense_field(full(P, values), h, C, d).mean

    # A direction in which the null space of an intrinsic precision stays the same.
    def results(scales: Tensor, h: Tensor, d: Tensor) -> tuple[Tensor, ...]:
        weights = values * (scales[P.rows] * scales[P.cols])
        weights = symmetric_part(P, weights)
        off = torch.where(P.rows == P.cols, 0, weights)
        sums = off.new_zeros(n).index_add(0, P.rows, off)
        rest = full(P, values).sum(1)
        precision = torch.where(P.rows == P.cols, (rest - sums)[P.rows], off)
        field = ss.GaussianField(P, precision, information=h, constraints=(C, d))
        moved = x + torch.linalg.pinv(C) @ (d - right)  # in the subspace
        return field.mean, field.variance, field.log_prob(moved)

    scales = (1 + 0.1 * scattered(n, seed=4)).requires_grad_()
    inputs = scales, h.requires_grad_(), d.clone().requires_grad_()
    assert gradcheck(results, inputs, atol=1e-4, rtol=1e-4)
    assert gradgradcheck(
        lambda *given: results(*given)[2], inputs, atol=1e-4, rtol=1e-4, fast_mode=True
    )


def test_gradients_are_those_of_the_dense_distribution(case: Any) -> None:
    """Also in directions in which the null space changes."""
    P, values, C, d = case
    h, weights = scattered(n, seed=3), scattered(n, seed=5)
    x = dense_field(full(P, values), h, C, d).mean.detach()
    given = values.clone().requires_grad_()
    field = ss.GaussianField(P, given, information=h, constraints=(C, d))
    total = field.variance @ weights + field.mean @ weights + field.log_prob(x)
    (found,) = torch.autograd.grad(total, given)
    Q = full(P, values).requires_grad_()
    dense = dense_field((Q + Q.mT) / 2, h, C, d)
    total = dense.covariance.diagonal() @ weights + dense.mean @ weights + dense.log_prob(x, Q)
    (expected,) = torch.autograd.grad(total, Q)
    expected = ((expected + expected.mT) / 2)[P.rows, P.cols]
    symmetric = (full(P, found) + full(P, found).mT) / 2
    torch.testing.assert_close(symmetric[P.rows, P.cols], expected, rtol=1e-8, atol=1e-8)


def test_batches() -> None:
    P, values = intrinsic()
    scales = torch.tensor([1.0, 4.0], dtype=torch.float64)[:, None]
    d = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    field = ss.GaussianField(P, scales * values, constraints=(ONES, d))
    x = field.sample((3,))
    assert x.shape == (3, 2, n)
    for number in range(2):
        one = ss.GaussianField(P, scales[number] * values, constraints=(ONES, d[number]))
        torch.testing.assert_close(field.variance[number], one.variance)
        torch.testing.assert_close(field.mean[number], one.mean)
        torch.testing.assert_close(field.log_prob(x)[:, number], one.log_prob(x[:, number]))


def test_each_part_of_a_disconnected_graph_needs_a_constraint() -> None:
    P, values = pattern_of(sp.block_diag((grid(4, 4), chain(9))).tocsr())
    size, values = P.shape[0], values.double()
    values = without_sums(P, values)
    sides = torch.zeros(2, size, dtype=torch.float64)
    sides[0, :16] = sides[1, 16:] = 1
    field = ss.GaussianField(P, values, constraints=sides)
    dense = dense_field(full(P, values), torch.zeros(size).double(), sides, torch.zeros(2).double())
    torch.testing.assert_close(field.variance, dense.covariance.diagonal())
    with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError), match="constraint"):
        ss.GaussianField(P, values, constraints=sides.sum(0, keepdim=True)).entropy()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_precisions_of_any_size(scale: float) -> None:
    P, values = intrinsic()
    field = ss.GaussianField(P, scale * values, constraints=ONES)
    torch.testing.assert_close(
        field.variance, ss.GaussianField(P, values, constraints=ONES).variance / scale
    )


def test_a_second_order_walk_needs_two_constraints() -> None:
    size = 40
    D = torch.zeros(size - 2, size, dtype=torch.float64)
    for row, weight in enumerate((1.0, -2.0, 1.0)):
        D += torch.diag(torch.full((size - abs(row),), weight).double(), row)[: size - 2, :size]
    Q = (D.mT @ D).to_sparse()
    P, values = ss.Pattern(*Q.indices(), Q.shape), Q.values()
    line = torch.stack((torch.ones(size), torch.arange(size) - size / 2)).double()
    field = ss.GaussianField(P, values, constraints=line)
    dense = dense_field(Q.to_dense(), torch.zeros(size).double(), line, torch.zeros(2).double())
    torch.testing.assert_close(field.variance, dense.covariance.diagonal(), rtol=1e-7, atol=0)
    torch.testing.assert_close(
        field.entropy(), (38 * (1 + torch.tensor(2 * torch.pi).log()) - dense.logdet) / 2
    )
    with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError)):
        ss.GaussianField(P, values, constraints=line[:1]).entropy()


def test_constraints_that_leave_a_null_vector_are_refused() -> None:
    P, values = intrinsic()
    difference = torch.eye(n).double()[:1] - torch.eye(n).double()[1:2]
    with pytest.raises(ss.SingularMatrixError, match="no vector x with Q x = 0 satisfies"):
        ss.GaussianField(P, values, constraints=difference).entropy()


def test_an_indefinite_precision_is_refused() -> None:
    P, values = intrinsic()
    values = values - 3.0 * (P.rows == P.cols)
    with pytest.raises((ss.NotPositiveDefiniteError, ss.SingularMatrixError)):
        ss.GaussianField(P, values, constraints=ONES).entropy()


def test_constraints_that_do_not_fit() -> None:
    P, values = intrinsic()
    C = torch.cat((ONES, scattered(1, n), 2 * ONES))
    with pytest.raises(ss.RedundantConstraintsError, match="rows 0, 2 of C depend") as error:
        ss.GaussianField(P, values, constraints=C)
    assert error.value.rows == (0, 2)
    both = torch.cat((ONES, ONES)), torch.tensor([0.0, 1.0]).double()
    with pytest.raises(ss.InfeasibleConstraintsError, match="contradict each other") as conflict:
        ss.GaussianField(P, values, constraints=both)
    assert conflict.value.rows == (0, 1)
    with pytest.raises(ss.RedundantConstraintsError):
        ss.GaussianField(P, values, constraints=0 * ONES)
    with pytest.raises(ss.ShapeError, match=r"expected \(m, 30\)"):
        ss.GaussianField(P, values, constraints=ONES[:, 1:])
    with pytest.raises(ss.ShapeError, match=r"expected \(\.\.\., 1\)"):
        ss.GaussianField(P, values, constraints=(ONES, torch.zeros(2).double()))
    with pytest.raises(ss.LayoutError, match="expected a tensor C"):
        ss.GaussianField(P, values, constraints="sum")
    with pytest.raises(ss.NonFiniteError):
        ss.GaussianField(P, values, constraints=ONES * torch.nan)


def test_values_outside_of_the_subspace_are_refused() -> None:
    P, values = intrinsic()
    field = ss.GaussianField(P, values, constraints=ONES, validate_args=True)
    x = field.sample((3,))
    assert bool(field.support.check(x).all())
    with pytest.raises(ValueError, match="support"):
        field.log_prob(x + 1)


def test_one_point_is_left() -> None:
    i = torch.arange(2)
    P, C = ss.Pattern(i, i, (2, 2)), torch.eye(2)
    field = ss.GaussianField(P, torch.ones(2), constraints=(C, torch.tensor([1.0, 2.0])))
    assert torch.equal(field.sample(), torch.tensor([1.0, 2.0]))
    assert torch.equal(field.variance, torch.zeros(2))
    assert float(field.entropy()) == 0


def exact_field(Q: Tensor, C: Tensor) -> tuple[Tensor, float]:
    """The covariance and log det Zᵀ Q Z, by exact arithmetic."""
    size, m = Q.shape[0], len(C)
    both = torch.cat((torch.cat((Q, C.mT), 1), torch.cat((C, C.new_zeros(m, m)), 1)))
    rows = [list(map(Fraction, row)) for row in both.tolist()]
    constraints = [row[:size] for row in rows[size:]]
    gram = [[sum(map(operator.mul, u, v), Fraction()) for v in constraints] for u in constraints]
    inverse, determinant = invert_exactly(rows)
    covariance = [list(map(float, row[:size])) for row in inverse[:size]]
    ratio = abs(determinant) / invert_exactly(gram)[1]
    logdet = math.log(ratio.numerator) - math.log(ratio.denominator)
    return torch.tensor(covariance, dtype=torch.float64), logdet


def invert_exactly(rows: list[list[Fraction]]) -> tuple[list[list[Fraction]], Fraction]:
    """The inverse and, up to its sign, the determinant."""
    size, determinant = len(rows), Fraction(1)
    both = [[*row, *(Fraction(i == j) for j in range(size))] for i, row in enumerate(rows)]
    for k in range(size):
        at = max(range(k, size), key=lambda i: abs(both[i][k]))
        both[k], both[at] = both[at], both[k]
        determinant *= both[k][k]
        pivot = [number / both[k][k] for number in both[k]]
        both = [
            pivot if i == k else [u - row[k] * v for u, v in zip(row, pivot, strict=True)]
            for i, row in enumerate(both)
        ]
    return [row[size:] for row in both], determinant


def laplacian(size: int, seed: int) -> Tensor:
    """Of a graph with weights whose sums are rounded: rows do not sum to zero exactly."""
    weights = torch.diag(scattered(size - 1, seed=seed).exp(), 1)
    weights = weights + torch.diag(scattered(size - 3, seed=seed + 1).exp(), 3)
    weights = weights + weights.mT
    return torch.diag(weights.sum(1)) - weights


def check_moments(Q: Tensor, C: Tensor, dtype: torch.dtype = torch.float64) -> None:
    """Compare with exact arithmetic, to a thousand rounding errors."""
    size = Q.shape[0]
    i, j = Q.abs().add(torch.eye(size)).nonzero().mT
    values = Q[i, j].to(dtype)
    field = ss.GaussianField(ss.Pattern(i, j, (size, size)), values, constraints=C.to(dtype))
    rounded = torch.zeros_like(Q).index_put((i, j), values.double())
    covariance, logdet = exact_field(rounded, C.to(dtype).double())
    close = {"rtol": 1000 * torch.finfo(dtype).eps, "atol": 1e-15}
    torch.testing.assert_close(field.variance.double(), covariance.diagonal(), **close)
    error = torch.linalg.matrix_norm(field.covariance_matrix.double() - covariance)
    assert error <= close["rtol"] * torch.linalg.matrix_norm(covariance)
    dimension = size - len(C)
    entropy = (dimension * (1 + math.log(2 * math.pi)) - logdet) / 2
    assert math.isclose(float(field.entropy()), entropy, rel_tol=close["rtol"], abs_tol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("nugget", [1e-4, 1e-7, 1e-10, 1e-13, 1e-16, 0.0])
def test_precisions_that_are_nearly_singular(nugget: float, dtype: torch.dtype) -> None:
    Q = laplacian(20, 3) + nugget * torch.eye(20)
    check_moments(Q, torch.ones(1, 20).double(), dtype)


@pytest.mark.parametrize("seed", range(5))
def test_an_intrinsic_precision_in_single_precision(seed: int) -> None:
    check_moments(laplacian(20, seed), torch.ones(1, 20).double(), torch.float32)


@pytest.mark.parametrize("ratio", [1e4, 1e8, 1e12])
def test_parts_in_different_units(ratio: float) -> None:
    Q = torch.block_diag(laplacian(7, 0), ratio * laplacian(8, 1))
    sides = torch.zeros(2, 15).double()
    sides[0, :7] = sides[1, 7:] = 1
    check_moments(Q, sides)
    check_moments(Q.flip(0, 1), sides.flip(1))
    check_moments(Q + torch.diag(ratio * sides[1]), sides[:1])


def test_constraints_on_rows_without_entries() -> None:
    Q = torch.block_diag(laplacian(6, 0), torch.zeros(2, 2))
    C = torch.zeros(3, 8).double()
    C[0, :6] = 1
    C[1, 6] = C[2, 7] = C[2, 0] = 1
    check_moments(Q, C)
    C = torch.eye(3).double()
    check_moments(torch.zeros(3, 3).double(), C)


@pytest.mark.parametrize("angle", [1e-4, 1e-7, 1e-10])
def test_constraints_that_are_nearly_parallel(angle: float) -> None:
    P, values = intrinsic()
    other = ONE_AND_A_BIT * angle
    C, d = (
        torch.cat((ONES, ONES + other)),
        torch.tensor([1.0, 1.0 + 2 * angle], dtype=torch.float64),
    )
    field = ss.GaussianField(P, values, MEAN, constraints=(C, d))
    apart = torch.cat((ONES, other / angle))  # the same subspace
    dense = dense_field(
        full(P, values), full(P, values) @ MEAN, apart, torch.tensor([1, 2.0]).double()
    )
    rounding = 1e-14 / angle
    torch.testing.assert_close(field.mean, dense.mean, atol=rounding, rtol=rounding)
    torch.testing.assert_close(
        field.covariance_matrix, dense.covariance, atol=rounding, rtol=rounding
    )
    torch.testing.assert_close(field.sample((3,)) @ C.mT, d.expand(3, -1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [1e-170, 1e-20, 1e20, 1e160])
def test_constraints_of_any_size(scale: float) -> None:
    P, values = intrinsic()
    field = ss.GaussianField(P, values, constraints=(scale * ONES, scale * torch.ones(1).double()))
    same = ss.GaussianField(P, values, constraints=(ONES, torch.ones(1).double()))
    torch.testing.assert_close(field.mean, same.mean)
    torch.testing.assert_close(field.variance, same.variance)
    torch.testing.assert_close(field.entropy(), same.entropy())


def test_many_unknowns_do_not_make_rows_dependent_in_single_precision() -> None:
    size = 20000
    i = torch.arange(size)
    C = torch.ones(2, size)
    C[1, 7] = 0  # the angle is 0.007
    field = ss.GaussianField(ss.Pattern(i, i, (size, size)), torch.ones(size), constraints=C)
    x = field.sample()
    assert abs(float(x[7])) < 1e-4
    with pytest.raises(ss.RedundantConstraintsError):
        ss.GaussianField(field.pattern, field.values, constraints=torch.cat((C, C.sum(0)[None])))


@pytest.mark.parametrize("name", ["vmap", "grad", "jacfwd", "hessian"])
def test_transforms_of_intrinsic_fields(name: str) -> None:
    P, values = intrinsic()
    x, s = scattered(n, seed=1), torch.tensor(1.3).double()
    x = x - x.mean()

    def log_prob(s: Tensor) -> Tensor:
        return ss.GaussianField(P, s * values, MEAN, constraints=ONES).log_prob(x)

    # The logarithm of the density is (29 log s − s xᵀ Q x) / 2, up to a constant.
    first = (29 / s - quadratic(full(P, values), x - MEAN + MEAN.mean())) / 2
    if name == "vmap":
        scales = torch.stack((s, 2 * s))
        expected = torch.stack([log_prob(each) for each in scales])
        torch.testing.assert_close(torch.vmap(log_prob)(scales), expected)
        field = ss.GaussianField(P, values, MEAN, constraints=ONES)
        rows = torch.stack((x, 2 * x))
        torch.testing.assert_close(torch.vmap(field.log_prob)(rows), field.log_prob(rows))
    else:
        found = getattr(torch.func, name)(log_prob)(s)
        torch.testing.assert_close(found, -29 / s**2 / 2 if name == "hessian" else first)


def quadratic(Q: Tensor, x: Tensor) -> Tensor:
    return x @ Q @ x


def test_the_gradient_of_samples(case: Any) -> None:
    """For all white noise at once, since samples are linear in it: those of the covariance."""
    P, values, C, d = case
    s = torch.tensor(1.3).double().requires_grad_()
    weights = scattered(n, seed=6)
    covariance = ss.GaussianField(P, s * values, constraints=(C, d))._covariance
    samples = covariance.color(torch.eye(covariance.noise).double())
    dense = dense_field(1.3 * full(P, values), torch.zeros(n).double(), C, d)
    torch.testing.assert_close(samples.detach().mT @ samples.detach(), dense.covariance)
    (found,) = torch.autograd.grad((samples @ weights).square().sum(), s)
    torch.testing.assert_close(found, -weights @ dense.covariance @ weights / 1.3)
