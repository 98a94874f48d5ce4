"""`minimize`: minima, their derivatives, and what it says where there are none."""

from __future__ import annotations

import gc
import itertools
import math
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from counting import count
from torch import Tensor

import sparse_solver as ss

N = 6
EDGES = torch.tensor([[i, i + 1] for i in range(2 * N - 1)] + [[i, i + N] for i in range(N)])
NODES = torch.arange(2 * N).unsqueeze(-1)
FIXED = torch.tensor([0, N])
REST = torch.stack((torch.arange(N).repeat(2), torch.arange(2).repeat_interleave(N)), 1).double()


def spring(x: Tensor, c: tuple[Tensor, Tensor]) -> Tensor:
    stiffness, length = c
    return stiffness / 2 * ((x[1] - x[0]).norm() - length) ** 2


def tether(
    x: Tensor, rest: Tensor
) -> Tensor:  # keeps the rest of a structure that is not rigid in place
    return 0.3 * (x - rest).square().sum() + 0.1 * (x[0, 0] * x[0, 1]).sin()


def structure(
    stiffness: Tensor, length: Tensor, rest: Tensor, weight: Tensor | float = 1.0
) -> ss.IndexedSum:
    return weight * ss.IndexedSum(spring, EDGES, per_term=(stiffness, length)) + ss.IndexedSum(
        tether, NODES, rest
    )


def constants(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(4)
    edges = len(EDGES)
    stiffness, length = torch.rand(edges) + 1, torch.rand(edges) / 4 + 1
    return (
        stiffness.to(dtype),
        length.to(dtype),
        REST.to(dtype, copy=True),
        torch.tensor(1.5, dtype=dtype),
    )


class Quartic:
    """Σ_i (s_i/4 x_i⁴ + c/2 (x_i − x_{i+1})² − b_i x_i), written by hand; its pattern is out of order and has duplicates."""

    def __init__(self, s: Tensor, b: Tensor, c: float = 1.0):
        self.s, self.b, self.c = s, b, c
        n = s.numel()
        i, j = torch.arange(n), torch.arange(n - 1)
        rows, cols = torch.cat((j + 1, i, j, j, j + 1)), torch.cat((j, i, j + 1, j, j + 1))
        self.pattern = ss.Pattern(rows, cols, (n, n))

    def value(self, x: Tensor) -> Any:
        return (self.s / 4 * x**4 - self.b * x).sum() + self.c / 2 * x.diff().square().sum()

    def gradient(self, x: Tensor) -> Tensor:
        d = self.c * x.diff()
        zero = x.new_zeros(1)
        return self.s * x**3 - self.b - torch.cat((d, zero)) + torch.cat((zero, d))

    def hessian_values(self, x: Tensor) -> Tensor:
        off = torch.full_like(x[1:], self.c)
        return torch.cat((-off, 3 * self.s * x**2, -off, off, off))


class Parametric(Quartic):
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.s, self.b)

    def with_parameters(self, s: Tensor, b: Tensor) -> Parametric:
        return Parametric(s, b, self.c)


