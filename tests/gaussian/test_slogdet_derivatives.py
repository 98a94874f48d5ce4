"""The derivatives of `slogdet`, compared with those of `torch.linalg.slogdet` of dense matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gaussian.determinant_cases import KINDS, dense_of, double, matrix_of, stored
from gaussian.gaussian_cases import grid, pattern_of
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import sparse_solver as ss

N = 6
DOUBLES = (torch.float64, torch.complex128)


def make_real_diagonal(P: ss.Pattern, values: Tensor, options: dict[str, Any]) -> Tensor:
    """The values of a Hermitian triangle, whose diagonal must be real."""
    if "triangle" not in options or options["assume"] == "symmetric" or not values.is_complex():
        return values
    return torch.where(P.rows == P.cols, values.real + 0j, values)


def as_real(found: Any) -> Tensor:
    """One number that depends on the phase and on the modulus."""
    sign, logabsdet = found
    weight = torch.tensor(0.3 + 0.8j, dtype=torch.complex128)
    phase = (weight * sign).real if sign.is_complex() else 0
    return 1.3 * logabsdet + phase


def functions(
    kind: str, dtype: torch.dtype, n: int = N
) -> tuple[Callable[..., Any], Callable[..., Any], Tensor]:
    """slogdet of the stored values, the same by dense torch, and the values."""
    P, values, options = stored(matrix_of(kind, n, dtype), kind)

    def sparse(v: Tensor) -> Any:
        return P.slogdet(make_real_diagonal(P, v, options), **options)

    def dense(v: Tensor) -> Any:
        return torch.linalg.slogdet(dense_of(P, make_real_diagonal(P, v, options), options))

    return sparse, dense, values


def symmetrize(P: ss.Pattern, values: Tensor, options: dict[str, Any]) -> Tensor:
    """The values of the symmetric or Hermitian part of the matrix with these values."""
    A = dense_of(P, values, {})
    opposite = A.mT if options["assume"] == "symmetric" else A.mH
    return ((A + opposite) / 2)[P.rows, P.cols]


@pytest.mark.parametrize("dtype", DOUBLES)
@pytest.mark.parametrize("kind", KINDS)
def test_first_and_second_derivatives(kind: str, dtype: torch.dtype) -> None:
    P, values, options = stored(matrix_of(kind, N, dtype), kind)
    values.requires_grad_()

    def of(v: Tensor) -> Tensor:
        if kind in ("symmetric", "hermitian", "spd"):  # whose perturbations would be refused
            v = symmetrize(P, v, options)
        return as_real(P.slogdet(make_real_diagonal(P, v, options), **options))

    assert gradcheck(of, values)
    assert gradgradcheck(of, values)


@pytest.mark.parametrize("dtype", DOUBLES)
@pytest.mark.parametrize("kind", ["general", "symmetric", "hermitian", "spd"])
def test_stored_entries_are_independent(kind: str, dtype: torch.dtype) -> None:
    """Also those of a symmetric matrix, perturbed to one that is not."""
    P, values, _ = stored(matrix_of(kind, N, dtype), kind)
    values.requires_grad_()
    assert gradcheck(lambda v: P.slogdet(v), values)
    assert gradgradcheck(lambda v: as_real(P.slogdet(v)), values)


@pytest.mark.parametrize("dtype", [*DOUBLES, torch.float32, torch.complex64])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_larger_matrices(kind: str, dtype: torch.dtype) -> None:
    sparse, dense, values = functions(kind, dtype, 150)
    values.requires_grad_()
    exact = double(values.detach()).requires_grad_()
    (found,) = torch.autograd.grad(as_real(sparse(values)), values)
    (expected,) = torch.autograd.grad(as_real(dense(exact)), exact)
    assert found.dtype == dtype
    limit = 1e-5 if found.dtype in (torch.float32, torch.complex64) else 1e-10
    assert (found - expected).abs().max() < limit * expected.abs().max()


@pytest.mark.parametrize("dtype", DOUBLES)
@pytest.mark.parametrize("kind", ["general", "symmetric lower", "hermitian upper", "spd lower"])
def test_third_derivatives(kind: str, dtype: torch.dtype) -> None:
    sparse, dense, values = functions(kind, dtype)
    direction = torch.linspace(-1, 1, len(values), dtype=torch.float64).to(dtype)

    def third(determinant: Callable[..., Any]) -> Tensor:
        v = values.clone().requires_grad_()
        total = as_real(determinant(v))
        for _ in range(2):
            (first,) = torch.autograd.grad(total, v, create_graph=True)
            along = (first * direction.conj()).sum()
            total = along.real if v.is_complex() else along
        return torch.autograd.grad(total, v)[0]

    torch.testing.assert_close(third(sparse), third(dense))


@pytest.mark.parametrize("dtype", DOUBLES)
@pytest.mark.parametrize("kind", ["general", "symmetric lower", "hermitian upper", "spd lower"])
def test_forward_mode(kind: str, dtype: torch.dtype) -> None:
    sparse, dense, values = functions(kind, dtype)
    direction = torch.randn(len(values), dtype=dtype)
    found, change = jvp(lambda v: tuple(sparse(v)), (values,), (direction,))
    expected, expected_change = jvp(lambda v: tuple(dense(v)), (values,), (direction,))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(change, expected_change)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(values, direction)
        for result, tangent in zip(sparse(dual), expected_change, strict=True):
            found_tangent = torch.autograd.forward_ad.unpack_dual(result).tangent
            torch.testing.assert_close(found_tangent, tangent)


@pytest.mark.parametrize("kind", ["general", "symmetric lower", "spd lower", "spd"])
def test_transforms_of_real_matrices(kind: str) -> None:
    sparse, dense, values = functions(kind, torch.float64)

    def of(f: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
        return lambda v: f(v)[1]

    def twice(f: Callable[..., Any]) -> Callable[..., Any]:
        return jacrev(jacrev(f))

    # torch 2.13 differentiates its own slogdet wrongly by forward mode under vmap.
    seconds = hessian, twice, lambda f: jacrev(jacfwd(f))
    for transform in seconds:
        torch.testing.assert_close(transform(of(sparse))(values), twice(of(dense))(values))
    batch = torch.stack([values, 2 * values, 5 * values])
    transforms = (lambda f: f,) * 2, (grad, grad), (jacfwd, jacrev), (hessian, twice)
    for transform, exact in transforms:
        expected = torch.stack([exact(of(dense))(row) for row in batch])
        torch.testing.assert_close(vmap(transform(of(sparse)))(batch), expected)
        torch.testing.assert_close(vmap(transform(of(sparse)), in_dims=1)(batch.mT), expected)
    nested = vmap(vmap(grad(of(sparse))))(batch.view(3, 1, -1))
    torch.testing.assert_close(nested[:, 0], torch.stack([grad(of(dense))(row) for row in batch]))


@pytest.mark.parametrize("kind", ["general", "hermitian upper", "symmetric"])
def test_transforms_of_complex_matrices(kind: str) -> None:
    sparse, dense, values = functions(kind, torch.complex128)

    def of(f: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
        return lambda v: as_real(f(v))

    batch = torch.stack([values, 2 * values])
    for transform in (lambda f: f, grad):
        expected = torch.stack([transform(of(dense))(row) for row in batch])
        torch.testing.assert_close(vmap(transform(of(sparse)))(batch), expected)


def test_a_vmap_over_factorisations() -> None:
    P, values, _ = stored(matrix_of("general", N, torch.float64), "general")
    batch = torch.stack([values, 2 * values, values + 0.1])

    def of(v: Tensor) -> Tensor:
        return P.factorize(v).slogdet().logabsdet

    expected = torch.stack([P.slogdet(row).logabsdet for row in batch])
    torch.testing.assert_close(vmap(of)(batch), expected)
    gradients = torch.stack([grad(lambda v: P.slogdet(v).logabsdet)(row) for row in batch])
    torch.testing.assert_close(vmap(grad(of))(batch), gradients)


def test_nested_forward_mode_is_refused() -> None:
    sparse, _, values = functions("general", torch.float64)
    with pytest.raises(ss.TransformError, match="nested forward mode"):
        jacfwd(jacfwd(lambda v: sparse(v).logabsdet))(values)


def test_batched_gradients_by_the_first_vmap() -> None:
    sparse, dense, values = functions("general", torch.float64)
    values.requires_grad_()
    bars = torch.randn(4, dtype=torch.float64)

    def rows(f: Callable[..., Any]) -> Tensor:
        first = torch.autograd.grad(f(values)[1], values, bars, is_grads_batched=True)[0]
        return first

    torch.testing.assert_close(rows(sparse), rows(dense))
    found = torch.autograd.functional.hessian(lambda v: sparse(v)[1], values, vectorize=True)
    expected = torch.autograd.functional.hessian(lambda v: dense(v)[1], values)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", DOUBLES)
@pytest.mark.parametrize("kind", ["general", "spd"])
def test_batches(kind: str, dtype: torch.dtype) -> None:
    P, values, _ = stored(matrix_of(kind, N, dtype), kind)
    many = torch.stack([values, 2 * values, 3j * values if dtype.is_complex else -values])
    many = many.view(3, 1, -1).requires_grad_()
    D = many.new_zeros(3, 1, N, N)
    D[..., P.rows, P.cols] = many
    weights = torch.randn(3, 1, dtype=torch.float64)
    (found,) = torch.autograd.grad((weights * as_real(P.slogdet(many))).sum(), many)
    expected = (weights * as_real(torch.linalg.slogdet(D))).sum()
    torch.testing.assert_close(found, torch.autograd.grad(expected, many)[0])
    assert gradgradcheck(lambda v: as_real(P.slogdet(v)), many)


@pytest.mark.parametrize("dtype", DOUBLES)
def test_batches_with_different_patterns(dtype: torch.dtype) -> None:
    kinds = ("general", "spd", "symmetric")
    D = torch.stack([matrix_of(kind, 70, dtype) for kind in kinds])
    weights = torch.randn(3, dtype=torch.float64)
    sparse = D.to_sparse().coalesce().requires_grad_()
    F = ss.factorize(sparse)
    # torch's sparse tensors can be differentiated once only, hence in the values themselves.
    values, indices = F._values, tuple(sparse.indices())

    def of(use_sparse: bool) -> Tensor:
        A = torch.zeros_like(D).index_put(indices, values)
        return (weights * as_real(F.slogdet() if use_sparse else torch.linalg.slogdet(A))).sum()

    for order in (1, 2):
        results = []
        for use_sparse in (True, False):
            (g,) = torch.autograd.grad(of(use_sparse), values, create_graph=order == 2)
            if order == 2:
                (g,) = torch.autograd.grad(g.abs().square().sum(), values)
            results.append(g)
        torch.testing.assert_close(*results)
    (of_values,) = torch.autograd.grad(of(True), values)
    (of_tensor,) = torch.autograd.grad(of(True), sparse)
    torch.testing.assert_close(of_tensor.coalesce().values(), of_values)


def test_duplicates_each_receive_the_gradient_of_their_place() -> None:
    P, values, _ = stored(matrix_of("general", N, torch.complex128), "general")
    twice = ss.Pattern(P.rows.repeat(2), P.cols.repeat(2), P.shape)
    shares = torch.cat((0.25 * values, 0.75 * values)).requires_grad_()
    values.requires_grad_()
    (expected,) = torch.autograd.grad(as_real(P.slogdet(values)), values)
    (found,) = torch.autograd.grad(as_real(twice.slogdet(shares)), shares)
    torch.testing.assert_close(found, expected.repeat(2))
    assert gradgradcheck(lambda v: as_real(twice.slogdet(v)), shares)


def test_an_entry_at_a_place_where_the_matrix_is_zero() -> None:
    D = torch.diag(torch.tensor([2.0, -3.0, 4.0], dtype=torch.float64))
    rows, cols = torch.tensor([0, 1, 2, 0, 2]), torch.tensor([0, 1, 2, 1, 0])
    P = ss.Pattern(rows, cols, (3, 3))
    values = D[rows, cols].requires_grad_()
    (found,) = torch.autograd.grad(P.slogdet(values).logabsdet, values)
    torch.testing.assert_close(found, torch.linalg.inv(D).mT[rows, cols])
    assert gradgradcheck(lambda v: P.slogdet(v).logabsdet, values)


def test_derivatives_of_large_matrices_are_refused() -> None:
    P, values, _ = stored(matrix_of("general", N, torch.float64), "general")
    values.requires_grad_()
    with pytest.raises(
        ss.OptionError, match=f"takes {N} solves.*max_solves={N - 1}: pass a larger"
    ):
        P.slogdet(values, max_solves=N - 1).logabsdet.backward()
    P.slogdet(values, max_solves=N).logabsdet.backward()
    F = P.factorize(values)
    assert F.slogdet(max_solves=0) == F.slogdet()
    (first,) = torch.autograd.grad(F.slogdet(max_solves=N).logabsdet, values, create_graph=True)
    with pytest.raises(ss.OptionError, match=f"takes {2 * N} solves"):
        first.sum().backward()
    direction = torch.ones_like(values)
    with pytest.raises(ss.OptionError, match=f"takes {N} solves"):
        jvp(lambda v: P.slogdet(v, max_solves=0).logabsdet, (values.detach(),), (direction,))


def test_the_default_limit_does_not_refuse_the_value() -> None:
    n = 10_001
    P = ss.Pattern(torch.arange(n), torch.arange(n).flip(0), (n, n))
    values = torch.full((n,), -1.5, dtype=torch.float64, requires_grad=True)
    sign, logabsdet = P.slogdet(values)
    # n // 2 exchanges, and n signs
    assert sign == (-1) ** (n // 2 + n)
    with pytest.raises(ss.OptionError, match="max_solves=10000"):
        logabsdet.backward()


def test_the_gradient_of_positive_definite_matrices_takes_no_solves() -> None:
    pytest.importorskip("numba")
    P, values = pattern_of(grid(25, 20))
    for assume in ("auto", "spd"):
        given = values.clone().requires_grad_()
        P.slogdet(given, assume=assume, max_solves=0).logabsdet.backward()
        expected = torch.linalg.inv(P.tensor(values).to_dense())[P.rows, P.cols]
        torch.testing.assert_close(given.grad, expected, rtol=1e-10, atol=0)


def test_without_numba(run_python: Callable[..., str]) -> None:
    script = """
