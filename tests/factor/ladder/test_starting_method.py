"""With which method the factorisations of a pattern start."""

from __future__ import annotations

import torch

import sparse_solver as ss
from sparse_solver._factor.ladder.starting_method import Start


def test_the_first_method_is_tried_again_less_and_less_often() -> None:
    start = Start()
    assert start.find() is None
    start.keep("robust")
    tried = [at for at in range(1, 120) if start.find() is None]
    assert tried == [16, 48, 112]
    start.keep(None)
    assert start.find() is None
    start.keep("robust")
    assert [start.find() for _ in range(15)] == ["robust"] * 15


def test_a_pattern_starts_with_what_it_needed_and_returns_to_the_first_method() -> None:
    n = 40
    i = torch.arange(n)
    P = ss.Pattern(torch.cat((i, i)), torch.cat((i, (i + 1) % n)), (n, n))
    easy = torch.cat((torch.full((n,), 2.0), torch.ones(n))).double()
    hard = torch.cat((torch.full((n,), 1e-30), torch.ones(n))).double()  # tiny pivots
    b = torch.ones(n, dtype=torch.float64)
    first = P.factorize(easy, assume="general").info
    assert first.method_reason == "the fastest method for this kind"
    robust = P.factorize(hard, assume="general")
    torch.testing.assert_close(robust.solve(b), torch.ones(n).double())
    if robust.info.method == first.method:
        return  # the engine exchanges rows
    assert robust.info.method_reason != first.method_reason
    methods = [P.factorize(easy, assume="general").info.method for _ in range(20)]
    assert methods[0] == robust.info.method
    assert methods[-1] == first.method
