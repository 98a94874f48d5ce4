"""`Pattern.solve_factor`: half solves that are differentiable in the values, too."""

from __future__ import annotations

import pytest
import torch
from gaussian.gaussian_cases import (
    CASES,
    chain,
    comb,
    dense_block,
    dense_of,
    grid,
    half,
    pattern_of,
    random_graph,
    star,
)
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import sparse_solver as ss
from sparse_solver._engines.supernodal.factor import analyze

F64 = torch.float64
SMALL = {
    "grid": lambda: grid(4, 3),
    "chain": lambda: chain(6),
    "star": lambda: star(6),
    "comb": lambda: comb(3, 2),
    "random graph": lambda: random_graph(8, 14),
    "dense block": lambda: dense_block(5),
    "one row": CASES["one row"],
}


def order_of(P: ss.Pattern, triangle: str | None = None) -> Tensor:
    """The row at each step of the elimination."""
    return torch.from_numpy(analyze(P._structure, triangle).order)


def dense_half(D: Tensor, b: Tensor, order: Tensor, adjoint: bool) -> Tensor:
    """B b or Bᵀ b for columns b, by the dense Cholesky factor in this order; D is scaled before."""
    root = D.detach().diagonal().sqrt()
    scaled = D / root[:, None] / root
    L = torch.linalg.cholesky(scaled[order][:, order])
    rhs = (b / root[:, None] if adjoint else b)[order]
    x = torch.linalg.solve_triangular(L if adjoint else L.mT, rhs, upper=not adjoint)
    x = torch.zeros_like(x).index_copy(0, order, x)
    return x if adjoint else x / root[:, None]


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_dense_factor(case: str, adjoint: bool) -> None:
    P, values = pattern_of(CASES[case]().tocsr())
    n = P.shape[0]
    torch.manual_seed(0)
    b, weights = torch.randn(2, n, 3, dtype=F64).unbind()
    root = (
        torch.zeros(n, dtype=F64)
        .index_add(0, P.rows, torch.where(P.rows == P.cols, values, 0))
        .sqrt()[:, None]
    )
    b, weights = (b * root, weights) if adjoint else (b, weights * root)
    values, b = values.requires_grad_(), b.requires_grad_()
    x = P.solve_factor(values, b, adjoint=adjoint)
    found = torch.autograd.grad((x * weights).sum(), (values, b))

    order, D = order_of(P), P.tensor(values.detach()).to_dense().requires_grad_()
    other = b.detach().requires_grad_()
    expected = dense_half(D, other, order, adjoint)
    D_bar, b_bar = torch.autograd.grad((expected * weights).sum(), (D, other))
    D_bar = ((D_bar + D_bar.mT) / 2)[P.rows, P.cols]
    size = (root[P.rows] * root[P.cols]).squeeze(-1)  # of an entry, whatever the scaling
    scale = root if adjoint else 1 / root
    error = ((x - expected) * (1 if adjoint else root)).abs().max()
    assert error < 1e-11 * (expected * (1 if adjoint else root)).abs().max()
    assert ((found[0] - D_bar) * size).abs().max() < 1e-10 * (D_bar * size).abs().max()
    b_scale = root if adjoint else torch.ones_like(scale)
    assert ((found[1] - b_bar) * b_scale).abs().max() < 1e-10 * (b_bar * b_scale).abs().max()


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("case", SMALL)
def test_derivatives(case: str, adjoint: bool) -> None:
    P, values = pattern_of(SMALL[case]().tocsr())
    T, keep = half(P, "lower")

    def of_both(stored: Tensor, b: Tensor) -> Tensor:
        return P.solve_factor(dense_of(T, stored)[P.rows, P.cols], b, adjoint=adjoint)

    def of_triangle(stored: Tensor, b: Tensor) -> Tensor:
        return T.solve_factor(stored, b, adjoint=adjoint, triangle="lower")

    stored = values[keep].requires_grad_()
    for b in (torch.randn(P.shape[0], dtype=F64), torch.randn(P.shape[0], 3, dtype=F64)):
        inputs = stored, b.requires_grad_()
        for solve in (of_both, of_triangle):
            assert torch.autograd.gradcheck(solve, inputs)
        torch.testing.assert_close(of_both(*inputs), of_triangle(*inputs))
        fixed = stored.detach()
        assert torch.autograd.gradcheck(
            lambda b, v=fixed: of_triangle(v, b), inputs[1], check_forward_ad=True
        )
        assert torch.autograd.gradgradcheck(lambda b, v=fixed: of_triangle(v, b), inputs[1])


