"""`IndexedSum` against the sum written out, and its derivatives against those of dense torch."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import hessian as dense_hessian

import sparse_solver as ss
from sparse_solver._energy import hessian_assembly as _stencil

torch.manual_seed(0)
TRIANGLES = torch.tensor([[0, 1, 2], [1, 3, 2], [2, 3, 4], [3, 5, 4]])
EDGES = torch.tensor([[0, 1], [1, 2], [4, 0]])


def spring(x: Tensor, k: Tensor, c: tuple[Tensor, Tensor]) -> Tensor:
    stiffness, length = c
    return stiffness * k.prod() * ((x[1] - x[0]).norm() - length) ** 2


def area(x: Tensor) -> Tensor:
    edges = torch.stack((x[1] - x[0], x[2] - x[0]))
    return torch.log(1 + torch.linalg.det(edges) ** 2)


def vector(x: Tensor, k: Tensor) -> Tensor:  # for X (vertices,)
    return torch.sin(x[0] * x[1] + k[0]) * x[2].exp()


class Case:
    """An energy, the same as a plain sum in Python, X, and the constants."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, **options: Any):
        torch.manual_seed(len(name))
        n, self.shape = 7, (7, 2)
        self.X = torch.randn(n, 2, dtype=dtype)
        self.constants: tuple[Tensor, ...] = ()
        if name == "springs":
            self.constants = tuple(torch.rand(size, dtype=dtype) + 0.5 for size in (n, 3, 3))
            self.make = lambda k, s, l: ss.IndexedSum(spring, EDGES, k, (s, l), **options)
            self.plain = lambda X, k, s, l: sum(
                spring(X[e], k[e], (s[i], l[i])) for i, e in enumerate(EDGES)
            )
        elif name == "triangles":
            self.make = lambda: ss.IndexedSum(area, TRIANGLES, **options)
            self.plain = lambda X: sum(area(X[e]) for e in TRIANGLES)
        elif name == "vector":
            self.X = torch.randn(n, dtype=dtype)
            self.constants = (torch.rand(n, dtype=dtype),)
            self.make = lambda k: ss.IndexedSum(vector, TRIANGLES, per_variable=k, **options)
            self.plain = lambda X, k: sum(vector(X[e], k[e]) for e in TRIANGLES)
        elif name == "repeated":  # a term that reads a vertex twice
            indices = torch.tensor([[3, 3, 1], [0, 2, 0], [5, 5, 5]], dtype=torch.int32)
            self.make = lambda: ss.IndexedSum(
                lambda x: (x[0] * x[1] * x[2].exp()).sum(), indices, **options
            )
            self.plain = lambda X: sum(
                (X[e][0] * X[e][1] * X[e][2].exp()).sum() for e in indices.long()
            )
        elif name == "sum":
            first, second, third = (
                Case(other, dtype, **options) for other in ("springs", "triangles", "repeated")
            )
            weight = torch.rand((), dtype=dtype)
            self.constants = (*first.constants, weight)
            self.make = lambda *c: (
                c[-1] * first.make(*c[:-1]) - second.make() / 3 + 2 * third.make()
            )
            self.plain = lambda X, *c: (
                c[-1] * first.plain(X, *c[:-1]) - second.plain(X) / 3 + 2 * third.plain(X)
            )
        else:  # no term depends on X
            self.constants = (torch.rand(3, dtype=dtype),)
            self.make = lambda c: ss.IndexedSum(lambda x, c: c * 2, EDGES, per_term=c, **options)
            self.plain = lambda X, c: (c * 2).sum()

    make: Callable[..., ss.IndexedSum]
    plain: Callable[..., Any]


