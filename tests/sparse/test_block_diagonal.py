"""Batches of small matrices, which are solved together: each must come out as if it were alone."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import pytest
import torch
from problems import DTYPES, TOLERANCE, generator, grid, laplacian_places, laplacian_values, problem
from torch import Tensor

import sparse_solver as ss
from sparse_solver import _testing
from sparse_solver._sparse import block_diagonal
from sparse_solver._sparse.block_diagonal import join_batch, unjoin_batch


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if four matrices of 25 rows were as many as a block-diagonal one may have."""
    monkeypatch.setattr(block_diagonal, "_MAX_ROWS", 100)


def laplacians(count: int, m: int = 5) -> tuple[ss.Pattern, Tensor, int]:
    edges, n = grid(m)
    weights = 0.5 + torch.rand(count, edges.shape[1], dtype=torch.float64)
    values = torch.stack([laplacian_values(w, n) for w in weights])
    return ss.Pattern(*laplacian_places(edges, n), (n, n)), values, n


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 7, 8, 13])
def test_slices_cover_the_batch_in_powers_of_two(size: int) -> None:
    P, _, n = laplacians(1)
    found = list(block_diagonal.split_batch(P._structure, size))
    assert [at for batch, _ in found for at in range(size)[batch]] == list(range(size))
    for batch, block in found:
        length = batch.stop - batch.start
        assert length in (1, 2, 4)
        assert block.shape == (length * n, length * n)
        assert (block is P._structure) == (length == 1)
    again = list(block_diagonal.split_batch(P._structure, size))
    assert all(a is b for (_, a), (_, b) in zip(found, again, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["spd", "symmetric", "hermitian", "general"])
@pytest.mark.parametrize("k", [None, 3])
def test_a_batch_and_its_gradients_agree_with_dense_torch(
    dtype: torch.dtype, kind: str, k: int | None
) -> None:
    p = problem(kind, dtype)
    scales = torch.tensor([1.0, 0.5, 2.0, 3.0, 1.5, 0.7, 1.1]).to(dtype)
    values = (scales.unsqueeze(1) * p.values).requires_grad_()
    b = torch.randn(7, p.n, *([] if k is None else [k]), dtype=dtype, requires_grad=True)
    P = ss.Pattern(p.rows, p.cols, p.shape)
    for transpose in (False, True):
        x = P.solve(values, b, assume=kind, transpose=transpose)  # type: ignore[arg-type]
        A = torch.stack(
            [torch.zeros(p.shape, dtype=dtype).index_put((p.rows, p.cols), v) for v in values]
        )
        y = torch.linalg.solve(A.mT if transpose else A, b)
        tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        torch.testing.assert_close(x, y, **tolerance)
        g = torch.randn_like(x)
        for ours, theirs in zip(
            torch.autograd.grad(x, (values, b), g),
            torch.autograd.grad(y, (values, b), g),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, **tolerance)


def test_gradcheck_of_a_batch_with_duplicates_and_a_triangle() -> None:
    rows, cols = torch.tensor([0, 1, 1, 2, 2, 0]), torch.tensor([0, 0, 1, 1, 2, 0])
    values = (
        torch.tensor([2.0, 0.5, 3.0, -0.4, 4.0, 1.0]).double()
        * torch.tensor([[1.0], [2.0], [0.3]]).double()
    )
    b = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    P = ss.Pattern(rows, cols, (3, 3))

    def solve(v: Tensor, b: Tensor) -> Tensor:
        return P.solve(v, b, assume="spd", triangle="lower")

    inputs = (values.requires_grad_(), b)
    assert torch.autograd.gradcheck(solve, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(solve, inputs)


@pytest.mark.parametrize("bad", [0, 3, 5, 6])
def test_the_error_is_that_of_the_matrix_that_has_it(bad: int) -> None:
    P, values, n = laplacians(7)
    b = torch.ones(7, n).double()
    for change, error in ((-100.0, ss.NotPositiveDefiniteError), (float("nan"), ss.NonFiniteError)):
        wrong = values.clone()
        wrong[bad, 11] = change  # the diagonal entry of row 11
        with pytest.raises(error) as caught:
            P.solve(wrong, b, assume="spd")
        where = (
            caught.value.row
            if isinstance(caught.value, ss.NotPositiveDefiniteError)
            else caught.value.index
        )  # type: ignore[attr-defined]
        assert where == 11
    wrong = values.clone()
    wrong[bad, n] *= 2  # one of the two entries of an edge
    with pytest.raises(ss.NotSymmetricError) as asymmetric:
        P.solve(wrong, b, assume="spd")
    assert max(asymmetric.value.row, asymmetric.value.col) < n
    edges, _ = grid(5)
    singular = values.clone()
    singular[bad] = laplacian_values(torch.ones(edges.shape[1]).double(), n, anchor=0.0)
    for assume in ("auto", "spd", "symmetric", "general"):
        with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError)):
            P.solve(singular, b, assume=assume)  # type: ignore[arg-type]


