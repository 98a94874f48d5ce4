"""Log-determinants and inverses of Hermitian matrices, which are factored in their real form."""

from __future__ import annotations

import pytest
import torch
from gaussian.gaussian_cases import CASES, grid, half, pattern_of
from torch import Tensor
from torch.func import grad, jvp, vmap

import sparse_solver as ss

SHAPE = (3, 3)  # of a grid


def hermitian(A) -> tuple[ss.Pattern, Tensor]:
    """The pattern and the values of A with phases on the entries off the diagonal."""
    P, values = pattern_of(A)
    phase = torch.sin(P.rows.double()) - torch.sin(P.cols.double())
    phase += 0.3 * (P.rows - P.cols).sign()
    return P, torch.polar(values.abs(), phase) * values.sign()


@pytest.fixture
def triangular():
    P, values = hermitian(grid(*SHAPE))
    lower, keep = half(P, "lower")
    return lower, values[keep]


def dense_of(P: ss.Pattern, values: Tensor) -> Tensor:
    """The whole matrix, of which P has one triangle."""
    A = values.new_zeros(*P.shape).index_put((P.rows, P.cols), values, accumulate=True)
    return A + A.mH - torch.diag(A.diagonal())


def logdet_of(A: Tensor) -> Tensor:
    """Differentiable for Hermitian matrices: torch's Cholesky reads their Hermitian part."""
    return 2 * torch.linalg.cholesky(A).diagonal(dim1=-2, dim2=-1).real.log().sum(-1)


@pytest.mark.parametrize("case", ["comb", "cube", "two parts", "one row", "badly scaled"])
def test_the_gradient_is_the_inverse(case: str) -> None:
    P, values = hermitian(CASES[case]().tocsr())
    D = P.tensor(values).to_dense()
    root = D.diagonal().real.rsqrt()
    inverse = torch.linalg.inv(root[:, None] * D * root) * root * root[:, None]
    values.requires_grad_()
    determinant = P.logdet(values)
    assert determinant.dtype == torch.float64
    torch.testing.assert_close(determinant, torch.logdet(D).real, rtol=1e-11, atol=1e-11)
    determinant.backward()
    size = inverse.diagonal().real.sqrt()
    size = size[P.rows] * size[P.cols]
    for found in (values.grad, P.selected_inverse(values.detach())):
        assert ((found - inverse[P.rows, P.cols]).abs() / size).max() < 1e-11
    diagonal = P.factorize(values.detach(), assume="spd").inverse_diagonal()
    torch.testing.assert_close(diagonal, inverse.diagonal().real, rtol=1e-11, atol=0)


@pytest.mark.parametrize("triangle", ["lower", "upper"])
def test_all_derivatives_with_one_triangle(triangle: str) -> None:
    P, values = hermitian(grid(*SHAPE))
    T, keep = half(P, triangle)
    on_diagonal = T.rows == T.cols

    def stored(diagonal: Tensor, off: Tensor) -> Tensor:
        zero = torch.zeros_like(on_diagonal, dtype=torch.complex128)
        some = zero.masked_scatter(on_diagonal, diagonal.to(torch.complex128))
        return some.masked_scatter(~on_diagonal, off)

    def determinant(diagonal: Tensor, off: Tensor) -> Tensor:
        return T.logdet(stored(diagonal, off), triangle=triangle)

    def inverse(diagonal: Tensor, off: Tensor) -> Tensor:
        return T.selected_inverse(stored(diagonal, off), triangle=triangle)

    given = values[keep][on_diagonal].real.clone(), values[keep][~on_diagonal].clone()
    given = tuple(one.requires_grad_() for one in given)
    torch.testing.assert_close(determinant(*given), logdet_of(dense_of(T, stored(*given))))
    dense = torch.linalg.inv(dense_of(T, stored(*given)))[T.rows, T.cols]
    torch.testing.assert_close(inverse(*given), dense)
    assert torch.autograd.gradcheck(determinant, given)
    assert torch.autograd.gradgradcheck(determinant, given)
    assert torch.autograd.gradcheck(inverse, given)


def test_third_derivatives(triangular) -> None:
    P, values = triangular
    direction = torch.linspace(-1, 1, P.nnz, dtype=torch.float64) + 0j
    direction += 1j * (P.rows != P.cols)

    def third(determinant):
        def along(step):
            return determinant(values + step * direction)

        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        result = along(step)
        for _ in range(3):
            (result,) = torch.autograd.grad(result, step, create_graph=True)
        return result.detach()

    expected = third(lambda v: logdet_of(dense_of(P, v)))
    torch.testing.assert_close(third(lambda v: P.logdet(v, triangle="lower")), expected)


def test_transforms(triangular) -> None:
    P, values = triangular

    def sparse(v):
        return P.logdet(v, triangle="lower")

    def dense(v):
        return logdet_of(dense_of(P, v))

    torch.testing.assert_close(grad(sparse)(values), grad(dense)(values))
    direction = torch.linspace(-1, 1, P.nnz, dtype=torch.float64) + 0j
    result, expected = jvp(sparse, (values,), (direction,)), jvp(dense, (values,), (direction,))
    torch.testing.assert_close(result, expected)
    batch = torch.stack([values, 2 * values, 5 * values])
    expected = torch.stack([grad(dense)(row) for row in batch])
    torch.testing.assert_close(vmap(grad(sparse))(batch), expected)
    many = P.logdet(batch, triangle="lower")
    torch.testing.assert_close(many, torch.stack([dense(row) for row in batch]))


def test_views_and_single_precision() -> None:
    P, values = hermitian(grid(*SHAPE))
    expected = P.logdet(values)
    assert P.logdet(values.conj().resolve_conj().conj()) == expected
    torch.testing.assert_close(P.logdet(values.conj()), expected)
    single = values.to(torch.complex64)
    assert P.logdet(single).dtype == torch.float32
    assert P.selected_inverse(single).dtype == torch.complex64
    torch.testing.assert_close(P.logdet(single), expected.float())


def test_what_is_not_hermitian_or_positive_definite() -> None:
    P, values = hermitian(grid(*SHAPE))
    diagonal = P.rows == P.cols
    with pytest.raises(ss.NotSymmetricError) as caught:
        P.logdet(torch.where((P.rows == 1) & (P.cols == 0), 2 * values, values))
    assert {caught.value.row, caught.value.col} == {0, 1}
    with pytest.raises(ss.NotSymmetricError) as caught:
        P.logdet(torch.where(diagonal & (P.rows == 7), values + 1j, values))
    assert caught.value.row == caught.value.col == 7
    with pytest.raises(ss.NotPositiveDefiniteError) as caught:
        P.logdet(torch.where(diagonal & (P.rows == 7), 1e-9 + 0j, values))
    assert caught.value.row in range(P.shape[0])
    with pytest.raises(ss.NonFiniteError) as caught:
        P.logdet(torch.where(torch.arange(P.nnz) == 4, torch.nan, values))
    assert caught.value.index == 4
    with pytest.raises(ss.NotPositiveDefiniteError, match="matrix 1 of the batch"):
        P.logdet(torch.stack((values, torch.where(diagonal, 0.01 * values, values))))


def test_one_triangle_needs_a_real_diagonal_and_a_hermitian_other_one(triangular) -> None:
    P, values = triangular
    with pytest.raises(ss.NotSymmetricError):
        P.logdet(torch.where(P.rows == P.cols, values + 1j, values), triangle="lower")
    F = P.factorize(values, assume="symmetric", triangle="lower")
    for compute in (F.logdet, F.inverse_diagonal):
        with pytest.raises(ss.OptionError, match="Hermitian"):
            compute()