NAMES = ["springs", "triangles", "vector", "repeated", "sum", "constant"]
CHUNKS = [None, 1, 2]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_value_gradient_and_hessian_are_those_of_the_sum(
    name: str, dtype: torch.dtype, chunk: int | None
) -> None:
    case = Case(name, dtype, chunk_size=chunk)
    energy, X = case.make(*case.constants), case.X
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    value = case.plain(X, *case.constants)
    assert torch.allclose(energy(X), value, rtol=tolerance)
    assert torch.equal(energy(X), energy.value(X))
    assert energy(X).dtype == dtype
    gradient = torch.func.grad(lambda X: case.plain(X, *case.constants))(X)
    assert torch.allclose(energy.gradient(X), gradient, rtol=tolerance, atol=tolerance)
    # torch.func.hessian without vmap over terms is right, also for determinants.
    expected = dense_hessian(lambda X: case.plain(X, *case.constants))(X).reshape(
        X.numel(), X.numel()
    )
    H = energy.hessian(X)
    assert H.layout == torch.sparse_csr
    assert H.dtype == dtype
    dense = H.to_dense()
    assert torch.allclose(dense, expected, rtol=10 * tolerance, atol=10 * tolerance)
    assert torch.equal(dense, dense.mT)
    values, pattern = energy.hessian_values(X), energy.pattern
    assert torch.equal(pattern.tensor(values).to_dense(), dense)
    assert len(set(zip(pattern.rows.tolist(), pattern.cols.tolist(), strict=True))) == pattern.nnz


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", NAMES)
def test_all_three_are_differentiable_twice(name: str, chunk: int | None) -> None:
    case = Case(name, chunk_size=chunk)
    inputs = tuple(tensor.clone().requires_grad_() for tensor in (case.X, *case.constants))
    for function in (
        lambda X, *c: case.make(*c)(X),
        lambda X, *c: case.make(*c).gradient(X),
        lambda X, *c: case.make(*c).hessian_values(X),
    ):
        fast = chunk is not None or name == "sum"  # random directions instead of all of them
        torch.autograd.gradcheck(function, inputs, fast_mode=fast)
        if function(*inputs).requires_grad:
            torch.autograd.gradgradcheck(function, inputs, fast_mode=fast)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_transforms_of_torch_func(chunk: int | None) -> None:
    case = Case("springs", chunk_size=chunk)
    energy = case.make(*case.constants)
    H = energy.hessian(case.X).to_dense()
    assert torch.allclose(torch.func.grad(energy)(case.X), energy.gradient(case.X))
    jacobian = torch.func.jacrev(energy.gradient)(case.X).reshape(H.shape)
    assert torch.allclose(jacobian, H)
    tangent = torch.randn_like(case.X)
    assert torch.allclose(
        torch.func.jvp(energy.gradient, (case.X,), (tangent,))[1].reshape(-1),
        H @ tangent.reshape(-1),
    )
    many = torch.randn(3, *case.X.shape, dtype=torch.double)
    assert torch.allclose(torch.func.vmap(energy)(many), torch.stack([energy(X) for X in many]))
    batched = torch.func.vmap(energy.hessian_values)(many)
    assert torch.allclose(batched, torch.stack([energy.hessian_values(X) for X in many]))


def test_forward_over_reverse_is_not_relied_on() -> None:
    """Under vmap, torch's forward mode of det is wrong; an energy of determinants must not be."""
    torch.manual_seed(1)
    X = torch.randn(40, 3, dtype=torch.double)
    tets = torch.randint(0, 40, (30, 4))

    def volume(x: Tensor) -> Tensor:
        return torch.linalg.det(x[1:] - x[0]) ** 2

    energy = ss.IndexedSum(volume, tets)
    expected = torch.autograd.functional.hessian(lambda X: sum(volume(X[t]) for t in tets), X)
    assert torch.allclose(energy.hessian(X).to_dense(), expected.reshape(120, 120), atol=1e-9)


def test_no_grad_and_inference_mode() -> None:
    case = Case("sum")
    energy = case.make(*(c.requires_grad_() for c in case.constants))
    expected = energy.gradient(case.X), energy.hessian_values(case.X)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.allclose(energy.gradient(case.X), expected[0])
            assert torch.allclose(energy.hessian_values(case.X), expected[1])
            assert not energy.gradient(case.X).requires_grad
    fresh = case.make(*case.constants)
    with torch.inference_mode():
        fresh.hessian_values(case.X)
    fresh.hessian_values(case.X).sum().backward()  # what was remembered is no inference tensor