def is_minimum(
    energy: Any, X: Tensor, fixed: Tensor | None = None, tolerance: float = 1e-9
) -> bool:
    free = torch.ones(X.shape, dtype=torch.bool)
    if fixed is not None:
        free[fixed] = False
    free = free.reshape(-1)
    H = energy.pattern.tensor(energy.hessian_values(X)).to_dense()[free][:, free]
    g = energy.gradient(X).reshape(-1)[free]
    return bool(g.abs().max() < tolerance) and float(torch.linalg.eigvalsh(H)[0]) > 0


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
        lambda x, rest: 0.3 * (x - rest).square().sum(), NODES, rest * size
    )
    x0 = size * (REST + torch.randn(2 * N, 2, dtype=torch.double) / 3)
    X, _ = ss.minimize(energy, x0, fixed=FIXED)
    plain = ss.IndexedSum(spring, EDGES, per_term=(k, l)) + ss.IndexedSum(
        lambda x, rest: 0.3 * (x - rest).square().sum(), NODES, rest
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
    """The energy's own rounding errors, which stop its decrease early, do not stop the iteration."""
    energy = structure(*constants()) + ss.IndexedSum(
        lambda x, c: c * x.sum(), NODES, per_term=torch.linspace(-3, 3, 2 * N).double()
    )
    exact, _ = ss.minimize(energy, REST)
    for distance in (1e-2, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-12):
        for _ in range(5):
            X, _ = ss.minimize(energy, exact + distance * torch.randn(2 * N, 2))
            assert energy.gradient(X).abs().max() < max(1e-12, 1e-9 * distance)


def scalar(f: Callable[[Tensor], Tensor]) -> ss.IndexedSum:
    """Σ f over the entries of a vector."""
    return ss.IndexedSum(lambda x: f(x[0]), torch.arange(1).unsqueeze(-1))


def pair(f: Callable[[Tensor, Tensor], Tensor]) -> ss.IndexedSum:
    return ss.IndexedSum(lambda x: f(x[0], x[1]), torch.tensor([[0, 1]]))


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
    ],
)
def test_energies_without_a_minimum(
    energy: ss.IndexedSum, x0: list[float], dtype: torch.dtype
) -> None:
    for project in (True, False):
        try:
            x, report = ss.minimize(energy, torch.tensor(x0, dtype=dtype), project=project)
        except ss.ConvergenceError:
            continue
        # Where both derivatives underflow to zero, nothing shows that there is no minimum.
        assert dtype == torch.float32
        assert report.unique is False, (x, report)
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("fixed", [None, torch.arange(4)])
def test_structures_at_rest(offset: float, fixed: Tensor | None) -> None:
    """Their energy is zero but for rounding errors, which are those of positions, wherever they are."""
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
    """Rounding errors of positions cause forces as large as the loads, in the worst case; on average they do not."""
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
    truss = truss + ss.IndexedSum(lambda x, y: 1e3 * (x[0, 1] - y[0]), NODES, rest[:, 1])
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
    """Compressed springs make the Hessian indefinite by little, beside stiff ones, in the first step."""
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
            lambda x, y: (x - y).square().sum() / (2 * h**2 * m * m), at.reshape(-1, 1), goal
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


@pytest.mark.parametrize("mask", [False, True])
def test_single_entries_can_be_fixed(mask: bool) -> None:
    energy = structure(*constants())
    fixed = torch.zeros(2 * N, 2, dtype=torch.bool)
    fixed[0] = fixed[3:5, 1] = True
    if mask:
        fixed = torch.zeros(2 * N, dtype=torch.bool)
        fixed[FIXED] = True
    X, _ = ss.minimize(energy, REST, fixed=fixed)
    g = energy.gradient(X)
    assert torch.equal(X[fixed], REST[fixed])
    assert g[~fixed].abs().max() < 1e-9
    assert g[fixed].abs().min() > 1e-3


def test_everything_fixed_and_nothing_there() -> None:
    x0 = REST.clone().requires_grad_()
    X, report = ss.minimize(structure(*constants()), x0, fixed=torch.ones(2 * N, dtype=torch.bool))
    assert torch.equal(X, x0)
    assert report.converged
    X.sum().backward()
    assert torch.equal(x0.grad, torch.ones_like(x0))  # type: ignore[arg-type]
    empty = ss.IndexedSum(tether, torch.empty(0, 1, dtype=torch.int64), torch.empty(0, 2))
    X, report = ss.minimize(empty, torch.empty(0, 2))
    assert X.shape == (0, 2)
    assert report.converged


def test_an_energy_without_terms_is_minimal_anywhere() -> None:
    X, report = ss.minimize(ss.IndexedSum(tether, torch.empty(0, 1, dtype=torch.int64), REST), REST)
    assert torch.equal(X, REST)
    assert report.converged
    assert report.unique is False


def test_indefinite_hessians_are_projected_and_the_report_says_so() -> None:
    torch.manual_seed(0)
    energy = structure(*constants())
    x0 = REST * 0.1  # compressed springs
    for project in (True, "absolute", False):
        X, report = ss.minimize(energy, x0, fixed=FIXED, project=project)
        assert is_minimum(energy, X, FIXED)
        assert report.fallbacks > 0
        matrices = {iteration.matrix for iteration in report.iterations}
        assert ("projected" in matrices) == bool(project)
        assert project or "shifted" in matrices
        assert ("projected" if project else "shifted by") in str(report)
        assert "converged after" in str(report)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("project", [True, "absolute", False])
