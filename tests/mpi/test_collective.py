"""Errors on one rank are raised on all ranks, and nothing hangs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable

import pytest
import torch
from mpi4py import MPI
from problems import problem, rhs
from shares import COMM, Share, launch, whole

import sparse_solver as ss
from sparse_solver import distributed
from sparse_solver.errors import CollectiveError

LAST = COMM.size - 1
single = pytest.mark.skipif(COMM.size > 1, reason="starts ranks of its own")
several = pytest.mark.skipif(COMM.size == 1, reason="needs several ranks")


@pytest.fixture
def share() -> Share:
    return Share(problem("general", torch.float64, n=30))


def check_that_calls_work(share: Share) -> None:
    """Check that collective calls still work."""
    b = rhs(30, dtype=torch.float64)
    x = share.pattern.solve(share.values, share.of(b))
    torch.testing.assert_close(whole(x), torch.linalg.solve(share.problem.dense, b))


@pytest.mark.parametrize("at", sorted({0, LAST}))
def test_an_error_on_one_rank(share: Share, at: int) -> None:
    here, n = COMM.rank == at, len(share.block)
    P, v, b = share.pattern, share.values, share.of(rhs(30, dtype=torch.float64))
    bad, nan = b[: n - 1], torch.full_like(b, float("nan"))
    calls: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ss.ShapeError, "b has shape", lambda: P.solve(v, bad if here else b)),
        (ss.ShapeError, "values have shape", lambda: P.solve(v[:-1] if here else v, b)),
        (ss.ShapeError, "one at a time", lambda: P.solve(v.repeat(2, 1) if here else v, b)),
        (ss.DtypeError, "int64", lambda: P.solve(v, b.long() if here else b)),
        (ss.DtypeError, "float32", lambda: P.solve(v, b.float() if here else b)),
        (ss.LayoutError, "dense", lambda: P.solve(v, None if here else b)),
        (
            ss.OptionError,
            "assume='spdd'",
            lambda: P.solve(v, b, assume="spdd" if here else "general"),
        ),
        (ss.OptionError, "transpose=1", lambda: P.solve(v, b, transpose=1 if here else False)),
        (ss.OptionError, "adjoint=1", lambda: P.solve(v, b, adjoint=1 if here else False)),
        (ss.OptionError, "choose one", lambda: P.solve(v, b, transpose=here, adjoint=True)),
        (
            ss.NonFiniteError,
            r"values\[0\] is nan",
            lambda: P.solve(torch.full_like(v, torch.nan) if here else v, b),
        ),
        (ss.NonFiniteError, r"b\[0\] is nan", lambda: P.solve(v, nan if here else b)),
        (ss.NonFiniteError, r"b\[0\] is nan", lambda: P.factorize(v).solve(nan if here else b)),
        (
            ss.IndexRangeError,
            "row -1",
            lambda: distributed.Pattern(*places(share, -1 if here else None), (30, 30)),
        ),
        (
            ss.IndexRangeError,
            "column",
            lambda: distributed.Pattern(*places(share, None, here), (30, 30)),
        ),
        (ss.LayoutError, "dense", lambda: distributed.all_sum(None if here else b[:1])),
        (ss.DtypeError, "float16", lambda: distributed.all_sum(b[:1].half() if here else b[:1])),
    ]
    for kind, message, call in calls:
        with pytest.raises(kind, match=message) as caught:
            call()
        assert here or f"on rank {at}: " in str(caught.value)
        check_that_calls_work(share)


def places(share: Share, row: int | None, far: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    rows, cols = share.problem.rows[share.entries], share.problem.cols[share.entries].clone()
    if row is not None:
        rows[0] = row
    if far:
        cols[0] = 30
    return rows, cols


def test_errors_carry_their_data_to_all_ranks(share: Share) -> None:
    rows, cols = places(share, None, COMM.rank == LAST)
    with pytest.raises(ss.IndexRangeError) as caught:
        distributed.Pattern(rows, cols, (30, 30))
    assert (caught.value.entry, caught.value.index) == (0, 30)


def test_unexpected_errors(share: Share) -> None:
    """A foreign error stays what it is on its rank; the others raise CollectiveError."""
    v, b = share.values.clone().requires_grad_(), share.of(rhs(30, dtype=torch.float64))
    x = share.pattern.solve(v, b)
    if COMM.rank == LAST:
        with torch.no_grad():
            v.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation") as caught:
        x.sum().backward()
    assert isinstance(caught.value, CollectiveError) == (COMM.rank != LAST)
    check_that_calls_work(share)


def test_matrices_that_cannot_be_factored() -> None:
    p = problem("spd", torch.float64, n=30)
    share, b = Share(p), torch.ones(len(Share(p).block), dtype=torch.float64)
    diagonal = p.rows[share.entries] == p.cols[share.entries]
    last = p.rows[share.entries] == 29
    indefinite = torch.where(diagonal, share.values * (1 - 2 * last.double()), share.values)
    asymmetric = share.values * torch.where(last & ~diagonal, 1.5, 1.0)
    i = torch.arange(share.block.start, share.block.stop)
    kept = i < 29  # the last row is on the last rank
    hole = distributed.Pattern(i[kept], i[kept], (30, 30))
    path = torch.cat((i, i)), torch.cat((i, (i + 1) % 30))
    ring = distributed.Pattern(*path, (30, 30))  # x_i − x_{i+1}, around
    difference = torch.cat((torch.ones(len(i)), -torch.ones(len(i)))).double()
    calls: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (
            ss.NotPositiveDefiniteError,
            "positive",
            lambda: share.pattern.solve(indefinite, b, assume="spd"),
        ),
        (
            ss.NotSymmetricError,
            r"\(29, |, 29\)",
            lambda: share.pattern.solve(asymmetric, b, assume="symmetric"),
        ),
        (
            ss.SingularMatrixError,
            "row 29 has no",
            lambda: hole.solve(torch.ones(int(kept.sum())).double(), b),
        ),
        (
            ss.SingularMatrixError,
            "all its values",
            lambda: share.pattern.solve(share.values * 0, b),
        ),
        (ss.SingularMatrixError, "singular", lambda: ring.solve(difference, b)),
        (ss.SingularMatrixError, "singular", lambda: ring.factorize(difference)),
    ]
    for kind, message, call in calls:
        with pytest.raises(kind, match=message):
            call()
    x = share.pattern.solve(indefinite, b)
    dense = p.dense.clone()
    dense[29, 29] = -dense[29, 29]
    torch.testing.assert_close(
        whole(x), torch.linalg.solve(dense, torch.ones(30, dtype=torch.float64))
    )


def test_an_indefinite_matrix_with_a_positive_diagonal() -> None:
    p = problem("symmetric", torch.float64, n=30)
    shift = torch.where(
        p.rows == p.cols, p.values.abs() - p.values, 0.0
    )  # a positive diagonal; still indefinite
    dense = (
        p.dense
        + torch.diag(p.dense.diag().abs() - p.dense.diag())
        + 3 * (torch.eye(30).roll(1, 1)).double()
    )
    dense = (dense + dense.mT) / 2
    assert shift.shape == p.values.shape
    assert float(torch.linalg.eigvalsh(dense).min()) < 0 < float(dense.diag().min())
    rows, cols = dense.nonzero().T
    share = Share(type(p)("symmetric", dense, rows, cols, dense[rows, cols]))
    F = share.pattern.factorize(share.values)
    b = rhs(30, dtype=torch.float64)
    torch.testing.assert_close(whole(F.solve(share.of(b))), torch.linalg.solve(dense, b))
    assert F.info.assume == "symmetric"
    assert "not positive definite" in F.info.assume_reason


@several
def test_different_calls(share: Share) -> None:
    v, b = share.values.clone().requires_grad_(), share.of(rhs(30, dtype=torch.float64))
    P, first = share.pattern, COMM.rank == 0
    Q = Share(share.problem).pattern
    F, G = P.factorize(v), P.factorize(v)
    scalar = torch.ones((), dtype=torch.float64)
    calls: list[Callable[[], object]] = [
        lambda: P.solve(v, b) if first else P.factorize(v),
        lambda: P.solve(v, b) if first else Q.solve(v, b),
        lambda: F.solve(b) if first else G.solve(b),
        lambda: P.solve(v, b, transpose=first),
        lambda: F.solve(b, adjoint=first),
        lambda: P.solve(v, b, assume="general" if first else "auto"),
        lambda: P.solve(v, b if first else b.unsqueeze(1)),
        lambda: P.solve(v, torch.stack([b] * (2 + first), 1)),
        lambda: P.solve(v.float(), b.float()) if first else P.solve(v, b),
        lambda: distributed.all_sum(scalar) if first else distributed.replicate(scalar),
        lambda: distributed.all_sum(scalar if first else scalar.float()),
        lambda: distributed.all_sum(scalar if first else scalar.expand(1)),
        lambda: distributed.all_sum(scalar) if first else P.solve(v, b),
        lambda: P.release_idle() if first else P.solve(v, b),
        lambda: distributed.Pattern(
            P._rows.rows, P._rows.cols, (30 + first, 30 + first), block=P.block
        ),
    ]
    for call in calls:
        with pytest.raises(CollectiveError, match="rank 0: ") as caught:
            call()
        assert len(caught.value.calls) == COMM.size
        check_that_calls_work(share)


@several
def test_different_orders_of_backward_passes(share: Share) -> None:
    v, b = share.values.clone().requires_grad_(), share.of(rhs(30, dtype=torch.float64))
    x, y = share.pattern.solve(v, b), share.pattern.solve(v, b)
    first, second = (x, y) if COMM.rank else (y, x)
    with pytest.raises(CollectiveError, match="backward of solve"):
        first.sum().backward()
    s, t = (distributed.all_sum(part.sum()) for part in (x, y))
    with pytest.raises(CollectiveError, match="backward of all_sum"):
        (s if COMM.rank else t).backward(retain_graph=True)
    with pytest.raises(CollectiveError, match="backward of"):
        (s.backward if COMM.rank else second.sum().backward)()
    check_that_calls_work(share)


def test_transforms_are_refused(share: Share) -> None:
    v, b = share.values, share.of(rhs(30, dtype=torch.float64))
    P = share.pattern
    for call in (
        lambda: torch.func.grad(lambda v: P.solve(v, b).sum())(v),
        lambda: torch.func.jvp(lambda v: P.solve(v, b), (v,), (v,)),
        lambda: torch.func.vmap(lambda b: P.solve(v, b))(b.expand(2, -1)),
        lambda: torch.func.grad(lambda v: distributed.all_sum(v.sum()))(v),
    ):
        with pytest.raises(ss.TransformError, match=r"torch\.autograd"):
            call()
    leaf = v.clone().requires_grad_()
    x = P.solve(leaf, b)
    with pytest.raises(ss.TransformError):
        torch.autograd.grad(x, leaf, torch.stack((x, x)).detach(), is_grads_batched=True)
    check_that_calls_work(share)


def test_blocks_that_are_not_contiguous() -> None:
    none = torch.empty(0, dtype=torch.int64)
    block = range(0, 5) if COMM.rank == 0 else range(4, 5 + COMM.rank)
    expected = "has to begin with row 5" if COMM.size > 1 else "have 5 rows, the matrix has 6"
    with pytest.raises(ss.ShapeError, match=expected):
        distributed.Pattern(none, none, (6, 6), block=block)
    with pytest.raises(ss.OptionError, match="range"):
        distributed.Pattern(none, none, (6, 6), block=range(6, 0, -1))
    with pytest.raises(ss.ShapeError, match="square"):
        distributed.Pattern(none, none, (6, 5))
    with pytest.raises(ss.OptionError, match="intracommunicator"):
        distributed.Pattern(none, none, (6, 6), comm=MPI.COMM_NULL)


def test_communicators_of_some_ranks() -> None:
    """Two halves of the ranks solve systems of their own at the same time."""
    half = COMM.Split(COMM.rank % 2)
    p = problem("spd", torch.float64, n=20 + COMM.rank % 2)
    mine = distributed.partition(p.shape, comm=half)
    entries = (p.rows >= mine.start) & (p.rows < mine.stop)
    P = distributed.Pattern(p.rows[entries], p.cols[entries], p.shape, comm=half)
    b = rhs(p.n, dtype=torch.float64)
    values = p.values[entries].requires_grad_()
    x = P.solve(values, b[mine.start : mine.stop])
    torch.testing.assert_close(
        torch.cat(half.allgather(x.detach())), torch.linalg.solve(p.dense, b)
    )
    distributed.all_sum(x.sum(), comm=half).backward()
    P.solve(values, b[mine.start : mine.stop])


def test_in_inference_mode_and_with_another_default_device(share: Share) -> None:
    with torch.inference_mode():
        inner = Share(share.problem)
        check_that_calls_work(inner)
    values = share.values.clone().requires_grad_()
    torch.set_default_device("meta")
    try:
        x = inner.pattern.solve(values, share.of(torch.ones(30, dtype=torch.float64, device="cpu")))
        distributed.all_sum(x.square().sum()).backward()
    finally:
        torch.set_default_device(None)
    assert values.grad is not None


def test_patterns_and_factorizations_cannot_be_pickled(share: Share) -> None:
    for one in (share.pattern, share.pattern.factorize(share.values)):
        with pytest.raises(TypeError):
            pickle.dumps(one)
        assert "30" in repr(one)


ALONE = """
import torch
from mpi4py import MPI
from sparse_solver.distributed import Pattern, all_sum
from sparse_solver.errors import CollectiveError

