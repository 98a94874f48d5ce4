"""Solutions and derivatives equal those of one process, however the rows are distributed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
import torch
from mpi4py import MPI
from problems import DTYPES, REAL, TOLERANCE, Problem, independent, kinds_of, problem, rhs
from shares import COMM, CUTS, Share, whole
from torch import Tensor

import sparse_solver as ss
from sparse_solver import distributed

T = TypeVar("T")
RANKS = range(COMM.size)
CASES = [(kind, dtype) for dtype in DTYPES for kind in kinds_of(dtype)]


def close(share: Tensor, expected: Tensor) -> None:
    """Compare all shares together with what is expected."""
    together, expected, tolerance = whole(share), expected.detach(), TOLERANCE[expected.dtype]
    torch.testing.assert_close(
        together, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
    )


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_solutions_and_gradients(
    kind: str, dtype: torch.dtype, asked: bool, transpose: bool, cut: str
) -> None:
    p = problem(kind, dtype, n=30)
    share, b, weights = Share(p, cut), rhs(30, 3, dtype=dtype), rhs(30, 3, dtype=dtype, seed=7)
    assume = kind if asked else "auto"
    values, right = share.values.clone().requires_grad_(), share.of(b).clone().requires_grad_()
    x = share.pattern.solve(values, right, assume=assume, transpose=transpose)
    ((x * share.of(weights).conj()).real.sum() + (x.abs() ** 2).sum()).backward()

    V, B = p.values.clone().requires_grad_(), b.clone().requires_grad_()
    X = ss.Pattern(p.rows, p.cols, p.shape).solve(V, B, assume=assume, transpose=transpose)
    ((X * weights.conj()).real.sum() + (X.abs() ** 2).sum()).backward()
    close(x, X)
    close(values.grad, V.grad)
    close(right.grad, B.grad)


@pytest.mark.parametrize(
    ("kind", "dtype"), [case for case in CASES if case[1] in (torch.float64, torch.complex128)]
)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("transpose", [False, True])
def test_second_and_third_derivatives(
    kind: str, dtype: torch.dtype, transpose: bool, cut: str
) -> None:
    """A chain of gradients, each of the sum of squares of the previous ones."""
    p = problem(kind, dtype, n=14)
    share, b = Share(p, cut), rhs(14, 2, dtype=dtype)

    def chain(
        values: Tensor,
        right: Tensor,
        solve: Callable[[Tensor, Tensor], Tensor],
        total: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:
        x, found = solve(values, right), []
        for _ in range(3):
            loss = total((x.abs() ** 2).sum())
            found += torch.autograd.grad(loss, (values, right), create_graph=True)
            x = torch.cat((found[-2].flatten(), found[-1].flatten()))
        return found

    ours = chain(
        share.values.clone().requires_grad_(),
        share.of(b).clone().requires_grad_(),
        lambda v, b: share.pattern.solve(v, b, assume=kind, transpose=transpose),
        distributed.all_sum,
    )
    single = ss.Pattern(p.rows, p.cols, p.shape)
    theirs = chain(
        p.values.clone().requires_grad_(),
        b.clone().requires_grad_(),
        lambda v, b: single.solve(v, b, assume=kind, transpose=transpose),
        lambda loss: loss,
    )
    for mine, expected in zip(ours, theirs, strict=True):
        close(mine, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("transpose", [False, True])
def test_numerical_derivatives(dtype: torch.dtype, transpose: bool) -> None:
    for kind in kinds_of(dtype):
        p = problem(kind, dtype, n=5)
        P, to_values = (
            distributed.Pattern(p.rows, p.cols, p.shape, comm=MPI.COMM_SELF),
            independent(kind, p.values, p.rows, p.cols),
        )

        def solve(
            free: Tensor,
            b: Tensor,
            P: distributed.Pattern = P,
            to_values: Callable[[Tensor], Tensor] = to_values,
            kind: str = kind,
        ) -> Tensor:
            return P.solve(to_values(free), b, assume=kind, transpose=transpose)

        inputs = p.values.clone().requires_grad_(), rhs(5, 2, dtype=dtype).requires_grad_()
        assert torch.autograd.gradcheck(solve, inputs)
        assert torch.autograd.gradgradcheck(solve, inputs)


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_adjoint(kind: str, dtype: torch.dtype) -> None:
    p = problem(kind, dtype, n=30)
    share, b, weights = Share(p), rhs(30, dtype=dtype), rhs(30, dtype=dtype, seed=7)
    values, right = share.values.clone().requires_grad_(), share.of(b).clone().requires_grad_()
    V, B = p.values.clone().requires_grad_(), b.clone().requires_grad_()
    X = ss.Pattern(p.rows, p.cols, p.shape).solve(V, B, adjoint=True)
    (X * weights).real.sum().backward()
    for solve in (
        lambda: share.pattern.solve(values, right, adjoint=True),
        lambda: share.pattern.factorize(values).solve(right, adjoint=True),
    ):
        values.grad = right.grad = None
        x = solve()
        (x * share.of(weights)).real.sum().backward()
        close(x, torch.linalg.solve(p.dense.mH, b))
        close(values.grad, V.grad)
        close(right.grad, B.grad)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", ["spd", "general"])
def test_gradients_that_are_not_finite(kind: str, cut: str) -> None:
    """A loss that overflowed gives NaN, for its own right-hand side only."""
    share = Share(problem(kind, torch.float64, n=30), cut)
    b = rhs(30, 2, dtype=torch.float64)
    values, right = share.values.clone().requires_grad_(), share.of(b).clone().requires_grad_()
    x = share.pattern.solve(values, right)
    x.backward(torch.ones_like(x) * torch.tensor([1.0, float("nan")]))
    assert values.grad.isnan().all()
    transposed = share.problem.dense.mT
    close(right.grad[:, 0], torch.linalg.solve(transposed, torch.ones(30, dtype=torch.float64)))
    assert right.grad[:, 1].isnan().all()


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_fewer_rows_than_ranks(n: int) -> None:
    share = Share(problem("spd", torch.float64, n=n))
    values, b = (
        share.values.clone().requires_grad_(),
        torch.ones(len(share.block), dtype=torch.float64),
    )
    x = share.pattern.solve(values, b)
    assert torch.allclose(
        whole(x), torch.linalg.solve(share.problem.dense, torch.ones(n, dtype=torch.float64))
    )
    distributed.all_sum(x.sum()).backward()
    assert values.grad is not None
    assert values.grad.shape == values.shape


@pytest.mark.parametrize("shape", [(30,), (30, 0), (30, 1), (30, 5)])
def test_shapes_of_right_hand_sides(shape: tuple[int, ...]) -> None:
    share, b = Share(problem("general", torch.float64, n=30)), rhs(*shape, dtype=torch.float64)
    values, right = share.values.clone().requires_grad_(), share.of(b).clone().requires_grad_()
    x = share.pattern.solve(values, right)
    assert x.shape == right.shape
    torch.testing.assert_close(whole(x), torch.linalg.solve(share.problem.dense, b))
    distributed.all_sum(x.sum()).backward()
    assert right.grad is not None
    assert right.grad.shape == right.shape
    assert values.grad is not None


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_duplicates_in_any_order(index: torch.dtype) -> None:
    p = problem("spd", torch.float64, n=30)
    share = Share(p)
    rows, cols = p.rows[share.entries], p.cols[share.entries]
    order = torch.randperm(2 * rows.numel())
    rows, cols = (torch.cat((places, places))[order].to(index) for places in (rows, cols))
    parts = torch.cat((share.values * 0.25, share.values * 0.75))[order].requires_grad_()
    x = distributed.Pattern(rows, cols, p.shape).solve(
        parts, share.of(rhs(30, dtype=torch.float64)), assume="spd"
    )
    x.sum().backward()
    close(x, torch.linalg.solve(p.dense, rhs(30, dtype=torch.float64)))
    V = p.values.clone().requires_grad_()
    ss.Pattern(p.rows, p.cols, p.shape).solve(V, rhs(30, dtype=torch.float64)).sum().backward()
    once = torch.empty_like(parts)
    once[order] = parts.grad  # entries at the same place have the same derivative
    for half in once.detach().split(share.values.numel()):
        torch.testing.assert_close(half, V.grad[share.entries])


def test_strides_conjugates_and_negatives() -> None:
    p = problem("general", torch.complex128, n=30)
    share, b = Share(p), rhs(2, 30, dtype=torch.complex128).mT.conj()
    strided = torch.stack((share.values.conj(), share.values), 1)[:, 0].conj()
    assert strided.is_conj()
    assert not strided.is_contiguous()
    close(share.pattern.solve(strided, share.of(b)), torch.linalg.solve(p.dense, b))
    real = problem("general", torch.float64, n=30)
    share, negative = Share(real), rhs(30, dtype=torch.complex128).conj().imag
    assert negative.is_neg()
    close(
        share.pattern.solve(share.values, share.of(negative)),
        torch.linalg.solve(real.dense, negative),
    )
    close(distributed.all_sum(negative), COMM.size * negative.repeat(COMM.size))


@pytest.mark.parametrize("who", ["first", "last", "nobody"])
@pytest.mark.parametrize("what", ["values", "b"])
def test_gradients_that_only_one_rank_requires(who: str, what: str) -> None:
    p = problem("general", torch.float64, n=30)
    share, b = Share(p), rhs(30, dtype=torch.float64)
    wants = COMM.rank == {"first": 0, "last": COMM.size - 1, "nobody": -1}[who]
    values = share.values.clone().requires_grad_(wants and what == "values")
    right = share.of(b).clone().requires_grad_(wants and what == "b")
    x = share.pattern.solve(values, right)
    assert x.requires_grad == (
        who != "nobody"
    )  # or the backward passes would not be those of all ranks
    if who == "nobody":
        return
    x.sum().backward()
    V, B = p.values.clone().requires_grad_(), b.clone().requires_grad_()
    ss.Pattern(p.rows, p.cols, p.shape).solve(V, B).sum().backward()
    if wants and what == "values":
        torch.testing.assert_close(values.grad, V.grad[share.entries])
    elif wants:
        torch.testing.assert_close(right.grad, share.of(B.grad))
    else:
        assert values.grad is None
        assert right.grad is None


def test_two_solves_before_either_backward() -> None:
    p = problem("spd", torch.float64, n=30)
    share, b = Share(p), rhs(30, dtype=torch.float64)
    leaves = [(scale * share.values).requires_grad_() for scale in (1.0, 2.0)]
    solutions = [share.pattern.solve(values, share.of(b)) for values in leaves]
    for scale, values, x in zip((1.0, 2.0), leaves, solutions, strict=True):
        x.sum().backward()
        V = (scale * p.values).requires_grad_()
        ss.Pattern(p.rows, p.cols, p.shape).solve(V, b).sum().backward()
        torch.testing.assert_close(values.grad, V.grad[share.entries])


def test_a_factorization() -> None:
    p = problem("general", torch.float64, n=30)
    share, b = Share(p), rhs(30, 2, dtype=torch.float64)
    values = share.values.clone().requires_grad_()
    F = share.pattern.factorize(values)
    with torch.no_grad():
        values.fill_(float("nan"))  # the factor is of what they were
    x, y = F.solve(share.of(b)), F.solve(share.of(b), transpose=True)
    distributed.all_sum((x * y).sum()).backward()
    V = p.values.clone().requires_grad_()
    G = ss.Pattern(p.rows, p.cols, p.shape).factorize(V)
    X, Y = G.solve(b), G.solve(b, transpose=True)
    (X * Y).sum().backward()
    close(x, X)
    close(y, Y)
    torch.testing.assert_close(values.grad, V.grad[share.entries])
    assert F.info.engine == "cluster"
    assert F.info.assume == "general"
    assert F.info.n == 30
    assert F.info.nnz == share.values.numel()
    assert F.info.memory_bytes is not None


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("exponent", [-30, 30])
def test_scales(dtype: torch.dtype, exponent: int) -> None:
    """Scales of the whole matrix, and of single rows and columns."""
    for kind in ("spd", "general"):
        p = problem(kind, dtype, n=30)
        share, b = Share(p), rhs(30, dtype=dtype)
        x = share.pattern.solve(share.values * 10.0**exponent, share.of(b))
        close(x * 10.0**exponent, torch.linalg.solve(p.dense, b))
        sizes = 10.0 ** torch.linspace(0, exponent / 3, 30).to(dtype)
        scaled = p.values * sizes[p.rows] * sizes[p.cols]
        x = share.pattern.solve(scaled[share.entries], share.of(b * sizes))
        close(x * share.of(sizes), torch.linalg.solve(p.dense, b))


@pytest.mark.parametrize("dtype", DTYPES)
def test_indefinite_matrices_without_a_usable_diagonal(dtype: torch.dtype) -> None:
    """Saddle points: the lower right block is zero, so that pivots must be searched elsewhere."""
    n, m = 24, 8
    g = torch.Generator().manual_seed(0)
    C = torch.randn(m, n, dtype=dtype, generator=g)
    for adjoint in (C.mT, C.mH):
        corner = torch.zeros(m, m, dtype=dtype)
        dense = torch.cat(
            (torch.cat((torch.eye(n, dtype=dtype), adjoint), 1), torch.cat((C, corner), 1))
        )
        rows, cols = dense.nonzero().T
        p = Problem("saddle", dense, rows, cols, dense[rows, cols])
        share, b = Share(p), rhs(n + m, dtype=dtype)
        for _ in range(2):  # the second time, the rung that was needed is remembered
            close(share.pattern.solve(share.values, share.of(b)), torch.linalg.solve(dense, b))


@pytest.mark.parametrize("seed", range(24))
def test_random_cases(seed: int) -> None:
    """Random kinds, sizes, blocks, duplicates, options, and inputs that require gradients."""
    g = torch.Generator().manual_seed(seed)  # the same on all ranks

    def choice(options: Sequence[T]) -> T:
        return options[int(torch.randint(len(options), (), generator=g))]

    kind, dtype = choice(CASES)
    n, k, transpose = choice([1, 2, 5, 17, 40]), choice([1, 2, 4]), choice([False, True])
    assume = choice(["auto", kind])
    p = problem(kind, dtype, n=n, seed=seed)
    ends = [0, *torch.randint(n + 1, (COMM.size - 1,), generator=g).sort()[0].tolist(), n]
    wants = torch.randint(2, (COMM.size, 2), generator=g).bool().tolist()
    copies = torch.randint(1, 4, (p.values.numel(),), generator=g)  # of each entry
    entry = torch.repeat_interleave(copies)[torch.randperm(int(copies.sum()), generator=g)]
    start, stop = ends[COMM.rank : COMM.rank + 2]
    mine = (p.rows[entry] >= start) & (p.rows[entry] < stop)
    rows, cols, values = p.rows[entry], p.cols[entry], (p.values / copies)[entry]
    b, weights = rhs(n, k, dtype=dtype, seed=seed), rhs(n, k, dtype=dtype, seed=seed + 1)

    P = distributed.Pattern(rows[mine], cols[mine], p.shape, block=range(start, stop))
    v = values[mine].requires_grad_(wants[COMM.rank][0])
    right = b[start:stop].clone().requires_grad_(wants[COMM.rank][1])
    x = P.solve(v, right, assume=assume, transpose=transpose)
    V, B = values.clone().requires_grad_(), b.clone().requires_grad_()
    X = ss.Pattern(rows, cols, p.shape).solve(V, B, assume=assume, transpose=transpose)
    close(x, X)
    if not any(map(any, wants)):
        return
    (x * weights[start:stop].conj()).real.sum().backward()
    (X * weights.conj()).real.sum().backward()
    zeros = torch.zeros_like
    close(
        zeros(v) if v.grad is None else v.grad,
        torch.cat([part(V.grad, rows, ends, r) * wants[r][0] for r in RANKS]),
    )
    expected = [B.grad[ends[r] : ends[r + 1]] * wants[r][1] for r in RANKS]
    close(zeros(right) if right.grad is None else right.grad, torch.cat(expected))


def part(numbers: Tensor, rows: Tensor, ends: list[int], rank: int) -> Tensor:
    return numbers[(rows >= ends[rank]) & (rows < ends[rank + 1])]


def test_a_factorization_made_in_inference_mode_serves_in_training() -> None:
    i = torch.arange(3)
    P = distributed.Pattern(i, i, (3, 3), comm=MPI.COMM_SELF)
    with torch.inference_mode():
        F = P.factorize(torch.tensor([1.0, 2.0, 4.0]))
    b = torch.ones(3, requires_grad=True)
    F.solve(b).sum().backward()
    assert b.grad is not None
    assert b.grad.tolist() == [1.0, 0.5, 0.25]