def test_saddles_and_maxima_are_left(project: Any, scale: float) -> None:
    lengths = torch.full((2,), 2.0, dtype=torch.double)
    chain = scale * ss.IndexedSum(
        spring,
        torch.tensor([[0, 1], [1, 2]]),
        per_term=(torch.ones(2, dtype=torch.double), lengths),
    )
    straight = torch.tensor(
        [[0.0, 0], [1, 0], [2, 0]], dtype=torch.double
    )  # compressed: it buckles, to either side
    for offset in (0.0, 1e-14, 1e-3):
        x0 = straight.clone()
        x0[1, 1] = offset
        X, report = ss.minimize(chain, x0, fixed=torch.tensor([0, 2]), project=project)
        assert torch.allclose(X[1].abs(), torch.tensor([1.0, 3**0.5], dtype=torch.double))
        assert report.fallbacks > 0
        assert report.unique
        assert offset > 0 or "curvature" in str(report)
    hill = ss.IndexedSum(lambda x: scale * (x[0] ** 2 - 1) ** 2, torch.arange(3).unsqueeze(-1))
    x, _ = ss.minimize(hill, torch.zeros(3, dtype=torch.double), project=project)
    assert torch.allclose(x.abs(), torch.ones(3, dtype=torch.double))


def test_saddles_that_cannot_be_left_are_no_minima() -> None:
    hill = ss.IndexedSum(lambda x: (x[0] ** 2 - 1) ** 2, torch.arange(3).unsqueeze(-1))
    x0 = torch.zeros(3, dtype=torch.double)
    with pytest.raises(ss.ConvergenceError, match="indefinite") as caught:
        ss.minimize(hill, x0, largest_step=lambda x, d: 1e-12)
    assert torch.equal(caught.value.x, x0)
    assert not caught.value.report.converged


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


def test_non_convergence_carries_the_iterate_and_the_report() -> None:
    energy = structure(*constants())
    with pytest.raises(ss.ConvergenceError, match="max_iterations=2") as caught:
        ss.minimize(energy, REST + 1, fixed=FIXED, max_iterations=2)
    error = caught.value
    assert error.x.shape == REST.shape
    assert energy(error.x) < energy(REST + 1)
    assert [iteration.step > 0 for iteration in error.report.iterations] == [True, True, False]
    assert math.isclose(error.report.objective, float(energy(error.x)))
    assert "in 2 steps" in str(error)
    assert error.report.unique is None
    assert "did not converge" in str(error.report)
    assert isinstance(error, RuntimeError)
    again = pickle.loads(pickle.dumps(error))
    assert torch.equal(again.x, error.x)
    assert again.report == error.report
    downhill = ss.IndexedSum(lambda x: -x[0] - 0 * x[0] ** 2, torch.tensor([[0], [1]]))
    with pytest.raises(ss.ConvergenceError):
        ss.minimize(downhill, torch.zeros(2, dtype=torch.double))
    lying = Quartic(torch.ones(4).double(), torch.ones(4).double())
    lying.gradient = lambda x: -Quartic.gradient(lying, x)  # type: ignore[method-assign]
    with pytest.raises(ss.ConvergenceError, match="derivatives right"):
        ss.minimize(lying, torch.full((4,), 2.0).double())


def barrier(x: Tensor) -> Tensor:
    return -torch.log(x[0]) - torch.log(1 - x[0]) + 3 * x[0]


def test_steps_stay_where_the_energy_is_defined() -> None:
    energy = ss.IndexedSum(barrier, torch.arange(3).unsqueeze(-1))
    x0 = torch.tensor([1e-3, 0.5, 1 - 1e-3], dtype=torch.double)
    x, _ = ss.minimize(energy, x0)
    assert torch.allclose(x, x[0].expand(3))
    assert energy.gradient(x).abs().max() < 1e-9
    with pytest.raises(ss.NonFiniteError, match="x0"):
        ss.minimize(energy, x0 - 0.1)


def test_the_largest_step_is_a_limit() -> None:
    energy = ss.IndexedSum(lambda x: (x[0] - 3) ** 2, torch.arange(2).unsqueeze(-1))
    seen = []

    def half_a_unit(x: Tensor, d: Tensor) -> Tensor:
        assert x.shape == d.shape == (2,)
        seen.append(x)
        return 0.5 / d.abs().max()

    x, report = ss.minimize(energy, torch.zeros(2, dtype=torch.double), largest_step=half_a_unit)
    assert torch.allclose(x, torch.full((2,), 3.0, dtype=torch.double))
    assert len(seen) >= 6
    assert report.iterations[0].step == pytest.approx(0.5 / 3)
    with pytest.raises(ss.ConvergenceError, match="allows no step"):
        ss.minimize(energy, torch.zeros(2, dtype=torch.double), largest_step=lambda x, d: 0.0)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ss.OptionError, match="largest_step"):
            ss.minimize(
                energy,
                torch.zeros(2, dtype=torch.double),
                largest_step=lambda x, d, wrong=wrong: wrong,
            )


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