def test_auto_takes_what_suits_all_of_a_block() -> None:
    P, values, n = laplacians(7)
    values[1] *= -1
    values[2, n] *= 2
    b = torch.randn(7, n, dtype=torch.float64)
    F = P.factorize(values)
    assert [factor.record.kind for factor in _testing.checked_factors(F)] == [
        "general",
        "spd",
        "spd",
    ]
    assert F.info.assume == "mixed"
    A = torch.stack([P.tensor(v).to_dense() for v in values])
    torch.testing.assert_close(F.solve(b), torch.linalg.solve(A, b))


def test_matrices_of_very_different_scales() -> None:
    P, values, n = laplacians(4)
    scales = torch.tensor([1e-150, 1.0, 1e150, 1e-20], dtype=torch.float64)
    b = torch.randn(4, n, dtype=torch.float64)
    for assume in ("spd", "general"):
        x = P.solve(values * scales.unsqueeze(1), b * scales.unsqueeze(1), assume=assume)  # type: ignore[arg-type]
        torch.testing.assert_close(x, P.solve(values, b))


def test_nan_in_the_gradient_of_one_system_stays_there() -> None:
    P, values, n = laplacians(4)
    b = torch.ones(4, n, dtype=torch.float64, requires_grad=True)
    g = torch.ones(4, n).double()
    g[2, 3] = float("nan")
    (b_bar,) = torch.autograd.grad(P.solve(values, b), b, g)
    assert b_bar[2].isnan().all()
    assert not b_bar[[0, 1, 3]].isnan().any()


def test_right_hand_sides_of_zero() -> None:
    P, values, n = laplacians(4)
    b = torch.randn(4, n, dtype=torch.float64)
    b[[0, 2]] = 0
    x = P.solve(values, b)
    assert (x[[0, 2]] == 0).all()
    torch.testing.assert_close(x[1], P.solve(values[1], b[1]))


@pytest.mark.parametrize("engine", _testing.installed_engines("spd"))
def test_a_batch_costs_as_many_factorisations_as_blocks(engine: str, counts: Counter[str]) -> None:
    P, values, n = laplacians(7)
    values.requires_grad_()
    b = torch.ones(7, n).double()
    P.solve(values, b, assume="spd", engine=engine)
    counts.clear()
    P.solve(values, b, assume="spd", engine=engine).sum().backward()
    probes = 3 if engine == "rslab" else 0  # which does not tell its pivots
    assert counts == {"factor": 3, "substitute": 6 + probes}  # 4 + 2 + 1 matrices


