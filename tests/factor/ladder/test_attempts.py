"""Iterations that are tried before a matrix is factored: when, how long, and what follows."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import laplacian_places, laplacian_values, random_graph, rhs
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import sparse_solver as ss
from sparse_solver import _testing
from sparse_solver._engines import iterate_or_factor

F64 = torch.float64
Grant = Callable[[int], None]


@pytest.fixture
def grant(monkeypatch: pytest.MonkeyPatch) -> Grant:
    """A function that makes so many iterations affordable for all matrices."""

    def set_budget(budget: int) -> None:
        monkeypatch.setattr(iterate_or_factor, "choose_budget", lambda *known: budget)

    monkeypatch.setattr(iterate_or_factor, "_FEW_ROWS", 0)
    return set_budget


def make_graph(n: int = 60, seed: int = 0) -> tuple[ss.Pattern, int]:
    """A pattern that no other test uses at the same time, and its number of edges."""
    edges, _ = random_graph(n, 5, seed)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    P._structure._memory.clear()  # of earlier tests
    return P, edges.shape[1]


def values_of(P: ss.Pattern, edges: int, shift: float = 0.5, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(edges, dtype=F64, generator=g) + 0.5
    return laplacian_values(weights, P.shape[0], shift)


def truth(P: ss.Pattern, values: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.solve(P.tensor(values).to_dense(), b)


def test_the_seeds_graph_is_iterated_with_by_itself() -> None:
    n = 4000
    edges, _ = random_graph(n, 6)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    values, b = laplacian_values(torch.ones(edges.shape[1], dtype=F64), n), rhs(n, dtype=F64)
    F = P.factorize(values)
    x = F.solve(b)
    assert F.info.engine == "cg"
    assert F.info.assume == "spd"
    assert "iterations" in F.info.engine_reason
    assert F.info.iterations is not None
    # ‖A⁻¹‖ ≤ 1 in the largest norm, since A exceeds the identity by a Laplacian.
    assert (P.tensor(values) @ x - b).abs().max() <= 1e-13 * b.abs().max()


@pytest.mark.parametrize("assume", ["auto", "spd", "symmetric", "general"])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex128])
def test_only_real_positive_definite_matrices(
    grant: Grant, assume: Any, dtype: torch.dtype
) -> None:
    grant(10_000)
    P, edges = make_graph()
    values = values_of(P, edges).to(dtype)
    F = P.factorize(values, assume=assume)
    b = rhs(60, 3, dtype=dtype)
    torch.testing.assert_close(F.solve(b), truth(P, values, b))
    is_tried = assume in ("auto", "spd") and not dtype.is_complex
    assert (F.info.engine == "cg") == is_tried


def test_other_engines_by_name_are_not_preceded_by_iterations(grant: Grant) -> None:
    grant(10_000)
    P, edges = make_graph()
    for engine in _testing.installed_engines("spd"):
        assert P.factorize(values_of(P, edges), engine=engine).info.engine == engine


def test_batches_are_factored(grant: Grant) -> None:
    grant(10_000)
    P, edges = make_graph()
    values = torch.stack([values_of(P, edges, seed=seed) for seed in range(3)])
    assert P.factorize(values).info.engine != "cg"


def test_badly_scaled_matrices_are_factored(grant: Grant) -> None:
    grant(10_000)
    P, edges = make_graph()
    values = values_of(P, edges)
    scale = 10.0 ** torch.linspace(-9, 9, 60, dtype=F64)
    scaled = values * scale[P.rows] * scale[P.cols]
    assert P.factorize(scaled, assume="spd").info.engine != "cg"


def test_a_solve_that_takes_too_long_is_handed_to_a_factorisation(grant: Grant) -> None:
    grant(5)
    P, edges = make_graph()
    values, b = values_of(P, edges, 1e-3), rhs(60, 2, dtype=F64)
    F = P.factorize(values)
    assert F.info.engine == "cg"
    values.zero_()  # the caller's business
    again = values_of(P, edges, 1e-3)
    torch.testing.assert_close(F.solve(b), truth(P, again, b))
    info = F.info
    assert info.engine != "cg"
    assert "conjugate gradients" in info.method_reason
    assert "asked for" not in info.engine_reason
    assert info.iterations is None
    torch.testing.assert_close(F.solve(b, transpose=True), truth(P, again, b))


def test_all_right_hand_sides_of_all_solves_count(grant: Grant) -> None:
    P, edges = make_graph()
    values, b = values_of(P, edges), rhs(60, dtype=F64)
    one = P.factorize(values, engine="cg")
    one.solve(b)
    assert one.info.iterations is not None
    grant(3 * one.info.iterations + 2)
    F = P.factorize(values)
    engines = []
    for _ in range(5):
        torch.testing.assert_close(F.solve(b), truth(P, values, b))
        engines.append(F.info.engine)
    assert engines[:3] == ["cg"] * 3
    assert "cg" not in engines[3:]
    columns = rhs(60, 4, dtype=F64)
    F = P.factorize(values_of(P, edges, seed=2))
    torch.testing.assert_close(F.solve(columns), truth(P, values_of(P, edges, seed=2), columns))
    assert F.info.engine != "cg"


def test_the_gradient_may_come_from_a_factorisation(grant: Grant) -> None:
    P, edges = make_graph()
    b = rhs(60, dtype=F64)
    given = values_of(P, edges)
    one = P.factorize(given, engine="cg")
    one.solve(b)
    assert one.info.iterations is not None
    grant(one.info.iterations + 2)
    values = given.clone().requires_grad_()
    (P.solve(values, b) ** 2).sum().backward()
    dense = P.tensor(given).to_dense()
    x = torch.linalg.solve(dense, b)
    adjoint = torch.linalg.solve(dense, 2 * x)
    torch.testing.assert_close(values.grad, -adjoint[P.rows] * x[P.cols])


def count_attempts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of matrices that were examined, as the only element of a list."""
    from sparse_solver._engines.cg.engine import CgSymbolic

    counts, examine = [0], CgSymbolic.examine

    def counted(self: CgSymbolic, matrix: Any) -> Any:
        counts[0] += 1
        return examine(self, matrix)

    monkeypatch.setattr(CgSymbolic, "examine", counted)
    return counts