def test_the_callback_sees_each_iteration() -> None:
    seen: list[tuple[Tensor, Any]] = []
    X, report = ss.minimize(
        structure(*constants()),
        REST,
        fixed=FIXED,
        callback=lambda X, iteration: seen.append((X, iteration)),
    )
    assert tuple(iteration for _, iteration in seen) == report.iterations
    assert torch.equal(seen[0][0], REST)
    assert torch.equal(seen[-1][0], X)


def test_a_progress_bar_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    energy = structure(*constants())
    ss.minimize(energy, REST, fixed=FIXED)
    assert capsys.readouterr().err == ""
    ss.minimize(energy, REST, fixed=FIXED, progress=True)
    assert "minimize" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    with pytest.raises(ss.OptionError, match="tqdm"):
        ss.minimize(energy, REST, fixed=FIXED, progress=True)


def solve_for(fixed: bool = True) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    def solution(
        stiffness: Tensor, length: Tensor, rest: Tensor, weight: Tensor, x0: Tensor
    ) -> Tensor:
        energy = structure(stiffness, length, rest, weight)
        return ss.minimize(energy, x0, fixed=FIXED if fixed else None)[0]

    return solution, (*constants(), REST + 0.1)


def test_derivatives_agree_with_finite_differences() -> None:
    solution, inputs = solve_for()
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)

    def of_fixed(
        *inputs: Tensor,
    ) -> Tensor:  # which minimum it is must not depend on the entries that are not fixed
        *constants, x0 = inputs
        start = torch.zeros_like(REST).index_copy(0, FIXED, x0[FIXED]) + (REST + 0.1).index_fill(
            0, FIXED, 0.0
        )
        return solution(*constants, start)

    torch.autograd.gradcheck(of_fixed, inputs)
    torch.autograd.gradgradcheck(of_fixed, inputs, fast_mode=True)


def test_free_entries_of_the_start_have_no_influence() -> None:
    solution, inputs = solve_for()
    x0 = inputs[-1].requires_grad_()
    solution(*inputs[:-1], x0).sum().backward()
    assert x0.grad is not None
    free = torch.ones(2 * N, dtype=torch.bool)
    free[FIXED] = False
    assert torch.equal(x0.grad[free], torch.zeros(2 * N - 2, 2, dtype=torch.double))
    assert x0.grad[FIXED].abs().min() > 1e-3
    nothing_fixed = solve_for(fixed=False)[0](*inputs[:-1], x0)
    assert not nothing_fixed.requires_grad


