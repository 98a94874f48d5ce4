"""Projected Hessians, against the eigenvalues of each term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from energy_cases import CHUNKS, EDGES, TRIANGLES, Case, area, spring
from torch import Tensor

import sparse_solver as ss
from sparse_solver._energy.psd_projection import project_matrices


@pytest.mark.parametrize("project", [True, "zero", "absolute"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_projection_clamps_each_term(project: Any, chunk: int | None) -> None:
    case = Case("sum", chunk_size=chunk)
    energy = case.make(*case.constants)
    expected = torch.zeros(14, 14, dtype=torch.double)
    k, s, l, weight = case.constants
    terms = [
        (weight, lambda x, i=i, e=e: spring(x, k[e], (s[i], l[i])), e) for i, e in enumerate(EDGES)
    ]
    terms += [(-1 / 3, area, e) for e in TRIANGLES]
    terms += [
        (2, lambda x: (x[0] * x[1] * x[2].exp()).sum(), torch.tensor(e))
        for e in ([3, 3, 1], [0, 2, 0], [5, 5, 5])
    ]
    for factor, summand, e in terms:
        d = 2 * len(e)
        H = factor * torch.autograd.functional.hessian(summand, case.X[e]).reshape(d, d)
        eigenvalues, vectors = torch.linalg.eigh((H + H.mT) / 2)
        clamped = eigenvalues.abs() if project == "absolute" else eigenvalues.clamp(min=0)
        at = (2 * e.unsqueeze(-1) + torch.arange(2)).reshape(-1)
        expected.index_put_(
            (at.unsqueeze(-1), at), (vectors * clamped) @ vectors.mT, accumulate=True
        )
    found = energy.hessian(case.X, project=project).to_dense()
    assert torch.allclose(found, expected, atol=1e-10)
    assert torch.linalg.eigvalsh(found)[0] > -1e-10
    assert not torch.allclose(found, energy.hessian(case.X).to_dense())


def test_projection_leaves_semidefinite_terms_alone() -> None:
    case = Case("springs")
    X = 100 * case.X  # springs are stretched
    energy = case.make(*case.constants)
    values = energy.hessian_values(X)
    assert torch.allclose(
        energy.hessian_values(X, project=True), values, rtol=0, atol=1e-14 * float(values.max())
    )


@pytest.mark.parametrize("project", ["zero", "absolute"])
def test_the_projection_is_differentiable(project: Any) -> None:
    torch.manual_seed(3)
    A = torch.randn(4, 3, 3, dtype=torch.double)
    A = A + A.mT
    A[0] = torch.diag(torch.tensor([2.0, -1.0, -1.0]))  # equal eigenvalues
    A[1] = torch.eye(3)
    A.requires_grad_()

    def project_each(A: Tensor) -> Tensor:
        return project_matrices((A + A.mT) / 2, project)

    torch.autograd.gradcheck(project_each, (A,))
    grown = project_each(A).square().sum()
    with pytest.raises(ss.TransformError, match="once"):
        torch.autograd.grad(grown, A, create_graph=True)
    with pytest.raises(ss.TransformError):
        torch.func.vmap(project_each)(A.detach().unsqueeze(0))


def test_projection_of_what_is_not_finite() -> None:
    energy = ss.IndexedSum(lambda x: -(x[0] ** 2) * x[1], torch.tensor([[0, 1], [2, 3]]))
    values = energy.hessian_values(torch.tensor([float("nan"), 1.0, 1.0, 1.0]), project=True)
    dense = energy.pattern.tensor(values).to_dense()
    assert dense[:2, :2].isnan().any()
    assert dense[2:, 2:].isfinite().all()