def test_the_upper_triangle_has_the_gradient_of_the_lower_one() -> None:
    P, values = pattern_of(grid(4, 3))
    b, gradients = torch.randn(12, 2, dtype=F64), []
    for triangle in ("lower", "upper"):
        T, keep = half(P, triangle)
        stored = values[keep].requires_grad_()
        loss = T.solve_factor(stored, b, triangle=triangle).square().sum().sin()
        (gradient,) = torch.autograd.grad(loss, stored)
        gradients.append(torch.zeros(12, 12, dtype=F64).index_put((T.rows, T.cols), gradient))
    assert gradients[0].triu(1).abs().max() == 0
    torch.testing.assert_close(gradients[0], gradients[1].mT)


def test_a_sample_moves_as_finite_differences_say() -> None:
    """The white noise is fixed, as in a reparametrised sample."""
    P, values = pattern_of(grid(9, 10, 8))
    z, scale = torch.randn(720, 4, dtype=F64), torch.tensor(0.3, dtype=F64, requires_grad=True)

    def energy(scale: Tensor) -> Tensor:
        diagonal = torch.where(P.rows == P.cols, scale.exp(), 0)
        return P.solve_factor(values * (1 + scale**2) + diagonal, z).pow(4).mean()

    energy(scale).backward()
    step = 1e-5
    with torch.no_grad():
        difference = (energy(scale + step) - energy(scale - step)) / (2 * step)
    torch.testing.assert_close(scale.grad, difference, rtol=1e-8, atol=0)


def test_duplicates_and_zeros_whose_opposites_are_not_stored() -> None:
    P, values = pattern_of(grid(4, 3))
    b, weights = torch.randn(2, 12, 2, dtype=F64).unbind()

    def gradient(P: ss.Pattern, values: Tensor) -> Tensor:
        values = values.clone().requires_grad_()
        (found,) = torch.autograd.grad((P.solve_factor(values, b) * weights).sum(), values)
        return found

    expected = gradient(P, values)
    twice = ss.Pattern(P.rows.repeat(2), P.cols.repeat(2), P.shape)
    shares = torch.cat((0.25 * values, 0.75 * values))
    torch.testing.assert_close(gradient(twice, shares), expected.repeat(2))
    # The corner (0, 11) is zero, and its opposite is not stored.
    more = ss.Pattern(
        torch.cat((P.rows, torch.tensor([0]))), torch.cat((P.cols, torch.tensor([11]))), P.shape
    )
    found = gradient(more, torch.cat((values, torch.zeros(1, dtype=F64))))
    both = ss.Pattern(
        torch.cat((P.rows, torch.tensor([0, 11]))),
        torch.cat((P.cols, torch.tensor([11, 0]))),
        P.shape,
    )
    whole = gradient(both, torch.cat((values, torch.zeros(2, dtype=F64))))
    torch.testing.assert_close(found, whole[:-1])
    assert found[-1] != 0