def test_derivatives_agree_with_unrolling() -> None:
    """Newton steps written in dense, differentiable torch from a start nearby have the derivatives of their limit."""
    k, l, rest, weight = (c.requires_grad_() for c in constants())
    solution, _ = solve_for(fixed=False)
    X = solution(k, l, rest, weight, REST)
    loss = (X * torch.arange(X.numel()).reshape(X.shape)).sum()
    found = torch.autograd.grad(loss, (k, l, rest, weight), create_graph=True)

    def energy(X: Tensor) -> Tensor:
        stretch = (X[EDGES[:, 1]] - X[EDGES[:, 0]]).norm(dim=1) - l
        return (
            weight * (k / 2 * stretch**2).sum()
            + (0.3 * (X - rest) ** 2).sum()
            + 0.1 * X.prod(1).sin().sum()
        )

    Y = X.detach()
    for _ in range(3):  # each unrolled step makes one more order of derivatives right
        Y = Y.requires_grad_() if not Y.requires_grad else Y
        (g,) = torch.autograd.grad(energy(Y), Y, create_graph=True)
        rows = [
            torch.autograd.grad(entry, Y, create_graph=True)[0].reshape(-1)
            for entry in g.reshape(-1)
        ]
        Y = Y - torch.linalg.solve(torch.stack(rows), g.reshape(-1)).reshape(Y.shape)
    unrolled = (Y * torch.arange(X.numel()).reshape(X.shape)).sum()
    expected = torch.autograd.grad(unrolled, (k, l, rest, weight), create_graph=True)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-9)
    second = torch.autograd.grad(sum(a.square().sum() for a in found), (k, l, rest, weight))
    for a, b in zip(
        second,
        torch.autograd.grad(sum(a.square().sum() for a in expected), (k, l, rest, weight)),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


def test_third_derivatives() -> None:
    s = torch.tensor([2.0, 3.0], dtype=torch.double, requires_grad=True)
    energy = ss.IndexedSum(
        lambda x, s: s * x[0] ** 4 / 4 - x[0], torch.tensor([[0], [1]]), per_term=s
    )
    x, _ = ss.minimize(energy, torch.ones(2, dtype=torch.double))
    for order in range(1, 4):  # x = s^(−1/3)
        (x,) = torch.autograd.grad(x.sum(), s, create_graph=True)
        power = -1 / 3 - order
        factor = math.prod(-1 / 3 - i for i in range(order))
        assert torch.allclose(x, factor * s**power)


def test_constants_that_depend_on_each_other_are_counted_once() -> None:
    def solution(k: Tensor) -> Tensor:
        l = k.square() / 2 + 1  # from k; and k twice
        energy = (
            ss.IndexedSum(spring, EDGES, per_term=(k, l))
            + ss.IndexedSum(tether, NODES, REST) * k[0]
        )
        energy = energy + ss.IndexedSum(lambda x, k: k * x.square().sum(), EDGES, per_term=k)
        return ss.minimize(energy, REST, fixed=FIXED)[0]

    k = constants()[0].requires_grad_()
    torch.autograd.gradcheck(solution, (k,))
    torch.autograd.gradgradcheck(solution, (k,), fast_mode=True)


def test_two_solutions_before_a_backward() -> None:
    k, l, rest, _ = constants()
    gradients = []
    for together in (False, True):
        k = k.detach().requires_grad_()
        first, _ = ss.minimize(structure(k, l, rest), REST, fixed=FIXED)
        if not together:
            gradients.append(torch.autograd.grad(first.square().sum(), k)[0])
        second, _ = ss.minimize(structure(2 * k, l, rest), REST, fixed=FIXED)
        if together:
            gradients.append(torch.autograd.grad(first.square().sum(), k)[0])
        torch.autograd.grad(second.sum(), k)
    assert torch.equal(*gradients)


def test_constants_that_are_overwritten_are_noticed() -> None:
    k, l, rest, _ = constants()
    k.requires_grad_()
    X, _ = ss.minimize(structure(k, l, rest), REST, fixed=FIXED)
    with torch.no_grad():
        k.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        X.sum().backward()


def test_the_result_does_not_alias_the_start() -> None:
    energy = structure(*constants())
    x0, _ = ss.minimize(energy, REST, fixed=FIXED)
    x0 = x0.clone()
    X, _ = ss.minimize(energy, x0, fixed=FIXED)
    before = X.clone()
    x0.zero_()
    assert torch.equal(X, before)


def test_the_factor_is_released_with_the_graph() -> None:
    from sparse_solver._factor import lifetime

    k, l, rest, _ = constants()
    others = set(lifetime._alive)
    X, _ = ss.minimize(structure(k.requires_grad_(), l, rest), REST, fixed=FIXED)
    gc.collect()
    factors = [
        weakref.ref(item) for number, item in lifetime._alive.items() if number not in others
    ]
    assert factors
    X.sum().backward()  # frees the buffers, though X lives
    gc.collect()
    assert all(item() is None for item in factors)
    assert X.requires_grad


def test_without_gradients_nothing_is_recorded() -> None:
    k, l, rest, _ = constants()
    with torch.no_grad():
        X, _ = ss.minimize(structure(k.requires_grad_(), l, rest), REST, fixed=FIXED)
    assert not X.requires_grad
    with torch.inference_mode():
        Y, _ = ss.minimize(structure(k, l, rest), REST, fixed=FIXED)
    assert torch.allclose(X, Y)
    Z, _ = ss.minimize(structure(k.detach(), l, rest), REST, fixed=FIXED)
    assert not Z.requires_grad


def test_energies_of_ones_own() -> None:
    s, b = torch.rand(5, dtype=torch.double) + 1, torch.rand(5, dtype=torch.double)
    x, _ = ss.minimize(Quartic(s, b), torch.ones(5, dtype=torch.double))
    assert is_minimum(Quartic(s, b), x)
    torch.autograd.gradcheck(
        lambda s, b: ss.minimize(Parametric(s, b), torch.ones(5, dtype=torch.double))[0],
        (s.requires_grad_(), b.requires_grad_()),
    )
    for function in (
        lambda s, b: ss.minimize(Quartic, torch.ones(5, dtype=torch.double), params=(s, b))[0],
        lambda s, b: ss.minimize(
            lambda s, t, b: Quartic(s * t, b),
            torch.ones(5, dtype=torch.double),
            params=[s, 2 * s, b],
        )[0],
    ):
        torch.autograd.gradcheck(function, (s, b))
        torch.autograd.gradgradcheck(function, (s, b))
    with pytest.raises(ss.OptionError, match="params="):
        ss.minimize(Quartic(s, b), torch.ones(5, dtype=torch.double))
    with pytest.raises(ss.OptionError, match="params="):
        ss.minimize(lambda s: Quartic(s, b), torch.ones(5, dtype=torch.double), params=(s,))
    floats = Quartic(s, b)
    floats.value = lambda x: float(Quartic.value(floats, x).detach())  # type: ignore[method-assign]
    with pytest.raises(ss.OptionError, match="params="):
        ss.minimize(floats, torch.ones(5, dtype=torch.double))
    with torch.no_grad():
        assert torch.allclose(ss.minimize(floats, torch.ones(5, dtype=torch.double))[0], x)


def test_captured_tensors_are_not_forgotten() -> None:
    k = torch.tensor(2.0, dtype=torch.double, requires_grad=True)
    target = torch.randn(3, dtype=torch.double)

    def make(k: Tensor) -> ss.IndexedSum:
        return ss.IndexedSum(
            lambda x, t: (x[0] - k * t[0]) ** 2, torch.arange(3).unsqueeze(-1), target
        )

    with pytest.raises(ss.OptionError, match="not among its parameters"):
        ss.minimize(make(k), target)
    x, _ = ss.minimize(make, target, params=(k,))
    assert torch.allclose(x, k * target)
    assert torch.allclose(torch.autograd.grad(x.sum(), k)[0], target.sum())


def test_other_ways_to_a_parameter_are_noticed() -> None:
    k = torch.tensor([1.0, 3.0], dtype=torch.double, requires_grad=True)
    twice, x0, two = 2 * k, torch.ones(2, dtype=torch.double), torch.arange(2).unsqueeze(-1)

    def parabola(x: Tensor, c: Tensor) -> Tensor:
        return c * x[0] ** 2 / 2 - x[0]

    with pytest.raises(ss.OptionError, match="not among"):  # listed, and captured
        ss.minimize(ss.IndexedSum(lambda x, c: parabola(x, c) * k[0], two, per_term=k), x0)
    with pytest.raises(ss.OptionError, match="not among"):  # what was made from it outside
        ss.minimize(lambda k: ss.IndexedSum(parabola, two, per_term=k * twice), x0, params=(k,))
    with pytest.raises(ss.OptionError, match="not among"):  # passed, and not used
        ss.minimize(lambda _: ss.IndexedSum(parabola, two, per_term=k), x0, params=(k,))
    hidden = ss.IndexedSum(parabola, two, per_term=k)

    class Hidden(Quartic):  # only its gradient shows what it depends on
        pattern = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))

        def __init__(self) -> None:
            pass

        def value(self, x: Tensor) -> Any:
            return hidden.value(x).detach()

        def gradient(self, x: Tensor) -> Tensor:
            return k * x - 1

        def hessian_values(self, x: Tensor) -> Tensor:
            return k.detach()

    with pytest.raises(ss.OptionError, match="not among"):
        ss.minimize(Hidden(), x0)


