"""`logdet` of patterns and factorisations: values, gradients of all orders, shapes, errors."""

from __future__ import annotations

import pickle

import pytest
import torch
from gaussian.gaussian_cases import CASES, badly_scaled, dense_of, grid, half, pattern_of
from torch.func import grad, hessian, jacfwd, jvp, vmap

import sparse_solver as ss

SHAPE = (4, 3)  # of a grid


@pytest.fixture
def triangular():
    P, values = pattern_of(grid(*SHAPE))
    lower, keep = half(P, "lower")
    return lower, values[keep]


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_the_inverse(case: str) -> None:
    A = CASES[case]().tocsr()
    P, values = pattern_of(A)
    values.requires_grad_()
    D = torch.from_numpy(A.toarray())
    root = D.diagonal().rsqrt()
    inverse = torch.linalg.inv(root[:, None] * D * root) * root * root[:, None]
    determinant = P.logdet(values)
    torch.testing.assert_close(determinant, torch.logdet(D), rtol=1e-12, atol=1e-12)
    determinant.backward()
    size = inverse.diagonal().sqrt()
    error = (values.grad - inverse[P.rows, P.cols]) / (size[P.rows] * size[P.cols])
    assert error.abs().max() < 1e-12


@pytest.mark.parametrize("triangle", ["lower", "upper"])
def test_an_entry_of_a_triangle_stands_for_two(triangle: str) -> None:
    P, values = pattern_of(grid(*SHAPE))
    T, keep = half(P, triangle)
    stored = values[keep].requires_grad_()
    (dense,) = torch.autograd.grad(torch.logdet(dense_of(T, stored)), stored)
    (sparse,) = torch.autograd.grad(T.logdet(stored, triangle=triangle), stored)
    torch.testing.assert_close(sparse, dense)


def test_all_derivatives(triangular) -> None:
    P, values = triangular
    values = values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: P.logdet(v, triangle="lower"), values)
    assert torch.autograd.gradgradcheck(lambda v: P.logdet(v, triangle="lower"), values)


def test_third_derivatives(triangular) -> None:
    P, values = triangular
    direction = torch.linspace(-1, 1, P.nnz, dtype=torch.float64)

    def third(determinant):
        def first(v):
            return (torch.autograd.grad(determinant(v), v, create_graph=True)[0] * direction).sum()

        v = values.clone().requires_grad_()
        second = (torch.autograd.grad(first(v), v, create_graph=True)[0] * direction).sum()
        return torch.autograd.grad(second, v)[0]

    expected = third(lambda v: torch.logdet(dense_of(P, v)))
    torch.testing.assert_close(third(lambda v: P.logdet(v, triangle="lower")), expected)


def test_third_derivatives_of_large_matrices_are_refused() -> None:
    P, values = pattern_of(grid(*SHAPE))
    values.requires_grad_()

    def second(**options):
        (first,) = torch.autograd.grad(P.logdet(values, **options), values, create_graph=True)
        (gradient,) = torch.autograd.grad(first.square().sum(), values, create_graph=True)
        return gradient.square().sum()

    n = P.shape[0]
    with pytest.raises(ss.OptionError, match=f"takes {2 * n} solves.*max_solves={2 * n - 1}"):
        second(max_solves=2 * n - 1).backward()
    values.grad = None
    second(max_solves=2 * n).backward()
    assert values.grad.abs().min() > 0
    F = P.factorize(values, assume="spd")
    (first,) = torch.autograd.grad(F.inverse_diagonal(max_solves=0).sum(), values)
    (second,) = torch.autograd.grad(F.inverse_diagonal().sum(), values)
    assert torch.equal(first, second)


def test_derivatives_with_both_triangles_stored() -> None:
    P, values = pattern_of(grid(*SHAPE))
    T, keep = half(P, "lower")

    def determinant(stored):
        return P.logdet(dense_of(T, stored)[P.rows, P.cols])

    stored = values[keep].requires_grad_()
    assert torch.autograd.gradcheck(determinant, stored)
    assert torch.autograd.gradgradcheck(determinant, stored)


