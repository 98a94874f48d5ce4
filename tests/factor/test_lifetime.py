"""Tokens: tensors that keep factors alive, and the copies that hooks make of them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from problems import problem, rhs

import sparse_solver as ss
from sparse_solver._factor.factors import Factors
from sparse_solver._factor.lifetime import empty_token, factors_of, token_of
from sparse_solver._factor.options import Options
from sparse_solver._factor.problem import Problem
from sparse_solver._testing import count_alive, installed_engines

P = problem("spd", torch.float64)
PATTERN = ss.Pattern(P.rows, P.cols, P.shape)
B = rhs(P.n, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _collected() -> None:
    gc.collect()


def new_problem() -> Problem:
    return Problem(PATTERN._structure, Options())


def test_a_token_keeps_its_factors_alive() -> None:
    before, factors = count_alive(), Factors(new_problem())
    alive, token = weakref.ref(factors), token_of(factors)
    view = token.view(1)
    assert factors_of(view, new_problem()) is factors
    del factors, token
    assert alive() is not None
    assert count_alive() == before + 1
    del view
    assert alive() is None
    assert count_alive() == before


def test_a_copy_of_a_token_finds_the_factors_only_while_they_live() -> None:
    factors = Factors(new_problem())
    token = token_of(factors)
    copy = token.clone()
    assert factors_of(copy, new_problem()) is factors
    alive = weakref.ref(factors)
    del factors, token
    assert alive() is None
    again = factors_of(copy, new_problem())
    assert again.parts is None  # new ones, which will factor from the saved values
    other = token_of(Factors(new_problem()))
    assert not torch.equal(other, copy)  # numbers are never used twice


def test_an_empty_token_keeps_nothing_alive() -> None:
    before = count_alive()
    token = empty_token()
    assert count_alive() == before
    assert factors_of(token, new_problem()).parts is None


@pytest.mark.parametrize("engine", installed_engines("spd"))
def test_factors_live_as_long_as_their_graphs(engine: str) -> None:
    before = count_alive()
    values = P.values.clone().requires_grad_()
    x = PATTERN.solve(values, B, engine=engine)
    assert count_alive() == before + 1
    loss = x.sum()
    loss.backward()  # frees the buffers of the graph, though x and the loss are still here
    assert count_alive() == before

    x = PATTERN.solve(values, B, engine=engine)
    del x  # never differentiated
    assert count_alive() == before

    PATTERN.solve(P.values, B, engine=engine)  # no graph at all
    assert count_alive() == before

    F = PATTERN.factorize(values, engine=engine)
    alive = weakref.ref(F._factors)
    x = F.solve(B)
    del F
    assert alive() is not None
    x.sum().backward()
    assert alive() is None


def test_a_factor_survives_hooks_that_replace_saved_tensors() -> None:
    p = problem("general", torch.float64)
    pattern = ss.Pattern(p.rows, p.cols, p.shape)
    values = p.values.clone().requires_grad_()
    expected = torch.autograd.grad(pattern.solve(values, B).sum(), values)[0]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        x = pattern.solve(values, B)
    torch.testing.assert_close(torch.autograd.grad(x.sum(), values)[0], expected)
    x = torch.utils.checkpoint.checkpoint(
        lambda v: pattern.solve(v, B).square(), values, use_reentrant=False
    )
    squared = torch.autograd.grad(pattern.solve(values, B).square().sum(), values)[0]
    torch.testing.assert_close(torch.autograd.grad(x.sum(), values)[0], squared)
