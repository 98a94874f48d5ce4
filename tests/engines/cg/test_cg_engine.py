"""Conjugate gradients as an engine: accuracy, right-hand sides, batches, derivatives and errors."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
import torch
from problems import grid, laplacian_places, laplacian_values, rhs
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import sparse_solver as ss
from sparse_solver._engines.cg import factor as cg_factor
from sparse_solver._testing import engine_factors

F64 = torch.float64
CG: dict[str, Any] = {"assume": "spd", "engine": "cg"}


def edges_of(name: str, seed: int = 0) -> tuple[Tensor, int]:
    """The edges and the number of nodes of a graph."""
    g = torch.Generator().manual_seed(seed)
    if name == "grid":
        return grid(9)
    n = 80
    i = torch.arange(n)
    if name == "chain":
        return torch.stack([i[:-1], i[1:]]), n
    if name == "star":
        return torch.stack([torch.zeros_like(i[1:]), i[1:]]), n
    if name == "pairs":  # disconnected
        return torch.stack([i[::2], i[1::2]]), n
    edges = torch.stack([i.repeat(6), torch.randint(n, (6 * n,), generator=g)])
    return edges[:, edges[0] != edges[1]], n


def system(name: str, shift: float = 1.0) -> tuple[ss.Pattern, Tensor, Tensor]:
    """The pattern, the values, and the dense matrix, of I · shift + L."""
    edges, n = edges_of(name)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    values = laplacian_values(torch.rand(edges.shape[1], dtype=F64) + 0.1, n, shift)
    return P, values, P.tensor(values).to_dense()


def error_of(x: Tensor, dense: Tensor, b: Tensor) -> float:
    """The forward error, in ε times the condition number."""
    truth = torch.linalg.solve(dense.double(), b.double())
    error = (x.double() - truth).norm() / truth.norm()
    return float(error / torch.linalg.cond(dense.double()) / torch.finfo(x.dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("shift", [1.0, 1e-3])
@pytest.mark.parametrize("name", ["grid", "chain", "star", "pairs", "random"])
def test_graphs(name: str, shift: float, dtype: torch.dtype) -> None:
    P, values, _ = system(name, shift)
    values = values.to(dtype)
    b = rhs(P.shape[0], 2, dtype=dtype)
    F = P.factorize(values, **CG)
    assert error_of(F.solve(b), P.tensor(values.double()).to_dense(), b) < 2
    info = F.info
    assert info.backward_error is not None
    assert info.backward_error <= (5 if name == "star" else 2) * torch.finfo(dtype).eps
    assert info.iterations is not None
    assert 0 < info.iterations < 500


@pytest.mark.parametrize("power", [1, 10, 100])
def test_units_of_any_size(power: int) -> None:
    P, values, dense = system("random", 0.1)
    n = P.shape[0]
    D = 10.0 ** (power * (2 * torch.rand(n, dtype=F64) - 1))
    scaled = values * D[P.rows] * D[P.cols]
    b = rhs(n, dtype=F64)
    x = P.solve(scaled, D * b, **CG)
    assert error_of(D * x, dense, b) < 10


def test_right_hand_sides_of_any_size_and_number() -> None:
    P, values, dense = system("random")
    n = P.shape[0]
    F = P.factorize(values, **CG)
    assert F.solve(torch.empty(n, 0, dtype=F64)).shape == (n, 0)
    b = rhs(n, 33, dtype=F64) * torch.logspace(-290, 290, 33, dtype=F64)
    b[:, 7] = 0
    x = F.solve(b)
    assert not x[:, 7].any()
    for column in (0, 1, 16, 32):
        size = b[:, column].abs().amax()
        assert error_of(x[:, column] / size, dense, b[:, column] / size) < 1
        alone = F.solve(b[:, column]) / size
        torch.testing.assert_close(alone, x[:, column] / size, rtol=1e-13, atol=1e-14)
    strided = b[:, 16:17].expand(n, 3)[:, 1]
    assert error_of(F.solve(strided, transpose=True), dense.mT, b[:, 16]) < 1


def test_zeros_take_no_iterations() -> None:
    P, values, _ = system("grid")
    F = P.factorize(values, **CG)
    assert F.info.iterations is None
    assert not F.solve(torch.zeros(P.shape[0], dtype=F64)).any()
    assert F.info.iterations == 0


def test_a_hard_block_of_a_batch_leaves_the_others_as_accurate() -> None:
    P, easy, _ = system("chain", 10.0)
    edges, n = edges_of("chain")
    hard = laplacian_values(torch.ones(edges.shape[1], dtype=F64), n, 1e-5)
    values = torch.stack((easy, hard, 3 * easy, 1e150 * easy))
    b = rhs(4, n, 2, dtype=F64)
    F = P.factorize(values, **CG)
    x = F.solve(b)
    for k in range(4):
        assert error_of(x[k], P.tensor(values[k]).to_dense(), b[k]) < 1
    assert F.info.proof is not None


def test_a_singular_block_of_a_batch_is_found() -> None:
    P, easy, _ = system("chain", 10.0)
    edges, n = edges_of("chain")
    free = laplacian_values(torch.ones(edges.shape[1], dtype=F64), n, 0.0)
    with pytest.raises(ss.SingularMatrixError):
        P.factorize(torch.stack((easy, free, easy)), **CG)


@pytest.mark.parametrize("n", [0, 1])
def test_the_smallest_matrices(n: int) -> None:
    A = (4 * torch.eye(n, dtype=F64)).to_sparse()
    b = rhs(n, 2, dtype=F64)
    assert torch.equal(ss.solve(A, b, **CG), b / 4)


def test_derivatives_of_both_orders() -> None:
    edges, n = grid(3)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    w = (torch.rand(edges.shape[1], dtype=F64) + 0.5).requires_grad_()
    b = rhs(n, 2, dtype=F64).requires_grad_()

    def solve(w: Tensor, b: Tensor) -> Tensor:
        return P.solve(laplacian_values(w, n, 0.5), b, **CG)

    assert gradcheck(solve, (w, b), check_forward_ad=True)
    assert gradgradcheck(solve, (w, b))


def test_gradients_are_as_accurate_as_those_of_dense_torch() -> None:
    P, values, _ = system("random", 1e-3)
    b = rhs(P.shape[0], dtype=F64)
    leaf = values.clone().requires_grad_()
    (mine,) = torch.autograd.grad(P.solve(leaf, b, **CG).square().sum(), leaf)
    other = values.clone().requires_grad_()
    x = torch.linalg.solve(P.tensor(other).to_dense(), b)
    (expected,) = torch.autograd.grad(x.square().sum(), other)
    torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))


def test_rules_for_numbers_that_are_not_finite() -> None:
    P, values, _ = system("grid")
    n = P.shape[0]
    b = torch.ones(n, 2, dtype=F64, requires_grad=True)
    x = P.solve(values, b, **CG)
    gradient = torch.ones_like(x)
    gradient[3, 1] = float("nan")
    (b_bar,) = torch.autograd.grad(x, b, gradient)
    assert b_bar[:, 1].isnan().all()
    assert b_bar[:, 0].isfinite().all()
    with pytest.raises(ss.NonFiniteError, match="b"):
        P.solve(values, gradient, **CG)
    with pytest.raises(ss.NonFiniteError, match="values"):
        P.solve(values * float("inf"), b, **CG)
    with pytest.raises(ss.NonFiniteError, match="too large"):
        P.solve(values * 1e-300, b * 1e300, **CG)


def test_other_kinds_and_dtypes_are_refused() -> None:
    A = torch.eye(3, dtype=torch.complex128).to_sparse()
    with pytest.raises(ss.EngineUnsupportedError, match="cannot factor"):
        ss.factorize(A, **CG)
    with pytest.raises(ss.EngineUnsupportedError, match="cannot factor"):
        ss.factorize(torch.eye(3).to_sparse(), assume="general", engine="cg")


def test_an_ill_conditioned_matrix_raises_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    P, values, _ = system("chain", 1e-4)
    b = rhs(P.shape[0], dtype=F64)
    F = P.factorize(values, **CG)
    F.solve(b)
    factor: Any = engine_factors(F)[0]
    factor._goal = factor._goal._replace(limit=20)
    with pytest.raises(ss.ConvergenceError, match="an engine that factors") as caught:
        F.solve(b)
    assert caught.value.iterations == 20
    assert caught.value.residual is not None
    assert caught.value.residual > 1e-16
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.iterations, str(again)) == (20, str(caught.value))
    monkeypatch.setattr(cg_factor, "most_iterations", lambda n: 5)
    with pytest.raises(ss.ConvergenceError, match="not singular"):
        P.factorize(laplacian_values(torch.ones(79, dtype=F64), 80, 1e-9), **CG)


def test_the_caller_may_overwrite_values_and_threads_may_share_a_factor() -> None:
    P, values, dense = system("random")
    F = P.factorize(values, **CG)
    values.zero_()
    b = rhs(4, P.shape[0], dtype=F64)
    found: dict[int, Tensor] = {}

    def work(k: int) -> None:
        for _ in range(5):
            found[k] = F.solve(b[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        assert error_of(found[k], dense, b[k]) < 1


def test_what_is_known_about_a_solve_is_printed() -> None:
    P, values, _ = system("grid")
    F = P.factorize(values, **CG)
    F.solve(rhs(P.shape[0], dtype=F64))
    lines = str(F.info).splitlines()
    for name in ("iterations", "backward_error", "proof"):
        assert any(line.startswith(f"{name} ") for line in lines)
    direct = P.factorize(values, assume="spd").info
    assert (direct.iterations, direct.backward_error, direct.proof) == (None, None, None)
    assert "proof" not in str(direct)


def test_it_is_not_chosen_by_itself() -> None:
    P, values, _ = system("random")
    assert P.factorize(values, assume="spd").info.engine != "cg"
