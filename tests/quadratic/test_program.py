"""`minimize_quadratic` and `QuadraticProgram`, against a dense solve of all conditions of optimality at once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from counting import count
from problems import DTYPES, TOLERANCE, grid, laplacian_places, laplacian_values, rhs, spd
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import sparse_solver as ss
from sparse_solver._quadratic.program import programs

N, KNOWN = 10, torch.tensor([7, 2, 4])
M = 2
DOUBLE = (torch.float64, torch.complex128)


def energy(dtype: torch.dtype, seed: int = 0) -> Tensor:
    return spd(N, dtype, seed)


def constraints(dtype: torch.dtype) -> Tensor:
    C = rhs(M, N, dtype=dtype, seed=3)
    C[0, 1::2] = 0  # sparse, and each row with unknown entries
    return C


def dense_minimum(
    Q: Tensor, b: Tensor, known: Tensor, y: Tensor, C: Tensor, d: Tensor
) -> tuple[Tensor, ...]:
    """x and the multipliers, with the known entries as constraints like the others."""
    n, p = Q.shape[-1], known.numel()
    chosen = torch.eye(n, dtype=Q.dtype)[known]
    A = torch.cat((chosen.expand(*C.shape[:-2], p, n), C), -2)
    zero = A.new_zeros((*A.shape[:-1], A.shape[-2]))
    K = torch.cat((torch.cat((Q, A.mH), -1), torch.cat((A, zero), -1)), -2)
    z = torch.linalg.solve(K, torch.cat((b, y, d), -1 if b.dim() == 1 else -2))
    return z.split((n, p, C.shape[-2]), -1 if b.dim() == 1 else -2)


def triangle_of(Q: Tensor, triangle: str | None) -> Tensor:
    return {None: Q, "lower": Q.tril(), "upper": Q.triu()}[triangle]


class Case:
    """A program and values for it, whose free parameters keep Q Hermitian."""

    def __init__(
        self,
        dtype: torch.dtype,
        triangle: str | None = None,
        known: bool = True,
        constrained: bool = True,
    ):
        Q, C = energy(dtype), constraints(dtype)
        self.known, self.triangle = KNOWN if known else KNOWN[:0], triangle
        self.C = C if constrained else C[:0]
        self.rows, self.cols = triangle_of(Q, triangle).nonzero().T
        self.C_rows, self.C_cols = self.C.nonzero().T
        self.program = ss.QuadraticProgram(
            ss.Pattern(self.rows, self.cols, Q.shape),
            self.known if known else None,
            ss.Pattern(self.C_rows, self.C_cols, self.C.shape) if constrained else None,
            triangle=triangle,
        )
        self.Q_values = Q[self.rows, self.cols]
        self.C_values = self.C[self.C_rows, self.C_cols]

    def right(self, *columns: int) -> tuple[Tensor, Tensor, Tensor]:
        sizes = (N, self.known.numel(), self.C.shape[0])
        return tuple(
            rhs(size, *columns, dtype=self.Q_values.dtype, seed=i) for i, size in enumerate(sizes)
        )  # type: ignore[return-value]

    def hermitian(self, Q_values: Tensor) -> Tensor:
        """Values of a Hermitian matrix, from as many free numbers."""
        if self.triangle is not None:
            return torch.where(self.rows == self.cols, Q_values.real.to(Q_values.dtype), Q_values)
        at = torch.full((N, N), -1)
        at[self.rows, self.cols] = torch.arange(self.rows.numel())
        return (Q_values + Q_values[at[self.cols, self.rows]].conj()) / 2

    def solve(
        self, Q_values: Tensor, b: Tensor, y: Tensor, C_values: Tensor, d: Tensor
    ) -> tuple[Tensor, ...]:
        y_or_none, C_or_none, d_or_none = (t if t.numel() else None for t in (y, C_values, d))
        x, (forces, multipliers) = self.program.solve(
            self.hermitian(Q_values), b, y_or_none, C_or_none, d_or_none, return_multipliers=True
        )
        return x, forces, multipliers

    def dense(
        self, Q_values: Tensor, b: Tensor, y: Tensor, C_values: Tensor, d: Tensor
    ) -> tuple[Tensor, ...]:
        Q = torch.zeros(N, N, dtype=b.dtype).index_put(
            (self.rows, self.cols), self.hermitian(Q_values)
        )
        if self.triangle is not None:
            Q = Q + Q.mH - torch.diag(torch.diag(Q))
        C = torch.zeros(self.C.shape, dtype=b.dtype).index_put((self.C_rows, self.C_cols), C_values)
        return dense_minimum(Q, b, self.known, y, C, d)


cases = pytest.mark.parametrize(
    ("triangle", "known", "constrained"),
    [
        (None, True, True),
        (None, True, False),
        (None, False, True),
        ("lower", True, True),
        ("upper", True, True),
    ],
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [(), (3,)])
@cases
def test_agrees_with_dense_torch(
    dtype: torch.dtype,
    columns: tuple[int, ...],
    triangle: str | None,
    known: bool,
    constrained: bool,
) -> None:
    case = Case(dtype, triangle, known, constrained)
    b, y, d = case.right(*columns)
    mine = case.solve(case.Q_values, b, y, case.C_values, d)
    theirs = case.dense(case.Q_values, b, y, case.C_values, d)
    tolerance = 10 * TOLERANCE[dtype]
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert torch.equal(mine[0][case.known], y)  # to the last bit


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
@cases
def test_first_and_second_derivatives(
    dtype: torch.dtype, triangle: str | None, known: bool, constrained: bool
) -> None:
    case = Case(dtype, triangle, known, constrained)
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
    dtype: torch.dtype, triangle: str | None, known: bool, constrained: bool
) -> None:
    case = Case(dtype, triangle, known, constrained)
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
    x = case.program.solve(Q_values, b, y, case.C_values, d)
    Q = energy(torch.float64).requires_grad_()
    dense = dense_minimum(Q, b, KNOWN, y, case.C, d)[0]
    torch.testing.assert_close(
        torch.autograd.grad(x.sin().sum(), Q_values)[0],
        torch.autograd.grad(dense.sin().sum(), Q)[0][case.rows, case.cols],
    )


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
def test_the_multipliers_are_the_derivatives_of_the_minimum(dtype: torch.dtype) -> None:
    case = Case(dtype)
    b, y, d = case.right()
    y.requires_grad_(), d.requires_grad_()
    x, multipliers = case.program.solve(
        case.Q_values, b, y, case.C_values, d, return_multipliers=True
    )
    minimum = (0.5 * torch.vdot(x, energy(dtype) @ x) - torch.vdot(b, x)).real
    y_bar, d_bar = torch.autograd.grad(minimum, (y, d))
    torch.testing.assert_close(multipliers.known, -y_bar)
    torch.testing.assert_close(multipliers.constraints, -d_bar)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
def test_sparse_tensors_of_every_layout(layout: torch.layout) -> None:
    case = Case(torch.float64)
    b, y, d = case.right(2)

    def sparse(A: Tensor) -> Tensor:
        return A.to_sparse(layout=layout).requires_grad_()

    Q, C = sparse(energy(torch.float64)), sparse(case.C)
    x, multipliers = ss.minimize_quadratic(Q, b, KNOWN, y, C, d, return_multipliers=True)
    theirs = case.program.solve(case.Q_values, b, y, case.C_values, d)
    torch.testing.assert_close(x, theirs)
    assert multipliers.constraints.shape == d.shape
    Q_bar, C_bar = torch.autograd.grad((x**2).sum(), (Q, C))
    assert (Q_bar.layout, C_bar.layout) == (layout, layout)
    values = [t.clone().requires_grad_() for t in (case.Q_values, case.C_values)]
    x = case.program.solve(values[0], b, y, values[1], d)
    expected = torch.autograd.grad((x**2).sum(), values)
    torch.testing.assert_close(Q_bar.to_dense()[case.rows, case.cols], expected[0])
    torch.testing.assert_close(C_bar.to_dense()[case.C_rows, case.C_cols], expected[1])


def test_duplicates_int32_and_masks() -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    expected = case.program.solve(case.Q_values, b, y, case.C_values, d)
    doubled = ss.QuadraticProgram(
        ss.Pattern(case.rows.repeat(2).int(), case.cols.repeat(2).int(), (N, N)),
        KNOWN.int(),
        ss.Pattern(case.C_rows.repeat(2), case.C_cols.repeat(2), (M, N)),
    )
    x = doubled.solve((case.Q_values / 2).repeat(2), b, y, (case.C_values / 2).repeat(2), d)
    torch.testing.assert_close(x, expected)
    mask = torch.zeros(N, dtype=torch.bool).index_fill(0, KNOWN, True)
    masked = ss.QuadraticProgram(
        ss.Pattern(case.rows, case.cols, (N, N)), mask, ss.Pattern(case.C_rows, case.C_cols, (M, N))
    )
    x = masked.solve(case.Q_values, b, y[KNOWN.argsort()], case.C_values, d)
    torch.testing.assert_close(x, expected)


def test_shapes() -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    B, Y, D = case.right(4)
    solve = case.program.solve
    assert solve(case.Q_values, b, y, case.C_values, d).shape == (N,)
    assert solve(case.Q_values, None, None, case.C_values, None).eq(0).all()
    x = solve(case.Q_values, b, Y, case.C_values, d)  # vectors are the same for all columns
    assert x.shape == (N, 4)
    torch.testing.assert_close(x[:, 1], solve(case.Q_values, b, Y[:, 1], case.C_values, d))
    assert solve(case.Q_values, B[:, :1], y, case.C_values, d).shape == (N, 1)
    assert solve(case.Q_values, B[:, :0], y, case.C_values, d).shape == (N, 0)

    values = torch.stack((case.Q_values, 2 * case.Q_values, 3 * case.Q_values))
    batch = solve(values, b, Y, case.C_values, d)
    assert batch.shape == (3, N, 4)
    torch.testing.assert_close(batch[2], solve(values[2], b, Y, case.C_values, d))
    assert solve(values, b, y, case.C_values, d).shape == (3, N)
    vectors = torch.stack((b, 2 * b, 3 * b))
    torch.testing.assert_close(
        solve(values, vectors, y, case.C_values, d)[1],
        solve(values[1], vectors[1], y, case.C_values, d),
    )
    batch = solve(
        case.Q_values, B.expand(5, 1, N, 4), Y, torch.stack((case.C_values, -case.C_values)), D
    )
    assert batch.shape == (5, 2, N, 4)
    x, multipliers = solve(values, B, Y, case.C_values, D, return_multipliers=True)
    assert (multipliers.known.shape, multipliers.constraints.shape) == ((3, 3, 4), (3, 2, 4))
    assert solve(values[:0], b, y, case.C_values, d).shape == (0, N)


def test_nothing_and_everything_known() -> None:
    i = torch.arange(3)
    Q = ss.Pattern(i, i, (3, 3))
    ones, y = torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
    x, multipliers = ss.QuadraticProgram(Q, i).solve(ones, ones, y, return_multipliers=True)
    assert torch.equal(x, y)
    assert torch.equal(multipliers.known, ones - y)
    nothing = ss.QuadraticProgram(Q, i[:0], ss.Pattern(i[:0], i[:0], (0, 3)))
    assert torch.equal(nothing.solve(ones, y, ones[:0], ones[:0], ones[:0]), y)
    empty = ss.QuadraticProgram(ss.Pattern(i[:0], i[:0], (0, 0)))
    assert empty.solve(ones[:0]).shape == (0,)
    one = ss.QuadraticProgram(
        ss.Pattern(i[:1], i[:1], (1, 1)), None, ss.Pattern(i[:1], i[:1], (1, 1))
    )
    assert one.solve(ones[:1], None, None, ones[:1], ones[:1]).tolist() == [1.0]


def test_known_entries_that_a_row_of_Q_does_not_store() -> None:
    i = torch.tensor([0, 2])
    program = ss.QuadraticProgram(ss.Pattern(i, i, (3, 3)), torch.tensor([1]))
    assert program.solve(torch.ones(2), torch.ones(3), torch.tensor([5.0])).tolist() == [
        1.0,
        5.0,
        1.0,
    ]


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
def test_compiled(dtype: torch.dtype, triangle: str | None, known: bool, constrained: bool) -> None:
    torch._dynamo.reset()
    case = Case(dtype, triangle, known, constrained)
    b, y, d = case.right(2)
    y_or_none, C_or_none, d_or_none = (t if t.numel() else None for t in (y, case.C_values, d))

    def loss(Q_values: Tensor) -> Tensor:
        x, multipliers = case.program.solve(
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


def test_compiled_code_notices_what_is_wrong() -> None:
    torch._dynamo.reset()
    case = Case(torch.float64)
    b, y, d = case.right()
    solve = torch.compile(case.program.solve, fullgraph=True, backend="aot_eager")
    with pytest.raises(ss.NotPositiveDefiniteError, match="null space"):
        solve(-case.Q_values, b, y, case.C_values, d)
    with pytest.raises(ss.RedundantConstraintsError):
        solve(case.Q_values, b, y, 0 * case.C_values, d)
    lopsided = case.Q_values + (case.rows == KNOWN[0]) * (case.rows != case.cols)
    with pytest.raises(ss.NotSymmetricError):
        solve(lopsided, b, y, case.C_values, d)
    torch._dynamo.reset()


def test_index_work_and_analysis_are_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    Q, C = energy(torch.float64).to_sparse(), case.C.to_sparse()
    ss.minimize_quadratic(Q, b, KNOWN, y, C, d)
    remembered, counts = len(programs), count(monkeypatch)
    for factor in (2.0, 3.0):
        ss.minimize_quadratic(factor * Q, b, KNOWN.clone(), y, C.clone(), d)
    assert len(programs) == remembered
    assert counts["analyze"] == 0
    ss.minimize_quadratic(Q, b, KNOWN.flip(0), y, C, d)
    assert len(programs) == remembered + 1
    ss.clear_cache()
    assert len(programs) == 0


def test_one_factorisation_serves_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(torch.float64, constrained=False)
    b, y, _ = (t.requires_grad_() for t in case.right(2))
    values = case.Q_values.clone().requires_grad_()
    case.program.solve(values, b, y)
    counts = count(monkeypatch)
    x, multipliers = case.program.solve(values, b, y, return_multipliers=True)
    (x.sum() + multipliers.known.sum()).backward()
    assert counts["factor"] == 1


def test_later_writes_do_no_harm() -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    values, known = case.Q_values.clone().requires_grad_(), KNOWN.clone()
    program = ss.QuadraticProgram(
        ss.Pattern(case.rows, case.cols, (N, N)),
        known,
        ss.Pattern(case.C_rows, case.C_cols, (M, N)),
    )
    known.fill_(0)
    x = program.solve(values, b, y, case.C_values, d)
    other = program.solve(2 * values, b, y, case.C_values, d)
    expected = case.dense(case.Q_values, b, y, case.C_values, d)[0]
    torch.testing.assert_close(x, expected)
    (values_bar,) = torch.autograd.grad(x.sum(), values)
    again = case.program.solve(values, b, y, case.C_values, d)
    torch.testing.assert_close(values_bar, torch.autograd.grad(again.sum(), values)[0])
    assert not torch.equal(x, other)


def test_programs_are_values() -> None:
    program = Case(torch.float64).program
    assert copy.copy(program) is program
    assert copy.deepcopy(program) is program
    b, y, d = Case(torch.float64).right()
    arguments = (Case(torch.float64).Q_values, b, y, Case(torch.float64).C_values, d)
    assert torch.equal(
        pickle.loads(pickle.dumps(program)).solve(*arguments), program.solve(*arguments)
    )
    assert repr(program) == "QuadraticProgram(n=10, known=3, constraints=2)"


def test_a_constraint_on_the_mean_anchors_a_laplacian() -> None:
    edges, n = grid(30)
    rows, cols = laplacian_places(edges, n)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n, anchor=0.0)
    i = torch.arange(n)
    program = ss.QuadraticProgram(ss.Pattern(rows, cols, (n, n)), C=ss.Pattern(0 * i, i, (1, n)))
    b = rhs(n, dtype=torch.float64)
    b -= b.mean()
    x, multipliers = program.solve(
        values, b, None, torch.ones(n, dtype=torch.float64), return_multipliers=True
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
        torch.testing.assert_close(case.program.solve(Q_values, right, y, C_values, e), expected)


# What has no minimum, or many, or none that satisfies the constraints.


def indefinite(dtype: torch.dtype) -> Tensor:
    """Positive definite but for the direction e_0 − e_1."""
    Q = energy(dtype)
    e = torch.zeros(N, dtype=dtype)
    e[0], e[1] = 1, -1
    return Q - 50 * torch.outer(e, e)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("triangle", [None, "lower"])
def test_Q_need_be_positive_definite_on_the_null_space_only(
    dtype: torch.dtype, triangle: str | None
) -> None:
    Q, b = indefinite(dtype), rhs(N, dtype=dtype)
    C = torch.zeros(1, N, dtype=dtype)
    C[0, 0], C[0, 1] = 1, -1
    d = torch.ones(1, dtype=dtype)
    stored = triangle_of(Q, triangle).to_sparse()
    x = ss.minimize_quadratic(stored, b, C=C.to_sparse(), d=d, triangle=triangle)
    expected = dense_minimum(Q, b, KNOWN[:0], b[:0], C, d)[0]
    tolerance = 10 * TOLERANCE[dtype]
    torch.testing.assert_close(x, expected, rtol=tolerance, atol=tolerance)
    C[0, 1] = 1  # now it is not
    with pytest.raises(ss.NotPositiveDefiniteError, match="on the null space of the constraints"):
        ss.minimize_quadratic(stored, b, C=C.to_sparse(), d=d, triangle=triangle)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_Q_without_constraints_must_be_positive_definite(dtype: torch.dtype) -> None:
    Q, b = torch.eye(N, dtype=dtype), rhs(N, dtype=dtype)
    Q[5, 5] = -1
    with pytest.raises(ss.NotPositiveDefiniteError, match="row 5") as caught:
        ss.minimize_quadratic(Q.to_sparse(), b, known=torch.tensor([1, 3]), y=b[:2])
    assert caught.value.row == 5
    Q[5, 5], Q[5, 6], Q[6, 5] = 1, 2, 2
    with pytest.raises(ss.NotPositiveDefiniteError, match="Q is not positive definite"):
        ss.minimize_quadratic(Q.to_sparse(), b, known=torch.tensor([1, 3]), y=b[:2])
    assert ss.minimize_quadratic(Q.to_sparse(), b, known=torch.tensor([5]), y=b[:1]).shape == (N,)


def test_the_row_is_the_callers_also_for_batches_and_in_compiled_code() -> None:
    torch._dynamo.reset()
    i = torch.arange(N)
    program = ss.QuadraticProgram(ss.Pattern(i, i, (N, N)), torch.tensor([0, 3]))
    values = torch.ones(3, N)
    values[1, 7] = -1
    solve: Callable[..., Tensor] = program.solve
    for call in (solve, torch.compile(solve, fullgraph=True, backend="aot_eager")):
        with pytest.raises(ss.NotPositiveDefiniteError, match="row 7") as caught:
            call(values, torch.ones(N))
        assert caught.value.row == 7
    torch._dynamo.reset()


def test_a_laplacian_wants_an_anchor() -> None:
    edges, n = grid(12)
    rows, cols = laplacian_places(edges, n)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n, anchor=0.0)
    Q = ss.Pattern(rows, cols, (n, n))
    b = torch.ones(n, dtype=torch.float64)
    with pytest.raises(ss.SingularMatrixError, match="known="):
        ss.QuadraticProgram(Q).solve(values, b)
    assert ss.QuadraticProgram(Q, torch.tensor([5])).solve(values, b).isfinite().all()
    # A constraint that does not hold what is free either: the difference of two entries.
    difference = ss.Pattern(torch.tensor([0, 0]), torch.tensor([3, 4]), (1, n))
    program = ss.QuadraticProgram(Q, C=difference)
    with pytest.raises(ss.SingularMatrixError, match="on the null space") as caught:
        program.solve(values, b, None, torch.tensor([1.0, -1.0], dtype=torch.float64))
    assert not isinstance(caught.value, ss.RedundantConstraintsError)


def dependent(dtype: torch.dtype, seed: int) -> Tensor:
    """Five constraints, of which the fourth is made of the second and third; the others are independent."""
    C = rhs(5, N, dtype=dtype, seed=seed)
    C[3] = 0.3 * C[1] - 0.7 * C[2]
    return C


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("triangle", [None, "upper"])
@pytest.mark.parametrize("seed", range(5))
def test_constraints_that_depend_on_each_other_are_named(
    dtype: torch.dtype, triangle: Any, seed: int
) -> None:
    C = dependent(dtype, seed)
    x = rhs(N, 2, dtype=dtype, seed=50)
    Q = triangle_of(energy(dtype), triangle).to_sparse()

    def minimize(d: Tensor, y: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        return ss.minimize_quadratic(Q, None, known, y, C.to_sparse(), d, triangle=triangle)

    for known in (None, KNOWN):
        y = None if known is None else x[known]
        with pytest.raises(
            ss.RedundantConstraintsError, match="constraints 1, 2 and 3"
        ) as redundant:
            minimize(C @ x, y, known)
        assert redundant.value.rows == (1, 2, 3)
        wrong = C @ x
        wrong[3, 1] += 1
        with pytest.raises(
            ss.InfeasibleConstraintsError, match="constraints 1, 2 and 3"
        ) as infeasible:
            minimize(wrong, y, known)
        assert infeasible.value.rows == (1, 2, 3)
        wrong[3, 1] -= 1
        wrong[4, 1] += 1  # which no other depends on
        with pytest.raises(ss.RedundantConstraintsError):
            minimize(wrong, y, known)


def test_two_dependencies_of_which_one_is_a_contradiction() -> None:
    C = torch.eye(N, dtype=torch.float64)[[0, 1, 0, 1, 5]]
    Q = energy(torch.float64).to_sparse()
    d = torch.tensor([1.0, 2, 1, 3, 0], dtype=torch.float64)
    with pytest.raises(ss.InfeasibleConstraintsError) as caught:
        ss.minimize_quadratic(Q, C=C.to_sparse(), d=d)
    assert caught.value.rows == (1, 3)
    d[3] = 2
    with pytest.raises(ss.RedundantConstraintsError) as redundant:
        ss.minimize_quadratic(Q, C=C.to_sparse(), d=d)
    assert redundant.value.rows == (0, 1, 2, 3)


def test_constraints_on_known_entries_alone() -> None:
    C = torch.zeros(2, N, dtype=torch.float64)
    C[0, 0] = C[1, 2] = 1
    Q, known = energy(torch.float64).to_sparse(), torch.tensor([2, 4])
    y = torch.tensor([3.0, 0.0], dtype=torch.float64)
    for second, error in (
        (3.0, ss.RedundantConstraintsError),
        (4.0, ss.InfeasibleConstraintsError),
    ):
        with pytest.raises(error) as caught:
            ss.minimize_quadratic(
                Q, None, known, y, C.to_sparse(), torch.tensor([1.0, second], dtype=torch.float64)
            )
        assert caught.value.rows == (1,)


def test_more_constraints_than_unknowns() -> None:
    i = torch.arange(3)
    Q = torch.eye(3).to_sparse()
    C = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]).to_sparse()
    with pytest.raises(ss.InfeasibleConstraintsError):
        ss.minimize_quadratic(Q, C=C, d=torch.ones(4))
    with pytest.raises(ss.RedundantConstraintsError) as caught:
        ss.minimize_quadratic(Q, known=i, y=torch.ones(3), C=C, d=torch.tensor([1.0, 1, 1, 3]))
    assert caught.value.rows == (0, 1, 2, 3)


def test_contradictions_in_batches() -> None:
    C = dependent(torch.float64, 0).to_sparse()
    x = rhs(N, 2, dtype=torch.float64, seed=50)
    right = torch.stack((C @ x, C @ x))
    right[1, 3, 0] += 1
    Q = energy(torch.float64).to_sparse_csr()
    with pytest.raises(ss.InfeasibleConstraintsError):
        ss.minimize_quadratic(Q, C=C, d=right)
    values = torch.stack((Q.values(), 2 * Q.values()))
    program = ss.QuadraticProgram(ss.Pattern.from_tensor(Q), None, ss.Pattern.from_tensor(C))
    with pytest.raises(ss.InfeasibleConstraintsError):
        program.solve(values, None, None, C.coalesce().values(), right)
    with pytest.raises(ss.RedundantConstraintsError):
        torch.vmap(lambda d: program.solve(values[0], None, None, C.coalesce().values(), d))(right)


def test_random_dependencies_never_pass() -> None:
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        C = torch.randn(6, N, dtype=torch.float64, generator=g) * (
            torch.rand(6, N, generator=g) < 0.5
        )
        mixing = torch.randn(6, 5, dtype=torch.float64, generator=g)
        C = mixing @ C[:5]  # rank five
        with pytest.raises(ss.RedundantConstraintsError):
            ss.minimize_quadratic(energy(torch.float64, seed).to_sparse(), C=C.to_sparse())


# The same in all units: what follows is hidden by the scales of unknowns and constraints.


def diagonal(values: list[float], dtype: torch.dtype, *couplings: tuple[int, int, float]) -> Tensor:
    Q = torch.diag(torch.tensor(values, dtype=dtype))
    for i, j, value in couplings:
        Q[i, j] = Q[j, i] = value
    return Q.to_sparse()


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
def test_negative_curvature_beside_large_numbers_is_seen(dtype: torch.dtype) -> None:
    b = torch.ones(5, dtype=dtype)
    C = torch.tensor([[1, 0, 0, 1, 0], [1, 0, 1, 0, 0]], dtype=dtype).to_sparse()
    for large in (1.0, 1e13):
        with pytest.raises(ss.NotPositiveDefiniteError, match="null space"):
            ss.minimize_quadratic(diagonal([0, 0, 0, 0, large], dtype, (0, 1, -1.0)), b, C=C)
    C = torch.eye(6, dtype=dtype)[[4]].to_sparse()
    with pytest.raises(ss.NotPositiveDefiniteError, match="null space"):
        ss.minimize_quadratic(
            diagonal([1e4, -1e-9, 1e-3, 1e-3, 1, 1], dtype), torch.ones(6, dtype=dtype), C=C
        )
    with pytest.raises(ss.NotPositiveDefiniteError, match="row 1") as caught:
        ss.minimize_quadratic(diagonal([1e13, -1, 1, 1], dtype), b[:4])
    assert caught.value.row == 1


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
@pytest.mark.parametrize("scale", [1e-150, 1e-4, 1e4, 1e150])
def test_constraints_hold_negative_curvature_in_all_units(dtype: torch.dtype, scale: float) -> None:
    C = torch.tensor([[scale, 0, 0, 0], [0, 0, 1, 1]], dtype=dtype)
    Q, b, d = (
        diagonal([-1, 1, 1, 1], dtype),
        torch.ones(4, dtype=dtype),
        torch.tensor([2 * scale, 2], dtype=dtype),
    )
    x = ss.minimize_quadratic(Q, b, C=C.to_sparse(), d=d)
    torch.testing.assert_close(x, torch.tensor([2, 1, 1, 1], dtype=dtype))


@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
def test_random_changes_of_units_change_nothing(dtype: torch.dtype) -> None:
    def root(size: int, g: torch.Generator) -> Tensor:
        return 10.0 ** torch.randint(-4, 5, (size,), generator=g).to(torch.float64)

    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        n, m = 8, 3
        C = torch.randn(m, n, dtype=dtype, generator=g)
        Z = torch.linalg.svd(C)[2][m:].mH
        R = torch.randn(n, n, dtype=dtype, generator=g)
        Q = R @ R.mH / n + torch.eye(n, dtype=dtype)
        Q = Q - 5 * C.mH @ C  # indefinite, but not on the null space
        if is_saddle := seed % 2 == 1:
            Q = Q - 4 * torch.linalg.eigvalsh(Z.mH @ Q @ Z)[0] * torch.outer(
                Z[:, 0], Z[:, 0].conj()
            )
            is_saddle = bool(torch.linalg.eigvalsh(Z.mH @ Q @ Z)[0] < 0)
        if torch.linalg.eigvalsh(Z.mH @ Q @ Z).abs().min() < 1e-2:
            continue
        b, d = torch.randn(n, dtype=dtype, generator=g), torch.randn(m, dtype=dtype, generator=g)
        s, t = root(n, g), root(m, g)
        scaled = s.unsqueeze(1) * ((Q + Q.mH) / 2) * s
        arguments = (scaled.to_sparse(), s * b)
        more = {"C": (t.unsqueeze(1) * C * s).to_sparse(), "d": t * d}
        if is_saddle:
            with pytest.raises(ss.NotPositiveDefiniteError):
                ss.minimize_quadratic(*arguments, **more)
            continue
        x = s * ss.minimize_quadratic(*arguments, **more)
        expected = dense_minimum(Q, b, KNOWN[:0], b[:0], C, d)[0]
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-6)


def test_where_the_matching_of_the_engine_fails() -> None:
    Q = diagonal([1.0, 1e-8, 3e-4, 2e6, 200.0, 1e6, 2e-6, 2e6, 3.0], torch.float64)
    C = torch.zeros(3, 9, dtype=torch.float64)
    C[0, 1], C[1, 7], C[2, 5] = 1e-4, 1e3, 1e3
    b = torch.ones(9, dtype=torch.float64)
    x = ss.minimize_quadratic(Q, b, C=C.to_sparse())
    expected = b / Q.to_dense().diagonal()
    expected[[1, 7, 5]] = 0
    torch.testing.assert_close(x, expected)


def differences(m: int, doubled: bool) -> Tensor:
    """Second differences, of which smooth vectors are nearly the null space, and perhaps two equal rows."""
    r = torch.arange(m)
    C = torch.zeros(m + 2 * doubled, m + 10, dtype=torch.float64)
    C[r, r] = 2
    C[r[1:], r[1:] - 1] = C[r[:-1], r[:-1] + 1] = -1
    C[m:, m + 3] = 1
    return C


def test_badly_conditioned_constraints_are_not_dependent() -> None:
    m = 400
    x = torch.zeros(m + 10, dtype=torch.float64)
    x[:m] = torch.sin(torch.arange(1, m + 1) * torch.pi / (m + 1))
    eye = torch.eye(m + 10, dtype=torch.float64)
    C = differences(m, doubled=True)
    with pytest.raises(ss.RedundantConstraintsError) as caught:
        ss.minimize_quadratic(eye.to_sparse(), C=C.to_sparse(), d=C @ x)
    assert caught.value.rows == (m, m + 1)
    C, eye[m + 5, m + 5] = differences(m, doubled=False), 0
    with pytest.raises(ss.SingularMatrixError, match="null space"):
        ss.minimize_quadratic(eye.to_sparse(), C=C.to_sparse(), d=C @ x)


def test_contradictions_beside_large_numbers() -> None:
    C, Q = (
        torch.eye(6, dtype=torch.float64)[[0, 1, 1]].to_sparse(),
        torch.eye(6, dtype=torch.float64).to_sparse(),
    )
    for d in ([[1e10, 0], [0, 1], [0, 2]], [[1e10], [1], [2]]):
        with pytest.raises(ss.InfeasibleConstraintsError) as caught:
            ss.minimize_quadratic(Q, C=C, d=torch.tensor(d, dtype=torch.float64))
        assert caught.value.rows == (1, 2)


@pytest.mark.parametrize("scale", [1e-155, 1e155])
def test_extreme_constraints_are_described_as_they_are(scale: float) -> None:
    C = scale * torch.eye(4, dtype=torch.float64)[[0, 1]]
    with pytest.raises(ss.SingularMatrixError, match="null space"):
        ss.minimize_quadratic(diagonal([1, 1, 1, 0], torch.float64, (2, 3, 0.0)), C=C.to_sparse())


def test_a_complex_laplacian_with_a_shift_and_a_mean() -> None:
    edges, n = grid(20)
    rows, cols = laplacian_places(edges, n)
    weights = torch.ones(edges.shape[1], dtype=torch.complex128)
    i = torch.arange(n)
    program = ss.QuadraticProgram(ss.Pattern(rows, cols, (n, n)), C=ss.Pattern(0 * i, i, (1, n)))
    ones = torch.ones(n, dtype=torch.complex128)
    for shift, error in (
        (-1e-3, None),
        (-0.1, ss.NotPositiveDefiniteError),
    ):  # the second eigenvalue is 0.025
        values = laplacian_values(weights, n, anchor=shift)
        if error is None:
            assert program.solve(values, ones * i, None, ones).isfinite().all()
            continue
        with pytest.raises(error):
            program.solve(values, ones * i, None, ones)


def test_batches_are_judged_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in DOUBLE:
        case = Case(dtype)
        b, y, d = case.right()
        scales = torch.linspace(1, 2, 64, dtype=torch.float64).unsqueeze(1)
        expected = case.program.solve(scales * case.Q_values, b, y, case.C_values, d)
        counts = count(monkeypatch)
        x = case.program.solve(1.5 * scales * case.Q_values, b, y, case.C_values, d)
        assert counts["factor"] <= 4
        torch.testing.assert_close(
            x[0], case.program.solve(1.5 * case.Q_values, b, y, case.C_values, d)
        )
        wrong = scales * case.Q_values
        wrong[7] *= -1
        with pytest.raises(ss.NotPositiveDefiniteError):
            case.program.solve(wrong, b, y, case.C_values, d)
        assert expected.shape == (64, N)


def test_many_programs_on_one_pattern_analyse_once(monkeypatch: pytest.MonkeyPatch) -> None:
    edges, n = grid(6)
    rows, cols = laplacian_places(edges, n)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n)
    Q = ss.Pattern(rows, cols, (n, n))
    programs = [ss.QuadraticProgram(Q, torch.tensor([k, 0])) for k in range(1, 25)]
    for program in programs:
        program.solve(values)
    counts = count(monkeypatch)
    for program in programs:
        program.solve(values)
    assert counts["analyze"] == 0


@pytest.mark.parametrize("scale", [1.0, 3e-7])
def test_entries_that_cancel_but_for_rounding_errors_are_symmetric(scale: float) -> None:
    Q = scale * torch.tensor([[2, 1e-17, -1], [2e-17, 2, -1], [-1, -1, 2]], dtype=torch.float64)
    rows, cols = Q.nonzero().T
    program = ss.QuadraticProgram(ss.Pattern(rows, cols, (3, 3)), torch.tensor([0]))
    expected = torch.linalg.solve(Q[1:, 1:], torch.ones(2, dtype=torch.float64))
    x = program.solve(Q[rows, cols], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(x[1:], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("triangle", [None, "lower"])
def test_energies_that_are_hermitian_but_for_rounding_errors(
    dtype: torch.dtype, triangle: str | None
) -> None:
    B = rhs(20, 6, dtype=dtype, seed=1)
    Q = B.mH @ torch.diag(torch.arange(1, 21).to(dtype) / 7) @ B
    Q = Q + 1j * 20 * torch.finfo(dtype).eps * torch.diag(torch.diag(Q)) if dtype.is_complex else Q
    ones, C = torch.ones(6, dtype=dtype), torch.ones(1, 6, dtype=dtype)
    x = ss.minimize_quadratic(
        triangle_of(Q, triangle).to_sparse(), ones, C=C.to_sparse(), d=ones[:1], triangle=triangle
    )
    expected = dense_minimum(Q, ones, KNOWN[:0], ones[:0], C, ones[:1])[0]
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "power"), [(torch.complex64, 9), (torch.float32, 18), (torch.float64, 58)], ids=str
)
def test_equal_constraints_in_different_units_are_dependent(dtype: torch.dtype, power: int) -> None:
    n, row = 9, torch.tensor([1.0, 0, 2, -1, 0, 1, 0, 0, 2])
    C, Q = (
        torch.stack((row, row * 2.0**power)).to(dtype).to_sparse(),
        torch.eye(n, dtype=dtype).to_sparse(),
    )
    for d, error in ((2.0, ss.InfeasibleConstraintsError), (1.0, ss.RedundantConstraintsError)):
        right = torch.tensor([1.0, d * 2.0**power]).to(dtype)
        with pytest.raises(error) as caught:
            ss.minimize_quadratic(Q, torch.linspace(1, 2, n).to(dtype), C=C, d=right)
        assert caught.value.rows == (0, 1)


def test_contradictions_of_constraints_in_different_units_are_complete() -> None:
    scale = torch.tensor([2.0**-9, 8, 2.0**-7])
    C = torch.zeros(3, 13)
    C[0, [0, 1, 5]] = C[1, [0, 1, 12]] = torch.tensor([-1.0, -2, 1])
    C[2, [5, 12]] = torch.tensor([1.0, -1])
    C, d = (C * scale.unsqueeze(1)).to_sparse(), torch.tensor([-4.0, 3, -6]) * scale
    with pytest.raises(ss.InfeasibleConstraintsError) as caught:
        ss.minimize_quadratic(torch.eye(13).to_sparse(), torch.linspace(1, 2, 13), C=C, d=d)
    assert caught.value.rows == (0, 1, 2)


def test_equal_constraints_are_found_wherever_they_are() -> None:
    m = 3000
    i = torch.arange(m)
    for first, second in ((986, 2583), (0, 1), (17, 2999)):
        cols = torch.where(i == second, first, i)
        program = ss.QuadraticProgram(
            ss.Pattern(torch.arange(m + 1), torch.arange(m + 1), (m + 1, m + 1)),
            C=ss.Pattern(i, cols, (m, m + 1)),
        )
        with pytest.raises(ss.RedundantConstraintsError) as caught:
            program.solve(torch.ones(m + 1).double(), None, None, torch.ones(m).double())
        assert caught.value.rows == (first, second)


def test_an_energy_without_entries() -> None:
    nothing = torch.zeros(6, 6, dtype=torch.float64).to_sparse()
    C = rhs(3, 6, dtype=torch.float64).to_sparse()
    with pytest.raises(ss.SingularMatrixError):
        ss.minimize_quadratic(nothing, C=C)
    square = rhs(6, 6, dtype=torch.float64)  # x is what the constraints say
    x = ss.minimize_quadratic(nothing, C=square.to_sparse(), d=square @ torch.arange(6.0).double())
    torch.testing.assert_close(x, torch.arange(6.0).double())


def test_columns_beside_columns_are_columns() -> None:
    known, y = torch.tensor([0, 3]), torch.tensor([[1.0, 2], [3, 4]], dtype=torch.float64)
    for batch in (1, 2, 3):
        Q = torch.stack([2 * torch.eye(6, dtype=torch.float64)] * batch).to_sparse_csr()
        x = ss.minimize_quadratic(Q, torch.zeros(6, 2, dtype=torch.float64), known, y)
        assert torch.equal(x[:, known], y.expand(batch, 2, 2))
    # Alone, it is what torch.linalg.solve takes it for: vectors, one a matrix.
    Q = torch.stack([2 * torch.eye(6, dtype=torch.float64)] * 2).to_sparse_csr()
    assert torch.equal(ss.minimize_quadratic(Q, None, known, y)[:, known], y)


def test_what_is_remembered_about_a_pattern_depends_on_the_triangle() -> None:
    Q = ss.Pattern(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), (2, 2))
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.QuadraticProgram(Q).solve(torch.tensor([1.0, 0.0, -1.0]))
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.QuadraticProgram(Q, triangle="lower").solve(torch.tensor([1.0, 2.0, 1.0]))


# What is passed wrongly.


def test_asymmetric_energies_are_refused_wherever_they_are() -> None:
    for row, col in (
        (0, 1),
        (int(KNOWN[0]), 0),
        (0, int(KNOWN[0])),
        (int(KNOWN[0]), int(KNOWN[1])),
    ):
        Q = energy(torch.float64) + 0.1
        Q[row, col] += 1
        with pytest.raises(ss.NotSymmetricError, match="Q is not symmetric") as caught:
            ss.minimize_quadratic(Q.to_sparse(), None, KNOWN)
        assert {caught.value.row, caught.value.col} == {row, col}


def test_what_is_not_finite_is_named() -> None:
    case = Case(torch.float64)
    nan = float("nan")
    for name in ("Q", "C", "b", "y", "d"):
        b, y, d = case.right()
        arguments = {"Q": case.Q_values.clone(), "b": b, "y": y, "C": case.C_values.clone(), "d": d}
        arguments[name][1] = nan
        with pytest.raises(ss.NonFiniteError, match=name) as caught:
            case.program.solve(*arguments.values())
        assert (caught.value.argument, caught.value.index) == (name, 1)


def test_what_is_not_finite_is_named_in_transforms_too() -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    nan = torch.tensor(float("nan"), dtype=torch.float64)

    def solve(**changed: Tensor) -> Tensor:
        arguments = {"Q_values": case.Q_values, "b": b, "y": y, "C_values": case.C_values, "d": d}
        return case.program.solve(*(arguments | changed).values()).sum()

    for name, tensor, index in (("b", b, 3), ("d", d, 1)):
        tensor = torch.where(torch.arange(tensor.numel()) == index, nan, tensor)
        for transform in (torch.func.grad, torch.func.jacfwd):
            with pytest.raises(ss.NonFiniteError, match=rf"{name}\[{index}\]") as caught:
                transform(lambda t, name=name: solve(**{name: t}))(tensor)
            assert (caught.value.argument, caught.value.index) == (name, index)
    with pytest.raises(ss.NonFiniteError, match="Q_values"):
        torch.func.grad(lambda v: solve(Q_values=v))(case.Q_values * nan)
    with pytest.raises(ss.NonFiniteError, match="known entries"):
        torch.func.grad(lambda y: solve(y=y))(y * nan)


def test_values_that_are_not_finite_beside_empty_rows() -> None:
    i, at = torch.arange(3), torch.tensor([0])
    program = ss.QuadraticProgram(ss.Pattern(i, i, (4, 4)), None, ss.Pattern(at, at, (1, 4)))
    with pytest.raises(ss.NonFiniteError, match=r"C_values\[0\]"):
        program.solve(torch.ones(3), None, None, torch.tensor([float("nan")]))


def test_an_empty_row_is_named_as_the_caller_does() -> None:
    i = torch.tensor([0, 1, 2, 4])
    program = ss.QuadraticProgram(ss.Pattern(i, i, (5, 5)), torch.tensor([0, 1]))
    with pytest.raises(ss.SingularMatrixError, match="row 3") as caught:
        program.solve(torch.ones(4))
    assert caught.value.row == 3


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"known": torch.tensor([0, 0])}, IndexError, "known twice"),
        ({"known": torch.tensor([N])}, IndexError, "known index 10"),
        ({"known": torch.tensor([-1])}, IndexError, "known index -1"),
        ({"known": torch.tensor([0.0])}, IndexError, "torch.int64 or torch.int32"),
        ({"known": [0]}, IndexError, "tensor"),
        ({"known": torch.ones(3, dtype=torch.bool)}, ValueError, "mask of 3"),
        ({"known": torch.ones(N, dtype=torch.uint8)}, IndexError, "torch.bool"),
        ({"known": torch.eye(3).to_sparse()}, IndexError, "dense tensor"),
        ({"y": torch.ones(2, dtype=torch.float64)}, ValueError, "y has shape"),
        ({"known": None}, ValueError, "no known="),
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
                "y": torch.ones(3, 3, dtype=torch.float64),
            },
            ValueError,
            "of y",
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
        "Q": energy(torch.float64).to_sparse(), "b": b, "known": KNOWN, "y": y, "C": case.C.to_sparse(), "d": d,
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
        ss.QuadraticProgram(ss.Pattern(KNOWN, KNOWN, (N, N + 1)))
