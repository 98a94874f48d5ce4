"""`solve_factor`: B b and Bᴴ b with B Bᴴ = A⁻¹, by every engine that has halves, and otherwise."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from gaussian.gaussian_cases import CASES, badly_scaled, chain, grid, pattern_of, star
from torch import Tensor
from torch.func import grad, jacfwd, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import sparse_solver as ss
from sparse_solver._engines.protocol import SolvesHalf
from sparse_solver._engines.registry import engine_named

N = 12
IS_COMPLEX = {"pardiso"}  # the engines with halves of complex matrices
# SuperLU has no halves, so that the supernodal factor serves.
ENGINES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not engine_named(name).availability().installed, reason=f"{name} is not installed"
        ),
    )
    for name in ("pardiso", "qdldl", "supernodal", "superlu")
]


def factored(A, engine: str | None = None, **options) -> tuple[ss.Factorization, Tensor]:
    """The factorisation of A, and its dense inverse."""
    P, values = pattern_of(A.tocsr())
    D = P.tensor(values).to_dense()
    root = D.diagonal().rsqrt()
    inverse = torch.linalg.inv(root[:, None] * D * root) * root * root[:, None]
    return P.factorize(values, assume="spd", engine=engine, **options), inverse


def complex_matrix() -> Tensor:
    D = torch.from_numpy(grid(4, 3).toarray())
    phase = torch.polar(torch.ones(N, dtype=torch.float64), torch.arange(N).double() ** 2 / 7)
    return phase[:, None] * D * phase.conj()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", ["chain", "arrow", "grid", "two parts", "badly scaled", "one row"])
def test_the_halves_make_the_inverse(engine: str, case: str) -> None:
    F, inverse = factored(CASES[case](), engine)
    unit = torch.eye(len(inverse), dtype=torch.float64)
    B, adjoint = F.solve_factor(unit), F.solve_factor(unit, adjoint=True)
    size = inverse.diagonal().sqrt()
    assert ((B @ B.mT - inverse).abs() / (size[:, None] * size)).max() < 1e-12
    torch.testing.assert_close(adjoint, B.mT, rtol=1e-12, atol=0)
    torch.testing.assert_close(F.solve_factor(unit[0]), B[:, 0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_engine_itself_has_the_halves_that_it_should(engine: str) -> None:
    F, _ = factored(grid(4, 3), engine)
    (part,) = F._factors.parts
    has_halves = isinstance(part.factor.factor, SolvesHalf) and part.factor.factor.has_halves
    assert has_halves == (engine != "superlu")
    assert F._inverse is None
    F.solve_factor(torch.ones(N, dtype=torch.float64))
    assert (F._inverse is None) == has_halves


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128])
def test_other_dtypes(engine: str, dtype: torch.dtype) -> None:
    if dtype.is_complex and engine in ("qdldl", "supernodal"):
        pytest.skip("an engine for real matrices")
    D = complex_matrix() if dtype.is_complex else torch.from_numpy(grid(4, 3).toarray())
    D = D.to(dtype)
    F = ss.factorize(D.to_sparse(), assume="spd", engine=engine)
    unit = torch.eye(N, dtype=dtype)
    if dtype.is_complex and engine not in IS_COMPLEX:
        with pytest.raises(ss.EngineUnsupportedError, match="complex"):
            F.solve_factor(unit)
        return
    B = F.solve_factor(unit)
    assert B.dtype == dtype
    tolerance = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(B @ B.mH, torch.linalg.inv(D), rtol=tolerance, atol=tolerance)
    adjoint = F.solve_factor(unit, adjoint=True)
    torch.testing.assert_close(adjoint, B.mH, rtol=tolerance, atol=tolerance)
    if dtype == torch.complex128:
        b = torch.randn(N, 2, dtype=dtype, requires_grad=True)
        for flag in (False, True):
            assert torch.autograd.gradcheck(lambda b, f=flag: F.solve_factor(b, adjoint=f), b)


@pytest.mark.parametrize("engine", ENGINES)
def test_derivatives_and_transforms(engine: str) -> None:
    F, _ = factored(grid(4, 3), engine)
    B = F.solve_factor(torch.eye(N, dtype=torch.float64))
    b = torch.randn(N, dtype=torch.float64, requires_grad=True)
    for adjoint, matrix in ((False, B), (True, B.mT)):

        def half(b: Tensor, adjoint: bool = adjoint) -> Tensor:
            return F.solve_factor(b, adjoint=adjoint)

        assert torch.autograd.gradcheck(half, b, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(half, b)
        plain = b.detach()
        torch.testing.assert_close(jacfwd(half)(plain), matrix)
        torch.testing.assert_close(jvp(half, (plain,), (plain,))[1], matrix @ plain)
        batch = torch.stack((plain, 2 * plain, plain + 1))
        torch.testing.assert_close(vmap(half)(batch), batch @ matrix.mT)
        squares = vmap(grad(lambda b: half(b).square().sum()))(batch)
        torch.testing.assert_close(squares, 2 * batch @ matrix.mT @ matrix)


@pytest.mark.parametrize(
    "shape", [(N,), (N, 1), (N, 40), (3, N, 2), (2, 3, N, 2), (N, 0), (0, N, 2)]
)
@pytest.mark.parametrize("engine", ENGINES)
def test_shapes(engine: str, shape: tuple[int, ...]) -> None:
    F, _ = factored(grid(4, 3), engine)
    B = F.solve_factor(torch.eye(N, dtype=torch.float64))
    b = torch.randn(shape, dtype=torch.float64)
    expected = B @ b if b.dim() > 1 else (B @ b.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(F.solve_factor(b), expected)
    strided = torch.stack((b, b), -1)[..., 0]
    torch.testing.assert_close(F.solve_factor((-strided)._neg_view()), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_matrix_of_a_batch_has_its_own_half(engine: str) -> None:
    P, values = pattern_of(grid(4, 3))
    scales = torch.tensor([[1.0], [4.0], [9.0]], dtype=torch.float64)
    F = P.factorize(scales * values, assume="spd", engine=engine)
    b = torch.randn(3, N, 2, dtype=torch.float64)
    one = P.factorize(values, assume="spd", engine=engine)
    x = F.solve_factor(b, adjoint=True)
    alone = F.solve_factor(torch.cat((b[:1], 0 * b[1:])), adjoint=True)
    assert torch.equal(alone[1:], 0 * b[1:])
    torch.testing.assert_close(alone[0], x[0])
    twice = F.solve_factor(x)
    torch.testing.assert_close(twice, one.solve(b) / scales.unsqueeze(-1))


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_with_different_patterns(engine: str) -> None:
    D = torch.stack([torch.from_numpy(A.toarray()) for A in (chain(N), star(N), grid(4, 3))])
    F = ss.factorize(D.to_sparse(), assume="spd", engine=engine)
    b = torch.randn(3, N, 2, dtype=torch.float64, requires_grad=True)
    x = F.solve_factor(F.solve_factor(b, adjoint=True))
    torch.testing.assert_close(x, torch.linalg.solve(D, b))
    alone = F.solve_factor(torch.cat((b[:1], 0 * b[1:])))
    assert torch.equal(alone[1:], torch.zeros_like(b[1:]))
    assert torch.autograd.gradcheck(F.solve_factor, b)


def test_the_derivative_in_the_values_is_refused_and_not_zero() -> None:
    P, values = pattern_of(grid(4, 3))
    b = torch.randn(N, dtype=torch.float64, requires_grad=True)
    weights = values.clone().requires_grad_()
    x = P.factorize(weights, assume="spd").solve_factor(b)
    expected = P.factorize(values, assume="spd").solve_factor(torch.ones_like(b), adjoint=True)
    (gradient,) = torch.autograd.grad(x.sum(), b, retain_graph=True)
    torch.testing.assert_close(gradient, expected)
    with pytest.raises(ss.TransformError, match="in b only"):
        x.sum().backward()

    def of_values(v: Tensor) -> Tensor:
        return P.factorize(v, assume="spd").solve_factor(b.detach()).sum()

    with pytest.raises(ss.TransformError, match="in b only"):
        grad(of_values)(values)
    with pytest.raises(ss.TransformError, match="in b only"):
        jvp(of_values, (values,), (values,))
    with pytest.raises(ss.TransformError, match="outside"):
        vmap(of_values)(torch.stack((values, values)))


def test_other_factors_than_those_of_cholesky() -> None:
    P, values = pattern_of(grid(4, 3))
    b = torch.randn(N, dtype=torch.float64)
    for assume in ("auto", "spd", "symmetric", "general"):
        F = P.factorize(values, assume=assume)
        x = F.solve_factor(F.solve_factor(b, adjoint=True))
        torch.testing.assert_close(x, F.solve(b))
    for more in ({"precision": "mixed"}, {"preconditioner": F}, {"engine": "cg"}):
        F = P.factorize(values, assume="spd", **more)
        x = F.solve_factor(F.solve_factor(b, adjoint=True))
        torch.testing.assert_close(x, F.solve(b), rtol=1e-12, atol=0)
    indefinite = P.factorize(torch.where(P.rows == P.cols, 0.05 * values, values))
    with pytest.raises(ss.NotPositiveDefiniteError):
        indefinite.solve_factor(b)


@pytest.mark.parametrize("engine", ENGINES)
def test_copies_threads_and_bad_scaling(engine: str) -> None:
    F, inverse = factored(badly_scaled(8), engine)
    b = torch.randn(len(inverse), 3, dtype=torch.float64)
    expected = F.solve_factor(b)
    loaded = pickle.loads(pickle.dumps(F))
    torch.testing.assert_close(loaded.solve_factor(b), expected)
    with ThreadPoolExecutor(4) as pool:
        for x in pool.map(lambda _: F.solve_factor(b), range(12)):
            assert torch.equal(x, expected)


def _put_solutions(queue, F: ss.Factorization, b: Tensor) -> None:
    queue.put(F.solve_factor(F.solve_factor(b, adjoint=True)).tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_forked_child_uses_the_factorisation_of_its_parent(engine: str) -> None:
    F, _ = factored(grid(4, 3), engine)
    b = torch.randn(N, dtype=torch.float64)
    expected = F.solve_factor(F.solve_factor(b, adjoint=True))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_put_solutions, args=(queue, F, b))
    child.start()
    found = torch.tensor(queue.get(timeout=120), dtype=torch.float64)
    child.join(timeout=120)
    torch.testing.assert_close(found, expected)


def test_what_torch_cannot_differentiate_or_record_is_refused() -> None:
    F, _ = factored(grid(4, 3))
    b = torch.ones(N, dtype=torch.float64, requires_grad=True)
    directions = torch.eye(N, dtype=torch.float64)
    with pytest.raises(ss.TransformError, match="is_grads_batched"):
        torch.autograd.grad(F.solve_factor(b), b, directions, is_grads_batched=True)
    with pytest.raises(ss.TransformError, match="make_fx"):
        make_fx(lambda b: F.solve_factor(b))(b.detach())


def test_the_adjoint_whitens_samples() -> None:
    F, inverse = factored(grid(4, 3))
    unit = torch.eye(N, dtype=torch.float64)
    B = F.solve_factor(unit)
    torch.testing.assert_close(B.mT @ torch.linalg.inv(inverse) @ B, unit)


def test_wrong_arguments() -> None:
    F, _ = factored(grid(4, 3))
    b = torch.ones(N, dtype=torch.float64)
    with pytest.raises(ss.ShapeError):
        F.solve_factor(b[1:])
    with pytest.raises(ss.DtypeError):
        F.solve_factor(b.float())
    with pytest.raises(ss.LayoutError):
        F.solve_factor(b.numpy())
    with pytest.raises(ss.OptionError):
        F.solve_factor(b, adjoint=1)
    bad = b.clone()
    bad[5] = torch.nan
    with pytest.raises(ss.NonFiniteError) as caught:
        F.solve_factor(bad)
    assert caught.value.index == 5


def test_a_gradient_that_is_not_finite_is_passed_on() -> None:
    F, _ = factored(grid(4, 3))
    b = torch.ones(N, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.solve_factor(b), b, torch.full((N,), torch.nan).double())
    assert gradient.isnan().any()


def test_matrices_without_rows() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    F = ss.Pattern(empty, empty, (0, 0)).factorize(torch.zeros(0))
    assert F.solve_factor(torch.zeros(0, 3)).shape == (0, 3)
