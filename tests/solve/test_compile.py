"""The solve as an operator in graphs of torch.compile."""

from __future__ import annotations

import gc
import itertools
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from problems import problem, rhs
from torch import Tensor
from torch.autograd import forward_ad

import sparse_solver as ss
from sparse_solver._solve.compile import _solve
from sparse_solver._testing import count_alive

# Dynamo looks at the gradients of tensors that have none.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)

P = problem("general", torch.float64)
PATTERN = ss.Pattern(P.rows, P.cols, P.shape)
B = rhs(P.n, dtype=torch.float64)
inductor = pytest.param(
    "inductor",
    marks=pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler"),
)
backends = pytest.mark.parametrize("backend", ["eager", "aot_eager", inductor])


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="torch has no such tag")
def test_cuda_graphs_leave_it_out() -> None:
    assert torch.Tag.cudagraph_unsafe in torch.ops.sparse_solver.solve.default.tags


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(
    function: Callable[..., Tensor], backend: str, fullgraph: bool = True
) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=fullgraph, backend=backend)


def test_options_that_look_at_the_engine() -> None:
    def solve(values: Tensor, b: Tensor) -> Tensor:
        return PATTERN.solve(values, b, engine="superlu", precision="mixed")

    torch.testing.assert_close(compiled(solve, "eager")(P.values, B), solve(P.values, B))


@backends
@pytest.mark.parametrize("transpose", [False, True])
def test_both_directions(backend: str, transpose: bool) -> None:
    def loss(values: Tensor, b: Tensor) -> Tensor:
        return PATTERN.solve(values * 2, b.sin(), transpose=transpose).square().sum()

    gc.collect()
    before = count_alive()
    values, b = P.values.clone().requires_grad_(), B.clone().requires_grad_()
    step = compiled(loss, backend)
    for scale in (1.0, 3.0):  # new values, the same graph
        torch.testing.assert_close(step(values * scale, b), loss(values * scale, b))
        torch.testing.assert_close(
            torch.autograd.grad(step(values * scale, b), (values, b)),
            torch.autograd.grad(loss(values * scale, b), (values, b)),
        )
    assert count_alive() == before


@backends
def test_vmapped(backend: str) -> None:
    values = torch.stack((P.values, 2 * P.values)).requires_grad_()
    b = torch.stack((B, B.flip(0)))
    for in_dims, arguments in (
        ((0, 0), (values, b)),
        ((0, None), (values, B)),
        ((None, 0), (values[0], b)),
    ):
        run = compiled(torch.func.vmap(PATTERN.solve, in_dims), backend)
        expected = PATTERN.solve(
            arguments[0], arguments[1].mT if in_dims == (None, 0) else arguments[1]
        )
        expected = expected.mT if in_dims == (None, 0) else expected
        torch.testing.assert_close(run(*arguments), expected)
        torch.testing.assert_close(
            torch.autograd.grad(run(*arguments).square().sum(), values),
            torch.autograd.grad(expected.square().sum(), values),
        )


@pytest.mark.parametrize("kind", ["spd", "symmetric", "hermitian"])
@pytest.mark.parametrize("triangle", ["lower", "upper"])
def test_one_triangle_and_lazy_conjugates(kind: str, triangle: str) -> None:
    """Compiled graphs run operators with the handling of lazy conjugates switched off."""
    p = problem(kind, torch.complex128)
    kept = p.rows >= p.cols if triangle == "lower" else p.rows <= p.cols
    pattern = ss.Pattern(p.rows[kept], p.cols[kept], p.shape)
    values, b = p.values[kept].clone().requires_grad_(), rhs(p.n, 2, dtype=torch.complex128)

    def loss(values: Tensor) -> Tensor:
        x = pattern.solve(values.conj(), b.conj(), assume=kind, triangle=triangle)  # type: ignore[arg-type]
        return x.abs().square().sum()

    run = compiled(loss, "aot_eager")
    torch.testing.assert_close(run(values), loss(values))
    torch.testing.assert_close(
        torch.autograd.grad(run(values), values), torch.autograd.grad(loss(values), values)
    )


# torch 2.11 quotes the name and the line of the error only.
REFUSED = r"cannot be compiled|TransformError"


@backends
def test_forward_mode_raises_instead_of_returning_zeros(backend: str) -> None:
    def tangent(values: Tensor) -> Tensor:
        return torch.func.jvp(lambda v: PATTERN.solve(v, B), (values,), (values,))[1]

    with pytest.raises(Exception, match=REFUSED):
        compiled(tangent, backend)(P.values)
    with pytest.raises(Exception, match=REFUSED):
        compiled(lambda values: torch.func.jacfwd(lambda v: PATTERN.solve(v, B))(values), backend)(
            P.values
        )

    solve = compiled(lambda values: PATTERN.solve(values, B), backend)
    solve(P.values)
    with forward_ad.dual_level(), pytest.raises(Exception, match=REFUSED):
        solve(forward_ad.make_dual(P.values, P.values))


