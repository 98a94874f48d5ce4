"""What goes wrong elsewhere: shared factors, aliased values, threads, forks, memory."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from counting import count, installed
from problems import general, grid, laplacian_places, laplacian_values, problem, rhs
from torch import Tensor

import sparse_solver as ss
from sparse_solver._engines.mkl import handle as _handle
from sparse_solver._factor import lifetime

ENGINES = installed("spd")


def laplacian(m: int = 12) -> tuple[ss.Pattern, Tensor, int]:
    edges, n = grid(m)
    return ss.Pattern(*laplacian_places(edges, n), (n, n)), edges, n


def dense_gradient(P: ss.Pattern, values: Tensor, b: Tensor, x_bar: Tensor) -> Tensor:
    values = values.detach().clone().requires_grad_()
    A = torch.zeros(P.shape, dtype=values.dtype).index_put(
        (P.rows, P.cols), values, accumulate=True
    )
    return torch.autograd.grad(torch.linalg.solve(A, b), values, x_bar)[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_two_solves_before_either_backward(engine: str) -> None:
    P, edges, n = laplacian()
    b, x_bar = rhs(n, dtype=torch.float64), rhs(n, dtype=torch.float64, seed=1)
    values = [
        laplacian_values(torch.rand(edges.shape[1], dtype=torch.float64) + 0.1, n).requires_grad_()
        for _ in "ab"
    ]
    solutions = [P.solve(v, b, engine=engine) for v in values]
    for v, x in zip(values, solutions, strict=True):
        x.backward(x_bar)
        assert v.grad is not None
        torch.testing.assert_close(v.grad, dense_gradient(P, v, b, x_bar))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_parameter_stepped_in_place_between_two_solves(engine: str, layout: torch.layout) -> None:
    p = problem("spd", torch.float64)
    b = rhs(p.n, dtype=torch.float64)
    parameter = p.values.clone().requires_grad_()
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    indices = torch.stack((p.rows, p.cols))
    for _ in range(3):
        optimizer.zero_grad()
        A = torch.sparse_coo_tensor(indices, parameter, p.shape, is_coalesced=True)
        A = A if layout == torch.sparse_coo else A.to_sparse_csr()
        dense = torch.zeros(p.shape, dtype=torch.float64).index_put((p.rows, p.cols), parameter)
        expected = torch.autograd.grad(torch.linalg.solve(dense, b).sum(), parameter)[0]
        ss.solve(A, b, engine=engine).sum().backward()
        torch.testing.assert_close(parameter.grad, expected)
        with torch.no_grad():  # keep it symmetric, in place
            at = torch.full(p.shape, -1)
            at[p.rows, p.cols] = torch.arange(p.values.numel())
            parameter.grad.copy_((parameter.grad + parameter.grad[at[p.cols, p.rows]]) / 2)
        optimizer.step()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_values_overwritten_behind_autograds_back(engine: str, layout: torch.layout) -> None:
    """The factor is of the values at the time of the solve, also where the sparse tensor aliases them."""
    P, edges, n = laplacian()
    b, x_bar = rhs(n, dtype=torch.float64), rhs(n, dtype=torch.float64, seed=1)
    A = P.tensor(
        laplacian_values(torch.rand(edges.shape[1], dtype=torch.float64) + 0.1, n), layout
    ).requires_grad_()
    dense = A.detach().to_dense().requires_grad_()
    x = ss.solve(A, b, engine=engine)
    (A.detach()._values() if layout == torch.sparse_coo else A.detach().values()).fill_(
        float("nan")
    )
    (A_bar,) = torch.autograd.grad(
        x, A, x_bar
    )  # torch itself cannot accumulate a CSC gradient into A.grad
    (expected,) = torch.autograd.grad(torch.linalg.solve(dense, b), dense, x_bar)
    torch.testing.assert_close(A_bar.to_dense(), expected * (dense != 0))


def test_values_changed_in_place_where_autograd_sees_it() -> None:
    P = ss.Pattern(torch.arange(3), torch.arange(3), (3, 3))
    leaf = torch.ones(3, dtype=torch.float64, requires_grad=True)
    values = leaf * 2
    x = P.solve(values, torch.ones(3, dtype=torch.float64))
    values.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_matrix_twice_with_different_right_hand_sides(engine: str) -> None:
    p = problem("spd", torch.float64)
    A = torch.sparse_coo_tensor(torch.stack((p.rows, p.cols)), p.values, p.shape).requires_grad_()
    dense = p.dense.clone().requires_grad_()
    b, c = rhs(p.n, dtype=torch.float64), rhs(p.n, dtype=torch.float64, seed=3)
    (ss.solve(A, b, engine=engine) * ss.solve(A, c, engine=engine)).sum().backward()
    (torch.linalg.solve(dense, b) * torch.linalg.solve(dense, c)).sum().backward()
    torch.testing.assert_close(A.grad.to_dense(), dense.grad * (p.dense != 0))


def test_duplicates_receive_the_gradient_of_their_sum() -> None:
    p = problem("general", torch.float64)
    indices = torch.stack((p.rows, p.cols)).repeat(1, 2)
    b = rhs(p.n, dtype=torch.float64)
    halves = (p.values / 2).repeat(2).requires_grad_()
    A = torch.sparse_coo_tensor(indices, halves, p.shape)
    assert not A.is_coalesced()
    (by_tensor,) = torch.autograd.grad(ss.solve(A, b).sum(), halves)
    (by_pattern,) = torch.autograd.grad(
        ss.Pattern(*indices, p.shape).solve(halves, b).sum(), halves
    )
    dense = torch.zeros(p.shape, dtype=torch.float64).index_put(
        tuple(indices), halves, accumulate=True
    )
    (expected,) = torch.autograd.grad(torch.linalg.solve(dense, b).sum(), halves)
    torch.testing.assert_close(by_tensor, expected)
    torch.testing.assert_close(by_pattern, expected)


def test_a_nonsymmetric_matrix_under_spd_is_refused() -> None:
    p = problem("spd", torch.float64)
    values = p.values.clone()
    at = int(torch.nonzero(p.rows != p.cols)[0])
    values[at] += 1e-3
    with pytest.raises(ss.NotSymmetricError) as caught:
        ss.Pattern(p.rows, p.cols, p.shape).solve(
            values, rhs(p.n, dtype=torch.float64), assume="spd"
        )
    assert {caught.value.row, caught.value.col} == {int(p.rows[at]), int(p.cols[at])}
    assert caught.value.difference == pytest.approx(1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_retained_graphs_and_second_backwards(engine: str) -> None:
    p = problem("spd", torch.float64)
    values, b = p.values.clone().requires_grad_(), rhs(p.n, dtype=torch.float64)
    x = ss.Pattern(p.rows, p.cols, p.shape).solve(values, b, engine=engine)
    first = torch.autograd.grad(x.sum(), values, retain_graph=True)[0]
    second = torch.autograd.grad(x.sum(), values)[0]
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(x.sum(), values)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_factorisation_serves_all_derivatives(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem("spd", torch.float64)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(p.n, dtype=torch.float64).requires_grad_()
    values = p.values.clone().requires_grad_()

    def solve() -> Tensor:
        return P.solve(values, b, assume="spd", engine=engine)

    solve()  # learns the fill, where that takes a factorisation
    counts = count(monkeypatch)
    solve().sum().backward()
    assert counts == {"factor": 1, "solve": 2}

    counts.clear()
    (first,) = torch.autograd.grad(solve().square().sum(), values, create_graph=True)
    first.square().sum().backward()
    assert counts["factor"] == 1

    counts.clear()
    F = P.factorize(values, assume="spd", engine=engine)
    for _ in range(100):
        F.solve(b)
    F.solve(b).sum().backward()
    assert counts == {"factor": 1, "solve": 102}

    counts.clear()
    torch.func.jvp(
        lambda v: P.solve(v, b.detach(), assume="spd", engine=engine), (p.values,), (p.values,)
    )
    torch.func.hessian(lambda c: P.solve(p.values, c, assume="spd", engine=engine).square().sum())(
        b.detach()
    )
    assert counts["factor"] == 2

    counts.clear()
    batch = torch.stack((p.values, 2 * p.values))
    torch.func.vmap(
        torch.func.grad(lambda v: P.solve(v, b.detach(), engine=engine).square().sum())
    )(batch)
    assert counts["factor"] == 1  # small matrices are factored together

    counts.clear()
    torch._dynamo.reset()
    torch.compile(
        lambda v: P.solve(v, b.detach(), engine=engine).square().sum(),
        backend="aot_eager",
        fullgraph=True,
    )(values).backward()
    assert counts == {"factor": 1, "solve": 2}


def test_the_pattern_is_analysed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem("spd", torch.float64)
    b = rhs(p.n, dtype=torch.float64)
    counts = count(monkeypatch)
    for scale in (1.0, 2.0, 3.0):
        A = torch.sparse_coo_tensor(torch.stack((p.rows, p.cols)), scale * p.values, p.shape)
        ss.solve(A, b, assume="spd")
        ss.solve(A.coalesce().to_sparse_csr(), b, assume="spd")
    assert counts["analyze"] <= 2  # one an index format
    ss.clear_cache()
    ss.solve(A, b, assume="spd")
    assert counts["analyze"] <= 3


@pytest.mark.parametrize("engine", ENGINES)
def test_factors_die_with_their_graphs(engine: str) -> None:
    p = problem("spd", torch.float64)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(p.n, dtype=torch.float64)
    gc.collect()
    before = len(lifetime._alive)

    values = p.values.clone().requires_grad_()
    x = P.solve(values, b, engine=engine)
    assert len(lifetime._alive) == before + 1
    loss = x.sum()
    loss.backward()  # frees the buffers of the graph: the factor goes, though x and loss are still here
    assert len(lifetime._alive) == before

    x = P.solve(values, b, engine=engine)
    del x  # never differentiated
    assert len(lifetime._alive) == before

    P.solve(p.values, b, engine=engine)  # no graph at all
    assert len(lifetime._alive) == before

    F = P.factorize(values, engine=engine)
    alive = weakref.ref(F._factors)
    x = F.solve(b)
    del F
    assert alive() is not None
    x.sum().backward()
    assert alive() is None


def test_a_factor_survives_hooks_that_replace_saved_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    p = problem("general", torch.float64)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(p.n, dtype=torch.float64)
    values = p.values.clone().requires_grad_()
    expected = torch.autograd.grad(P.solve(values, b).sum(), values)[0]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        x = P.solve(values, b)
    torch.testing.assert_close(torch.autograd.grad(x.sum(), values)[0], expected)
    x = torch.utils.checkpoint.checkpoint(
        lambda v: P.solve(v, b).square(), values, use_reentrant=False
    )
    torch.testing.assert_close(
        torch.autograd.grad(x.sum(), values)[0],
        torch.autograd.grad(P.solve(values, b).square().sum(), values)[0],
    )


def test_solves_from_four_threads_at_once() -> None:
    P, edges, n = laplacian(40)
    ones = torch.ones(n, dtype=torch.float64)

    def work(seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for _ in range(8):
            weights = torch.rand(edges.shape[1], dtype=torch.float64, generator=g) + 0.1
            weights.requires_grad_()
            # (c I + L) 1 = c 1, whatever the weights, so that their gradient is zero
            anchor = 1.0 + seed
            x = P.solve(
                laplacian_values(weights, n, anchor), ones, engine=ENGINES[seed % len(ENGINES)]
            )
            torch.testing.assert_close(x, ones / anchor)
            x.sum().backward()
            torch.testing.assert_close(weights.grad, torch.zeros_like(weights), atol=1e-9, rtol=0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))


class Solving(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, P: ss.Pattern, edges: Tensor, n: int):
        self.P, self.edges, self.n = P, edges, n
        ones = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n)
        self.inherited = [P.factorize(ones, engine=engine) for engine in ENGINES]

    def __len__(self) -> int:
        return 2 * len(ENGINES)

    def __getitem__(self, i: int) -> Tensor:
        values = laplacian_values(
            torch.rand(self.edges.shape[1], dtype=torch.float64) + 0.1, self.n
        ).requires_grad_()
        x = self.P.solve(
            values, torch.ones(self.n, dtype=torch.float64), engine=ENGINES[i % len(ENGINES)]
        )
        x.sum().backward()
        y = self.inherited[i % len(ENGINES)].solve(torch.ones(self.n, 2, dtype=torch.float64))
        torch.testing.assert_close(y, torch.ones_like(y))
        return x.detach()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_solve_inside_of_a_forked_dataloader_worker() -> None:
    """In a process that has no GPU, for those that have run a backward pass do not run one in a forked child."""
    script = "import test_right_every_time as test; test.solve_in_workers()"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.path.dirname(__file__)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr


def solve_in_workers() -> None:
    P, edges, n = laplacian(40)
    dataset = Solving(P, edges, n)
    for i in range(len(ENGINES)):
        dataset[i]  # the parent has analysed, factored and solved, with all its threads
    loader = torch.utils.data.DataLoader(
        dataset, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for x in loader:
        torch.testing.assert_close(x, torch.ones(1, n, dtype=torch.float64))
    torch.testing.assert_close(
        dataset[0], torch.ones(n, dtype=torch.float64)
    )  # and the parent still can


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_thousand_solves_do_not_grow_memory(engine: str) -> None:
    P, edges, n = laplacian(30)
    b = torch.ones(n, dtype=torch.float64)

    def step(k: int) -> None:
        values = laplacian_values(
            torch.rand(edges.shape[1], dtype=torch.float64) + 0.1, n
        ).requires_grad_()
        x = P.solve(values, b, engine=engine)
        if k % 2:
            x.sum().backward()

    for k in range(100):
        step(k)
    before = resident_bytes()
    for k in range(1000):
        step(k)
    factor = P.factorize(
        laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n), engine=engine
    )
    assert factor.info.factor_nnz is not None
    assert (
        resident_bytes() - before < 50 * 8 * factor.info.factor_nnz
    )  # fifty factors of the thousand


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_hundred_live_factors_and_their_release(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_handle, "_IDLE_BYTES", 0)
    P, edges, n = laplacian(60)
    b = torch.ones(n, dtype=torch.float64)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n).requires_grad_()
    P.solve(values, b, engine=engine)
    counts = count(monkeypatch)
    before = resident_bytes()
    solutions = [P.solve(values * k, b * k, engine=engine) for k in range(1, 101)]
    grown = resident_bytes() - before
    torch.stack(solutions).sum().backward()
    for x in solutions:
        torch.testing.assert_close(x, b)
    assert counts["analyze"] == 0
    del solutions, x
    gc.collect()
    assert resident_bytes() - before < grown / 2


def resident_bytes() -> int:
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later is not in use
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_number_of_threads_may_change_between_solves(engine: str) -> None:
    """PARDISO gives wrong numbers, without an error, where a factorisation uses other threads than the analysis."""
    P, edges, n = laplacian(60)
    b = torch.ones(3, n, dtype=torch.float64).mT
    values = laplacian_values(torch.rand(edges.shape[1], dtype=torch.float64) + 0.1, n)
    before = torch.get_num_threads()
    try:
        for kind in ("spd", "symmetric", "general"):
            if engine not in installed(kind):
                continue
            for threads in (2, 1, 2, 3, 1):
                torch.set_num_threads(threads)
                F = P.factorize(values, assume=kind, engine=engine)  # type: ignore[arg-type]
                torch.set_num_threads(3 - min(threads, 2))
                torch.testing.assert_close(F.solve(b), b)
    finally:
        torch.set_num_threads(before)


def test_inputs_are_left_alone() -> None:
    values, b = problem("general", torch.float64).values, rhs(12, 2, dtype=torch.float64)
    p = problem("general", torch.float64)
    ss.Pattern(p.rows, p.cols, p.shape).solve(values, b)
    assert torch.equal(values, p.values)
    assert torch.equal(b, rhs(12, 2, dtype=torch.float64))


def test_indices_may_be_overwritten_after_they_were_passed() -> None:
    p = problem("general", torch.float64)
    rows, cols = p.rows.clone(), p.cols.clone()
    P = ss.Pattern(rows, cols, p.shape)
    rows.zero_(), cols.zero_()
    b = rhs(p.n, dtype=torch.float64)
    torch.testing.assert_close(P.solve(p.values, b), torch.linalg.solve(p.dense, b))
    P.rows.zero_()
    torch.testing.assert_close(P.solve(p.values, b), torch.linalg.solve(p.dense, b))
    with pytest.raises(ss.SingularMatrixError):
        ss.Pattern(rows, cols, p.shape).solve(p.values, b)


def test_inference_mode_leaves_nothing_behind_that_autograd_refuses() -> None:
    p = problem("spd", torch.float64)
    b = rhs(p.n, dtype=torch.float64)
    with torch.inference_mode():
        P = ss.Pattern(p.rows, p.cols, p.shape)
        torch.testing.assert_close(P.solve(p.values.clone(), b), torch.linalg.solve(p.dense, b))
    values = p.values.clone().requires_grad_()
    P.solve(values, b).sum().backward()
    assert values.grad is not None


def test_results_do_not_alias_each_other() -> None:
    F = ss.factorize(torch.eye(3, dtype=torch.float64).to_sparse())
    b = torch.ones(3, dtype=torch.float64)
    x, y = F.solve(b), F.solve(b)
    x.zero_()
    assert torch.equal(y, b)
    assert torch.equal(F.solve(b), b)


def test_at_exit_nothing_crashes() -> None:
    script = textwrap.dedent(
        """
        import sys, torch, sparse_solver as ss
        n = 50
        A = (torch.eye(n, dtype=torch.float64) * 2).to_sparse().requires_grad_()
        kept = [ss.factorize(A, engine=e) for e in sys.argv[1:]]
        x = ss.solve(A, torch.ones(n, dtype=torch.float64))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *ENGINES], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_general_matrices_with_zeros_on_the_diagonal() -> None:
    dense = general(200, torch.float64)
    assert (dense.diagonal() == 0).any()
    for engine in installed("general"):
        b = rhs(200, dtype=torch.float64)
        torch.testing.assert_close(
            ss.solve(dense.to_sparse(), b, engine=engine), torch.linalg.solve(dense, b)
        )


