"""What belongs to whom: factors to their graphs, values and results to the caller."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from problems import general, laplacian, laplacian_values, problem, rhs
from torch import Tensor

import sparse_solver as ss
from sparse_solver._testing import installed_engines

ENGINES = installed_engines("spd")
# It does not tell its pivots, so that a probe shows whether the factor of a matrix is good.
WITHOUT_PIVOTS = "rslab"


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
    """The factor is of the values at the time of the solve, even if the tensor aliases them."""
    P, edges, n = laplacian()
    b, x_bar = rhs(n, dtype=torch.float64), rhs(n, dtype=torch.float64, seed=1)
    weights = torch.rand(edges.shape[1], dtype=torch.float64) + 0.1
    A = P.tensor(laplacian_values(weights, n), layout=layout).requires_grad_()
    dense = A.detach().to_dense().requires_grad_()
    x = ss.solve(A, b, engine=engine)
    stored = A.detach()._values() if layout == torch.sparse_coo else A.detach().values()
    stored.fill_(float("nan"))
    # torch itself cannot accumulate a CSC gradient into A.grad.
    (A_bar,) = torch.autograd.grad(x, A, x_bar)
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
def test_one_factorisation_serves_all_derivatives(engine: str, counts: Counter[str]) -> None:
    p = problem("spd", torch.float64)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(p.n, dtype=torch.float64).requires_grad_()
    values = p.values.clone().requires_grad_()

    def solve() -> Tensor:
        return P.solve(values, b, assume="spd", engine=engine)

    solve()  # learns the fill, where that takes a factorisation
    counts.clear()
    solve().sum().backward()
    probes = int(engine == WITHOUT_PIVOTS)
    assert counts == {"factor": 1, "substitute": 2 + probes}

    counts.clear()
    (first,) = torch.autograd.grad(solve().square().sum(), values, create_graph=True)
    first.square().sum().backward()
    assert counts["factor"] == 1

    counts.clear()
    F = P.factorize(values, assume="spd", engine=engine)
    for _ in range(100):
        F.solve(b)
    F.solve(b).sum().backward()
    assert counts == {"factor": 1, "substitute": 102 + probes}

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
    assert counts == {"factor": 1, "substitute": 2 + probes}


def test_the_pattern_is_analysed_once(counts: Counter[str]) -> None:
    p = problem("spd", torch.float64)
    b = rhs(p.n, dtype=torch.float64)
    for scale in (1.0, 2.0, 3.0):
        A = torch.sparse_coo_tensor(torch.stack((p.rows, p.cols)), scale * p.values, p.shape)
        ss.solve(A, b, assume="spd")
        ss.solve(A.coalesce().to_sparse_csr(), b, assume="spd")
    assert counts["analyze"] <= 2  # one an index format
    ss.clear_cache()
    ss.solve(A, b, assume="spd")
    assert counts["analyze"] <= 3


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


def test_general_matrices_with_zeros_on_the_diagonal() -> None:
    dense = general(200, torch.float64)
    assert (dense.diagonal() == 0).any()
    for engine in installed_engines("general"):
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
        *(kind for kind in ("spd", "symmetric", "general") if engine in installed_engines(kind)),
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


def test_overflow_in_a_derivative_is_passed_on() -> None:
    P = ss.Pattern(torch.zeros(1).long(), torch.zeros(1).long(), (1, 1))
    values, b = torch.tensor([1e-30]), torch.tensor([1e-30], requires_grad=True)
    P.solve(values, b).backward(torch.tensor([1e20]))
    assert b.grad is not None
    assert not b.grad.isfinite().any()
    with pytest.raises(ss.NonFiniteError, match="too large"):
        P.solve(values, torch.tensor([1e20]))
    huge = torch.full((1,), 1.7e308 * (1 + 1j), dtype=torch.complex128)
    assert huge.abs().isinf().all()  # its parts are numbers, though, and so are those of x
    assert torch.equal(P.solve(torch.ones(1, dtype=torch.complex128), huge), huge)
    with pytest.raises(ss.NonFiniteError, match="b is too large"):
        P.solve(torch.ones(1, dtype=torch.complex128), huge.repeat(2, 1).mT)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_recording_the_solution_as_a_constant_is_refused() -> None:
    p = problem("spd", torch.float64)
    P, b = ss.Pattern(p.rows, p.cols, p.shape), rhs(p.n, dtype=torch.float64)
    with pytest.raises(ss.TransformError, match="constant"):
        torch.jit.trace(lambda values: P.solve(values, b), p.values, check_trace=False)
