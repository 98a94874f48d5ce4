"""`fixed_values=`: values and derivatives as if x0 held them, and errors where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sample_energies import EDGES, FIXED, REST, N, constants, structure
from torch import Tensor

import sparse_solver as ss

I, J = torch.arange(N), torch.arange(N - 1)
CHAIN = ss.Pattern(torch.cat((I, J, J + 1)), torch.cat((I, J + 1, J)), (N, N))


def residual(x: Tensor, a: Tensor) -> Tensor:
    zero = x.new_zeros(1)
    return a * x + x**3 + torch.cat((x[1:], zero)) - torch.cat((zero, x[:-1])).sin() / 2 - 1


def jacobian_values(x: Tensor, a: Tensor) -> Tensor:
    return torch.cat((a + 3 * x**2, torch.ones_like(x[1:]), -x[:-1].cos() / 2))


def find_root(x0: Tensor, a: Tensor, **options: Any) -> Tensor:
    """The root of an unsymmetric chain."""
    X: Tensor = ss.find_root(residual, jacobian_values, CHAIN, x0, params=(a,), **options)[0]
    return X


def minimize(x0: Tensor, stiffness: Tensor, **options: Any) -> Tensor:
    """The minimum of a structure in the plane."""
    energy = structure(stiffness, *constants()[1:])
    X: Tensor = ss.minimize(energy, x0, **options)[0]
    return X


def minimize_line(x0: Tensor, stiffness: Tensor, **options: Any) -> Tensor:
    """The minimum of a sum of terms of two scalars."""
    edges = torch.stack((J, J + 1), 1)
    energy = ss.IndexedSum(
        lambda x, k: k * (x[1] - x[0]) ** 2 + x[0] ** 4, edges, per_term=stiffness
    )
    X: Tensor = ss.minimize(energy, x0, **options)[0]
    return X


def mask(*shape: int, at: list[Any]) -> Tensor:
    fixed = torch.zeros(shape, dtype=torch.bool)
    for place in at:
        fixed[place] = True
    return fixed


SIZES = {find_root: N, minimize_line: N - 1, minimize: len(EDGES)}  # of the parameter
LINE, PLANE = torch.linspace(1, 2, N).double(), REST + 0.1
CASES: list[tuple[Callable[..., Tensor], Tensor, Tensor]] = [
    (find_root, LINE, torch.tensor([4, 1])),
    (find_root, LINE, mask(N, at=[1, 4])),
    (minimize_line, LINE, torch.tensor([4, 1], dtype=torch.int32)),
    (minimize_line, LINE, mask(N, at=[1, 4])),
    (minimize, PLANE, torch.tensor([N, 0])),
    (minimize, PLANE, mask(2 * N, at=[0, N])),
    (minimize, PLANE, mask(2 * N, 2, at=[0, (N, 1), (3, 0)])),
]


@pytest.mark.parametrize(("solve", "x0", "fixed"), CASES)
def test_fixed_values_are_those_of_x0(
    solve: Callable[..., Tensor], x0: Tensor, fixed: Tensor
) -> None:
    places = fixed if fixed.dtype == torch.bool else fixed.long()
    values = x0[places] + 0.1 * torch.rand_like(x0[places])
    constant = torch.linspace(1, 2, SIZES[solve]).double()
    unused = x0.clone()
    unused[places] = float("nan")

    def holding(constant: Tensor, values: Tensor) -> Tensor:
        return solve(x0.index_put((places,), values), constant, fixed=fixed)

    def passing(constant: Tensor, values: Tensor) -> Tensor:
        return solve(unused, constant, fixed=fixed, fixed_values=values)

    inputs = constant.requires_grad_(), values.requires_grad_()
    expected, found = holding(*inputs), passing(*inputs)
    assert torch.equal(found, expected)
    assert torch.equal(found[places], values)
    weights, gradients = torch.rand_like(found), []
    for X in (found, expected):
        first = torch.autograd.grad((weights * X).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        gradients.append((*first, *second))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
    torch.autograd.gradcheck(passing, inputs, fast_mode=True)


def test_fixed_values_where_all_entries_are_fixed() -> None:
    values = torch.rand(2 * N, 2, dtype=torch.double, requires_grad=True)
    X = minimize(REST, constants()[0], fixed=torch.arange(2 * N), fixed_values=values)
    assert torch.equal(X, values)
    (gradient,) = torch.autograd.grad(X.sum(), values)
    assert torch.equal(gradient, torch.ones_like(values))


@pytest.mark.parametrize(
    ("fixed", "values", "error", "text"),
    [
        (None, torch.zeros(2, 2).double(), ss.OptionError, "without fixed="),
        (FIXED, [[0.0, 0.0], [1.0, 1.0]], ss.LayoutError, "a list"),
        (FIXED, torch.zeros(2, 2).double().to_sparse(), ss.LayoutError, "sparse"),
        (FIXED, torch.zeros(2).double(), ss.ShapeError, r"expected \(2, 2\)"),
        (FIXED, torch.zeros(4).double(), ss.ShapeError, r"expected \(2, 2\)"),
        (mask(2 * N, 2, at=[0]), torch.zeros(1, 2).double(), ss.ShapeError, r"expected \(2,\)"),
        (FIXED, torch.zeros(2, 2), ss.DtypeError, "float32"),
        (FIXED, torch.zeros(2, 2, device="meta").double(), ss.DeviceError, "meta"),
        (torch.tensor([99]), torch.zeros(1, 2).double(), ss.IndexRangeError, "99"),
    ],
)
def test_fixed_values_that_do_not_fit(
    fixed: Tensor | None, values: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        minimize(REST, constants()[0], fixed=fixed, fixed_values=values)
    if fixed is None:
        with pytest.raises(error, match=text):
            find_root(LINE, torch.ones(N).double(), fixed_values=values[0])
