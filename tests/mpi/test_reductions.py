"""`all_sum`, `replicate` and their derivatives."""

from __future__ import annotations

import pytest
import torch
from problems import DTYPES
from shares import COMM
from torch import Tensor

from sparse_solver import distributed

RANKS = torch.arange(1.0, COMM.size + 1, dtype=torch.float64)
MINE = RANKS[COMM.rank]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_all_sum(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    share = torch.full(shape, COMM.rank + 1, dtype=dtype, requires_grad=True)
    total = distributed.all_sum(share)
    assert torch.equal(total, torch.full(shape, float(RANKS.sum()), dtype=dtype))
    (gradient,) = torch.autograd.grad(total.real.sum(), share)
    assert torch.equal(gradient, torch.ones_like(share))
    # The sum is not made in place.
    assert torch.equal(share.detach(), torch.full(shape, COMM.rank + 1, dtype=dtype))


def test_the_derivatives_of_a_function_of_sums() -> None:
    """f = (Σ r x_r)³ of the ranks' numbers x_r: its first three derivatives."""
    x = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    f = distributed.all_sum(MINE * x) ** 3
    total = 0.5 * RANKS.sum()
    (first,) = torch.autograd.grad(f, x, create_graph=True)
    torch.testing.assert_close(first, MINE * 3 * total**2)
    sum_of_first = distributed.all_sum(first)
    (second,) = torch.autograd.grad(sum_of_first, x, create_graph=True)
    torch.testing.assert_close(second, MINE * RANKS.sum() * 6 * total)
    (third,) = torch.autograd.grad(distributed.all_sum(second), x)
    torch.testing.assert_close(third, MINE * RANKS.sum() ** 2 * 6)


def test_parameters_that_all_ranks_share() -> None:
    """f = Σ_r r w², where each rank computes its own term."""
    w = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    f = distributed.all_sum(MINE * distributed.replicate(w) ** 2)
    (first,) = torch.autograd.grad(f, w, create_graph=True)
    torch.testing.assert_close(first, RANKS.sum() * 2 * w.detach())
    (second,) = torch.autograd.grad(first, w)
    torch.testing.assert_close(second, RANKS.sum() * 2)


def test_parameters_stay_equal_when_they_are_optimised() -> None:
    w = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        distributed.all_sum((MINE * distributed.replicate(w) - 1).square().sum()).backward()
        optimizer.step()
    assert all(torch.equal(w.detach(), other) for other in COMM.allgather(w.detach()))


@pytest.mark.parametrize("recorded", [0, COMM.size - 1])
def test_a_share_that_is_a_constant_on_the_other_ranks(recorded: int) -> None:
    share = torch.ones((), requires_grad=COMM.rank == recorded)
    total = distributed.all_sum(share)
    assert total.requires_grad
    total.backward()
    assert (share.grad is None) == (COMM.rank != recorded)


def test_nothing_is_recorded_without_need() -> None:
    with torch.no_grad():
        assert not distributed.all_sum(torch.ones((), requires_grad=True)).requires_grad
    assert not distributed.replicate(torch.ones(())).requires_grad


def test_a_partition_is_even() -> None:
    for n in (0, 1, 7, 100):
        blocks = COMM.allgather(distributed.partition((n, n)))
        assert [row for block in blocks for row in block] == list(range(n))
        assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_under_torch_compile() -> None:
    """The graph breaks at a collective call, which is not compiled."""

    def f(x: Tensor) -> Tensor:
        return distributed.all_sum((x * 2).sum()) * 2

    x = torch.ones(2, requires_grad=True)
    compiled = torch.compile(f, backend="eager")
    assert torch.equal(compiled(x), f(x))
    compiled(x).backward()
    assert torch.equal(x.grad, torch.full((2,), 4.0))
