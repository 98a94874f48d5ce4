"""Batches whose matrices have different patterns: each must come out as if it were alone."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from problems import DTYPES, MAKERS, RHS_SHAPES, TOLERANCE, generator, rhs
from torch import Tensor

import sparse_solver as ss
from sparse_solver import _testing
from sparse_solver._sparse import block_diagonal, structure

LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


def matrices(*batch: int, n: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    """Dense general matrices with as many entries each, as torch wants them in CSR and CSC."""
    A = torch.zeros(*batch, n, n, dtype=dtype)
    for number, matrix in enumerate(A.view(-1, n, n)):
        g = generator(number)
        places = torch.randperm(n * (n - 1), generator=g)[: 2 * n]
        off_diagonal = torch.nonzero(~torch.eye(n, dtype=torch.bool))[places]
        matrix[tuple(off_diagonal.T)] = torch.randn(len(places), dtype=dtype, generator=g)
        matrix.diagonal().copy_(6 + torch.randn(n, dtype=dtype, generator=g))
    return A


def check(A: Tensor, b: Tensor, layout: torch.layout = torch.sparse_coo, **options: bool) -> None:
    """Compare solutions and gradients with those of dense torch."""
    sparse = A.to_sparse(layout=layout).requires_grad_()
    dense, b = A.clone().requires_grad_(), b.clone().requires_grad_()
    shown = dense.mH if "adjoint" in options else dense.mT if "transpose" in options else dense
    expected, x = torch.linalg.solve(shown, b), ss.solve(sparse, b, **options)  # type: ignore[arg-type] # only flags are given
    tolerance = {"rtol": TOLERANCE[A.dtype], "atol": TOLERANCE[A.dtype]}
    assert x.shape == expected.shape
    torch.testing.assert_close(x, expected, **tolerance)
    x_bar = torch.randn_like(expected)
    A_bar, b_bar = torch.autograd.grad(x, (sparse, b), x_bar)
    dense_bar, expected_b_bar = torch.autograd.grad(expected, (dense, b), x_bar)
    assert A_bar.layout == layout
    torch.testing.assert_close(A_bar.to_dense(), dense_bar * (A != 0), **tolerance)
    torch.testing.assert_close(b_bar, expected_b_bar, **tolerance)


@pytest.mark.parametrize("batch", [(1,), (3,), (2, 3), (2, 1), (0,), (2, 0), (5,)], ids=str)
@pytest.mark.parametrize("shape", RHS_SHAPES, ids=str)
def test_shapes_follow_torch_linalg_solve_to_the_letter(
    batch: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    A, b = matrices(*batch), rhs(*shape, dtype=torch.float64)
    try:
        torch.linalg.solve(A, b)
    except RuntimeError:
        with pytest.raises(ss.ShapeError):
            ss.solve(A.to_sparse(), b)
        with pytest.raises(ss.ShapeError):
            ss.factorize(A.to_sparse()).solve(b)
        return
    check(A, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("batch", [(4,), (2, 3)], ids=str)
def test_layouts_dtypes_and_transposes(
    layout: torch.layout, dtype: torch.dtype, batch: tuple[int, ...]
) -> None:
    A = matrices(*batch, dtype=dtype)
    for flags in ({}, {"transpose": True}, {"adjoint": True}):
        check(A, rhs(*batch, 5, 2, dtype=dtype), layout, **flags)
        check(A, rhs(*batch, 5, dtype=dtype), layout, **flags)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_views_of_right_hand_sides(dtype: torch.dtype) -> None:
    A = matrices(3, dtype=dtype)
    check(A, rhs(5, 2, 3, dtype=dtype).permute(2, 0, 1))
    check(A, rhs(3, 5, 4, dtype=dtype)[..., ::2])
    x = ss.solve(A.to_sparse(), rhs(5, 1, dtype=dtype).expand(3, 5, 2))
    torch.testing.assert_close(x, torch.linalg.solve(A, rhs(5, 1, dtype=dtype).expand(3, 5, 2)))
    b = rhs(3, 5, 2, dtype=dtype)
    for view in (b.conj(), torch._neg_view(b)):
        torch.testing.assert_close(ss.solve(A.to_sparse(), view), torch.linalg.solve(A, view))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_kinds_may_be_mixed(dtype: torch.dtype) -> None:
    A = torch.stack([make(8, dtype, seed) for seed, make in enumerate(MAKERS.values())])
    check(A, rhs(4, 8, 2, dtype=dtype))
    spd = torch.stack([MAKERS["spd"](8, dtype, seed) for seed in range(4)])
    check(spd, rhs(4, 8, dtype=dtype))
    F = ss.factorize(spd.to_sparse())
    assert F.info.assume == "spd"
    indefinite = spd.clone()
    indefinite[2] *= -1
    check(indefinite, rhs(4, 8, dtype=dtype))


@pytest.mark.parametrize("engine", _testing.installed_engines("spd"))
def test_one_triangle_and_every_engine(engine: str) -> None:
    A = torch.stack([MAKERS["spd"](8, torch.float64, seed) for seed in range(3)])
    lower = A.tril().to_sparse().requires_grad_()
    b, dense = rhs(3, 8, dtype=torch.float64), A.clone().requires_grad_()
    x = ss.solve(lower, b, assume="spd", triangle="lower", engine=engine)
    torch.testing.assert_close(x, torch.linalg.solve(A, b))
    (lower_bar,) = torch.autograd.grad(x.sum(), lower)
    (bar,) = torch.autograd.grad(torch.linalg.solve(dense, b).sum(), dense)
    expected = (bar + bar.mT).tril() - bar * torch.eye(8)
    torch.testing.assert_close(lower_bar.to_dense(), expected * (A.tril() != 0))


def test_entries_in_any_order_with_duplicates() -> None:
    A = matrices(2, 3)
    indices, values = A.to_sparse().indices(), A.to_sparse().values()
    b, nnz = rhs(2, 3, 5, dtype=torch.float64), values.numel()
    order = torch.randperm(nnz, generator=generator(0))
    dense = A.clone().requires_grad_()
    (expected,) = torch.autograd.grad(torch.linalg.solve(dense, b).square().sum(), dense)
    for copies in (1, 3):
        places, parts = indices[:, order].repeat(1, copies), values[order].repeat(copies) / copies
        leaf = torch.sparse_coo_tensor(places, parts, A.shape).requires_grad_()
        ss.solve(leaf, b).square().sum().backward()
        torch.testing.assert_close(leaf.grad.to_dense(), expected * (A != 0))
        if copies == 1:  # in the order of the leaf
            assert torch.equal(leaf.grad._indices(), places)
        free = parts.clone().requires_grad_()
        for coalesce in (False, True):
            made = torch.sparse_coo_tensor(places, free, A.shape)
            made = made.coalesce() if coalesce else made
            (bar,) = torch.autograd.grad(ss.solve(made, b).square().sum(), free)
            torch.testing.assert_close(bar, expected[tuple(places)])


def test_members_with_any_number_of_entries_and_without_rows() -> None:
    A = torch.stack((torch.eye(4), torch.ones(4, 4) + 4 * torch.eye(4), torch.eye(4).flip(0)))
    check(A.double(), rhs(3, 4, dtype=torch.float64))
    check(torch.tensor([[[2.0]], [[-4.0]]]).double(), rhs(2, 1, 3, dtype=torch.float64))
    for layout in LAYOUTS:
        nothing = torch.zeros(2, 0, 0).to_sparse(layout=layout).requires_grad_()
        x = ss.solve(nothing, torch.zeros(2, 0, 3))
        assert x.shape == (2, 0, 3)
        (A_bar,) = torch.autograd.grad(x.sum(), nothing)
        assert A_bar.shape == nothing.shape
    pointers, indices = torch.zeros(0, 4).long(), torch.zeros(0, 2).long()
    for layout in LAYOUTS[1:]:
        no_matrices = torch.sparse_compressed_tensor(
            pointers, indices, torch.zeros(0, 2), (0, 3, 3), layout=layout
        )
        assert ss.solve(no_matrices.requires_grad_(), torch.zeros(0, 3, 2)).shape == (0, 3, 2)
    F = ss.factorize(torch.zeros(0, 3, 3).to_sparse())
    assert F.solve(torch.zeros(0, 3)).shape == (0, 3)
    assert (F.shape, F.info.n) == ((0, 3, 3), 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_derivatives_of_the_values_and_of_b(dtype: torch.dtype) -> None:
    A = matrices(2, n=3, dtype=dtype)
    indices, values = A.to_sparse().indices(), A.to_sparse().values().requires_grad_()
    b = rhs(2, 3, 2, dtype=dtype).requires_grad_()

    def solve(values: Tensor, b: Tensor) -> Tensor:
        return ss.solve(torch.sparse_coo_tensor(indices, values, A.shape), b)

    assert torch.autograd.gradcheck(solve, (values, b))
    fixed = A.to_sparse()
    for flag in ("transpose", "adjoint"):
        assert torch.autograd.gradcheck(
            lambda b, flag=flag: ss.solve(fixed, b, **{flag: True}), (b,), check_batched_grad=True
        )
    assert torch.autograd.gradgradcheck(lambda b: ss.solve(fixed, b), (b,))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_second_derivatives_in_a_sparse_tensor(layout: torch.layout) -> None:
    A, b = matrices(2, 2), rhs(2, 2, 5, dtype=torch.float64)
    sparse = A.to_sparse(layout=layout).requires_grad_()
    (A_bar,) = torch.autograd.grad(ss.solve(sparse, b).square().sum(), sparse, create_graph=True)
    weights = rhs(*A.shape, dtype=torch.float64) * (A != 0)
    if layout == torch.sparse_coo:
        weighted = (A_bar.to_dense() * weights).sum()
    else:  # torch has no derivative of `to_dense` of a batch
        weighted = (A_bar.values() * weights.to_sparse(layout=layout).values()).sum()
    (second,) = torch.autograd.grad(weighted, sparse)

    dense = A.clone().requires_grad_()
    loss = torch.linalg.solve(dense, b).square().sum()
    (dense_bar,) = torch.autograd.grad(loss, dense, create_graph=True)
    (expected,) = torch.autograd.grad((dense_bar * weights).sum(), dense)
    torch.testing.assert_close(second.to_dense(), expected * (A != 0))


def test_transforms_of_right_hand_sides() -> None:
    A, b = matrices(3), rhs(4, 3, 5, dtype=torch.float64)
    sparse, expected = A.to_sparse(), torch.linalg.solve(A, b.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(torch.func.vmap(lambda b: ss.solve(sparse, b))(b), expected)
    jacobian = torch.func.jacrev(lambda b: ss.solve(sparse, b))(b[0])
    forward = torch.func.jacfwd(lambda b: ss.solve(sparse, b))(b[0])
    torch.testing.assert_close(jacobian, forward)
    torch.testing.assert_close(
        jacobian, torch.func.jacrev(lambda b: torch.linalg.solve(A, b))(b[0])
    )


def test_a_factorization_keeps_the_matrices() -> None:
    A, b = matrices(2, 3), rhs(2, 3, 5, 2, dtype=torch.float64)
    sparse = A.to_sparse().requires_grad_()
    F = ss.factorize(sparse)
    with torch.no_grad():
        sparse._values().fill_(7.0)
    expected = torch.linalg.solve(A, b)
    for one in (F, copy.deepcopy(F), pickle.loads(pickle.dumps(F))):
        assert one.shape == (2, 3, 5, 5)
        torch.testing.assert_close(one.solve(b), expected)
        torch.testing.assert_close(one.solve(b, transpose=True), torch.linalg.solve(A.mT, b))
    assert (F.info.n, F.info.nnz) == (5, int((A != 0).sum()))
    (A_bar,) = torch.autograd.grad(F.solve(b).sum(), sparse)
    dense = A.clone().requires_grad_()
    (dense_bar,) = torch.autograd.grad(torch.linalg.solve(dense, b).sum(), dense)
    torch.testing.assert_close(A_bar.to_dense(), dense_bar * (A != 0))


@pytest.mark.parametrize("engine", _testing.installed_engines("general"))
def test_large_batches_are_split(
    engine: str, monkeypatch: pytest.MonkeyPatch, counts: Counter[str]
) -> None:
    monkeypatch.setattr(block_diagonal, "_MAX_ROWS", 17)  # three matrices of five rows
    A, b = matrices(7), rhs(7, 5, 2, dtype=torch.float64)
    sparse = A.to_sparse().requires_grad_()
    x = ss.solve(sparse, b, assume="general", engine=engine)
    assert counts["factor"] == 3
    torch.testing.assert_close(x, torch.linalg.solve(A, b))
    monkeypatch.setattr(block_diagonal, "_MAX_ENTRIES", 17)  # one matrix of fifteen entries
    check(matrices(4, n=6), rhs(4, 6, dtype=torch.float64))


def test_a_batch_with_one_pattern_shares_its_analysis(counts: Counter[str]) -> None:
    dense = matrices(1).expand(4, 5, 5) * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)
    rows, cols = dense[0].nonzero().T
    b = rhs(4, 5, dtype=torch.float64)
    pattern = ss.Pattern(rows, cols, (5, 5))
    pattern.solve(dense[:, rows, cols], b)
    analyses = counts["analyze"]
    x = ss.solve(dense.to_sparse(), b)
    assert counts["analyze"] == analyses
    torch.testing.assert_close(x, torch.linalg.solve(dense, b))
    check(dense, b)


@pytest.mark.parametrize("bad", [0, 2, 4])
@pytest.mark.parametrize("limit", [11, 2**15])  # two matrices of five rows, and all of them
def test_errors_name_the_matrix_and_its_row(
    bad: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_diagonal, "_MAX_ROWS", limit)
    general, b = matrices(5), rhs(5, 5, dtype=torch.float64)
    spd = general @ general.mT + 40 * torch.eye(5)
    where = f"matrix {bad} of the batch: "
    singular = general.clone()
    singular[bad, 3] = 2 * singular[bad, 1]
    with pytest.raises(ss.SingularMatrixError, match=where):
        ss.solve(singular.to_sparse(), b)
    singular[bad, 3] = 0
    with pytest.raises(ss.SingularMatrixError, match=where + ".*row 3") as empty:
        ss.solve(singular.to_sparse(), b)
    assert empty.value.row == 3
    negative = spd.clone()
    negative[bad, 3, 3] = -1
    with pytest.raises(ss.NotPositiveDefiniteError, match=where + ".*row 3") as not_positive:
        ss.solve(negative.to_sparse(), b, assume="spd")
    assert not_positive.value.row == 3
    uneven = spd.clone()
    uneven[bad, 3, 1] += 1
    with pytest.raises(ss.NotSymmetricError, match=where) as asymmetric:
        ss.solve(uneven.to_sparse(), b, assume="spd")
    assert {asymmetric.value.row, asymmetric.value.col} == {1, 3}
    lower = spd.tril()
    lower[bad, 0, 1] = 1
    with pytest.raises(ss.TriangleError, match=where):
        ss.solve(lower.to_sparse(), b, assume="spd", triangle="lower")
    infinite = general.to_sparse()
    infinite.values()[15 * bad + 4] = torch.nan
    with pytest.raises(ss.NonFiniteError, match=rf"values\[{15 * bad + 4}\] is nan"):
        ss.solve(infinite, b)
    b[bad, 2] = torch.inf
    with pytest.raises(ss.NonFiniteError, match=r"b\[2\] is inf"):
        ss.solve(general.to_sparse(), b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e14])
def test_each_matrix_is_judged_on_its_own(dtype: torch.dtype, scale: float) -> None:
    """An ill-conditioned matrix is solved as well as alone, and a singular one cannot hide."""
    A = matrices(4, n=6, dtype=dtype)
    A[1] *= scale
    hilbert = 1 / (torch.arange(6).view(-1, 1) + torch.arange(6) + 1.0).double()
    A[2] = (hilbert + 1e-9 * torch.eye(6)).to(dtype) if dtype == torch.float64 else A[2]
    b = rhs(4, 6, dtype=dtype) * torch.tensor([1.0, scale, 1.0, 1.0], dtype=dtype).view(-1, 1)
    x = ss.solve(A.to_sparse(), b)
    alone = torch.stack([ss.solve(a.to_sparse(), c) for a, c in zip(A, b, strict=True)])
    torch.testing.assert_close(x, alone, rtol=1e-5, atol=0)
    A[3, 5] = A[3, 0] + A[3, 1]
    with pytest.raises(ss.SingularMatrixError, match="matrix 3 of the batch"):
        ss.solve(A.to_sparse(), b)


@pytest.mark.parametrize("assume", ["auto", "general"])
def test_a_nan_gradient_stays_with_its_matrix(assume: str) -> None:
    A = matrices(3).to_sparse().requires_grad_()
    b = rhs(3, 5, dtype=torch.float64).requires_grad_()
    x_bar = torch.ones(3, 5, dtype=torch.float64)
    x_bar[1, 2] = torch.nan
    A_bar, b_bar = torch.autograd.grad(ss.solve(A, b, assume=assume), (A, b), x_bar)  # type: ignore[arg-type] # a str
    assert b_bar[1].isnan().all()
    assert b_bar[::2].isfinite().all()
    assert A_bar.to_dense()[::2].isfinite().all()


def test_indices_that_torch_did_not_check() -> None:
    ones, options = torch.ones(2), {"check_invariants": False}
    b = torch.ones(2, 2)
    for place, name in (([2, 0, 0], "batch"), ([0, -1, 0], "row"), ([0, 0, 2], "column")):
        indices = torch.tensor([[0, 0, 0], place]).T
        bad = torch.sparse_coo_tensor(indices, ones, (2, 2, 2), **options)
        with pytest.raises(ss.IndexRangeError, match=f"{name} index"):
            ss.solve(bad, b)
    for crow in ([[0, 1, 2], [0, 2, 3]], [[0, 1, 2], [0, 3, 2]], [[0, 1, 2], [1, 2, 2]]):
        col = torch.tensor([[0, 1], [1, 0]])
        bad = torch.sparse_csr_tensor(torch.tensor(crow), col, torch.ones(2, 2), **options)
        with pytest.raises(ss.IndexRangeError, match="row pointers must rise"):
            ss.solve(bad, b)
    twice = torch.sparse_csr_tensor(
        torch.tensor([[0, 1, 2], [0, 2, 3]])[:, [0, 1, 1]] * torch.tensor([1, 1, 2]),
        torch.tensor([[0, 1], [1, 1]]), torch.ones(2, 2), (2, 2, 2), **options,
    )  # fmt: skip
    with pytest.raises((ss.LayoutError, ss.IndexRangeError)):
        ss.solve(twice, b)


def test_int32_indices() -> None:
    A, b = matrices(3), rhs(3, 5, dtype=torch.float64)
    csr = A.to_sparse_csr()
    crow, col = csr.crow_indices().int(), csr.col_indices().int()
    narrow = torch.sparse_csr_tensor(crow, col, csr.values(), A.shape).requires_grad_()
    x = ss.solve(narrow, b)
    torch.testing.assert_close(x, torch.linalg.solve(A, b))
    (A_bar,) = torch.autograd.grad(x.sum(), narrow)
    assert A_bar.crow_indices().dtype == torch.int32


def test_what_takes_one_pattern_says_so() -> None:
    for layout in LAYOUTS:
        A = matrices(3).to_sparse(layout=layout)
        with pytest.raises(ss.LayoutError, match="one matrix at a time"):
            ss.Pattern.from_tensor(A)
        with pytest.raises(ss.LayoutError, match="one matrix at a time"):
            ss.minimize_quadratic(A, torch.ones(5).double())
    with pytest.raises(ss.ShapeError, match="only a square one"):
        ss.solve(torch.ones(2, 3, 4).to_sparse(), torch.ones(2, 3))
    with pytest.raises(ss.LayoutError, match="expected"):
        ss.solve(torch.ones(3).to_sparse(), torch.ones(3))


def test_new_patterns_do_not_stay() -> None:
    """As in a training loop over graphs, where each step has patterns of its own."""
    places, capacity = [], structure._structures.capacity
    for seed in range(capacity + 4):
        A = matrices(3) * (torch.rand(5, 5, generator=generator(seed)) < 0.8)
        F = ss.factorize((A + 9 * torch.eye(5)).to_sparse())
        places.append(weakref.ref(F._problem.structure))
        assert places[-1]().batch_shape == (3, 5, 5)
    del F
    assert len(structure._structures) <= capacity
    gc.collect()
    assert sum(place() is not None for place in places) <= capacity


def test_threads_solve_with_one_batch() -> None:
    A, b = matrices(6), rhs(8, 6, 5, dtype=torch.float64)
    sparse, expected = A.to_sparse(), torch.linalg.solve(A, b.unsqueeze(-1)).squeeze(-1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda c: ss.solve(sparse, c), b))
    torch.testing.assert_close(torch.stack(found), expected)
