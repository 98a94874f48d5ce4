"""Whether to iterate or to factor, as a function of what is known before either."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import grid, laplacian_places, laplacian_values, random_graph, rhs

import sparse_solver as ss
from sparse_solver._engines import iterate_or_factor
from sparse_solver._engines.analysis import Analyses
from sparse_solver._engines.cg.attempt import bound_iterations, iteration_cost
from sparse_solver._engines.iterate_or_factor import (
    choose_budget,
    estimate_cost,
    expect_iterations,
    find_iterations,
    may_iterate,
)
from sparse_solver._engines.select import direct_cost
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import Structure

F64 = torch.float64
EPS = 2.0**-52


@pytest.mark.parametrize(
    ("expected", "affordable", "budget"),
    [(100.0, 199.0, 0), (100.0, 200.5, 200), (math.inf, 1e9, 0)],
)
def test_iterations_are_tried_where_two_solves_cost_less(
    expected: float, affordable: float, budget: int
) -> None:
    assert choose_budget(expected, affordable) == budget


def cube(side: int) -> tuple[torch.Tensor, int]:
    node = torch.arange(side**3).view(side, side, side)
    pairs = [
        torch.stack((node.narrow(k, 0, side - 1), node.narrow(k, 1, side - 1))).flatten(1)
        for k in range(3)
    ]
    return torch.cat(pairs, 1), side**3


@pytest.mark.parametrize("side", [8, 20])
def test_the_expected_iterations_are_those_of_a_grid_with_a_small_shift(side: int) -> None:
    edges, n = cube(side)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    F = P.factorize(laplacian_values(torch.ones(edges.shape[1], dtype=F64), n, 1e-6), engine="cg")
    F.solve(rhs(n, dtype=F64))
    assert F.info.iterations is not None
    assert 0.5 < expect_iterations(P._structure) / F.info.iterations < 2


def test_the_bound_holds_for_all_margins() -> None:
    for margin in (1e-8, 1e-3, 0.1, 0.9, 1.0):
        kappa = (2 - margin) / margin
        count = math.ceil(bound_iterations(margin, EPS))
        rho = (math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)
        assert 2 * math.sqrt(kappa) * rho**count <= EPS / 4
    assert bound_iterations(0.0, EPS) == bound_iterations(-1.0, EPS) == math.inf
    assert bound_iterations(0.1, 2.0**-23) < bound_iterations(0.1, EPS)


def structure(edges: torch.Tensor, n: int) -> Structure:
    return Structure(*laplacian_places(edges, n), (n, n))


def laplacian_matrix(edges: torch.Tensor, n: int, shift: float, dtype: torch.dtype = F64) -> Matrix:
    weights = torch.ones(edges.shape[1], dtype=dtype)
    return Matrix(structure(edges, n), laplacian_values(weights, n, shift))


def test_patterns_without_fill_are_never_iterated_with() -> None:
    i = torch.arange(1000)
    assert not may_iterate(structure(torch.stack((i[:-1], i[1:])), 1000), None)
    assert not may_iterate(structure(*grid(17)), None)  # 289 rows
    assert may_iterate(structure(*grid(30)), None)
    whole = structure(*grid(30))
    kept = whole.canonical_rows >= whole.col
    lower = Structure(whole.canonical_rows[kept], whole.col[kept], whole.shape)
    assert may_iterate(lower, "lower")
    assert not may_iterate(lower, None)


def test_random_graphs_are_iterated_with_and_not_even_analysed(monkeypatch: Any) -> None:
    monkeypatch.setattr(iterate_or_factor, "_predict_cost", None)  # cannot be called
    matrix = laplacian_matrix(*random_graph(6000, 6), 1.0)
    found = find_iterations(matrix, None)
    assert found is not None
    assert found.engine == "cg"
    assert "by diagonal dominance" in found.reason
    analyses = matrix.structure.remember(Analyses)
    assert [engine for engine, _ in analyses._symbolic] == ["cg"]


@pytest.mark.parametrize("shift", [1.0, 1e-4])
def test_small_grids_are_factored(shift: float) -> None:
    assert find_iterations(laplacian_matrix(*grid(60), shift), None) is None


def test_matrices_that_are_not_dominant_are_factored() -> None:
    edges, n = random_graph(6000, 6)
    matrix = laplacian_matrix(edges, n, 1.0)
    values = matrix.values.clone()
    values[:n] = -0.5  # the rows sum to less than zero
    assert find_iterations(Matrix(matrix.structure, values), None) is None


def test_whatever_the_bound_is_an_expensive_factorisation_is_preceded_by_a_try() -> None:
    edges, n = random_graph(6000, 6)
    found = find_iterations(laplacian_matrix(edges, n, 0.0), None)  # even a singular matrix
    assert found is not None
    assert "the graph suggests" in found.reason


def test_the_estimate_needs_no_analysis_and_has_the_right_order() -> None:
    """Of the cost that follows from the entries of the factor, for grids."""
    for side in (40, 100):
        made = structure(*grid(side))
        estimate = estimate_cost(made, F64)
        fill = 31 * side**2 * math.log2(side) / 10  # nested dissection, George 1973
        assert 1 / 5 < estimate / direct_cost("pardiso", side**2, fill, single=False) < 5
        assert estimate_cost(made, torch.float32) == estimate / 2
    assert iteration_cost(100, 500) < iteration_cost(200, 1000)