def test_what_is_captured_and_changed_is_noticed() -> None:
    k = torch.ones(3, dtype=torch.double, requires_grad=True)
    captured = torch.ones((), dtype=torch.double)
    power = torch.full((3,), 2)
    for changed in (captured, power):
        energy = ss.IndexedSum(
            lambda x, c: c[0] * x[0] ** c[1] * captured - x[0],
            torch.arange(3).unsqueeze(-1),
            per_term=(k, power),
        )
        x, _ = ss.minimize(energy, torch.ones(3, dtype=torch.double))
        changed.add_(1)
        with pytest.raises(ss.ValueChangedError, match="in place"):
            x.sum().backward()
        changed.sub_(1)


class OwnLeaf(Quartic):
    """Its gradient is that of a tensor of its own, which nothing leads to."""

    def gradient(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            own = x.detach().requires_grad_()
            return torch.autograd.grad(self.value(own), own, create_graph=True)[0]


def test_gradients_that_are_not_differentiable_are_noticed() -> None:
    s, b, x0 = torch.rand(4).double() + 1, torch.rand(4).double(), torch.ones(4, dtype=torch.double)
    expected, _ = ss.minimize(Quartic(s, b), x0)
    energy = OwnLeaf(s, b)
    x, _ = ss.minimize(energy, x0)  # where no derivatives are wanted, that does not matter
    assert torch.allclose(x, expected)
    with pytest.raises(ss.OptionError, match="differentiable in its argument"):
        ss.minimize(energy, x0.clone().requires_grad_(), fixed=torch.tensor([0]))
    with pytest.raises(ss.OptionError, match="differentiable in its argument"):
        ss.minimize(OwnLeaf, x0, params=(s.requires_grad_(), b))


def test_parameters_of_other_dtypes() -> None:
    power = torch.full((3,), 2)
    k = torch.ones(3, dtype=torch.double, requires_grad=True)
    z = torch.ones(3, dtype=torch.complex128, requires_grad=True)

    def make(power: Tensor, k: Tensor) -> ss.IndexedSum:
        return ss.IndexedSum(
            lambda x, c: c[1] * x[0] ** c[0] - x[0],
            torch.arange(3).unsqueeze(-1),
            per_term=(power, k),
        )

    x, _ = ss.minimize(make, torch.ones(3, dtype=torch.double), params=(power, k))
    assert torch.allclose(torch.autograd.grad(x.sum(), k)[0], torch.full((3,), -0.5).double())
    energy = ss.IndexedSum(
        lambda x, z: (x[0] - z.real - z.imag) ** 2, torch.arange(3).unsqueeze(-1), per_term=z
    )
    x, _ = ss.minimize(energy, torch.zeros(3, dtype=torch.double))
    assert torch.allclose(
        torch.autograd.grad(x.sum(), z)[0], torch.full((3,), 1 + 1j, dtype=torch.complex128)
    )


def test_gradients_that_are_not_finite_are_passed_on() -> None:
    k = constants()[0].requires_grad_()
    X, _ = ss.minimize(structure(k, *constants()[1:3]), REST, fixed=FIXED)
    X.backward(torch.full_like(X, float("nan")))
    assert k.grad is not None
    between_fixed = (torch.tensor([0, N]) == EDGES).all(1)
    assert torch.equal(k.grad.isnan(), ~between_fixed)


def test_callers_get_copies() -> None:
    def spoil(x: Tensor, d: Any) -> float:
        x.mul_(3)
        if isinstance(d, Tensor):
            d.zero_()
        return 1.0

    energy = ss.IndexedSum(lambda x: (x[0] - 1) ** 2, torch.arange(2).unsqueeze(-1))
    x, _ = ss.minimize(
        energy, torch.zeros(2, dtype=torch.double), callback=spoil, largest_step=spoil
    )
    assert torch.equal(x, torch.ones(2, dtype=torch.double))


def test_a_pattern_without_a_diagonal_can_be_shifted() -> None:
    class Product(
        Quartic
    ):  # x y + (x² − 1)² + (y² − 1)² with a pattern that has no place for (y, y)
        def __init__(self) -> None:
            self.pattern = ss.Pattern(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), (2, 2))

        def value(self, x: Tensor) -> Any:
            return x[0] ** 2 / 2 + 0.5 * x[0] * x[1] - x[0]

        def gradient(self, x: Tensor) -> Tensor:
            return torch.stack((x[0] + 0.5 * x[1] - 1, 0.5 * x[0]))

        def hessian_values(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.5, 0.5], dtype=x.dtype)

    with pytest.raises(ss.ConvergenceError):  # a saddle everywhere: no minimum
        ss.minimize(Product(), torch.ones(2, dtype=torch.double), max_iterations=20)
    x, _ = ss.minimize(Product(), torch.ones(2, dtype=torch.double), fixed=torch.tensor([1]))
    assert torch.allclose(x, torch.tensor([0.5, 1.0], dtype=torch.double))