@pytest.mark.parametrize("chunk", CHUNKS)
def test_tensors_that_the_summand_captures_are_differentiable(chunk: int | None) -> None:
    k = torch.tensor(2.0, dtype=torch.double, requires_grad=True)
    X = torch.randn(7, 2, dtype=torch.double)
    energy = ss.IndexedSum(lambda x: k**2 * (x[1] - x[0]).square().sum(), EDGES, chunk_size=chunk)
    for result in (energy(X), energy.gradient(X), energy.hessian_values(X)):
        (found,) = torch.autograd.grad(result.sum(), k)
        assert torch.allclose(found, result.sum() * 2 / k, atol=1e-12)


def test_a_merged_pattern_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = _stencil._build
    monkeypatch.setattr(_stencil, "_build", lambda *arguments: built.append(1) or build(*arguments))
    ss.clear_cache()
    case = Case("sum")
    energy = case.make(*case.constants)
    pattern = None
    for _ in range(3):
        energy.hessian_values(torch.randn_like(case.X))
        assert pattern is None or energy.pattern is pattern
        pattern = energy.pattern
    other = case.make(*(2 * c for c in case.constants))  # new constants, equal indices
    other.hessian_values(case.X)
    assert other.pattern is pattern
    assert len(built) == 1
    monkeypatch.setattr(torch, "sort", None)
    monkeypatch.setattr(torch, "argsort", None)
    monkeypatch.setattr(torch, "unique", None)
    monkeypatch.setattr(torch.Tensor, "coalesce", None)
    energy.hessian(case.X)


def test_indices_are_copied_and_constants_are_not() -> None:
    indices, c = EDGES.clone(), torch.ones(3)
    energy = ss.IndexedSum(lambda x, c: c * x[0] * x[1], indices, per_term=c)
    X = torch.rand(5)
    before = energy(X)
    indices.zero_()
    assert torch.equal(energy(X), before)
    c.mul_(2)
    assert torch.allclose(energy(X), 2 * before)


def test_sums() -> None:
    case = Case("springs")
    one = case.make(*case.constants)
    assert torch.allclose(sum([one, one, one])(case.X), 3 * one(case.X))
    assert torch.allclose((-one - one)(case.X), -2 * one(case.X))
    assert torch.allclose((one * 3 / 2)(case.X), 1.5 * one(case.X))
    assert torch.allclose(
        (2 * (one + 3 * one)).hessian_values(case.X), 8 * one.hessian_values(case.X)
    )
    assert torch.allclose((0 - one)(case.X), (-one - 0)(case.X))
    for wrong in (1.0, "a", torch.ones(2)):
        with pytest.raises(TypeError):
            one + wrong  # type: ignore[operator]
    for wrong_factor in (torch.ones(2), torch.tensor(2)):
        with pytest.raises(ss.ShapeError, match="floating-point scalar"):
            one * wrong_factor
    with pytest.raises(TypeError):
        5 - one
    with pytest.raises(TypeError):
        one * "a"  # type: ignore[operator]
    triangles = ss.IndexedSum(area, TRIANGLES, shape=(8, 2))
    with pytest.raises(ss.ShapeError, match=r"\(8, 2\)"):
        triangles + one


def test_empty_sums() -> None:
    X = torch.randn(3, 2, requires_grad=True)
    for energy in (
        ss.IndexedSum(area, torch.empty(0, 3, dtype=torch.int64)),
        ss.IndexedSum(
            spring,
            torch.empty(0, 2, dtype=torch.int64),
            torch.ones(3),
            (torch.ones(0), torch.ones(0)),
        ),
    ):
        assert energy(X) == 0
        assert torch.equal(torch.autograd.grad(energy(X), X)[0], torch.zeros(3, 2))
        assert torch.equal(energy.gradient(X), torch.zeros(3, 2))
        assert torch.equal(energy.hessian(X).to_dense(), torch.zeros(6, 6))
    nothing = ss.IndexedSum(area, torch.empty(0, 3, dtype=torch.int64))
    assert nothing.hessian(torch.empty(0, 2)).shape == (0, 0)
    case = Case("triangles")
    both = case.make() + ss.IndexedSum(area, torch.empty(0, 3, dtype=torch.int64))
    assert torch.equal(both.hessian(case.X).to_dense(), case.make().hessian(case.X).to_dense())