def test_batches_broadcast_like_solves() -> None:
    P, values = pattern_of(grid(4, 3))
    scales = torch.tensor([1.0, 2.0, 5.0], dtype=F64).view(3, 1, 1)
    batch = (scales * values).requires_grad_()  # (3, 1, nnz)
    for shape in ((12,), (12, 2), (3, 4, 12, 2), (2, 3, 4, 12, 1), (0, 12, 3), (12, 0)):
        b = torch.randn(shape, dtype=F64).requires_grad_()
        for adjoint in (False, True):
            x = P.solve_factor(batch, b, adjoint=adjoint)
            assert x.shape == P.solve(batch.detach(), b.detach()).shape
            weights = torch.randn_like(x)
            found = torch.autograd.grad((x * weights).sum(), (batch, b))
            # One by one: the matrices of the batch, and their right-hand sides.
            columns = b.unsqueeze(-1) if len(shape) == 1 else b
            rhs = columns.expand(torch.broadcast_shapes((3, 1, 12, 1), columns.shape))
            each = [
                P.solve_factor(batch[i, 0], rhs[..., i, :, :, :], adjoint=adjoint) for i in range(3)
            ]
            alone = torch.stack(each, -4)
            alone = alone.squeeze(-1) if len(shape) == 1 else alone
            torch.testing.assert_close(x, alone)
            expected = torch.autograd.grad((alone * weights).sum(), (batch, b))
            torch.testing.assert_close(found, expected)