def test_without_fullgraph_forward_mode_breaks_the_graph() -> None:
    def tangent(values: Tensor) -> Tensor:
        return torch.func.jvp(lambda v: PATTERN.solve(v, B), (values,), (values,))[1]

    torch.testing.assert_close(
        compiled(tangent, "eager", fullgraph=False)(P.values), tangent(P.values)
    )


def test_reverse_transforms_inside_of_a_compiled_function_are_right_or_raise() -> None:
    def gradient(values: Tensor) -> Tensor:
        return torch.func.grad(lambda v: PATTERN.solve(v, B).sum())(values)

    refusal = ""
    try:
        found = compiled(gradient, "aot_eager")(P.values)
    except torch._dynamo.exc.TorchDynamoException as error:
        refusal = str(error)
    if refusal:  # torch 2.13 cannot differentiate an operator inside of a transform in a graph
        assert "sparse_solver.solve" in refusal
    else:
        torch.testing.assert_close(found, gradient(P.values))


def test_factorizations_break_the_graph() -> None:
    values = P.values.clone().requires_grad_()

    def loss(values: Tensor) -> Tensor:
        F = PATTERN.factorize(values)
        return F.solve(B).sum() + F.solve(2 * B).square().sum()

    run = compiled(loss, "aot_eager", fullgraph=False)
    torch.testing.assert_close(
        torch.autograd.grad(run(values), values), torch.autograd.grad(loss(values), values)
    )
    torch._dynamo.reset()
    with pytest.raises(Exception, match="disable"):
        compiled(loss, "aot_eager")(values)


def test_sparse_tensors_break_the_graph() -> None:
    A = PATTERN.tensor(P.values).requires_grad_()
    run = compiled(lambda A: ss.solve(A, B).square().sum(), "aot_eager", fullgraph=False)
    torch.testing.assert_close(run(A), ss.solve(A, B).square().sum())


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_batches_with_different_patterns_break_the_graph(layout: torch.layout) -> None:
    A = torch.stack((P.dense, P.dense.flip(0))).to_sparse(layout=layout).requires_grad_()
    leaves = A, rhs(2, 12, 3, dtype=torch.float64).requires_grad_()
    run = compiled(lambda A, b: ss.solve(A, b).square().sum(), "aot_eager", fullgraph=False)
    loss, expected = run(*leaves), ss.solve(*leaves).square().sum()
    torch.testing.assert_close(loss, expected)
    ours, theirs = (torch.autograd.grad(result, leaves) for result in (loss, expected))
    torch.testing.assert_close(ours[0].values(), theirs[0].values())
    torch.testing.assert_close(ours[1], theirs[1])


def test_errors_reach_the_caller() -> None:
    with pytest.raises(ss.SingularMatrixError):
        compiled(lambda values: PATTERN.solve(values, B), "aot_eager")(P.values * 0)


def test_the_operator_keeps_torchs_rules_for_operators() -> None:
    token = torch.zeros(1, dtype=torch.int64)
    for transpose, removed, (values, b) in itertools.product(
        (False, True),
        (None, torch.tensor([5])),
        (
            (P.values, B.unsqueeze(0)),
            (torch.stack((P.values, 2 * P.values)), torch.stack((B, B)).unsqueeze(1)),
        ),
    ):
        options = "auto", None, None, False, "full", "solve"
        arguments = values, b, P.rows, P.cols, removed, *options, transpose, True, token
        torch.library.opcheck(
            _solve,
            arguments,
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


def test_new_shapes_and_new_patterns() -> None:
    run = compiled(lambda pattern, values, b: pattern.solve(values, b), "aot_eager")
    for shape in ((12,), (12, 2), (12, 3), (2, 12, 3), (3, 12, 3), (12, 1), (12, 0)):
        values, b = P.values.clone().requires_grad_(), rhs(*shape, dtype=torch.float64)
        x = run(PATTERN, values, b)
        torch.testing.assert_close(x, torch.linalg.solve(P.dense, b))
        (mine,) = torch.autograd.grad(x.square().sum(), values)
        (theirs,) = torch.autograd.grad(PATTERN.solve(values, b).square().sum(), values)
        torch.testing.assert_close(mine, theirs)
    for n, seed in ((5, 0), (9, 0), (12, 5), (12, 0)):
        p = problem("general", torch.float64, n=n, seed=seed)
        b = rhs(n, dtype=torch.float64)
        x = run(ss.Pattern(p.rows, p.cols, p.shape), p.values, b)
        torch.testing.assert_close(x, torch.linalg.solve(p.dense, b))