def test_transforms(triangular) -> None:
    P, values = triangular

    def sparse(v):
        return P.logdet(v, triangle="lower")

    def dense(v):
        return torch.logdet(dense_of(P, v))

    torch.testing.assert_close(hessian(sparse)(values), hessian(dense)(values))
    direction = torch.linspace(-1, 1, P.nnz, dtype=torch.float64)
    result, expected = jvp(sparse, (values,), (direction,)), jvp(dense, (values,), (direction,))
    torch.testing.assert_close(result, expected)
    batch = torch.stack([values, 2 * values, 5 * values])
    for transform in (vmap, lambda f: vmap(grad(f)), lambda f: vmap(hessian(f))):
        expected = torch.stack([transform(dense)(row[None])[0] for row in batch])
        torch.testing.assert_close(transform(sparse)(batch), expected)
    nested = vmap(vmap(grad(sparse)))(batch.view(3, 1, -1))
    torch.testing.assert_close(nested[:, 0], torch.stack([grad(dense)(row) for row in batch]))


@pytest.mark.parametrize("name", ["logdet", "selected_inverse"])
def test_nested_forward_mode_is_refused(triangular, name: str) -> None:
    P, values = triangular
    with pytest.raises(ss.TransformError, match="nested forward mode"):
        jacfwd(jacfwd(lambda v: getattr(P, name)(v, triangle="lower").sum()))(values)


def test_duplicates_each_receive_the_gradient_of_their_place() -> None:
    P, values = pattern_of(grid(*SHAPE))
    twice = ss.Pattern(P.rows.repeat(2), P.cols.repeat(2), P.shape)
    shares = torch.cat((0.25 * values, 0.75 * values)).requires_grad_()
    values.requires_grad_()
    once = P.logdet(values)
    torch.testing.assert_close(twice.logdet(shares), once)
    (expected,) = torch.autograd.grad(once, values)
    (found,) = torch.autograd.grad(twice.logdet(shares), shares)
    torch.testing.assert_close(found, expected.repeat(2))


@pytest.mark.parametrize("batch", [(3,), (2, 2), (0,), (2, 0), (1,), (5, 1)])
def test_batches(batch: tuple[int, ...]) -> None:
    P, values = pattern_of(grid(*SHAPE))
    scales = torch.linspace(1, 2, max(1, torch.Size(batch).numel()), dtype=torch.float64)
    many = (scales[: torch.Size(batch).numel()].view(*batch, 1) * values).requires_grad_()
    determinants = P.logdet(many)
    assert determinants.shape == batch
    expected = (
        torch.logdet(P.tensor(values).to_dense())
        + P.shape[0] * many.detach()[..., 0].div(values[0]).log()
    )
    torch.testing.assert_close(determinants, expected)
    (gradient,) = torch.autograd.grad(determinants.sum(), many)
    one = torch.linalg.inv(P.tensor(values).to_dense())[P.rows, P.cols]
    torch.testing.assert_close(gradient, one / (many.detach()[..., :1] / values[0]) + 0 * many)


def test_views_and_other_index_types() -> None:
    P, values = pattern_of(grid(*SHAPE))
    strided = torch.stack((values, values), -1)[:, 0]
    assert not strided.is_contiguous()
    narrow = ss.Pattern(P.rows.int(), P.cols.int(), P.shape)
    negative = (-values)._neg_view()
    for given in (strided, negative):
        assert narrow.logdet(given) == P.logdet(values)


def test_what_is_written_later_does_not_matter() -> None:
    P, values = pattern_of(grid(*SHAPE))
    F = P.factorize(values, assume="spd")
    before = F.logdet()
    values.mul_(2)
    assert F.logdet() == before
    weights = values.clone().requires_grad_()
    moved = weights * 1
    determinant = P.logdet(moved)
    moved.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        determinant.backward()


def test_single_precision_is_computed_in_double() -> None:
    P, values = pattern_of(grid(30, 30))
    single = values.float().requires_grad_()
    determinant = P.logdet(single)
    assert determinant.dtype == torch.float32
    (gradient,) = torch.autograd.grad(determinant, single)
    dense = P.tensor(single.detach().double()).to_dense()
    torch.testing.assert_close(determinant, torch.logdet(dense).float(), rtol=1e-7, atol=0)
    expected = torch.linalg.inv(dense)[P.rows, P.cols].float()
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)