def test_restricted_energies() -> None:
    k, l, rest, _ = constants()
    X = (REST + 0.1).requires_grad_()
    energy = structure(k.requires_grad_(), l, rest)
    free = energy.restrict(FIXED, X)
    x, _ = ss.minimize(free, free.select(X.detach()))
    Y, _ = ss.minimize(energy, X, fixed=FIXED)
    assert torch.allclose(free.extend(x), Y)
    weights = torch.rand_like(Y)
    found = torch.autograd.grad((weights * free.extend(x)).sum(), (k, X))
    expected = torch.autograd.grad((weights * Y).sum(), (k, X))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b)


def test_a_chain_of_solutions() -> None:
    """A solution that is a constant of the next, as in time stepping."""

    def last(k: Tensor) -> Tensor:
        X = before = REST
        for _ in range(3):
            energy = ss.IndexedSum(spring, EDGES, per_term=(k, constants()[1])) + ss.IndexedSum(
                tether, NODES, 2 * X - before
            )
            before, X = X, ss.minimize(energy, REST, fixed=FIXED)[0]
        return X

    k = constants()[0].requires_grad_()
    torch.autograd.gradcheck(last, (k,), fast_mode=True)
    torch.autograd.gradgradcheck(last, (k,), fast_mode=True)


def test_transforms_are_refused() -> None:
    k, l, rest, _ = constants()

    def loss(k: Tensor) -> Tensor:
        return ss.minimize(structure(k, l, rest), REST, fixed=FIXED)[0].sum()

    for call in (
        lambda: torch.func.grad(loss)(k),
        lambda: torch.func.vmap(loss)(k.expand(2, -1)),
        lambda: torch.func.jvp(loss, (k,), (k,)),
    ):
        with pytest.raises(ss.TransformError, match=r"torch\.autograd"):
            call()