i = torch.arange(2)
P = Pattern(i, i, (2, 2), comm=MPI.COMM_SELF)
total = all_sum(P.solve(torch.ones(2), torch.ones(2)).sum())  # makes a group of all ranks
if MPI.COMM_WORLD.rank == 1:
    raise ValueError("alone")
try:
    all_sum(total)
except CollectiveError as error:
    print(error)
try:
    all_sum(total)
except CollectiveError as error:
    print(error)
"""


@single
def test_a_rank_that_ends_early_does_not_block_the_others() -> None:
    done = launch(ALONE)
    assert done.returncode
    assert "ValueError: alone" in done.stderr
    assert "rank 1: the end of the program" in done.stdout
    assert "all_sum cannot be called any more" in done.stdout


UNEXPECTED = """
import torch
from mpi4py import MPI
from sparse_solver.distributed import Pattern
from sparse_solver.distributed._halo_exchange import Rows

i = torch.arange(2 * MPI.COMM_WORLD.rank, 2 * MPI.COMM_WORLD.rank + 2)
P = Pattern(i, i, (4, 4))


def full(*_):
    raise MemoryError("full")


if MPI.COMM_WORLD.rank == 1:
    Rows.arrange = full
P.solve(torch.ones(2), torch.ones(2))
"""


@single
def test_a_failure_while_others_wait_ends_all_ranks() -> None:
    done = launch(UNEXPECTED)
    assert done.returncode
    assert "MemoryError: full" in done.stderr
    assert "rank 1 failed while others wait for it" in done.stderr


@single
@pytest.mark.parametrize(
    ("asked", "expected"), [(None, max(1, len(os.sched_getaffinity(0)) // 2)), ("2", 2)]
)
def test_ranks_share_the_cores_of_a_machine(asked: str | None, expected: int) -> None:
    script = (
        "import torch; from sparse_solver.distributed import Pattern; i = torch.arange(0);"
        "Pattern(i, i, (0, 0)); print(torch.get_num_threads())"
    )
    done = launch(script, OMP_NUM_THREADS=asked)
    assert "".join(done.stdout.split()) == 2 * str(expected), done