def test_noncontiguous_variables_and_constants() -> None:
    case = Case("springs")
    X = torch.empty(2, 14, dtype=torch.double).mT[::2]
    X.copy_(case.X)
    constants = [torch.stack((c, c), 1)[:, 0] for c in case.constants]
    assert not X.is_contiguous()
    energy, other = case.make(*case.constants), case.make(*constants)
    assert torch.allclose(energy.gradient(case.X), other.gradient(X))
    assert torch.allclose(energy.hessian_values(case.X), other.hessian_values(X))


def test_constants_in_dictionaries_and_integers() -> None:
    X = torch.rand(6, dtype=torch.double)
    constants = {
        "power": torch.tensor([1, 2, 3]),
        "factors": [torch.ones(3, dtype=torch.double) * 2],
    }
    energy = ss.IndexedSum(
        lambda x, c: c["factors"][0] * x[0] ** c["power"], EDGES, per_term=constants
    )
    assert torch.allclose(energy(X), 2 * (X[0] + X[1] ** 2 + X[4] ** 3))
    assert len(energy.parameters()) == 1
    assert torch.allclose(
        energy.with_parameters(torch.ones(3, dtype=torch.double))(X), energy(X) / 2
    )


@pytest.mark.parametrize("project", [True, "zero", "absolute"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_projection_clamps_each_term(project: Any, chunk: int | None) -> None:
    case = Case("sum", chunk_size=chunk)
    energy = case.make(*case.constants)
    expected = torch.zeros(14, 14, dtype=torch.double)
    k, s, l, weight = case.constants
    terms = [
        (weight, lambda x, i=i, e=e: spring(x, k[e], (s[i], l[i])), e) for i, e in enumerate(EDGES)
    ]
    terms += [(-1 / 3, area, e) for e in TRIANGLES]
    terms += [
        (2, lambda x: (x[0] * x[1] * x[2].exp()).sum(), torch.tensor(e))
        for e in ([3, 3, 1], [0, 2, 0], [5, 5, 5])
    ]
    for factor, summand, e in terms:
        d = 2 * len(e)
        H = factor * torch.autograd.functional.hessian(summand, case.X[e]).reshape(d, d)
        eigenvalues, vectors = torch.linalg.eigh((H + H.mT) / 2)
        clamped = eigenvalues.abs() if project == "absolute" else eigenvalues.clamp(min=0)
        at = (2 * e.unsqueeze(-1) + torch.arange(2)).reshape(-1)
        expected.index_put_(
            (at.unsqueeze(-1), at), (vectors * clamped) @ vectors.mT, accumulate=True
        )
    found = energy.hessian(case.X, project=project).to_dense()
    assert torch.allclose(found, expected, atol=1e-10)
    assert torch.linalg.eigvalsh(found)[0] > -1e-10
    assert not torch.allclose(found, energy.hessian(case.X).to_dense())


def test_projection_leaves_semidefinite_terms_alone() -> None:
    case = Case("springs")
    X = 100 * case.X  # springs are stretched
    energy = case.make(*case.constants)
    values = energy.hessian_values(X)
    assert torch.allclose(
        energy.hessian_values(X, project=True), values, rtol=0, atol=1e-14 * float(values.max())
    )


@pytest.mark.parametrize("project", ["zero", "absolute"])
def test_the_projection_is_differentiable(project: Any) -> None:
    torch.manual_seed(3)
    A = torch.randn(4, 3, 3, dtype=torch.double)
    A = A + A.mT
    A[0] = torch.diag(torch.tensor([2.0, -1.0, -1.0]))  # equal eigenvalues
    A[1] = torch.eye(3)
    A.requires_grad_()

    def project_each(A: Tensor) -> Tensor:
        from sparse_solver._energy.psd_projection import projected

        return projected((A + A.mT) / 2, project)

    torch.autograd.gradcheck(project_each, (A,))
    grown = project_each(A).square().sum()
    with pytest.raises(ss.TransformError, match="once"):
        torch.autograd.grad(grown, A, create_graph=True)
    with pytest.raises(ss.TransformError):
        torch.func.vmap(project_each)(A.detach().unsqueeze(0))


def test_projection_of_what_is_not_finite() -> None:
    energy = ss.IndexedSum(lambda x: -(x[0] ** 2) * x[1], torch.tensor([[0, 1], [2, 3]]))
    values = energy.hessian_values(torch.tensor([float("nan"), 1.0, 1.0, 1.0]), project=True)
    dense = energy.pattern.tensor(values).to_dense()
    assert dense[:2, :2].isnan().any()
    assert dense[2:, 2:].isfinite().all()


def test_restriction() -> None:
    case = Case("springs")
    energy, X = case.make(*case.constants), case.X.requires_grad_()
    H = energy.hessian(X).to_dense().detach()
    mask = torch.zeros(7, 2, dtype=torch.bool)
    mask[0] = mask[3, 1] = True
    for fixed, kept in (
        (torch.tensor([3, 0]), [2, 3, 4, 5, 8, 9, 10, 11, 12, 13]),
        (torch.tensor([1, 0, 0, 1, 0, 0, 0], dtype=torch.bool), [2, 3, 4, 5, 8, 9, 10, 11, 12, 13]),
        (mask, [2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]),
        (torch.empty(0, dtype=torch.int32), list(range(14))),
    ):
        free = energy.restrict(fixed, X)
        x = free.select(X).detach()
        assert torch.equal(x, X.detach().reshape(-1)[kept])
        assert torch.equal(free.extend(x), X)
        assert torch.equal(free(x), energy(X))
        assert torch.equal(free.gradient(x), energy.gradient(X).reshape(-1)[kept])
        assert torch.equal(free.hessian(x).to_dense(), H[kept][:, kept])
        assert torch.equal(free.pattern.tensor(free.hessian_values(x)).to_dense(), H[kept][:, kept])
        torch.autograd.gradcheck(lambda x, free=free: free.gradient(x), (x.requires_grad_(),))
        with pytest.raises(ss.ShapeError):
            free(X)
    gradient = torch.autograd.grad(
        energy.restrict(torch.tensor([0]), X).gradient(X.detach().reshape(-1)[2:]).sum(), X
    )[0]
    assert torch.allclose(gradient.reshape(-1)[:2], H[2:, :2].sum(0))
    assert torch.equal(gradient.reshape(-1)[2:], torch.zeros(12, dtype=torch.double))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"summand": 3}, ss.OptionError, "function"),
        ({"indices": [[0, 1]]}, ss.ShapeError, "list"),
        ({"indices": torch.tensor([0, 1])}, ss.ShapeError, "terms, locals"),
        ({"indices": torch.tensor([[0.0, 1.0]])}, ss.IndexRangeError, "float32"),
        ({"indices": torch.empty(3, 0, dtype=torch.int64)}, ss.ShapeError, "vertex"),
        ({"indices": torch.tensor([[0, 7]])}, ss.IndexRangeError, "index 7"),
        ({"indices": torch.tensor([[-1, 0]])}, ss.IndexRangeError, "index -1"),
        ({"per_term": torch.ones(2)}, ss.ShapeError, r"per_term has shape \(2,\)"),
        ({"per_term": 3.0}, ss.LayoutError, "per_term holds a float"),
        ({"per_variable": torch.ones(2)}, ss.ShapeError, r"per_variable has shape \(2,\)"),
        ({"per_variable": torch.tensor(2.0)}, ss.ShapeError, "per_variable"),
        ({"chunk_size": 0}, ss.OptionError, "chunk_size=0"),
        ({"shape": (7, 2, 1)}, ss.ShapeError, "vertices"),
        ({"shape": (8, 2)}, ss.ShapeError, r"\(8, 2\)"),
        ({"summand": lambda x, *c: x}, ss.ShapeError, "one term"),
        ({"summand": lambda x, *c: 0.0}, ss.ShapeError, "float"),
        ({"summand": lambda x, *c: x.sum().double()}, ss.DtypeError, "float64"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    given: dict[str, Any] = {"summand": lambda x, *c: x.sum(), "indices": EDGES} | arguments
    X = torch.ones(7, 2)
    for call in ("value", "gradient", "hessian_values"):
        with pytest.raises(error, match=text):
            getattr(ss.IndexedSum(**given), call)(X)


def test_what_is_wrong_with_variables_is_said() -> None:
    energy = ss.IndexedSum(area, TRIANGLES)
    with pytest.raises(ss.OptionError, match="shape="):
        _ = energy.pattern
    for X, error in (
        ([1.0], ss.LayoutError),
        (torch.ones(7, 2).to_sparse(), ss.LayoutError),
        (torch.ones(7, 2, dtype=torch.int64), ss.DtypeError),
        (torch.ones(7, 2, dtype=torch.complex64), ss.DtypeError),
        (torch.ones(7, 2, 1), ss.ShapeError),
        (torch.tensor(1.0), ss.ShapeError),
        (torch.ones(7, 2, device="meta"), ss.DeviceError),
    ):
        with pytest.raises(error):
            energy(X)
    energy(torch.ones(7, 2))
    with pytest.raises(ss.ShapeError, match=r"\(8, 2\)"):
        energy(torch.ones(8, 2))
    with pytest.raises(ss.OptionError, match="project='half'"):
        energy.hessian_values(torch.ones(7, 2), project="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zip"):
        energy.with_parameters(torch.ones(2))


def test_copies_and_pickles() -> None:
    case = Case("springs")
    energy = case.make(*case.constants)
    H = energy.hessian_values(case.X)
    assert torch.equal(copy.copy(energy).hessian_values(case.X), H)
    assert torch.equal(copy.deepcopy(energy).hessian_values(case.X), H)
    assert torch.equal(pickle.loads(pickle.dumps(energy)).hessian_values(case.X), H)
    assert "terms=3" in repr(energy)
    assert "(7, 2)" in repr(energy)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_cuda() -> None:
    case = Case("springs")
    expected = case.make(*case.constants)
    k, s, l = (c.cuda() for c in case.constants)
    energy = ss.IndexedSum(spring, EDGES.cuda(), k, (s, l))
    for call in ("value", "gradient", "hessian_values"):
        assert torch.allclose(
            getattr(energy, call)(case.X.cuda()).cpu(), getattr(expected, call)(case.X)
        )


def test_chunks_bound_what_a_graph_keeps() -> None:
    """What is saved for the backward of many chunks is their arguments, not what is computed from them."""
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    def long(x: Tensor, c: Tensor) -> Tensor:
        y = x.sum() * c
        for _ in range(50):
            y = torch.sin(y) * y
        return y

    terms = 1000
    indices, c = torch.randint(0, 50, (terms, 2)), torch.rand(terms, requires_grad=True)
    X = torch.rand(50)
    sizes = {}
    for chunk in (None, 100):
        saved.clear()
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            warnings.catch_warnings(),
        ):
            value = ss.IndexedSum(long, indices, per_term=c, chunk_size=chunk)(X)
        sizes[chunk] = sum(saved)
        del value
        gc.collect()
    assert sizes[100] < sizes[None] / 3


def test_what_is_captured_and_changed_between_forward_and_backward_is_noticed() -> None:
    w = torch.ones((), dtype=torch.double)
    X = torch.rand(7, 2, dtype=torch.double, requires_grad=True)
    energy = ss.IndexedSum(lambda x: w * (x[1] - x[0]).square().sum(), EDGES, chunk_size=1)
    value = energy(X)
    w.mul_(2)
    with pytest.raises(ss.ValueChangedError):
        value.backward()


@pytest.mark.parametrize("chunk", [None, 1])
def test_values_that_are_not_finite_are_passed_on(chunk: int | None) -> None:
    c = torch.ones(3, dtype=torch.double, requires_grad=True)
    X = torch.tensor([float("nan"), 1.0, float("inf"), 1.0, 1.0], dtype=torch.double)
    energy = ss.IndexedSum(lambda x, c: c * x[0] * x[1], EDGES, per_term=c, chunk_size=chunk)
    value = energy(X)
    assert value.isnan()
    (found,) = torch.autograd.grad(value, c)
    assert torch.allclose(
        found, torch.tensor([float("nan"), float("inf"), float("nan")]).double(), equal_nan=True
    )
