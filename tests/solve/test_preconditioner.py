"""Conjugate gradients preconditioned by the factorisation of another matrix."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from problems import laplacian, laplacian_values, problem, rhs
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import sparse_solver as ss

F64 = torch.float64
P, EDGES, N = laplacian(12)


def values_of(seed: int, shift: float = 0.1, change: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    weights = 1 + change * (torch.rand(EDGES.shape[1], dtype=F64, generator=g) - 0.5)
    return laplacian_values(weights, N, shift)


def truth(values: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(P.tensor(values).to_dense(), b)


@pytest.mark.parametrize(
    ("shift", "dtype"), [(1.0, torch.float32), (1e-3, torch.float32), (1e-3, F64), (1e-6, F64)]
)
def test_older_values(shift: float, dtype: torch.dtype) -> None:
    F = P.factorize(values_of(0, shift).to(dtype))
    values, b = values_of(1, shift).to(dtype), rhs(N, 3, dtype=dtype)
    G = P.factorize(values, preconditioner=F)
    exact = truth(values.double(), b.double())
    limit = 10 / shift * torch.finfo(dtype).eps
    for x in (G.solve(b), G.solve(b, transpose=True), P.solve(values, b, preconditioner=F)):
        assert float((x - exact).norm() / exact.norm()) < limit
    info = G.info
    assert info.method == "conjugate gradients preconditioned by a factorisation"
    assert info.iterations is not None
    assert info.iterations <= 40
    assert info.proof is not None


def test_a_factorisation_in_single_precision_and_one_of_the_matrix_itself() -> None:
    values, b = values_of(0, 1e-3), rhs(N, dtype=F64)
    for F, most in ((P.factorize(values), 3), (P.factorize(values.float()), 8)):
        G = P.factorize(values, preconditioner=F)
        torch.testing.assert_close(G.solve(b), truth(values, b))
        assert G.info.iterations is not None
        assert G.info.iterations <= most


def test_other_patterns_and_the_calls_with_tensors() -> None:
    values, b = values_of(0), rhs(N, dtype=F64)
    A = P.tensor(values)
    diagonal = torch.diag(A.to_dense().diagonal()).to_sparse()
    F = ss.factorize(diagonal)
    torch.testing.assert_close(ss.solve(A, b, preconditioner=F), truth(values, b))
    G = ss.factorize(A.to_sparse_csr(), preconditioner=F, assume="spd")
    torch.testing.assert_close(G.solve(b), truth(values, b))


@pytest.mark.parametrize("of", ["general", "indefinite", "negative", "tiny", "huge"])
def test_useless_preconditioners_do_no_harm(of: str) -> None:
    values, b = values_of(0, 1e-3), rhs(N, 2, dtype=F64)
    F = {
        "general": lambda: ss.factorize(problem("general", F64, N).dense.to_sparse()),
        "indefinite": lambda: ss.factorize(problem("symmetric", F64, N).dense.to_sparse()),
        "negative": lambda: P.factorize(-values),
        "tiny": lambda: P.factorize(1e-290 * values),
        "huge": lambda: P.factorize(1e290 * values),
    }[of]()
    torch.testing.assert_close(P.solve(values, b, preconditioner=F), truth(values, b))
    G = P.factorize(values, preconditioner=F)
    torch.testing.assert_close(G.solve(b), truth(values, b))
    torch.testing.assert_close(G.solve(b), truth(values, b))


def test_where_it_does_not_converge_a_factorisation_follows_unless_cg_is_asked_for() -> None:
    F = ss.factorize(torch.eye(N, dtype=F64).to_sparse())
    scale = 10.0 ** torch.linspace(-3, 3, N, dtype=F64)
    values = values_of(0, 1e-4) * scale[P.rows] * scale[P.cols]
    b = scale * rhs(N, dtype=F64)
    G = P.factorize(values, preconditioner=F)
    unscaled = truth(values_of(0, 1e-4), b / scale)
    torch.testing.assert_close(G.solve(b) * scale, unscaled, rtol=1e-6, atol=1e-8)
    assert G.info.engine != "cg"
    assert "conjugate gradients" in G.info.method_reason
    with pytest.raises(ss.ConvergenceError):
        P.solve(values, b, preconditioner=F, engine="cg")


def test_matrices_that_are_not_positive_definite() -> None:
    F, b = P.factorize(values_of(0)), rhs(N, dtype=F64)
    indefinite = values_of(1)
    indefinite[:N] -= 2.0
    torch.testing.assert_close(P.solve(indefinite, b, preconditioner=F), truth(indefinite, b))
    with pytest.raises(ss.NotPositiveDefiniteError):
        P.solve(indefinite, b, preconditioner=F, assume="spd")
    singular = values_of(1, 0.0)
    for assume in ("auto", "spd"):
        with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError)):
            P.solve(singular, b, preconditioner=F, assume=assume)  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [1e-9, 1e-12, 1e-14])
def test_nearly_singular_matrices(shift: float) -> None:
    """As accurate as a factorisation, or refused; never a wrong solution."""
    F, values, b = P.factorize(values_of(0)), values_of(1, shift), rhs(N, dtype=F64)
    expected = torch.linalg.solve(P.tensor(values).to_dense(), b)
    x = P.solve(values, b, preconditioner=F)
    assert float((x - expected).norm() / expected.norm()) < 1e-14 / shift


def test_derivatives_of_both_orders() -> None:
    small, edges, n = laplacian(3)
    F = small.factorize(laplacian_values(torch.ones(edges.shape[1], dtype=F64), n, 0.5))
    weights = (torch.rand(edges.shape[1], dtype=F64) + 0.5).requires_grad_()
    b = rhs(n, 2, dtype=F64).requires_grad_()

    def solve(weights: Tensor, b: Tensor) -> Tensor:
        return small.solve(laplacian_values(weights, n, 0.5), b, preconditioner=F)

    assert gradcheck(solve, (weights, b), check_forward_ad=True)
    assert gradgradcheck(solve, (weights, b))


def test_a_preconditioner_that_requires_gradients_receives_none() -> None:
    old = values_of(0).requires_grad_()
    F, values, b = P.factorize(old), values_of(1).requires_grad_(), rhs(N, dtype=F64)
    P.solve(values, b, preconditioner=F).sum().backward()
    assert old.grad is None
    assert values.grad is not None


def test_batches_and_transforms() -> None:
    F, b = P.factorize(values_of(0)), rhs(N, dtype=F64)
    values = torch.stack([values_of(seed) * 10.0**seed for seed in range(1, 5)])
    expected = torch.stack([truth(each, b) for each in values])
    torch.testing.assert_close(P.solve(values, b, preconditioner=F), expected)
    mapped = torch.func.vmap(lambda v: P.solve(v, b, preconditioner=F))(values)
    torch.testing.assert_close(mapped, expected)
    A = torch.stack([P.tensor(each) for each in values])
    torch.testing.assert_close(ss.solve(A, b, preconditioner=F), expected)

    def loss(v: Tensor, **options: Any) -> Tensor:
        return P.solve(v, b, **options).square().sum()

    gradient = torch.func.grad(lambda v: loss(v, preconditioner=F))(values[0])
    torch.testing.assert_close(gradient, torch.func.grad(loss)(values[0]))


def test_one_triangle() -> None:
    values, b = values_of(1), rhs(N, dtype=F64)
    lower = P.tensor(values).to_dense().tril().to_sparse()
    F = P.factorize(values_of(0))
    x = ss.solve(lower, b, triangle="lower", assume="spd", preconditioner=F)
    torch.testing.assert_close(x, truth(values, b))


def test_the_preconditioner_is_not_kept_alive() -> None:
    F, b = P.factorize(values_of(0)), rhs(N, dtype=F64)
    P.solve(values_of(1), b, preconditioner=F)
    factors = weakref.ref(F._factors)
    del F
    gc.collect()
    assert factors() is None


def test_copies_are_factorisations_of_the_same_values() -> None:
    b = rhs(N, dtype=F64)
    G = P.factorize(values_of(1), preconditioner=P.factorize(values_of(0)))
    again = pickle.loads(pickle.dumps(G))
    torch.testing.assert_close(again.solve(b), G.solve(b))
    assert G.solve(b, transpose=True).shape == b.shape


EYE = torch.eye(4, dtype=F64).to_sparse()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preconditioner": torch.eye(4)}, ss.OptionError, "expected a Factorization"),
        ({"preconditioner": ss.factorize(EYE), "engine": "superlu"}, ss.OptionError, "superlu"),
        ({"preconditioner": ss.factorize(EYE), "assume": "general"}, ss.OptionError, "general"),
        ({"preconditioner": ss.factorize(EYE), "precision": "mixed"}, ss.OptionError, "mixed"),
        ({"preconditioner": ss.factorize(torch.stack((EYE, EYE)))}, ss.ShapeError, "of one matrix"),
        (
            {"preconditioner": ss.factorize(torch.eye(5, dtype=F64).to_sparse())},
            ss.ShapeError,
            "has 5 rows, the matrix has 4",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ss.solve(EYE, torch.ones(4, dtype=F64), **options)
    with pytest.raises(error, match=message):
        ss.factorize(EYE, **options)


def test_complex_matrices_are_refused_and_compiled_graphs_break() -> None:
    F = ss.factorize(EYE)
    with pytest.raises(ss.OptionError, match="complex128"):
        ss.solve(EYE.to(torch.complex128), torch.ones(4).cdouble(), preconditioner=F)
    pattern = ss.Pattern.from_tensor(EYE)

    def solve(values: Tensor) -> Tensor:
        return pattern.solve(values, torch.ones(4, dtype=F64), preconditioner=F)

    ones = torch.ones(4, dtype=F64)
    torch.testing.assert_close(torch.compile(solve, backend="aot_eager")(ones), ones)  # breaks
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"TransformError|preconditioner="):
        torch.compile(solve, backend="aot_eager", fullgraph=True)(ones)
