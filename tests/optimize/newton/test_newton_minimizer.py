"""Newton's method finds minima to rounding errors, and reports where there are none."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from counting import count
from torch import Tensor

import sparse_solver as ss
from tests.optimize.sample_energies import (
    EDGES,
    FIXED,
    NODES,
    REST,
    N,
    constants,
    is_minimum,
    pair,
    scalar,
    spring,
    structure,
    tether,
)


@pytest.mark.parametrize("project", [True, "zero", "absolute", False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finds_minima(dtype: torch.dtype, project: Any) -> None:
    energy = structure(*constants(dtype))
    x0 = REST.to(dtype) + torch.randn(2 * N, 2, dtype=dtype) / 2
    X, report = ss.minimize(energy, x0, fixed=FIXED, project=project)
    assert is_minimum(energy, X, FIXED, 1e-4 if dtype == torch.float32 else 1e-9)
    assert torch.equal(X[FIXED], x0[FIXED])
    assert X.dtype == dtype
    assert report.converged
    assert report.unique
    assert report.iterations[-1].step == 0
    assert report.iterations[-1].matrix == "true"
    energies = [iteration.objective for iteration in report.iterations]
    assert all(b <= a + 1e-6 * abs(a) for a, b in itertools.pairwise(energies))
    assert math.isclose(report.objective, float(energy(X)), rel_tol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_units_do_not_matter(scale: float, size: float) -> None:
    k, l, rest, _ = constants()
    energy = scale * ss.IndexedSum(spring, EDGES, per_term=(k, l * size)) + scale * ss.IndexedSum(
        lambda x, rest: 0.3 * (x - rest).square().sum(), NODES, per_variable=rest * size
    )
    x0 = size * (REST + torch.randn(2 * N, 2, dtype=torch.double) / 3)
    X, _ = ss.minimize(energy, x0, fixed=FIXED)
    plain = ss.IndexedSum(spring, EDGES, per_term=(k, l)) + ss.IndexedSum(
        lambda x, rest: 0.3 * (x - rest).square().sum(), NODES, per_variable=rest
    )
    expected, _ = ss.minimize(plain, x0 / size, fixed=FIXED)
    assert torch.allclose(X / size, expected, atol=1e-9)


def test_a_quadratic_energy_takes_one_step() -> None:
    n = 50
    energy = ss.IndexedSum(
        lambda x: (x[1] - x[0]) ** 2 / 2, torch.stack((torch.arange(n - 1), torch.arange(1, n)), 1)
    )
    x0 = torch.zeros(n, dtype=torch.double)
    x0[-1] = 1
    x, report = ss.minimize(energy, x0, fixed=torch.tensor([0, n - 1]))
    assert torch.allclose(x, torch.linspace(0, 1, n, dtype=torch.double))
    assert [iteration.step for iteration in report.iterations] == [1, 0]


def test_one_analysis_and_one_factorisation_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = count(monkeypatch)
    k, l, rest, _ = constants()
    k.requires_grad_()
    energy = structure(k, l, rest)
    x0 = ss.minimize(energy, REST, fixed=FIXED)[0].detach() * 1.1
    ss.clear_cache()
    counts.clear()
    X, report = ss.minimize(structure(k, l, rest), x0, fixed=FIXED)
    assert report.fallbacks == 0
    assert len(report.iterations) > 2
    assert counts["analyze"] <= 2  # QDLDL counts fill before it is chosen
    analyses = counts["analyze"]
    assert counts["factor"] == report.factorizations == len(report.iterations)
    counts["solve"] = 0
    X.square().sum().backward()
    assert counts["solve"] == 1
    assert counts["factor"] == len(report.iterations)
    ss.minimize(
        structure(k, 1.1 * l, rest), X.detach(), fixed=FIXED
    )  # new energies of the same places
    assert counts["analyze"] == analyses


def test_no_progress_can_be_made_at_the_minimum() -> None:
    energy = structure(*constants())
    X, _ = ss.minimize(energy, REST, fixed=FIXED)
    for _ in range(3):
        again, report = ss.minimize(energy, X, fixed=FIXED)
        assert report.converged
        assert len(report.iterations) <= 3
        assert torch.allclose(again, X, atol=1e-12)
        X = again


def test_minima_are_found_to_rounding_errors_from_anywhere() -> None:
    """Rounding errors of the energy, which stop its decrease early, do not stop the iteration."""
    energy = structure(*constants()) + ss.IndexedSum(
        lambda x, c: c * x.sum(), NODES, per_term=torch.linspace(-3, 3, 2 * N).double()
    )
    exact, _ = ss.minimize(energy, REST)
    for distance in (1e-2, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-12):
        for _ in range(5):
            X, _ = ss.minimize(energy, exact + distance * torch.randn(2 * N, 2))
            assert energy.gradient(X).abs().max() < max(1e-12, 1e-9 * distance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("energy", "x0", "minimum", "options"),
    [
        (
            scalar(lambda x: 4 * (x**-12 - x**-6)),
            [0.1],
            [2 ** (1 / 6)],
            {},
        ),  # from where it is 10¹²
        (scalar(lambda x: torch.exp(x) - x), [40.0], [0.0], {}),
        (scalar(lambda x: x**4), [1.0], [0.0], {}),  # linear convergence to a degenerate minimum
        (scalar(lambda x: (x**3 - 2) ** 2), [2 ** (1 / 3)], [2 ** (1 / 3)], {}),  # at the minimum
        (
            scalar(lambda x: 1e3 + (x - 1) ** 2 / 2),
            [0.96],
            [1.0],
            {"largest_step": lambda x, d: 0.3},
        ),
        (scalar(lambda x: 1e6 + x - torch.log(x)), [3.0], [1.0], {}),
        (
            scalar(lambda x: 1e6 - x - 0.01 * torch.log(1 - x)),
            [0.5],
            [0.99],
            {},
        ),  # the whole step leads to where it is NaN
        (scalar(lambda x: (x**2 - 1) ** 2), [1e-6], [1.0], {}),
        (scalar(lambda x: 100 + (x**2 - 1) ** 2), [1e-4], [1.0], {}),
        # As slender beams buckle: a negative curvature that is weak beside the positive one.
        (
            pair(lambda x, y: (x - 1) ** 2 / 2 - 1e-4 * y**2 + 1e-4 * y**4),
            [0.0, 0.01],
            [1.0, 0.5**0.5],
            {},
        ),
        (
            pair(lambda x, y: (x - 1) ** 2 / 2 - 1e-4 * y**2 + 1e-4 * y**4),
            [1.0, 0.0],
            [1.0, 0.5**0.5],
            {},
        ),
        (pair(lambda x, y: x**2 - y**2 + y**4), [1.0, 0.0], [0.0, 0.5**0.5], {}),
        (pair(lambda x, y: x**2 - 1e-3 * y**2 + y**4), [1.0, 0.0], [0.0, 5e-4**0.5], {}),
    ],
)
def test_difficult_minima(
    energy: ss.IndexedSum,
    x0: list[float],
    minimum: list[float],
    options: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    for scale in (1.0, 1e-6):
        x, report = ss.minimize(scale * energy, torch.tensor(x0, dtype=dtype), **options)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-7
        assert torch.allclose(
            x.abs(), torch.tensor(minimum, dtype=dtype), atol=tolerance, rtol=tolerance
        ), report
        assert report.unique


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("energy", "x0"),
    [
        (scalar(lambda x: x - torch.log(1 - x)), [0.5]),  # unbounded
        (scalar(lambda x: -torch.sqrt(1 + x**2)), [0.5]),
        (scalar(lambda x: 2 * x + torch.sqrt(1 + x**2)), [0.5]),
        (scalar(lambda x: torch.exp(-x) + 1 / x), [1e-2]),  # its infimum is none of its values
        (scalar(lambda x: x**3), [1.0]),  # inflections
        (pair(lambda x, y: x**2 + y**3), [1.0, 1.0]),
        (pair(lambda x, y: x**3 + (y - 2) ** 2), [0.5, 0.0]),
        (scalar(lambda x: -(x**4)), [0.0]),
        (scalar(lambda x: x**3), [0.0]),
        (pair(lambda x, y: x**2 / 2 - 5e-5 * y**2), [0.0, 0.0]),
        (pair(lambda x, y: x**2 / 2 - 5e-5 * y**2), [1.0, 1e-3]),
        # Value, gradient and Hessian underflow, or drown in rounding errors.
        (scalar(lambda x: -torch.log(x)), [1.0]),
        (scalar(lambda x: torch.exp(-x)), [0.0]),
        (scalar(lambda x: 1 + torch.exp(-x)), [5.0]),
        (scalar(lambda x: x**-20), [0.5]),
        (scalar(lambda x: 1e-30 * x), [1.0]),
        (scalar(torch.sigmoid), [0.0]),
        (scalar(lambda x: torch.exp(-(x**2))), [0.1]),
        (pair(lambda x, y: torch.exp(-x) + 1e3 * (x + y) ** 2), [0.0, 1.0]),
        (pair(lambda x, y: 1 + torch.exp(y - x) + (x + y) ** 2), [3.0, 0.0]),
        (pair(lambda x, y: torch.exp(-(x**2)) + (y - 1) ** 2), [1.0, 0.0]),
        (pair(lambda x, y: y**2 - torch.log(x)), [1.0, 1.0]),
    ],
)
def test_energies_without_a_minimum(
    energy: ss.IndexedSum, x0: list[float], dtype: torch.dtype
) -> None:
    for project in (True, False) if dtype == torch.float64 else (True,):
        with pytest.raises(ss.ConvergenceError):
            ss.minimize(energy, torch.tensor(x0, dtype=dtype), project=project)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("fixed", [None, torch.arange(4)])
def test_structures_at_rest(offset: float, fixed: Tensor | None) -> None:
    """The energy is zero up to the rounding errors of positions, at any distance."""
    at = torch.arange(16).reshape(4, 4)
    pairs = ((at[1:], at[:-1]), (at[:, 1:], at[:, :-1]), (at[1:, 1:], at[:-1, :-1]))
    edges = torch.cat([torch.stack((a.reshape(-1), b.reshape(-1)), 1) for a, b in pairs])
    grid = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"), -1).reshape(
        -1, 2
    )
    for _ in range(5):
        rest = grid + 0.2 * torch.rand(16, 2, dtype=torch.double) + offset
        lengths = (rest[edges[:, 1]] - rest[edges[:, 0]]).norm(dim=1)
        net = ss.IndexedSum(spring, edges, per_term=(torch.ones_like(lengths), lengths))
        disturbed = rest + 0.05 * torch.randn(16, 2)
        if fixed is not None:
            disturbed[fixed] = rest[fixed]
        X, report = ss.minimize(net, disturbed, fixed=fixed)
        assert float(net(X)) < 1e-20 * max(offset, 1) ** 2
        assert report.unique is (fixed is not None)
        for start in (X, rest):
            again, report = ss.minimize(net, start, fixed=fixed)
            assert len(report.iterations) <= 5
            assert torch.allclose(again, start, rtol=0, atol=1e-9 * max(offset, 1))


@pytest.mark.parametrize("offset", [0.0, 1e5, 5e6])
def test_stiff_structures_far_from_the_origin(offset: float) -> None:
    """In the worst case, rounding errors of positions cause forces as large as the loads."""
    rest = REST + offset
    lengths = (REST[EDGES[:, 1]] - REST[EDGES[:, 0]]).norm(dim=1)
    braces = torch.tensor(
        [[i, i + N + 1] for i in range(N - 1)] + [[i + 1, i + N] for i in range(N - 1)]
    )
    edges = torch.cat(
        (EDGES[[i for i in range(len(EDGES)) if i != N - 1]], braces)
    )  # that one joins the ends of both rows
    lengths = (REST[edges[:, 1]] - REST[edges[:, 0]]).norm(dim=1)
    truss = ss.IndexedSum(spring, edges, per_term=(torch.full_like(lengths, 2e7), lengths))
    truss = truss + ss.IndexedSum(
        lambda x, y: 1e3 * (x[0, 1] - y[0]), NODES, per_variable=rest[:, 1]
    )
    X, report = ss.minimize(truss, rest, fixed=FIXED)
    expected, _ = ss.minimize(
        ss.IndexedSum(spring, edges, per_term=(torch.full_like(lengths, 2e7), lengths))
        + ss.IndexedSum(lambda x: 1e3 * x[0, 1], NODES),
        REST,
        fixed=FIXED,
    )
    assert torch.allclose(
        X - rest, expected - REST, rtol=0, atol=1e-4 * float((expected - REST).abs().max())
    ), report
    assert report.unique


def test_a_sheet_of_cloth_in_time() -> None:
    """Compressed springs make the Hessian slightly indefinite, beside stiff ones."""
    m, h = 10, 0.02
    at = torch.arange(m * m).reshape(m, m)
    pairs = (
        (at[1:], at[:-1]),
        (at[:, 1:], at[:, :-1]),
        (at[1:, 1:], at[:-1, :-1]),
        (at[1:, :-1], at[:-1, 1:]),
    )
    edges = torch.cat([torch.stack((a.reshape(-1), b.reshape(-1)), 1) for a, b in pairs])
    grid = (
        torch.stack(torch.meshgrid(torch.arange(m), torch.arange(m), indexing="ij"), -1)
        .reshape(-1, 2)
        .double()
        / m
    )
    X = torch.cat((grid, torch.zeros(m * m, 1)), 1)
    lengths = (X[edges[:, 1]] - X[edges[:, 0]]).norm(dim=1)
    cloth = ss.IndexedSum(spring, edges, per_term=(torch.full_like(lengths, 1e4), lengths))
    X = X * torch.tensor([0.98, 1.0, 1.0])
    V, gravity = torch.zeros_like(X), torch.tensor([0.0, 0.0, -9.81], dtype=torch.double)
    for _ in range(5):
        goal = X + h * V + h**2 * gravity
        step = cloth + ss.IndexedSum(
            lambda x, y: (x - y).square().sum() / (2 * h**2 * m * m),
            at.reshape(-1, 1),
            per_variable=goal,
        )
        new, report = ss.minimize(step, X, fixed=at[0, [0, -1]])
        assert report.unique
        X, V = new, (new - X) / h


def test_a_large_constant_in_the_energy() -> None:
    energy = structure(*constants())
    offset = energy + ss.IndexedSum(
        lambda x, c: c + 0 * x.sum(), NODES, per_term=torch.full((2 * N,), 1e9).double()
    )
    X, report = ss.minimize(offset, REST, fixed=FIXED)
    expected, _ = ss.minimize(energy, REST, fixed=FIXED)
    assert report.converged
    assert torch.allclose(X, expected, atol=1e-10)


def test_an_energy_without_terms_is_minimal_anywhere() -> None:
    X, report = ss.minimize(
        ss.IndexedSum(tether, torch.empty(0, 1, dtype=torch.int64), per_variable=REST), REST
    )
    assert torch.equal(X, REST)
    assert report.converged
    assert report.unique is False


def test_loose_tolerances_do_not_stop_where_there_is_no_minimum() -> None:
    energy = structure(*constants())
    torch.manual_seed(3)
    for _ in range(20):
        X, report = ss.minimize(energy, REST + torch.randn(2 * N, 2), fixed=FIXED, rtol=0.3)
        assert report.unique
        assert is_minimum(energy, X, FIXED, tolerance=math.inf)


def test_minima_that_are_not_unique() -> None:
    k = torch.ones(3, dtype=torch.double, requires_grad=True)
    triangle = ss.IndexedSum(
        spring, torch.tensor([[0, 1], [1, 2], [2, 0]]), per_term=(k, k.detach())
    )
    x0 = torch.tensor([[0.0, 0], [2, 0.3], [0.5, 1]], dtype=torch.double)
    X, report = ss.minimize(triangle, x0)  # floats freely
    assert report.converged
    assert report.unique is False
    assert "not unique" in report.reason
    assert triangle.gradient(X).abs().max() < 1e-6
    with pytest.raises(ss.SingularMatrixError, match="not unique"):
        X.sum().backward()


def test_tolerances() -> None:
    energy = structure(*constants())
    _, tight = ss.minimize(energy, REST, fixed=FIXED)
    _, loose = ss.minimize(energy, REST, fixed=FIXED, rtol=0.1)
    _, absolute = ss.minimize(energy, REST, fixed=FIXED, atol=1.0, rtol=0)
    _, nothing = ss.minimize(energy, REST, fixed=FIXED, rtol=0, atol=0)
    assert (
        len(absolute.iterations)
        <= len(loose.iterations)
        < len(tight.iterations)
        <= len(nothing.iterations)
    )
    assert "rounding" in nothing.reason
    assert absolute.iterations[-1].decrement <= 1.0