@pytest.mark.parametrize(
    ("x0", "options", "error"),
    [
        ([1.0], {}, ss.LayoutError),
        (REST.long(), {}, ss.DtypeError),
        (REST.to(torch.complex64), {}, ss.DtypeError),
        (REST, {"rtol": -1.0}, ss.OptionError),
        (REST, {"atol": float("nan")}, ss.OptionError),
        (REST, {"max_iterations": -1}, ss.OptionError),
        (REST, {"max_iterations": 1.5}, ss.OptionError),
        (REST, {"project": "half"}, ss.OptionError),
        (REST, {"engine": "none"}, ss.OptionError),
        (REST, {"fixed": torch.tensor([0, 0])}, ss.IndexRangeError),
        (REST, {"fixed": torch.tensor([12])}, ss.IndexRangeError),
        (REST, {"fixed": [0]}, ss.IndexRangeError),
        (REST, {"fixed": torch.ones(3, dtype=torch.bool)}, ss.ShapeError),
        (REST[:5], {}, ss.IndexRangeError),
    ],
)
def test_what_is_wrong_is_said(x0: Any, options: dict[str, Any], error: type[Exception]) -> None:
    energy = ss.IndexedSum(tether, NODES, REST)
    with pytest.raises(error):
        ss.minimize(energy, x0, **options)


def test_energies_that_do_not_fit_are_refused() -> None:
    quartic = Quartic(torch.ones(4).double(), torch.ones(4).double())
    quartic.value = lambda x: 0.0  # type: ignore[method-assign]
    with pytest.raises(ss.ShapeError, match=r"\(4, 4\)"):
        ss.minimize(quartic, torch.ones(5, dtype=torch.double))
    energy = ss.IndexedSum(tether, NODES, REST)
    for wrong, params, text in (
        (3, None, "int has no value"),
        (lambda: 3, None, "function has no value"),
        (energy, (REST,), "with params="),
    ):
        with pytest.raises(ss.OptionError, match=text):
            ss.minimize(wrong, REST, params=params)  # type: ignore[arg-type]
    with pytest.raises(ss.LayoutError, match="params"):
        ss.minimize(lambda k: energy, REST, params=(1.0,))  # type: ignore[arg-type]
    vector = Quartic(torch.ones(4).double(), torch.ones(4).double())
    vector.value = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ss.ShapeError, match="scalar"):
        ss.minimize(vector, torch.ones(4, dtype=torch.double))
    short = Quartic(torch.ones(4).double(), torch.ones(4).double())
    short.gradient = lambda x: x[:3]  # type: ignore[method-assign]
    with pytest.raises(ss.ShapeError, match="gradient"):
        ss.minimize(short, torch.ones(4, dtype=torch.double))
    unsymmetric = Quartic(torch.ones(4).double(), torch.ones(4).double())
    unsymmetric.hessian_values = lambda x: torch.arange(16.0, dtype=torch.double)  # type: ignore[method-assign]
    with pytest.raises(ss.NotSymmetricError):
        ss.minimize(unsymmetric, torch.ones(4, dtype=torch.double))
    unknown = Quartic(torch.ones(4).double(), torch.ones(4).double())
    unknown.gradient = lambda x: x * float("nan")  # type: ignore[method-assign]
    with pytest.raises(ss.NonFiniteError, match="gradient"):
        ss.minimize(unknown, torch.ones(4, dtype=torch.double))