def test_batches_with_different_patterns() -> None:
    D = torch.stack([torch.from_numpy(A.toarray()) for A in (chain(5), star(5), dense_block(5))])
    mask = D.tril() != 0
    structure = ss.factorize((D * mask).to_sparse(), triangle="lower")._problem.structure
    from sparse_solver._gaussian.symmetric_inverse import SymmetricInverse

    def solve(values: Tensor, b: Tensor) -> Tensor:
        return SymmetricInverse(structure, values, "lower", 0).solve_factor(b)

    values, b = D[mask].requires_grad_(), torch.randn(3, 5, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(solve, (values, b))
    inverse = torch.linalg.inv(D)
    unit = torch.eye(5, dtype=F64).expand(3, 5, 5)
    B = solve(values, unit)
    torch.testing.assert_close(B @ B.mT, inverse)


def test_single_precision_is_computed_in_double() -> None:
    P, values = pattern_of(grid(8, 8))
    given = values.float().requires_grad_()
    b = torch.randn(64, 2).requires_grad_()
    for adjoint in (False, True):
        x = P.solve_factor(given, b, adjoint=adjoint)
        weights = torch.randn_like(x)
        found = torch.autograd.grad((x * weights).sum(), (given, b))
        assert {x.dtype, *(each.dtype for each in found)} == {torch.float32}
        doubles = given.detach().double().requires_grad_(), b.detach().double().requires_grad_()
        exact = P.solve_factor(*doubles, adjoint=adjoint)
        expected = torch.autograd.grad((exact * weights.double()).sum(), doubles)
        for one, other in zip((x, *found), (exact, *expected), strict=True):
            assert torch.equal(one, other.float())


def test_several_threads_give_the_bits_of_one() -> None:
    P, values = pattern_of(grid(13, 13, 13))
    symbolic = analyze(P._structure, None)
    assert min(len(symbolic.tree.tasks), len(symbolic.tree.top)) > 2
    b, weights = torch.randn(2, P.shape[0], 40, dtype=F64).unbind()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            given = values.clone().requires_grad_()
            (P.solve_factor(given, b) * weights).sum().backward()
            results.append(given.grad)
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_views_and_later_writes() -> None:
    P, values = pattern_of(grid(4, 3))
    b, bar = torch.randn(2, 12, 3, dtype=F64).unbind()
    given = values.clone().requires_grad_()
    (expected,) = torch.autograd.grad(P.solve_factor(given, b), given, bar)
    lazy = (-values)._neg_view().requires_grad_()
    strided = torch.stack((b, b), -1)[..., 0]
    x = P.solve_factor(lazy, (-strided)._neg_view())
    (found,) = torch.autograd.grad(x, lazy, (-bar)._neg_view(), retain_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-15)
    leaf = values.clone().requires_grad_()
    written, rhs = leaf * 1, b.clone()
    x = P.solve_factor(written, rhs)
    with torch.no_grad():
        written.mul_(2)
    (found,) = torch.autograd.grad(x, leaf, bar, retain_graph=True)
    assert torch.equal(found, expected)
    rhs.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.backward(bar)


def test_transforms() -> None:
    P, values = pattern_of(grid(4, 3))
    T, keep = half(P, "lower")
    stored, b = values[keep], torch.randn(12, 2, dtype=F64)

    def loss(v: Tensor, b: Tensor) -> Tensor:
        return T.solve_factor(v, b, triangle="lower").pow(3).sum()

    scales = torch.tensor([1.0, 3.0, 7.0], dtype=F64)
    batch, many = scales[:, None] * stored, scales[:, None, None] * b
    one_by_one = [grad(loss, (0, 1))(v, c) for v, c in zip(batch, many, strict=True)]
    found = vmap(grad(loss, (0, 1)))(batch, many)
    for k in (0, 1):
        torch.testing.assert_close(found[k], torch.stack([each[k] for each in one_by_one]))
    for dims, given in (((0, None), (batch, b)), ((None, 0), (stored, many))):
        rows = [
            [given[k] if dims[k] is None else given[k][i] for k in (0, 1)]
            for i in range(len(batch))
        ]
        expected = torch.stack([grad(loss)(*row) for row in rows])
        torch.testing.assert_close(vmap(grad(loss), dims)(*given), expected)
        torch.testing.assert_close(
            vmap(loss, dims)(*given), torch.stack([loss(*row) for row in rows])
        )
    # Of a batch of matrices, and of matrices that vmap makes of those.
    jacobian = jacrev(lambda v: T.solve_factor(v, b, triangle="lower"))
    expected = torch.stack([jacobian(v) for v in batch])
    whole = jacobian(batch)
    torch.testing.assert_close(torch.stack([whole[i, :, :, i] for i in range(3)]), expected)
    assert not whole[0, :, :, 1].any()
    torch.testing.assert_close(vmap(jacobian)(batch), expected)
    nested = vmap(vmap(grad(loss), (0, None)), (None, 0))(batch, many)
    torch.testing.assert_close(nested[1, 2], grad(loss)(batch[2], many[1]))
    # Forward mode in the right-hand sides.
    B = jacfwd(lambda c: T.solve_factor(stored, c, triangle="lower"))(b[:, 0])
    _, tangent = jvp(lambda c: T.solve_factor(stored, c, triangle="lower"), (b,), (b,))
    torch.testing.assert_close(tangent, B @ b)


def test_what_is_not_computed_is_refused_and_not_zero() -> None:
    P, values = pattern_of(grid(4, 3))
    b = torch.randn(12, dtype=F64, requires_grad=True)
    given = values.clone().requires_grad_()

    def loss(v: Tensor, b: Tensor = b) -> Tensor:
        return P.solve_factor(v, b).square().sum()

    (gradient,) = torch.autograd.grad(loss(given), given, create_graph=True)
    for leaf in (given, b):
        with pytest.raises(ss.TransformError, match="not differentiated again"):
            torch.autograd.grad(gradient.sum(), leaf, retain_graph=True)
    for transform in (hessian(loss), jacrev(jacrev(loss)), jacfwd(loss)):
        with pytest.raises(ss.TransformError, match=r"forward mode|not differentiated again"):
            transform(values)
    with pytest.raises(ss.TransformError, match="forward mode"):
        jvp(loss, (values,), (values,))
    # The derivative in the values of the gradient in b is one derivative of a half solve.
    weights = torch.randn(12, dtype=F64)
    x = P.solve_factor(given, b)
    (b_bar,) = torch.autograd.grad(x, b, weights, create_graph=True)
    (mixed,) = torch.autograd.grad(b_bar.square().sum(), given)
    other = values.clone().requires_grad_()
    (expected,) = torch.autograd.grad(
        P.solve_factor(other, weights, adjoint=True).square().sum(), other
    )
    torch.testing.assert_close(mixed, expected)
    with pytest.raises(ss.TransformError, match="is_grads_batched"):
        torch.autograd.grad(
            P.solve_factor(given, b), given, torch.eye(12, dtype=F64), is_grads_batched=True
        )
    with pytest.raises(ss.TransformError, match="make_fx"):
        make_fx(lambda v: loss(v))(values)


def test_errors() -> None:
    P, values = pattern_of(grid(4, 3))
    b = torch.ones(12, dtype=F64)
    with pytest.raises(ss.EngineUnsupportedError, match="complex128"):
        P.solve_factor(values.to(torch.complex128), b.to(torch.complex128))
    with pytest.raises(ss.NonFiniteError) as caught:
        P.solve_factor(values, torch.where(torch.arange(12) == 5, torch.nan, b))
    assert caught.value.index == 5
    with pytest.raises(ss.NotPositiveDefiniteError):
        P.solve_factor(-values, b)
    with pytest.raises(ss.NotSymmetricError):
        P.solve_factor(torch.where(P.rows > P.cols, 2 * values, values), b)
    with pytest.raises(ss.ShapeError):
        P.solve_factor(values, b[1:])
    with pytest.raises(ss.DtypeError):
        P.solve_factor(values, b.float())
    with pytest.raises(ss.OptionError):
        P.solve_factor(values, b, adjoint=1)
    given = values.clone().requires_grad_()
    (bad,) = torch.autograd.grad(P.solve_factor(given, b), given, torch.full_like(b, torch.nan))
    assert bad.isnan().any()


def test_matrices_without_rows_and_empty_batches() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    for shape in ((0,), (3, 0)):
        values = torch.zeros(shape, dtype=F64, requires_grad=True)
        x = ss.Pattern(empty, empty, (0, 0)).solve_factor(values, torch.zeros(0, 2, dtype=F64))
        assert x.shape == (*shape[:-1], 0, 2)
        x.sum().backward()
        assert values.grad.shape == shape
    P, values = pattern_of(grid(4, 3))
    none = values.expand(0, P.nnz).clone().requires_grad_()
    x = P.solve_factor(none, torch.ones(12, 2, dtype=F64))
    x.sum().backward()
    assert (x.shape, none.grad.shape) == ((0, 12, 2), (0, P.nnz))


def test_one_factorisation_serves_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparse_solver._engines.supernodal import factor

    made = []
    original = factor.SupernodalFactor.__init__

    def count(self, *given) -> None:
        made.append(self)
        original(self, *given)

    monkeypatch.setattr(factor.SupernodalFactor, "__init__", count)
    P, values = pattern_of(grid(4, 3))
    values.requires_grad_()
    P.solve_factor(values, torch.ones(12, dtype=F64)).square().sum().backward()
    assert len(made) == 1


def test_higher_derivatives_in_the_right_hand_sides_and_mixed_ones() -> None:
    P, values = pattern_of(grid(4, 3))
    T, keep = half(P, "lower")
    stored, b = values[keep].requires_grad_(), torch.randn(12, dtype=F64)

    def energy(v: Tensor, b: Tensor) -> Tensor:
        return T.solve_factor(v, b, triangle="lower").pow(3).sum()

    B = T.solve_factor(stored, torch.eye(12, dtype=F64), triangle="lower").detach()
    expected = B.mT @ torch.diag(6 * (B @ b)) @ B
    for second in (hessian(energy, 1), jacrev(jacrev(energy, 1), 1), jacfwd(jacfwd(energy, 1), 1)):
        for v in (stored, stored.detach()):
            torch.testing.assert_close(second(v, b).detach(), expected)
    assert torch.autograd.gradcheck(lambda v: grad(energy, 1)(v, b), stored)


# Of Dynamo, for a tensor that is not a leaf where it breaks a graph.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_under_compile_and_inference_mode() -> None:
    P, values = pattern_of(grid(4, 3))
    b = torch.randn(12, dtype=F64)
    torch._dynamo.reset()
    compiled = torch.compile(lambda v: P.solve_factor(2 * v, b).square().sum(), backend="eager")
    found, expected = values.clone().requires_grad_(), values.clone().requires_grad_()
    compiled(found).backward()
    P.solve_factor(2 * expected, b).square().sum().backward()
    assert torch.equal(found.grad, expected.grad)
    with torch.inference_mode():
        torch.testing.assert_close(P.solve_factor(values, b), P.solve_factor(expected, b).detach())