def test_a_factorisation_gives_the_same_after_pickling_and_copying() -> None:
    P, values = pattern_of(grid(*SHAPE))
    F = P.factorize(values, assume="spd")
    expected = P.logdet(values)
    assert F.logdet() == expected
    assert pickle.loads(pickle.dumps(F)).logdet() == expected


def test_a_zero_whose_opposite_is_not_stored() -> None:
    P, values = pattern_of(grid(*SHAPE))
    more = ss.Pattern(
        torch.cat((P.rows, torch.tensor([11]))), torch.cat((P.cols, torch.tensor([0]))), P.shape
    )
    given = torch.cat((values, torch.zeros(1, dtype=torch.float64))).requires_grad_()
    (gradient,) = torch.autograd.grad(more.logdet(given), given)
    inverse = torch.linalg.inv(P.tensor(values).to_dense())
    torch.testing.assert_close(gradient, inverse[more.rows, more.cols])


def test_a_matrix_without_rows() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    P = ss.Pattern(empty, empty, (0, 0))
    assert P.logdet(torch.zeros(0)) == 0
    assert P.logdet(torch.zeros(3, 0)).tolist() == [0, 0, 0]
    F = P.factorize(torch.zeros(2, 0))
    assert F.inverse_diagonal().shape == (2, 0)


def test_bad_scaling_is_no_obstacle() -> None:
    P, values = pattern_of(badly_scaled(15))
    root = P.tensor(values).to_dense().diagonal().rsqrt()
    scaled = values * root[P.rows] * root[P.cols]
    expected = torch.logdet(P.tensor(scaled).to_dense()) - 2 * root.log().sum()
    torch.testing.assert_close(P.logdet(values), expected, rtol=1e-12, atol=0)


def test_matrices_that_are_not_positive_definite() -> None:
    P, values = pattern_of(grid(*SHAPE))
    diagonal = P.rows == P.cols
    with pytest.raises(ss.NotPositiveDefiniteError):
        P.logdet(torch.where(diagonal, -values, values))
    indefinite = torch.where(diagonal, 0.05 * values, values)
    with pytest.raises(ss.NotPositiveDefiniteError) as caught:
        P.logdet(torch.stack((values, indefinite)))
    assert 0 <= caught.value.row < P.shape[0]
    with pytest.raises(ss.NotPositiveDefiniteError):
        P.factorize(indefinite).logdet()
    with pytest.raises(ss.NotSymmetricError):
        P.logdet(torch.where((P.rows == 1) & (P.cols == 0), 2 * values, values))


def test_a_singular_matrix_is_not_taken_for_a_regular_one() -> None:
    P, values = pattern_of(grid(40, 40))
    off = torch.where(P.rows == P.cols, 0, values)
    sums = torch.zeros(P.shape[0], dtype=torch.float64).index_add(0, P.rows, off)
    laplacian = torch.where(P.rows == P.cols, -sums[P.rows], off)
    with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError)):
        P.logdet(laplacian)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad: float) -> None:
    P, values = pattern_of(grid(*SHAPE))
    values[3] = bad
    with pytest.raises(ss.NonFiniteError):
        P.logdet(values)


def test_wrong_arguments() -> None:
    P, values = pattern_of(grid(*SHAPE))
    with pytest.raises(ss.ShapeError):
        P.logdet(values[1:])
    for number in (-1, 2.5, True, None):
        with pytest.raises(ss.OptionError, match="max_solves"):
            P.logdet(values, max_solves=number)
    with pytest.raises(ss.DtypeError):
        P.logdet(values.long())
    with pytest.raises(ss.TriangleError):
        P.logdet(values, triangle="lower")
    with pytest.raises(ss.OptionError):
        P.logdet(values, triangle="both")
    with pytest.raises(ss.ShapeError):
        ss.Pattern(torch.tensor([0]), torch.tensor([0]), (1, 2)).logdet(values[:1])


def test_the_default_device_does_not_matter() -> None:
    P, values = pattern_of(grid(*SHAPE))
    expected = P.logdet(values), P.selected_inverse(values)
    with torch.device("meta"):
        found = P.logdet(values), P.selected_inverse(values)
        determinant = P.factorize(values).logdet()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(determinant, expected[0])