def test_a_factorization_is_of_its_own_copy_of_the_values() -> None:
    p = problem("general", torch.float64)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(p.n, dtype=torch.float64)
    leaf = p.values.clone().requires_grad_()
    expected = torch.autograd.grad(P.solve(leaf, b).sum(), leaf)[0]

    values = leaf * 1
    F = P.factorize(values)
    values.mul_(3)  # neither the matrix nor its graph sees this
    torch.testing.assert_close(torch.autograd.grad(F.solve(b).sum(), leaf)[0], expected)

    def inside(values: Tensor) -> Tensor:
        values = values.clone()
        F = P.factorize(values)
        values.mul_(2)
        return F.solve(b)

    batch = torch.stack((p.values, 2 * p.values))
    torch.testing.assert_close(torch.func.vmap(inside)(batch), P.solve(batch, b))

    F = P.factorize(leaf)
    with torch.no_grad():
        leaf.mul_(5)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        x = F.solve(b)
    del F  # and with it the factor, since the hooks have replaced its token
    torch.testing.assert_close(torch.autograd.grad(x.sum(), leaf)[0], expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_default_device_does_not_matter(engine: str) -> None:
    p = problem("spd", torch.float64)
    b = rhs(p.n, dtype=torch.float64)
    for assume in (
        "auto",
        *(kind for kind in ("spd", "symmetric", "general") if engine in installed(kind)),
    ):
        ss.clear_cache()
        values = p.values.clone().requires_grad_()
        with torch.device("meta"):
            P = ss.Pattern(p.rows, p.cols, p.shape)
            x = P.solve(values, b, assume=assume, engine=engine)  # type: ignore[arg-type]
            x.sum().backward()
            y = ss.solve(P.tensor(values.detach()), b, assume=assume, engine=engine)  # type: ignore[arg-type]
        torch.testing.assert_close(x, torch.linalg.solve(p.dense, b))
        torch.testing.assert_close(y, x)


def test_patterns_that_are_first_seen_inside_of_a_transform() -> None:
    p = problem("spd", torch.float64)
    b = rhs(p.n, dtype=torch.float64)
    A = torch.sparse_coo_tensor(torch.stack((p.rows, p.cols)), p.values, p.shape)

    def by_pattern(values: Tensor) -> Tensor:
        return ss.Pattern(p.rows, p.cols, p.shape).solve(values, b)

    expected = torch.func.jacrev(by_pattern)(p.values)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        ss.clear_cache()
        torch.testing.assert_close(transform(by_pattern)(p.values), expected)
        ss.clear_cache()
        torch.testing.assert_close(
            transform(lambda b: ss.solve(A, b))(b), torch.linalg.inv(p.dense)
        )
    ss.clear_cache()
    batch = torch.stack((p.values, 2 * p.values))
    torch.testing.assert_close(
        torch.func.vmap(by_pattern)(batch),
        torch.stack((by_pattern(p.values),) * 2) / torch.tensor([[1.0], [2.0]]),
    )
    ss.clear_cache()
    many = rhs(3, p.n, dtype=torch.float64)
    torch.testing.assert_close(
        torch.func.vmap(lambda b: ss.solve(A, b))(many), torch.linalg.solve(p.dense, many.mT).mT
    )
    ss.clear_cache()
    with torch.inference_mode():
        P = ss.Pattern(p.rows, p.cols, p.shape)
        for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
            P.tensor(p.values.clone(), layout=layout)
    values = p.values.clone().requires_grad_()
    for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        ss.solve(P.tensor(values, layout=layout), b).sum().backward()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_while_another_thread_works_on_a_structure() -> None:
    """A lock that some thread holds at the fork stays locked in the child, unless it is renewed."""
    held, release = threading.Event(), threading.Event()
    structure = ss.Pattern(torch.arange(3), torch.arange(3), (3, 3))._structure

    def work() -> None:
        structure.remember("something slow", lambda: (held.set(), release.wait(30)))

    thread = threading.Thread(target=work)
    thread.start()
    assert held.wait(10)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        x = ss.solve(torch.eye(3).to_sparse(), torch.ones(3))
        structure.transpose_map  # noqa: B018
        os._exit(0 if torch.equal(x, torch.ones(3)) else 1)
    release.set()
    thread.join()
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, 9)
        pytest.fail("the child hangs")
    assert status == 0


def test_overflow_in_a_derivative_is_passed_on() -> None:
    P = ss.Pattern(torch.zeros(1).long(), torch.zeros(1).long(), (1, 1))
    values, b = torch.tensor([1e-30]), torch.tensor([1e-30], requires_grad=True)
    P.solve(values, b).backward(torch.tensor([1e20]))
    assert b.grad is not None
    assert not b.grad.isfinite().any()
    with pytest.raises(ss.NonFiniteError, match="too large"):
        P.solve(values, torch.tensor([1e20]))
    huge = torch.full((1,), 1.7e308 * (1 + 1j), dtype=torch.complex128)
    with pytest.raises(ss.NonFiniteError, match="b is too large"):
        P.solve(torch.ones(1, dtype=torch.complex128), huge)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_recording_the_solution_as_a_constant_is_refused() -> None:
    p = problem("spd", torch.float64)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(p.n, dtype=torch.float64)
    with pytest.raises(ss.TransformError, match="constant"):
        torch.jit.trace(lambda values: P.solve(values, b), p.values, check_trace=False)
