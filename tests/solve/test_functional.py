"""Solves with sparse tensors, the refusal of what cannot be solved with, and the engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from problems import problem, rhs
from torch import Tensor

import sparse_solver as ss

P5 = problem("general", torch.float64, n=5)
PATTERN = ss.Pattern(P5.rows, P5.cols, P5.shape)
B5 = rhs(5, dtype=torch.float64)


def sparse(**changes: Any) -> Tensor:
    A = torch.sparse_coo_tensor(torch.stack((P5.rows, P5.cols)), P5.values, P5.shape)
    return A.to(**changes) if changes else A


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ss.LayoutError, "dense matrix", lambda: ss.solve(P5.dense, B5)),
        (
            ss.LayoutError,
            "A is a list; expected a sparse torch tensor",
            lambda: ss.solve([[1.0]], B5),
        ),
        (
            ss.LayoutError,
            "sparse_bsr",
            lambda: ss.solve(torch.eye(4).to_sparse_bsr((2, 2)), torch.ones(4)),
        ),
        (
            ss.LayoutError,
            "hybrid",
            lambda: ss.solve(torch.rand(3, 3, 2).to_sparse(2), torch.ones(3)),
        ),
        (
            ss.LayoutError,
            "a COO tensor of shape",
            lambda: ss.solve(torch.rand(3).to_sparse(), torch.ones(3)),
        ),
        (ss.LayoutError, "b has layout", lambda: ss.solve(sparse(), B5.to_sparse())),
        (ss.LayoutError, "b is a list", lambda: ss.solve(sparse(), [1.0])),
        (ss.ShapeError, "square", lambda: ss.solve(torch.rand(3, 4).to_sparse(), torch.ones(3))),
        (
            ss.ShapeError,
            "square",
            lambda: ss.Pattern(P5.rows, P5.cols, (5, 6)).solve(P5.values, torch.ones(5).double()),
        ),
        (
            ss.ShapeError,
            "square",
            lambda: ss.Pattern(P5.rows, P5.cols, (5, 6)).factorize(P5.values),
        ),
        (ss.ShapeError, "two sizes", lambda: ss.Pattern(P5.rows, P5.cols, (5,))),
        (
            ss.ShapeError,
            "b has shape",
            lambda: ss.solve(sparse(), torch.ones(4, dtype=torch.float64)),
        ),
        (
            ss.ShapeError,
            "b has shape",
            lambda: ss.solve(sparse(), torch.ones((), dtype=torch.float64)),
        ),
        (ss.ShapeError, "values have shape", lambda: PATTERN.solve(P5.values[:-1], B5)),
        (
            ss.ShapeError,
            "broadcast",
            lambda: PATTERN.solve(P5.values.expand(2, -1), torch.ones(3, 5, 1).double()),
        ),
        (ss.DtypeError, "float32", lambda: ss.solve(sparse(dtype=torch.float32), B5)),
        (ss.DtypeError, "int64", lambda: ss.solve(sparse(dtype=torch.int64), B5)),
        (ss.DtypeError, "bool", lambda: PATTERN.solve(P5.values.bool(), B5)),
        (ss.DtypeError, "b has dtype torch.int64", lambda: ss.solve(sparse(), B5.long())),
        (ss.DtypeError, "float16", lambda: PATTERN.solve(P5.values.half(), B5.half())),
        (ss.DeviceError, "meta", lambda: ss.solve(sparse(), B5.to("meta"))),
        (ss.DeviceError, "meta", lambda: PATTERN.solve(P5.values.to("meta"), B5)),
        (
            ss.IndexRangeError,
            "row index 5",
            lambda: ss.Pattern(torch.tensor([0, 5]), torch.tensor([0, 1]), (5, 5)),
        ),
        (
            ss.IndexRangeError,
            "column index -1",
            lambda: ss.Pattern(torch.tensor([0]), torch.tensor([-1]), (5, 5)),
        ),
        (ss.IndexRangeError, "float32", lambda: ss.Pattern(torch.ones(2), torch.ones(2), (5, 5))),
        (
            ss.IndexRangeError,
            "shapes",
            lambda: ss.Pattern(torch.tensor([0]), torch.tensor([0, 1]), (5, 5)),
        ),
        (
            ss.IndexRangeError,
            "shapes",
            lambda: ss.Pattern(torch.zeros(1, 1).long(), torch.zeros(1, 1).long(), (5, 5)),
        ),
        (
            ss.IndexRangeError,
            "pointers",
            lambda: ss.Pattern.from_csr(torch.tensor([0, 1]), torch.tensor([0]), (2, 2)),
        ),
        (
            ss.IndexRangeError,
            "rise",
            lambda: ss.Pattern.from_csr(torch.tensor([0, 2, 1]), torch.tensor([0]), (2, 2)),
        ),
        (
            ss.IndexRangeError,
            "row index 7",
            lambda: ss.Pattern.from_csc(torch.tensor([0, 1, 1]), torch.tensor([7]), (2, 2)),
        ),
        (ss.ShapeError, "two sizes", lambda: ss.Pattern(P5.rows, P5.cols, 5)),
        (ss.ShapeError, "two sizes", lambda: ss.Pattern(P5.rows, P5.cols, ("5", "5"))),
        (ss.ShapeError, "two sizes", lambda: ss.Pattern(P5.rows, P5.cols, (5.0, 5.0))),
        (ss.ShapeError, "two sizes", lambda: ss.Pattern(P5.rows, P5.cols, (-1, -1))),
        (
            ss.DeviceError,
            "indices are on the meta device",
            lambda: ss.Pattern(P5.rows.to("meta"), P5.cols.to("meta"), P5.shape),
        ),
        (ss.OptionError, "engine=", lambda: ss.solve(sparse(), B5, engine=["x"])),
        (ss.OptionError, "transpose='no'", lambda: ss.solve(sparse(), B5, transpose="no")),
        (ss.OptionError, "expected one of", lambda: ss.solve(sparse(), B5, assume="cholesky")),
        (ss.OptionError, "engine='umfpack'", lambda: ss.solve(sparse(), B5, engine="umfpack")),
        (ss.OptionError, "'lower', 'upper'", lambda: ss.solve(sparse(), B5, triangle="left")),
        (
            ss.OptionError,
            "contradicts",
            lambda: ss.solve(sparse(), B5, assume="general", triangle="lower"),
        ),
        (
            ss.OptionError,
            "conjugate",
            lambda: ss.solve(
                sparse(dtype=torch.complex128), B5.to(torch.complex128), triangle="lower"
            ),
        ),
        (
            ss.TriangleError,
            "not in that triangle",
            lambda: ss.solve(sparse(), B5, assume="spd", triangle="lower"),
        ),
        (
            ss.NonFiniteError,
            r"b\[2\] is nan",
            lambda: ss.solve(sparse(), torch.tensor([0, 0, torch.nan, 0, 0]).double()),
        ),
        (
            ss.NonFiniteError,
            r"b\[1\] is inf",
            lambda: ss.solve(sparse(), torch.tensor([0, torch.inf, 0, 0, 0]).double()),
        ),
        (
            ss.NonFiniteError,
            r"values\[0\] is nan",
            lambda: PATTERN.solve(P5.values * torch.nan, B5),
        ),
        (
            ss.NotSymmetricError,
            "use assume='general'",
            lambda: ss.solve(sparse(), B5, assume="symmetric"),
        ),
        (ss.EngineUnsupportedError, "qdldl", lambda: PATTERN.solve(P5.values, B5, engine="qdldl")),
    ],
)
def test_bad_input_raises_a_typed_error_that_says_what_it_was(
    error: type[Exception], words: str, call: Any
) -> None:
    if words == "qdldl" and not ss.engines()["qdldl"].installed:
        error = ss.EngineUnavailableError
    with pytest.raises(error, match=words) as caught:
        call()
    assert isinstance(caught.value, ss.SparseSolverError)


def test_unchecked_tensors_are_checked_here() -> None:
    """torch does not validate indices by default, and a native library would crash on these."""
    bad = torch.sparse_coo_tensor(
        torch.tensor([[0, 9], [0, 1]]), torch.ones(2), (2, 2), check_invariants=False
    )
    with pytest.raises(ss.IndexRangeError):
        ss.solve(bad, torch.ones(2))
    crow, col = torch.tensor([0, 5, 2]), torch.tensor([0, 1])
    bad = torch.sparse_csr_tensor(crow, col, torch.ones(2), (2, 2), check_invariants=False)
    with pytest.raises(ss.IndexRangeError):
        ss.solve(bad, torch.ones(2))
    negative = torch.sparse_csr_tensor(
        torch.tensor([0, 1, 2]),
        torch.tensor([0, -7]),
        torch.ones(2),
        (2, 2),
        check_invariants=False,
    )
    with pytest.raises(ss.IndexRangeError):
        ss.solve(negative, torch.ones(2))


def test_batches_of_csr_matrices() -> None:
    values = torch.tensor([2.0, 3.0, 4.0]).double().unsqueeze(1) * P5.values
    A = PATTERN.tensor(values, layout=torch.sparse_csr).requires_grad_()
    b = rhs(3, 5, 2, dtype=torch.float64)
    x = ss.solve(A, b)
    expected = torch.zeros(3, 5, 5, dtype=torch.float64)
    expected[:, P5.rows, P5.cols] = values
    expected.requires_grad_()
    torch.testing.assert_close(x, torch.linalg.solve(expected, b))
    (A_bar,) = torch.autograd.grad(x.sum(), A)
    (expected_bar,) = torch.autograd.grad(torch.linalg.solve(expected, b).sum(), expected)
    torch.testing.assert_close(A_bar.values(), expected_bar[:, P5.rows, P5.cols])


def test_the_call_of_the_seed() -> None:
    A = sparse().requires_grad_()
    x = ss.SparseSolver.apply(A, B5)
    x.sum().backward()
    torch.testing.assert_close(x, torch.linalg.solve(P5.dense, B5))
    assert A.grad is not None


CSR = scipy.sparse.csr_array(P5.dense.numpy())
ARRAY = np.ones(5)


@pytest.mark.parametrize(
    ("hint", "call"),
    [
        ("Pattern.from_scipy", lambda: ss.solve(CSR, B5)),
        ("Pattern.from_scipy", lambda: ss.solve(scipy.sparse.coo_matrix(CSR), B5)),
        ("torch.from_numpy", lambda: ss.solve(P5.dense.numpy(), B5)),
        ("torch.from_numpy", lambda: ss.solve(sparse(), ARRAY)),
        ("Pattern.from_scipy", lambda: ss.solve(sparse(), CSR)),
        ("Pattern.from_scipy", lambda: ss.factorize(CSR)),
        ("torch.from_numpy", lambda: ss.factorize(P5.dense.numpy())),
        ("torch.from_numpy", lambda: ss.factorize(sparse()).solve(ARRAY)),
        ("torch.from_numpy", lambda: PATTERN.solve(CSR.data, B5)),
        ("Pattern.from_scipy", lambda: PATTERN.solve(CSR, B5)),
        ("torch.from_numpy", lambda: PATTERN.solve(P5.values, ARRAY)),
        ("torch.from_numpy", lambda: PATTERN.factorize(CSR.data)),
        ("torch.from_numpy", lambda: PATTERN.tensor(CSR.data)),
        ("Pattern.from_scipy", lambda: ss.Pattern.from_tensor(CSR)),
        ("Pattern.from_scipy", lambda: ss.SparseSolver.apply(CSR, B5)),
        ("torch.from_numpy", lambda: ss.Pattern(P5.rows.numpy(), P5.cols.numpy(), P5.shape)),
        ("torch.from_numpy", lambda: ss.Pattern.from_csr(CSR.indptr, CSR.indices, CSR.shape)),
        ("torch.from_numpy", lambda: ss.Pattern.from_csc(CSR.indptr, CSR.indices, CSR.shape)),
    ],
)
def test_scipy_and_numpy_inputs_are_refused_with_their_conversion(
    hint: str, call: Callable[[], Any]
) -> None:
    with pytest.raises((ss.LayoutError, ss.IndexRangeError), match=hint):
        call()


def test_the_conversions_that_the_errors_name() -> None:
    pattern = ss.Pattern.from_scipy(CSR)
    x = pattern.solve(torch.from_numpy(CSR.data), torch.from_numpy(ARRAY))
    torch.testing.assert_close(x, torch.linalg.solve(P5.dense, torch.ones(5).double()))


def test_engines_are_printed_one_a_line() -> None:
    found = ss.engines()
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == list(found)
    for line, availability in zip(lines, found.values(), strict=True):
        assert line.endswith(str(availability))
        assert ("not available" in line) == (not availability.installed)
    assert found == dict(found)
    assert str(ss.Availability(missing="nothing; pip install it")) == (
        "not available: nothing; pip install it"
    )


def test_clear_cache_forgets_analyses(counts: Counter[str]) -> None:
    A = sparse()
    ss.solve(A, B5)
    analyses = counts["analyze"]
    ss.solve(A, B5)
    assert counts["analyze"] == analyses
    ss.clear_cache()
    ss.solve(A, B5)
    assert counts["analyze"] == 2 * analyses


def test_synchronize_does_nothing_on_the_cpu() -> None:
    x = ss.solve(sparse(), B5, assume="general", non_blocking=True)
    ss.synchronize()
    torch.testing.assert_close(x, torch.linalg.solve(P5.dense, B5))


# Many right-hand sides and 2^17 entries, so that gradients are sampled by torch's sparse kernel,
# and a residual, which LU needs.
QUIET = """
import torch, sparse_solver as ss
n = 2**16
i = torch.arange(n)
rows, cols = torch.cat((i, i[1:])), torch.cat((i, i[:-1]))
values = torch.cat((torch.full((n,), 3.0), torch.ones(n - 1))).double().requires_grad_()
more = torch.cat((rows, i[:2])), torch.cat((cols, i[:2] + 5))
P = ss.Pattern(*more, (n, n))
values = torch.cat((values, torch.zeros(2).double())).detach().requires_grad_()
assert P.nnz >= 2**17
b = torch.ones(n, 3, dtype=torch.float64, requires_grad=True)
P.solve(values, b).sum().backward()
P.factorize(values).solve(b, adjoint=True).sum().backward()
A = torch.sparse_coo_tensor(torch.stack(more), values, (n, n), check_invariants=False)
ss.solve(A, b).sum().backward()
torch.func.grad(lambda v: P.solve(v, b.detach()).sum())(values.detach())
small = ss.Pattern(torch.arange(3), torch.arange(3), (3, 3))
small.solve(torch.ones(3, requires_grad=True), torch.ones(3, 2)).sum().backward()
print("done")
"""


def test_torch_warns_of_nothing_that_the_user_did_not_make(run_python: Callable[..., str]) -> None:
    """torch warns of its CSR tensors once a process, and in this one it has done so."""
    assert run_python(QUIET, flags=("-W", "error")).strip() == "done"


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_matrix_that_a_transformed_function_captures(
    layout: torch.layout, requires_grad: bool
) -> None:
    p = problem("general", torch.float64)
    b = rhs(p.n, dtype=torch.float64)
    inverse = torch.linalg.inv(p.dense)
    A = p.dense.to_sparse(layout=layout).requires_grad_(requires_grad)

    def solve(b: Tensor) -> Tensor:
        ss.clear_cache()
        return ss.solve(A, b)

    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(solve)(b).detach(), inverse)
    many = torch.stack((b, 2 * b))
    torch.testing.assert_close(torch.func.vmap(solve)(many).detach(), many @ inverse.mT)
    tangent = torch.func.jvp(solve, (b,), (b,))[1]
    torch.testing.assert_close(tangent.detach(), inverse @ b)
    hessian = torch.func.hessian(lambda b: solve(b).square().sum() / 2)(b)
    torch.testing.assert_close(hessian.detach(), inverse.mT @ inverse)
    assert torch.func.jacrev(lambda b: ss.Pattern.from_tensor(A).nnz * b)(b).shape == (p.n, p.n)
    if requires_grad:
        gradient = torch.func.grad(lambda b: solve(b).square().sum() / 2)(b)
        (A_bar,) = torch.autograd.grad(gradient.sum(), A)
        dense = p.dense.clone().requires_grad_()
        inverse = torch.linalg.inv(dense)
        (expected,) = torch.autograd.grad((inverse.mT @ inverse @ b).sum(), dense)
        torch.testing.assert_close(A_bar.to_dense(), expected * (p.dense != 0))
