"""What is built on the solve, with tensors on a GPU, compared with the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from gpu_cases import DEVICE, HAS_GPU, check_close, laplacian, needs_gpu, on_gpu, vector
from torch import Tensor

import sparse_solver as ss
from sparse_solver._engines.registry import installed_on

SIDE = 30 if HAS_GPU else 5
P, VALUES = laplacian(SIDE)


@pytest.fixture(autouse=True)
def _host_may_help() -> Iterator[None]:
    """What no engine for the device computes is left to the CPU, with a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*solved by the CPU", UserWarning)
        yield


def compare(function: Callable[..., Tensor], *inputs: Tensor, digits: float = 1e-8) -> None:
    """Compare a function and its gradients on the GPU with those on the CPU."""
    here = [each.cpu().clone().requires_grad_() for each in inputs]
    there = [each.detach().clone().requires_grad_() for each in inputs]
    y, z = function(*here), function(*there)
    assert z.device == DEVICE
    check_close(z, y, digits)
    bars = torch.autograd.grad(y.square().sum(), here)
    for mine, other in zip(torch.autograd.grad(z.square().sum(), there), bars, strict=True):
        assert mine.device == DEVICE
        check_close(mine, other, digits)


needs_supernodal = pytest.mark.skipif(
    ss.engines()["supernodal"].missing is not None, reason="Numba is not installed"
)


@needs_supernodal
def test_log_determinants_and_selected_inverses() -> None:
    compare(lambda values: P.logdet(values), VALUES)
    compare(lambda values: P.selected_inverse(values), VALUES)
    compare(lambda values: P.slogdet(values).logabsdet, VALUES)
    F = P.factorize(VALUES, assume="spd")
    check_close(F.logdet(), P.logdet(VALUES.cpu()))
    check_close(F.inverse_diagonal(), P.factorize(VALUES.cpu(), assume="spd").inverse_diagonal())


@needs_supernodal
def test_half_solves() -> None:
    n = P.shape[0]
    z = vector(n, 2)
    y = P.solve_factor(VALUES, z)
    x = P.solve(VALUES, z, assume="spd")
    adjoint = P.solve_factor(VALUES, z, adjoint=True)
    assert y.device == DEVICE
    check_close(P.solve_factor(VALUES, adjoint), x)


@needs_supernodal
def test_gaussian_fields() -> None:
    n = P.shape[0]
    at = vector(n)

    def log_density(values: Tensor, x: Tensor) -> Tensor:
        return ss.GaussianField(P, values).log_prob(x)

    compare(log_density, VALUES, at)
    assert ss.GaussianField(P, VALUES).rsample((2,)).device == DEVICE


@pytest.mark.skipif("cg" not in installed_on(DEVICE), reason="cg does not take this device")
def test_conjugate_gradients() -> None:
    b = vector(P.shape[0])
    compare(lambda values, b: P.solve(values, b, assume="spd", engine="cg"), VALUES, b)


def test_quadratics() -> None:
    n = P.shape[0]
    C = ss.Pattern(torch.tensor([0, 0, 1]), torch.tensor([1, 2, n - 1]), (2, n))
    program = ss.QuadraticProgram(P, fixed=torch.tensor([0]), C=C)
    c = torch.ones(3, dtype=torch.float64).to(DEVICE)

    def minimum(values: Tensor, y: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return program.solve(values, fixed_values=y, C_values=c, d=d)

    compare(minimum, VALUES, vector(1), c, vector(2, seed=3))


def spring(x: Tensor, length: Tensor) -> Tensor:
    return ((x[1] - x[0]).square().sum() - length) ** 2 + 0.1 * x.square().sum()


def test_energies() -> None:
    edges = torch.stack((torch.arange(19), torch.arange(1, 20)), 1)
    x0 = torch.randn(20, 2, dtype=torch.float64).to(DEVICE)

    def minimum(length: Tensor) -> Tensor:
        indices = edges.to(length.device)
        energy = ss.IndexedSum(spring, indices, per_term=length)
        fixed = torch.tensor([0, 19]).to(length.device)
        x, report = ss.minimize(energy, x0.to(length.device), fixed=fixed)
        assert report.converged
        return x

    compare(minimum, 1 + vector(19).square(), digits=1e-6)


def test_roots() -> None:
    n = P.shape[0]
    diagonal = P.rows == P.cols

    def residual(x: Tensor, values: Tensor, b: Tensor) -> Tensor:
        rows, cols = P.rows.to(x.device), P.cols.to(x.device)
        return torch.zeros_like(x).index_add(0, rows, values * x[cols]) + x**3 - b

    def jacobian(x: Tensor, values: Tensor, b: Tensor) -> Tensor:
        first = torch.zeros(values.numel(), dtype=torch.bool)
        first[:n] = diagonal[:n]  # the places of the anchors, one for each row
        cubes = torch.zeros_like(values).index_put((first.to(x.device),), 3 * x**2)
        return values + cubes

    def root(values: Tensor, b: Tensor) -> Tensor:
        x0 = torch.zeros(n, dtype=torch.float64).to(b.device)
        return ss.find_root(residual, jacobian, P, x0, params=(values, b))[0]

    compare(root, VALUES, vector(n))


@needs_gpu
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
def test_sparse_tensors(layout: torch.layout) -> None:
    p, b = on_gpu("general"), vector(12)
    A = p.dense.to_sparse(layout=layout).requires_grad_()
    x = ss.solve(A, b)
    check_close(x, torch.linalg.solve(p.dense.cpu(), b.cpu()))
    (bar,) = torch.autograd.grad(x.sum(), A)
    assert bar.layout == layout
    assert bar.device == DEVICE


@needs_gpu
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("non_blocking", [False, True])
def test_compiled(backend: str, non_blocking: bool) -> None:
    b = vector(P.shape[0])

    def loss(values: Tensor, b: Tensor) -> Tensor:
        weights = torch.nn.functional.softplus(values)
        return P.solve(weights, b, assume="general", non_blocking=non_blocking).sin()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    inputs = VALUES.clone().requires_grad_(), b.requires_grad_()
    y, expected = compiled(*inputs), loss(*inputs)
    check_close(y, expected)
    bars = torch.autograd.grad(expected.sum(), inputs)
    for mine, other in zip(torch.autograd.grad(y.sum(), inputs), bars, strict=True):
        check_close(mine, other)


@needs_gpu
def test_a_forked_child_says_that_it_has_no_device(run_python: Callable[..., str]) -> None:
    printed = run_python(
        "import os, torch, sparse_solver as ss\n"
        "i = torch.arange(3)\n"
        "P, v = ss.Pattern(i, i, (3, 3)), torch.ones(3, device='cuda')\n"
        "P.solve(v, v, assume='spd')\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try:\n"
        "        P.solve(v, v, assume='spd')\n"
        "    except RuntimeError as error:\n"
        "        os._exit(7)\n"
        "    os._exit(1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "print(P.solve(v, v, assume='spd').sum().item())\n"
    )
    assert printed.split() == ["7", "3.0"]
