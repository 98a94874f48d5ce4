"""`find_root`: roots of unsymmetric systems, their derivatives, and errors without a root."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counting import count
from torch import Tensor

import sparse_solver as ss

N = 8
I, J = torch.arange(N), torch.arange(N - 1)
PATTERN = ss.Pattern(torch.cat((I, J, J + 1)), torch.cat((I, J + 1, J)), (N, N))


def residual(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """An unsymmetric chain: a x + x³ + x_{i+1} − ½ sin x_{i−1} − b."""
    zero = x.new_zeros(1)
    return a * x + x**3 + torch.cat((x[1:], zero)) - torch.cat((zero, x[:-1])).sin() / 2 - b


def jacobian_values(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.cat((a + 3 * x**2, torch.ones_like(x[1:]), -x[:-1].cos() / 2))


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.zeros(N, dtype=dtype), torch.rand(N).to(dtype) + 1, torch.randn(N).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finds_roots(dtype: torch.dtype) -> None:
    x0, a, b = problem(dtype)
    x, report = ss.find_root(residual, jacobian_values, PATTERN, x0, params=(a, b))
    assert residual(x, a, b).abs().max() < (1e-5 if dtype == torch.float32 else 1e-12)
    assert report.converged
    assert report.unique
    assert x.dtype == dtype


def test_derivatives() -> None:
    x0, a, b = problem()

    def root(a: Tensor, b: Tensor) -> Tensor:
        return ss.find_root(residual, jacobian_values, PATTERN, x0, params=(a, b))[0]

    torch.autograd.gradcheck(root, (a.requires_grad_(), b.requires_grad_()))
    torch.autograd.gradgradcheck(root, (a, b))


def test_fixed_entries() -> None:
    x0, a, b = problem()
    fixed = torch.tensor([0, 5])

    def root(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return ss.find_root(
            residual,
            jacobian_values,
            PATTERN,
            x0.index_copy(0, fixed, y),
            params=(a, b),
            fixed=fixed,
        )[0]

    y = torch.tensor([0.3, -1.0], dtype=torch.double)
    x = root(a, b, y)
    assert torch.equal(x[fixed], y)
    left = residual(x, a, b)
    assert left[[1, 2, 3, 4, 6, 7]].abs().max() < 1e-10
    assert left[fixed].abs().min() > 1e-3
    torch.autograd.gradcheck(root, (a.requires_grad_(), b.requires_grad_(), y.requires_grad_()))
    torch.autograd.gradgradcheck(root, (a, b, y))
    x, report = ss.find_root(
        residual, jacobian_values, PATTERN, x0, params=(a, b), fixed=torch.ones(N, dtype=torch.bool)
    )
    assert torch.equal(x, x0)
    assert report.converged


def test_one_analysis_and_one_factorisation_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    ss.engines()  # an engine may factor a matrix to test itself when it is first used
    counts = count(monkeypatch)
    x0, a, b = problem()
    pattern = ss.Pattern(PATTERN.rows, PATTERN.cols, PATTERN.shape)  # not analysed yet
    x, report = ss.find_root(residual, jacobian_values, pattern, x0, params=(a.requires_grad_(), b))
    assert counts["factor"] == report.factorizations == len(report.iterations) > 2
    assert counts["analyze"] == 1
    x.sum().backward()
    assert counts["factor"] == len(report.iterations)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_units_do_not_matter(scale: float) -> None:
    x0, a, b = problem()
    expected, _ = ss.find_root(residual, jacobian_values, PATTERN, x0, params=(a, b))
    x, _ = ss.find_root(
        lambda x: scale * residual(x, a, b), lambda x: scale * jacobian_values(x, a, b), PATTERN, x0
    )
    assert torch.allclose(x, expected, atol=1e-10)


TWO = ss.Pattern(torch.arange(2), torch.arange(2), (2, 2))


@pytest.mark.parametrize(
    ("residual", "derivative", "x0", "root"),
    [
        (lambda x: torch.exp(x) - 1, torch.exp, [50.0, 45.0], [0.0, 0.0]),  # from where it is 10²¹
        (
            lambda x: torch.stack((1e12 * (x[0] - 1), x[1] ** 3 - 8)),
            lambda x: torch.stack((torch.full((), 1e12, dtype=x.dtype), 3 * x[1] ** 2)),
            [0.0, 1.0],
            [1.0, 2.0],
        ),
        (
            lambda x: torch.stack((x[0] - 1e8, x[1] ** 2 - 1e-8)),
            lambda x: torch.stack((torch.ones((), dtype=x.dtype), 2 * x[1])),
            [0.0, 1.0],
            [1e8, 1e-4],
        ),
        (
            lambda x: torch.stack((1e10 * (torch.exp(x[0]) - 3), x[1] ** 3 - 2)),
            lambda x: torch.stack((1e10 * torch.exp(x[0]), 3 * x[1] ** 2)),
            [1.0, 1.0],
            [1.0986122886681098, 2 ** (1 / 3)],
        ),
        (lambda x: 1e160 * (x - 2), lambda x: torch.full_like(x, 1e160), [0.0, 1.0], [2.0, 2.0]),
    ],
)
def test_equations_of_different_sizes(
    residual: Any, derivative: Any, x0: list[float], root: list[float]
) -> None:
    x, report = ss.find_root(residual, derivative, TWO, torch.tensor(x0, dtype=torch.double))
    assert torch.allclose(x, torch.tensor(root, dtype=torch.double), rtol=1e-3, atol=1e-8), report


def test_the_line_search_helps() -> None:
    one = ss.Pattern(torch.tensor([0]), torch.tensor([0]), (1, 1))
    x, report = ss.find_root(
        torch.atan, lambda x: 1 / (1 + x**2), one, torch.tensor([10.0], dtype=torch.double)
    )
    assert x.abs().item() < 1e-9  # the pure method diverges from 1.4 on
    assert min(iteration.step for iteration in report.iterations[:-1]) < 1


def test_a_start_at_the_root_is_found_out() -> None:
    x0, a, b = problem()
    x, _ = ss.find_root(residual, jacobian_values, PATTERN, x0, params=(a, b))
    again, report = ss.find_root(residual, jacobian_values, PATTERN, x, params=(a, b))
    assert torch.allclose(again, x, atol=1e-13)
    assert len(report.iterations) <= 4
    assert report.converged


def test_non_convergence() -> None:
    one = ss.Pattern(torch.tensor([0]), torch.tensor([0]), (1, 1))
    x0 = torch.tensor([1.0], dtype=torch.double)
    with pytest.raises(ss.ConvergenceError) as caught:  # no real root
        ss.find_root(lambda x: x**2 + 1, lambda x: 2 * x, one, x0, max_iterations=30)
    assert caught.value.x.shape == (1,)
    assert not caught.value.report.converged
    with pytest.raises(ss.ConvergenceError, match="singular"):
        ss.find_root(lambda x: x**2 + 1, lambda x: 2 * x, one, 0 * x0)
    with pytest.raises(ss.ConvergenceError, match="max_iterations=1"):
        ss.find_root(lambda x: x**2 - 7, lambda x: 2 * x, one, x0, max_iterations=1)
    with pytest.raises(ss.ConvergenceError, match="Jacobian right"):
        ss.find_root(lambda x: x**3 - 7, lambda x: -3 * x**2, one, x0)
    with pytest.raises(ss.NonFiniteError):
        ss.find_root(lambda x: (-x).log(), lambda x: 1 / x, one, x0)


def test_a_root_with_a_singular_jacobian_has_no_derivatives() -> None:
    two = ss.Pattern(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), (2, 2))
    c = torch.tensor(1.0, dtype=torch.double, requires_grad=True)
    x, report = ss.find_root(
        lambda x, c: torch.stack((x.sum() - c, 2 * x.sum() - 2 * c)),
        lambda x, c: torch.tensor([1.0, 1.0, 2.0, 2.0], dtype=torch.double),
        two,
        torch.tensor([0.5, 0.5], dtype=torch.double),
        params=(c,),
    )
    assert report.unique is False
    with pytest.raises(ss.SingularMatrixError, match="not unique"):
        x.sum().backward()


def test_parameters_that_are_not_listed_are_noticed() -> None:
    x0, a, b = problem()
    a.requires_grad_()
    with pytest.raises(ss.OptionError, match="params="):
        ss.find_root(lambda x: residual(x, a, b), lambda x: jacobian_values(x, a, b), PATTERN, x0)
    with pytest.raises(ss.OptionError, match="params="):
        ss.find_root(
            lambda x, _, b: residual(x, a, b),
            lambda x, _, b: jacobian_values(x, a, b),
            PATTERN,
            x0,
            params=(a, b),
        )
    with pytest.raises(ss.OptionError, match="params="):
        ss.find_root(
            lambda x, b: residual(x, a, b),
            lambda x, b: jacobian_values(x, a, b),
            PATTERN,
            x0,
            params=(b,),
        )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"pattern": 3}, ss.OptionError),
        ({"pattern": ss.Pattern(I[:2], I[:2], (2, 2))}, ss.ShapeError),
        ({"x0": torch.zeros(N, dtype=torch.int64)}, ss.DtypeError),
        ({"residual": lambda x, *_: x[:3]}, ss.ShapeError),
        ({"residual": lambda x, *_: 0.0}, ss.ShapeError),
        ({"jacobian_values": lambda x, *_: x[:3]}, ss.ShapeError),
        ({"assume": "positive"}, ss.OptionError),
        ({"rtol": float("inf")}, ss.OptionError),
        ({"params": torch.ones(2)}, ss.OptionError),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], error: type[Exception]) -> None:
    x0, a, b = problem()
    arguments: dict[str, Any] = {
        "residual": residual,
        "jacobian_values": jacobian_values,
        "pattern": PATTERN,
        "x0": x0,
        "params": (a, b),
    }
    with pytest.raises(error):
        ss.find_root(**(arguments | change))


def test_callback_largest_step_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    x0, a, b = problem()
    seen: list[Any] = []
    options: dict[str, Any] = {"largest_step": lambda x, d: 0.25, "progress": True}
    options["callback"] = lambda x, iteration: seen.append(iteration)
    _, report = ss.find_root(residual, jacobian_values, PATTERN, x0, params=(a, b), **options)
    assert tuple(seen) == report.iterations
    assert {iteration.step for iteration in seen[:-1]} == {0.25}
    assert "find_root" in capsys.readouterr().err