def test_vmap_and_jacobians_over_a_batch() -> None:
    P, values, n = laplacians(6)
    b = torch.randn(6, n, dtype=torch.float64)

    def loss(v: Tensor, c: Tensor) -> Tensor:
        return P.solve(v, c).square().sum()

    together = torch.func.vmap(torch.func.grad(loss))(values, b)
    alone = torch.stack([torch.func.grad(loss)(v, c) for v, c in zip(values, b, strict=True)])
    torch.testing.assert_close(together, alone)
    tangents = torch.func.jvp(lambda v: P.solve(v, b), (values,), (torch.ones_like(values),))[1]
    for v, c, tangent in zip(values, b, tangents, strict=True):
        torch.testing.assert_close(
            tangent, torch.func.jvp(P.solve, (v, c), (torch.ones_like(v), 0 * c))[1]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("assume", ["spd", "symmetric", "general"])
@pytest.mark.parametrize("neighbour", [1.0, 1e-14, 1e-30])
def test_a_singular_matrix_cannot_hide_behind_its_neighbours(
    dtype: torch.dtype, assume: str, neighbour: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbours that are badly conditioned, or scaled otherwise."""
    monkeypatch.setattr(block_diagonal, "_MAX_ROWS", 2**15)
    edges, n = grid(3)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    eps = torch.finfo(dtype).eps
    for seed in range(10):
        weights = 0.5 + torch.rand(
            16, edges.shape[1], dtype=torch.float64, generator=generator(seed)
        )
        anchors = [300 * eps if neighbour == 1 else 1.0] * 16
        anchors[seed] = 0.0
        values = torch.stack(
            [laplacian_values(w, n, anchor=a) for w, a in zip(weights, anchors, strict=True)]
        )
        scale = torch.full((16, 1), neighbour, dtype=torch.float64)
        scale[seed] = 1
        b = torch.randn(n, dtype=torch.float64, generator=generator(seed)).to(dtype)
        with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError)):
            P.solve((values * scale).to(dtype), b - b.mean(), assume=assume)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "n"), [(0, 3), (4, 0), (0, 0)])
def test_empty_batches_have_gradients(count: int, n: int) -> None:
    i = torch.arange(n)
    P = ss.Pattern(i, i, (n, n))
    values = torch.ones(count, n, dtype=torch.float64, requires_grad=True)
    b = torch.ones(count, n, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(P.solve(values, b).sum(), (values, b))
    assert [g.shape for g in gradients] == [values.shape, b.shape]


def test_the_row_of_a_bad_right_hand_side_is_that_of_its_system() -> None:
    P, values, n = laplacians(4)
    b = torch.ones(4, n).double()
    b[2, 3] = float("nan")
    with pytest.raises(ss.NonFiniteError, match=r"b\[3\] is nan") as caught:
        P.solve(values, b)
    assert caught.value.index == 3


def test_matrices_with_many_entries_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    P, _, _ = laplacians(1)
    monkeypatch.setattr(block_diagonal, "_MAX_ENTRIES", 2 * P.nnz + 1)
    batches = [batch for batch, _ in block_diagonal.split_batch(P._structure, 5)]
    assert [batch.stop - batch.start for batch in batches] == [2, 2, 1]


def test_what_a_batch_was_solved_with_dies_without_the_garbage_collector() -> None:
    """A structure and what it remembers, analyses included, are not a cycle."""
    gc.disable()
    try:
        P = ss.Pattern(torch.arange(3), torch.arange(3), (3, 3))
        P.solve(torch.ones(4, 3), torch.ones(4, 3))
        alive = weakref.ref(P._structure)
        ss.clear_cache()
        del P
        assert alive() is None
    finally:
        gc.enable()


def test_joined_vectors_of_one_row_are_contiguous() -> None:
    """`reshape` returns a view of them, whose strides engines do not read."""
    vectors = torch.arange(9.0).reshape(3, 3, 1)
    joined = join_batch(vectors)
    assert joined.is_contiguous()
    assert torch.equal(unjoin_batch(joined, 3), vectors)


@pytest.mark.parametrize("different", [False, True])
def test_only_matrices_near_one_in_doubt_are_factored_apart(
    different: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_diagonal, "_MAX_ROWS", 2**15)
    hilbert = 1 / (torch.arange(9).view(-1, 1) + torch.arange(9) + 1.0).double()
    A = (hilbert + 9 * torch.eye(9) + torch.ones(9, 9).triu()).repeat(64, 1, 1)
    A[41] = hilbert + 1e-12 * torch.ones(9, 9).triu()
    if different:
        A[5, 0, 3] = A[50, 2, 0] = 0
    rows, cols = torch.ones(9, 9).nonzero().T
    b = torch.ones(64, 9, dtype=torch.float64)
    if different:
        F = ss.factorize(A.to_sparse(), assume="general")
    else:
        F = ss.Pattern(rows, cols, (9, 9)).factorize(A[:, rows, cols], assume="general")
    slices = [part.batch for part in F._factors.parts]
    assert [at for part in slices for at in range(64)[part]] == list(range(64))
    assert slice(41, 42) in slices
    assert len(slices) == 7 + 8  # eighths, one of which is taken apart
    residual = (A @ F.solve(b).unsqueeze(-1)).squeeze(-1) - b
    assert residual.abs().max() < 1e-6
