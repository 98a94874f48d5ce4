"""`minimize`: fixed entries, energies of all kinds, and errors for what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sample_energies import (
    FIXED,
    NODES,
    REST,
    N,
    Parametric,
    Quartic,
    constants,
    is_minimum,
    structure,
    tether,
)
from torch import Tensor

import sparse_solver as ss


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
    empty = ss.IndexedSum(
        tether, torch.empty(0, 1, dtype=torch.int64), per_variable=torch.empty(0, 2)
    )
    X, report = ss.minimize(empty, torch.empty(0, 2))
    assert X.shape == (0, 2)
    assert report.converged


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


def test_restricted_energies() -> None:
    k, l, rest, _ = constants()
    X = (REST + 0.1).requires_grad_()
    energy = structure(k.requires_grad_(), l, rest)
    free = energy.restrict(X, fixed=FIXED)
    x, _ = ss.minimize(free, free.select(X.detach()))
    Y, _ = ss.minimize(energy, X, fixed=FIXED)
    assert torch.allclose(free.extend(x), Y)
    weights = torch.rand_like(Y)
    found = torch.autograd.grad((weights * free.extend(x)).sum(), (k, X))
    expected = torch.autograd.grad((weights * Y).sum(), (k, X))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b)


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
    energy = ss.IndexedSum(tether, NODES, per_variable=REST)
    with pytest.raises(error):
        ss.minimize(energy, x0, **options)


def test_energies_that_do_not_fit_are_refused() -> None:
    quartic = Quartic(torch.ones(4).double(), torch.ones(4).double())
    quartic.value = lambda x: 0.0  # type: ignore[method-assign]
    with pytest.raises(ss.ShapeError, match=r"\(4, 4\)"):
        ss.minimize(quartic, torch.ones(5, dtype=torch.double))
    energy = ss.IndexedSum(tether, NODES, per_variable=REST)
    for wrong, params, text in (
        (3, None, "int has no value"),
        (lambda: 3, None, "function has no value"),
        (energy, (REST,), "with params="),
        (lambda *rows: energy, REST, r"params=\(k,\)"),
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