def test_what_failed_is_not_tried_at_every_step(
    grant: Grant, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant(5)
    counts = count_attempts(monkeypatch)
    P, edges = make_graph()
    b = rhs(60, dtype=F64)
    for step in range(60):
        values = values_of(P, edges, 1e-3, seed=step)
        torch.testing.assert_close(P.solve(values, b), truth(P, values, b))
    assert 1 <= counts[0] <= 4


def test_values_that_suit_better_are_found_after_some_steps(grant: Grant) -> None:
    grant(10_000)
    P, edges = make_graph()
    b = rhs(60, dtype=F64)
    indefinite_sums = values_of(P, edges)
    indefinite_sums[:60] -= 0.6  # not diagonally dominant, and still positive definite
    engines = []
    for step in range(40):
        values = indefinite_sums if step == 0 else values_of(P, edges, seed=step)
        F = P.factorize(values)
        torch.testing.assert_close(F.solve(b), truth(P, values, b), rtol=1e-6, atol=1e-8)
        engines.append(F.info.engine)
    assert engines[0] != "cg"
    assert engines[-1] == "cg"


def test_a_singular_matrix_is_recognised_by_a_factorisation(grant: Grant) -> None:
    grant(10_000)
    P, edges = make_graph()
    for assume in ("auto", "spd"):
        with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError)) as caught:
            P.factorize(values_of(P, edges, 0.0), assume=assume)  # type: ignore[arg-type]
        assert caught.value.engine != "cg"


def test_a_laplacian_with_a_fixed_vertex(grant: Grant) -> None:
    grant(10_000)
    P, edges = make_graph()
    values = values_of(P, edges, 0.0)
    values[7] = 1.0  # only one row is strictly dominant
    F = P.factorize(values)
    b = rhs(60, dtype=F64)
    torch.testing.assert_close(F.solve(b), truth(P, values, b))
    assert F.info.engine == "cg"
    assert "A v > 0" in str(F.info.proof)


def test_derivatives_of_both_orders(grant: Grant) -> None:
    grant(100_000)
    P, edges = make_graph(12)
    weights = (torch.rand(edges, dtype=F64) + 0.5).requires_grad_()
    b = rhs(12, 2, dtype=F64).requires_grad_()

    def solve(weights: Tensor, b: Tensor) -> Tensor:
        return P.solve(laplacian_values(weights, 12, 0.5), b)

    assert gradcheck(solve, (weights, b), check_forward_ad=True)
    assert gradgradcheck(solve, (weights, b))


def test_one_triangle(grant: Grant) -> None:
    grant(10_000)
    P, edges = make_graph()
    full = P.tensor(values_of(P, edges)).to_dense()
    F = ss.factorize(full.tril().to_sparse(), assume="spd", triangle="lower")
    b = rhs(60, dtype=F64)
    torch.testing.assert_close(F.solve(b), torch.linalg.solve(full, b))
    assert F.info.engine == "cg"


def test_threads_share_a_factor_that_is_replaced(grant: Grant) -> None:
    P, edges = make_graph()
    values = values_of(P, edges)
    grant(100)
    F = P.factorize(values)
    b = rhs(8, 60, dtype=F64)
    solutions: dict[int, Tensor] = {}

    def solve(k: int) -> None:
        for _ in range(5):
            solutions[k] = F.solve(b[k])

    threads = [threading.Thread(target=solve, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(8):
        torch.testing.assert_close(solutions[k], truth(P, values, b[k]))
    assert F.info.engine != "cg"


def test_right_hand_sides_that_are_not_finite(grant: Grant) -> None:
    grant(10_000)
    P, edges = make_graph()
    F = P.factorize(values_of(P, edges))
    b = rhs(60, dtype=F64)
    b[3] = torch.nan
    with pytest.raises(ss.NonFiniteError):
        F.solve(b)
    assert F.info.engine == "cg"


def test_a_factorisation_is_copied_with_its_values(grant: Grant) -> None:
    grant(10_000)
    P, edges = make_graph()
    F = P.factorize(values_of(P, edges))
    again = pickle.loads(pickle.dumps(F))
    b = rhs(60, dtype=F64)
    torch.testing.assert_close(again.solve(b), F.solve(b))
    assert again.info.engine == "cg"
