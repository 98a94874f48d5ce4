"""`minimize_quadratic` and `QuadraticProgram`, against a dense solve of all conditions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from counting import count
from problems import DTYPES, TOLERANCE, grid, laplacian_places, laplacian_values, rhs
from quadratic_cases import DOUBLE, FIXED, Case, M, N, cases, dense_minimum, energy
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import sparse_solver as ss
from sparse_solver._quadratic.program import _programs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [(), (3,)])
@cases
def test_agrees_with_dense_torch(
    dtype: torch.dtype,
    columns: tuple[int, ...],
    triangle: str | None,
    fixed: bool,
    constrained: bool,
) -> None:
    case = Case(dtype, triangle, fixed, constrained)
    b, y, d = case.right(*columns)
    mine = case.solve(case.Q_values, b, y, case.C_values, d)
    theirs = case.dense(case.Q_values, b, y, case.C_values, d)
    tolerance = 10 * TOLERANCE[dtype]
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert torch.equal(mine[0][case.fixed], y)  # to the last bit


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
@cases
def test_first_and_second_derivatives(
    dtype: torch.dtype, triangle: str | None, fixed: bool, constrained: bool
) -> None:
    case = Case(dtype, triangle, fixed, constrained)
    b, y, d = case.right(2)
    inputs = [
        t.clone().requires_grad_(t.numel() > 0) for t in (case.Q_values, b, y, case.C_values, d)
    ]
    used = [t for t in inputs if t.numel()]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        rest = iter(tensors)
        return tuple(
            t for t in case.solve(*(next(rest) if t.numel() else t for t in inputs)) if t.numel()
        )

    assert gradcheck(function, used, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(function, used, fast_mode=True)


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
@cases
def test_gradients_agree_with_dense_torch(
    dtype: torch.dtype, triangle: str | None, fixed: bool, constrained: bool
) -> None:
    case = Case(dtype, triangle, fixed, constrained)
    b, y, d = case.right(3)
    inputs = [t.clone().requires_grad_() for t in (case.Q_values, b, y, case.C_values, d)]

    def loss(solve: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        return sum(
            ((t.abs() ** 2) * torch.arange(1.0, t.numel() + 1).view(t.shape)).sum()
            for t in solve(*inputs)
        )  # type: ignore[return-value]

    mine = torch.autograd.grad(loss(case.solve), inputs, allow_unused=True)
    theirs = torch.autograd.grad(loss(case.dense), inputs, allow_unused=True)
    for one, other, t in zip(mine, theirs, inputs, strict=True):
        if t.numel():
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_stored_entries_are_independent_variables() -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    Q_values = case.Q_values.clone().requires_grad_()
    x = case.minimize(Q_values, b, y, case.C_values, d)
    Q = energy(torch.float64).requires_grad_()
    dense = dense_minimum(Q, b, FIXED, y, case.C, d)[0]
    torch.testing.assert_close(
        torch.autograd.grad(x.sin().sum(), Q_values)[0],
        torch.autograd.grad(dense.sin().sum(), Q)[0][case.rows, case.cols],
    )


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
def test_the_multipliers_are_the_derivatives_of_the_minimum(dtype: torch.dtype) -> None:
    case = Case(dtype)
    b, y, d = case.right()
    y.requires_grad_(), d.requires_grad_()
    x, multipliers = case.minimize(case.Q_values, b, y, case.C_values, d, return_multipliers=True)
    minimum = (0.5 * torch.vdot(x, energy(dtype) @ x) - torch.vdot(b, x)).real
    y_bar, d_bar = torch.autograd.grad(minimum, (y, d))
    torch.testing.assert_close(multipliers.fixed, -y_bar)
    torch.testing.assert_close(multipliers.constraints, -d_bar)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
def test_sparse_tensors_of_every_layout(layout: torch.layout) -> None:
    case = Case(torch.float64)
    b, y, d = case.right(2)

    def sparse(A: Tensor) -> Tensor:
        return A.to_sparse(layout=layout).requires_grad_()

    Q, C = sparse(energy(torch.float64)), sparse(case.C)
    x, multipliers = ss.minimize_quadratic(
        Q, b, fixed=FIXED, fixed_values=y, C=C, d=d, return_multipliers=True
    )
    theirs = case.minimize(case.Q_values, b, y, case.C_values, d)
    torch.testing.assert_close(x, theirs)
    assert multipliers.constraints.shape == d.shape
    Q_bar, C_bar = torch.autograd.grad((x**2).sum(), (Q, C))
    assert (Q_bar.layout, C_bar.layout) == (layout, layout)
    values = [t.clone().requires_grad_() for t in (case.Q_values, case.C_values)]
    x = case.minimize(values[0], b, y, values[1], d)
    expected = torch.autograd.grad((x**2).sum(), values)
    torch.testing.assert_close(Q_bar.to_dense()[case.rows, case.cols], expected[0])
    torch.testing.assert_close(C_bar.to_dense()[case.C_rows, case.C_cols], expected[1])


@pytest.mark.parametrize("constrained", [False, True])
def test_transforms(constrained: bool) -> None:
    case = Case(torch.float64, constrained=constrained)
    B, Y, D = case.right(4)
    inputs = (case.Q_values, B[:, 0], Y[:, 0], case.C_values, D[:, 0])
    batched = torch.vmap(
        lambda b, y: case.solve(case.Q_values, b, y, *inputs[3:]), in_dims=1, out_dims=1
    )(B, Y)
    expected = case.dense(case.Q_values, B, Y, case.C_values, D[:, :1].expand(-1, 4))
    for one, other in zip(batched, expected, strict=True):
        torch.testing.assert_close(one, other)
    scales = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    over_values = torch.vmap(lambda s: case.solve(s * case.Q_values, *inputs[1:])[0])(scales)
    torch.testing.assert_close(over_values[2], case.dense(5 * case.Q_values, *inputs[1:])[0])

    def loss(solve: Any, Q_values: Tensor, C_values: Tensor) -> Tensor:
        return sum(t.sin().sum() for t in solve(Q_values, *inputs[1:3], C_values, inputs[4]))  # type: ignore[return-value]

    for transform in (torch.func.grad, torch.func.jacfwd, torch.func.jacrev, torch.func.hessian):
        mine = transform(lambda v: loss(case.solve, v, case.C_values))(case.Q_values)
        theirs = transform(lambda v: loss(case.dense, v, case.C_values))(case.Q_values)
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-7)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
@cases
def test_compiled(dtype: torch.dtype, triangle: str | None, fixed: bool, constrained: bool) -> None:
    torch._dynamo.reset()
    case = Case(dtype, triangle, fixed, constrained)
    b, y, d = case.right(2)
    y_or_none, C_or_none, d_or_none = (t if t.numel() else None for t in (y, case.C_values, d))

    def loss(Q_values: Tensor) -> Tensor:
        x, multipliers = case.minimize(
            Q_values, b, y_or_none, C_or_none, d_or_none, return_multipliers=True
        )
        return sum((t.abs() ** 2).sum() for t in (x, *multipliers))  # type: ignore[return-value]

    values = case.Q_values.clone().requires_grad_()
    mine = torch.compile(loss, fullgraph=True, backend="aot_eager")(values)
    theirs = loss(values)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(mine, values)[0], torch.autograd.grad(theirs, values)[0]
    )
    torch._dynamo.reset()


def test_index_work_and_analysis_are_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    Q, C = energy(torch.float64).to_sparse(), case.C.to_sparse()
    ss.minimize_quadratic(Q, b, fixed=FIXED, fixed_values=y, C=C, d=d)
    remembered, counts = len(_programs), count(monkeypatch)
    for factor in (2.0, 3.0):
        ss.minimize_quadratic(factor * Q, b, fixed=FIXED.clone(), fixed_values=y, C=C.clone(), d=d)
    assert len(_programs) == remembered
    assert counts["analyze"] == 0
    ss.minimize_quadratic(Q, b, fixed=FIXED.flip(0), fixed_values=y, C=C, d=d)
    assert len(_programs) == remembered + 1
    ss.clear_cache()
    assert len(_programs) == 0


def test_one_factorisation_serves_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(torch.float64, constrained=False)
    b, y, _ = (t.requires_grad_() for t in case.right(2))
    values = case.Q_values.clone().requires_grad_()
    case.minimize(values, b, y)
    counts = count(monkeypatch)
    x, multipliers = case.minimize(values, b, y, return_multipliers=True)
    (x.sum() + multipliers.fixed.sum()).backward()
    assert counts["factor"] == 1


def test_later_writes_do_no_harm() -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    values, fixed = case.Q_values.clone().requires_grad_(), FIXED.clone()
    program = ss.QuadraticProgram(
        ss.Pattern(case.rows, case.cols, (N, N)),
        fixed=fixed,
        C=ss.Pattern(case.C_rows, case.C_cols, (M, N)),
    )
    fixed.fill_(0)
    x = program.solve(values, b, fixed_values=y, C_values=case.C_values, d=d)
    other = program.solve(2 * values, b, fixed_values=y, C_values=case.C_values, d=d)
    expected = case.dense(case.Q_values, b, y, case.C_values, d)[0]
    torch.testing.assert_close(x, expected)
    (values_bar,) = torch.autograd.grad(x.sum(), values)
    again = case.minimize(values, b, y, case.C_values, d)
    torch.testing.assert_close(values_bar, torch.autograd.grad(again.sum(), values)[0])
    assert not torch.equal(x, other)


def test_programs_are_values() -> None:
    program = Case(torch.float64).program
    assert copy.copy(program) is program
    assert copy.deepcopy(program) is program
    case = Case(torch.float64)
    b, y, d = case.right()
    expected = case.minimize(case.Q_values, b, y, case.C_values, d)
    case.program = pickle.loads(pickle.dumps(program))
    assert torch.equal(case.minimize(case.Q_values, b, y, case.C_values, d), expected)
    assert repr(program) == "QuadraticProgram(n=10, fixed=3, constraints=2)"


def test_a_constraint_on_the_mean_anchors_a_laplacian() -> None:
    edges, n = grid(30)
    rows, cols = laplacian_places(edges, n)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n, anchor=0.0)
    i = torch.arange(n)
    program = ss.QuadraticProgram(ss.Pattern(rows, cols, (n, n)), C=ss.Pattern(0 * i, i, (1, n)))
    b = rhs(n, dtype=torch.float64)
    b -= b.mean()
    x, multipliers = program.solve(
        values, b, C_values=torch.ones(n, dtype=torch.float64), return_multipliers=True
    )
    A = ss.Pattern(rows, cols, (n, n)).tensor(values)
    torch.testing.assert_close(A @ x, b, rtol=1e-9, atol=1e-9)
    assert abs(float(x.sum())) < 1e-9
    assert abs(float(multipliers.constraints)) < 1e-9


@pytest.mark.parametrize("scale", [1e-150, 1e-9, 1e9, 1e150])
def test_scales(scale: float) -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    expected = case.dense(case.Q_values, b, y, case.C_values, d)[0]
    for Q_values, right, C_values, e in (
        (scale * case.Q_values, scale * b, case.C_values, d),
        (case.Q_values, b, scale * case.C_values, scale * d),
    ):
        torch.testing.assert_close(case.minimize(Q_values, right, y, C_values, e), expected)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"fixed": torch.tensor([0, 0])}, IndexError, "entry 0 twice"),
        ({"fixed": torch.tensor([N])}, IndexError, "fixed index 10"),
        ({"fixed": torch.tensor([-1])}, IndexError, "fixed index -1"),
        ({"fixed": torch.tensor([0.0])}, IndexError, "torch.int64 or torch.int32"),
        ({"fixed": [0]}, IndexError, "tensor"),
        ({"fixed": torch.ones(3, dtype=torch.bool)}, ValueError, "mask of 3"),
        ({"fixed": torch.ones(N, dtype=torch.uint8)}, IndexError, "torch.bool"),
        ({"fixed": torch.eye(3).to_sparse()}, IndexError, "dense tensor"),
        ({"fixed_values": torch.ones(2).double()}, ValueError, "fixed_values has shape"),
        ({"fixed": None}, ValueError, "no fixed="),
        ({"C": None}, ValueError, "no C="),
        (
            {"C": torch.ones(2, N - 1, dtype=torch.float64).to_sparse()},
            ValueError,
            r"expected \(m, 10\)",
        ),
        ({"C": torch.ones(2, N).to_sparse()}, TypeError, "C_values has torch.float32"),
        ({"d": torch.ones(3, dtype=torch.float64)}, ValueError, "d has shape"),
        ({"b": torch.ones(N - 1, dtype=torch.float64)}, ValueError, "b has shape"),
        ({"b": torch.ones(N)}, TypeError, "b has"),
        (
            {
                "b": torch.ones(N, 2, dtype=torch.float64),
                "fixed_values": torch.ones(3, 3, dtype=torch.float64),
            },
            ValueError,
            "of fixed_values",
        ),
        ({"Q": torch.ones(N, N + 1, dtype=torch.float64).to_sparse()}, ValueError, "square"),
        ({"Q": torch.ones(N, N, dtype=torch.float64)}, TypeError, "Q has layout.*to_sparse"),
        ({"C": torch.ones(2, N, dtype=torch.float64)}, TypeError, "C has layout.*to_sparse"),
        ({"triangle": "left"}, ValueError, "triangle='left'"),
        ({"triangle": "lower"}, ValueError, "not in that triangle"),
        ({"engine": "magic"}, ValueError, "no such engine"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], match: str) -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    arguments: dict[str, Any] = {
        "Q": energy(torch.float64).to_sparse(), "b": b, "fixed": FIXED, "fixed_values": y,
        "C": case.C.to_sparse(), "d": d,
    }  # fmt: skip
    with pytest.raises(error, match=match) as caught:
        ss.minimize_quadratic(**(arguments | change))
    assert isinstance(caught.value, ss.SparseSolverError)


def test_values_of_C_belong_to_programs_with_constraints() -> None:
    free, constrained = Case(torch.float64, constrained=False), Case(torch.float64)
    with pytest.raises(ss.OptionError, match="no C"):
        free.program.solve(free.Q_values, C_values=constrained.C_values)
    with pytest.raises(ss.OptionError, match="pass C_values"):
        constrained.program.solve(constrained.Q_values)
    with pytest.raises(ss.OptionError, match="expected a Pattern"):
        ss.QuadraticProgram(energy(torch.float64))  # type: ignore[arg-type]
    with pytest.raises(ss.ShapeError, match="square"):
        ss.QuadraticProgram(ss.Pattern(FIXED, FIXED, (N, N + 1)))


def test_the_default_device_does_not_matter() -> None:
    i = torch.arange(4)
    Q = ss.Pattern(i, i, (4, 4))
    program = ss.QuadraticProgram(Q, C=ss.Pattern(i[:2] * 0, i[1:3], (1, 4)))
    # Only under the constraint is there a minimum.
    values = torch.tensor([1.0, 2.0, -1.0, 3.0], dtype=torch.float64)
    given = {"C_values": torch.tensor([1.0, -2.0]).double(), "d": torch.ones(1).double()}
    expected = program.solve(values, **given)
    ss.clear_cache()
    with torch.device("meta"):
        program = ss.QuadraticProgram(Q, C=ss.Pattern(i[:2] * 0, i[1:3], (1, 4)))
        x = program.solve(values, **given)
    torch.testing.assert_close(x, expected)
