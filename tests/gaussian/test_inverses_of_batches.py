"""Log-determinants and diagonals of inverses for batches of matrices with different patterns."""

from __future__ import annotations

import pickle

import pytest
import torch
from gaussian.gaussian_cases import chain, grid, laplacian, random_graph, star
from torch import Tensor

import sparse_solver as ss
from sparse_solver._gaussian.symmetric_inverse import SymmetricInverse

N = 12


def dense_batch(dtype: torch.dtype = torch.float64) -> Tensor:
    """(2, 2, n, n) matrices of four different graphs."""
    graphs = chain(N), star(N), grid(4, 3), random_graph(N, 20)
    batch = torch.stack([torch.from_numpy(A.toarray()) for A in graphs]).to(dtype)
    if dtype.is_complex:
        phase = torch.polar(torch.ones(N), torch.arange(N, dtype=torch.float32)).to(dtype)
        batch = phase[:, None] * batch * phase.conj()
    return batch.view(2, 2, N, N)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex128])
def test_each_matrix_has_its_own_log_determinant(dtype: torch.dtype) -> None:
    D = dense_batch(dtype)
    weights = torch.linspace(-1, 2, 4).view(2, 2).to(D.real.dtype)
    A = D.to_sparse().requires_grad_()
    F = ss.factorize(A, assume="spd")
    determinants = F.logdet()
    precision = 1e-5 if dtype == torch.float32 else 1e-12
    expected = torch.linalg.slogdet(D).logabsdet
    torch.testing.assert_close(determinants, expected, rtol=precision, atol=precision)
    (determinants * weights).sum().backward()
    inverse = torch.linalg.inv(D)
    stored = torch.where(D != 0, weights[..., None, None] * inverse, 0)
    torch.testing.assert_close(A.grad.to_dense(), stored, rtol=precision, atol=precision)
    variances = F.inverse_diagonal()
    expected = inverse.diagonal(dim1=-2, dim2=-1).real
    torch.testing.assert_close(variances, expected, rtol=precision, atol=precision)
    loaded = pickle.loads(pickle.dumps(F))
    torch.testing.assert_close(loaded.logdet(), determinants, rtol=0, atol=0)


def test_derivatives() -> None:
    batch = torch.stack([torch.from_numpy(A.toarray()) for A in (chain(4), star(4))])
    mask = batch.tril() != 0
    indices = mask.nonzero().mT
    values = batch[mask].clone().requires_grad_()

    def factorize(v: Tensor) -> ss.Factorization:
        A = torch.sparse_coo_tensor(indices, v, batch.shape, is_coalesced=True)
        return ss.factorize(A, assume="spd", triangle="lower")

    for compute in (lambda v: factorize(v).logdet(), lambda v: factorize(v).inverse_diagonal()):
        assert torch.autograd.gradcheck(compute, values)
    # Torch's constructor of sparse tensors is differentiable once only.
    structure = factorize(values)._problem.structure

    def logdet(v: Tensor) -> Tensor:
        return SymmetricInverse(structure, v, "lower", 100).logdet()

    assert logdet(values).shape == (2,)
    assert torch.autograd.gradgradcheck(logdet, values)

    def third(determinant) -> Tensor:
        result = determinant(values)
        for power in (2, 2, 2):
            (gradient,) = torch.autograd.grad(result.sum(), values, create_graph=True)
            result = gradient**power
        return result.detach()

    def dense(v: Tensor) -> Tensor:
        A = v.new_zeros(batch.shape).masked_scatter(mask, v)
        return torch.logdet(A + A.mT - torch.diag_embed(A.diagonal(dim1=-2, dim2=-1)))

    torch.testing.assert_close(third(logdet), third(dense))


def test_equal_patterns_and_other_layouts() -> None:
    D = torch.stack([torch.from_numpy(laplacian(*_edges(k), 6, k).toarray()) for k in (0, 1)])
    expected = torch.logdet(D)
    for A in (D.to_sparse(), D.to_sparse_csr(), D[:1].to_sparse(), D[:1].to_sparse_csr()):
        determinants = ss.factorize(A, assume="spd").logdet()
        torch.testing.assert_close(determinants, expected[: len(A)])


def _edges(k: int) -> tuple[list[int], list[int]]:
    """Two graphs with the same number of edges."""
    return ([0, 1, 2, 3, 4], [1, 2, 3, 4, 5]) if k == 0 else ([0, 0, 0, 0, 0], [1, 2, 3, 4, 5])


def test_empty_batches_and_matrices_without_rows() -> None:
    for shape in ((0, 3, 3), (2, 0, 3, 3), (2, 0, 0), (0, 0, 0)):
        F = ss.factorize(torch.zeros(shape).to_sparse())
        assert F.logdet().tolist() == torch.zeros(shape[:-2]).tolist()
        assert F.inverse_diagonal().shape == shape[:-1]


def test_errors_name_the_matrix() -> None:
    D = dense_batch().view(4, N, N)
    D[2, 5, 5] = 1e-9
    F = ss.factorize(D.to_sparse())
    with pytest.raises(ss.NotPositiveDefiniteError, match="matrix 2 of the batch") as caught:
        F.logdet()
    assert caught.value.row in range(N)


def test_one_singular_matrix_of_many() -> None:
    D = dense_batch().view(4, N, N)
    D[3] -= 0.1 * torch.eye(N, dtype=torch.float64)
    assert abs(float(torch.linalg.eigvalsh(D[3])[0])) < 1e-13
    with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError), match="matrix 3"):
        ss.factorize(D.to_sparse()).logdet()