import sys; sys.modules["numba"] = None
import torch, sparse_solver as ss
from gaussian.gaussian_cases import grid, pattern_of
for size in ((6, 5), (60, 50)):
    P, values = pattern_of(grid(*size))
    D = P.tensor(values).to_dense()
    expected = torch.linalg.inv(D)[P.rows, P.cols]
    for assume in ("auto", "spd"):
        given = values.clone().requires_grad_()
        sign, logabsdet = P.slogdet(given, assume=assume)
        torch.testing.assert_close(logabsdet, torch.logdet(D), rtol=1e-12, atol=0)
        logabsdet.backward()
        torch.testing.assert_close(given.grad, expected, rtol=1e-10, atol=1e-14)
        F = P.factorize(values, assume=assume)
        torch.testing.assert_close(F.slogdet().logabsdet, logabsdet, rtol=1e-12, atol=0)
try: P.logdet(values)
except ss.EngineUnavailableError: print("fine")
"""
    assert run_python(script).strip() == "fine"


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    "ignore::DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)
def test_under_compile() -> None:
    P, values, _ = stored(matrix_of("general", N, torch.float64), "general")
    values.requires_grad_()

    def of(v: Tensor) -> Tensor:
        return P.slogdet(2 * v).logabsdet * 3

    expected = torch.autograd.grad(of(values), values)[0]
    compiled = torch.compile(of, backend="eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(values), values)[0], expected)
    with pytest.raises(ss.TransformError):
        torch.jit.trace(of, (values.detach(),), check_trace=False)
