"""`slogdet` of tensors on a simulated GPU, which the CPU computes."""

from __future__ import annotations

import pytest
import simulated_cudss
import simulated_gpu
import torch
from gaussian.determinant_cases import matrix_of, stored

import sparse_solver as ss

simulated_gpu.require()


@pytest.mark.filterwarnings("ignore:systems on gpu are solved by the CPU:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_values_on_a_gpu(dtype: torch.dtype) -> None:
    P, values, _ = stored(matrix_of("general", 12, dtype), "general")
    on_device = values.to(simulated_gpu.DEVICE)
    values.requires_grad_()
    on_device.requires_grad_()
    expected = P.slogdet(values)
    expected.logabsdet.backward()
    for found in (P.slogdet(on_device), P.factorize(on_device).slogdet()):
        assert found.sign.device == found.logabsdet.device == on_device.device
        torch.testing.assert_close(found.sign.cpu(), expected.sign)
        torch.testing.assert_close(found.logabsdet.cpu(), expected.logabsdet)
        (gradient,) = torch.autograd.grad(found.logabsdet, on_device)
        assert gradient.device == on_device.device
        torch.testing.assert_close(gradient.cpu(), values.grad)


@pytest.mark.parametrize("kind", ["general", "spd"])
def test_a_factorisation_by_cudss(cudss: simulated_cudss.Cudss, kind: str) -> None:
    D = matrix_of(kind, 12, torch.float64)
    P, values, options = stored(D, kind)
    on_device = values.to(simulated_gpu.DEVICE).requires_grad_()
    F = P.factorize(on_device, engine="cudss", **options)
    sign, logabsdet = F.slogdet()
    expected = torch.linalg.slogdet(D)
    torch.testing.assert_close((sign.cpu(), logabsdet.cpu()), tuple(expected))
    (gradient,) = torch.autograd.grad(logabsdet, on_device)
    torch.testing.assert_close(gradient.cpu(), torch.linalg.inv(D).mT[P.rows, P.cols])


@pytest.mark.filterwarnings("ignore:systems on gpu are solved by the CPU:UserWarning")
def test_a_singular_matrix_on_a_gpu() -> None:
    P = ss.Pattern(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (2, 2))
    with pytest.raises(ss.SingularMatrixError):
        P.slogdet(torch.ones(4, device=simulated_gpu.DEVICE))
