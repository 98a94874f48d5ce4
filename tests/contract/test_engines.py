"""What every engine must do for every dtype, kind, layout and transform, against dense torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import simulated_gpu
import torch
from problems import COMPLEX, DTYPES, TOLERANCE, Problem, independent, kinds_of, problem, rhs
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import sparse_solver as ss
from sparse_solver._engines import registry as _engines

DOUBLE = (torch.float64, torch.complex128)
ON_HOST = "superlu"  # an engine for the CPU, also tested with tensors on a GPU


def places() -> Iterator[tuple[str, torch.device]]:
    """Each engine, and the device of the tensors that it is tested with."""
    for engine in _engines.engine_names():
        for device_type in _engines.engine_named(engine).device_types:
            yield engine, torch.device(device_type)
    for engine in (ON_HOST, "cudss"):
        yield engine, simulated_gpu.DEVICE


def missing_device(device: torch.device) -> str | None:
    """Why there are no tensors on this device here, if there are none."""
    is_missing = device.type == "cuda" and not torch.cuda.is_available()
    return "there is no GPU" if is_missing else None


def cases(dtypes: tuple[torch.dtype, ...], symmetric: bool = False) -> Iterator[object]:
    """The parameters of a test; on the slow simulation, only those that matter beyond the dtype."""
    slow = (torch.complex128,) if dtypes == DOUBLE else ()
    for engine, device in places():
        on_gpu = device == simulated_gpu.DEVICE
        why = simulated_gpu.MISSING if on_gpu else None
        if why is None and not (on_gpu and engine == "cudss"):
            why = ss.engines()[engine].missing or missing_device(device)
        skip = pytest.mark.skipif(why is not None, reason=f"{engine}: {why}")
        for dtype in dtypes:
            if on_gpu and (dtype in slow or (engine == ON_HOST and dtype != torch.float64)):
                continue
            kinds = [kind for kind in kinds_of(dtype) if not (symmetric and kind == "general")]
            for kind in kinds:
                if _engines.engine_named(engine).supports(kind, dtype):
                    name = f"{engine}-{device.type}-{str(dtype).removeprefix('torch.')}-{kind}"
                    p = problem(kind, dtype)
                    yield pytest.param(engine, p if why else p.to(device), marks=skip, id=name)


@pytest.fixture(autouse=True)
def _simulated(request: pytest.FixtureRequest) -> None:
    """The engines for GPUs take the tensors that are on the simulated one."""
    engine, p = (request.getfixturevalue(name) for name in ("engine", "p"))
    if p.values.device == simulated_gpu.DEVICE and engine != ON_HOST:
        request.getfixturevalue("cudss")


every = pytest.mark.parametrize(("engine", "p"), list(cases(DTYPES)))
symmetric = pytest.mark.parametrize(("engine", "p"), list(cases(DTYPES, symmetric=True)))
symmetric_double = pytest.mark.parametrize(("engine", "p"), list(cases(DOUBLE, symmetric=True)))
double = pytest.mark.parametrize(("engine", "p"), list(cases(DOUBLE)))


def nondeterminism(p: Problem) -> dict[str, float]:
    """What gradcheck is told: on a real GPU, sums are formed in another order at each call."""
    return {"nondet_tol": TOLERANCE[p.values.dtype]} if p.values.device.type == "cuda" else {}


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(
        actual, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max())
    )


def vector(p: Problem, *shape: int, seed: int = 100) -> Tensor:
    """Numbers of the dtype and on the device of the matrix."""
    return rhs(*shape, dtype=p.values.dtype, seed=seed).to(p.values.device)


def coo(p: Problem) -> Tensor:
    return torch.sparse_coo_tensor(torch.stack((p.rows, p.cols)), p.values, p.shape).coalesce()


def shuffled(p: Problem) -> Tensor:
    order = torch.randperm(p.values.numel()).to(p.values.device)
    return torch.sparse_coo_tensor(
        torch.stack((p.rows, p.cols))[:, order], p.values[order], p.shape
    )


def duplicated(p: Problem) -> Tensor:
    """Every entry as the sum of two, at random positions."""
    share = torch.rand(p.values.numel(), dtype=p.values.real.dtype).to(p.values.device)
    indices, values = (
        torch.stack((p.rows, p.cols)),
        torch.cat((p.values * share, p.values * (1 - share))),
    )
    order = torch.randperm(values.numel()).to(values.device)
    return torch.sparse_coo_tensor(
        torch.cat((indices, indices), 1)[:, order], values[order], p.shape
    )


def csr32(p: Problem) -> Tensor:
    A = coo(p).to_sparse_csr()
    return torch.sparse_csr_tensor(
        A.crow_indices().int(), A.col_indices().int(), A.values(), A.shape
    )


LAYOUTS: dict[str, Callable[[Problem], Tensor]] = {
    "coo": coo,
    "coo-shuffled": shuffled,
    "coo-duplicates": duplicated,
    "csr": lambda p: coo(p).to_sparse_csr(),
    "csr-int32": csr32,
    "csc": lambda p: coo(p).to_sparse_csc(),
}


@every
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("columns", [None, 1, 3])
def test_solves_like_dense_torch(
    engine: str, p: Problem, transpose: bool, columns: int | None
) -> None:
    b = vector(p, p.n, *([] if columns is None else [columns]))
    P = ss.Pattern(p.rows, p.cols, p.shape)
    x = P.solve(p.values, b, assume=p.kind, transpose=transpose, engine=engine)
    close(x, torch.linalg.solve(p.dense.mT if transpose else p.dense, b))
    F = P.factorize(p.values, assume=p.kind, engine=engine)
    close(F.solve(b, transpose=transpose), x)
    assert F.info.engine == engine
    assert F.info.assume == p.kind


@every
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_their_gradients(engine: str, p: Problem, layout: str) -> None:
    if p.values.device == simulated_gpu.DEVICE and layout != "coo":
        pytest.skip("the simulation has no compressed sparse tensors")
    A = LAYOUTS[layout](p).requires_grad_()
    b = vector(p, p.n, 2).requires_grad_()
    x_bar = vector(p, p.n, 2, seed=5)
    x = ss.solve(A, b, assume=p.kind, engine=engine)
    A_bar, b_bar = torch.autograd.grad(x, (A, b), x_bar)

    dense = p.dense.clone().requires_grad_()
    expected_A_bar, expected_b_bar = torch.autograd.grad(
        torch.linalg.solve(dense, b), (dense, b), x_bar
    )
    close(x, torch.linalg.solve(p.dense, b))
    close(b_bar, expected_b_bar)
    assert A_bar.layout == A.layout
    close(A_bar.to_dense(), expected_A_bar * (p.dense != 0))
    if layout == "coo-shuffled":
        assert torch.equal(A_bar._indices(), A._indices())


@symmetric
@pytest.mark.parametrize("triangle", ["lower", "upper"])
@pytest.mark.parametrize("transpose", [False, True])
def test_one_triangle(engine: str, p: Problem, triangle: str, transpose: bool) -> None:
    kept = p.rows >= p.cols if triangle == "lower" else p.rows <= p.cols
    rows, cols, values = p.rows[kept], p.cols[kept], p.values[kept].clone().requires_grad_()
    b, x_bar = vector(p, p.n, 2), vector(p, p.n, 2, seed=5)
    P = ss.Pattern(rows, cols, p.shape)
    x = P.solve(values, b, assume=p.kind, triangle=triangle, transpose=transpose, engine=engine)

    half = torch.zeros_like(p.dense).index_put((rows, cols), values)
    off = half - torch.diag(half.diagonal())
    dense = half + (off.mH if p.kind in ("spd", "hermitian") else off.mT)
    expected = torch.linalg.solve(dense.mT if transpose else dense, b)
    close(x, expected)
    (values_bar,) = torch.autograd.grad(x, values, x_bar)
    (expected_values_bar,) = torch.autograd.grad(expected, values, x_bar)
    close(values_bar, expected_values_bar)


@symmetric_double
@pytest.mark.parametrize("triangle", ["lower", "upper"])
def test_derivatives_in_one_triangle(engine: str, p: Problem, triangle: str) -> None:
    p = problem(p.kind, p.values.dtype, n=4).to(p.values.device)
    kept = p.rows >= p.cols if triangle == "lower" else p.rows <= p.cols
    P = ss.Pattern(p.rows[kept], p.cols[kept], p.shape)
    real = (P.rows == P.cols) & (p.kind in ("spd", "hermitian"))

    def solve(values: Tensor, b: Tensor) -> Tensor:
        # A Hermitian matrix has a real diagonal.
        values = torch.where(real, values.real.to(values.dtype), values)
        return P.solve(values, b, assume=p.kind, triangle=triangle, engine=engine)  # type: ignore[arg-type] # str

    inputs = (p.values[kept].clone().requires_grad_(), vector(p, p.n, 2).requires_grad_())
    assert gradcheck(solve, inputs, check_forward_ad=True, fast_mode=True, **nondeterminism(p))
    assert gradgradcheck(
        solve, inputs, check_fwd_over_rev=True, fast_mode=True, **nondeterminism(p)
    )
    batch = torch.stack((inputs[0], 2 * inputs[0])).detach()
    expected = torch.stack([solve(values, inputs[1]) for values in batch])
    close(torch.func.vmap(solve, (0, None))(batch, inputs[1]), expected)


def functions(
    engine: str, p: Problem, transpose: bool = False
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The function (values, b) -> x by the engine, and by dense torch."""
    P = ss.Pattern(p.rows, p.cols, p.shape)
    keep = independent(p.kind, p.values, p.rows, p.cols)

    def sparse(values: Tensor, b: Tensor) -> Tensor:
        return P.solve(keep(values), b, assume=p.kind, transpose=transpose, engine=engine)

    def dense(values: Tensor, b: Tensor) -> Tensor:
        A = torch.zeros_like(p.dense).index_put((p.rows, p.cols), keep(values))
        return torch.linalg.solve(A.mT if transpose else A, b)

    return sparse, dense


@double
@pytest.mark.parametrize("transpose", [False, True])
def test_gradcheck(engine: str, p: Problem, transpose: bool) -> None:
    p = problem(p.kind, p.values.dtype, n=4).to(p.values.device)
    sparse, _ = functions(engine, p, transpose)
    inputs = (p.values.clone().requires_grad_(), vector(p, p.n, 2).requires_grad_())
    # torch's legacy vmap fails in forward mode on the conjugate in `independent`.
    lazy = p.values.dtype in COMPLEX and p.kind in ("spd", "hermitian")
    batched = {"check_batched_grad": True, "check_batched_forward_grad": not lazy}
    options = {"fast_mode": True, **nondeterminism(p)}
    assert gradcheck(sparse, inputs, check_forward_ad=True, **batched, **options)
    assert gradgradcheck(sparse, inputs, check_fwd_over_rev=True, **options)


@every
@pytest.mark.parametrize("transpose", [False, True])
def test_forward_mode(engine: str, p: Problem, transpose: bool) -> None:
    sparse, dense = functions(engine, p, transpose)
    b = vector(p, p.n, 2)
    tangents = (vector(p, p.values.numel()), vector(p, p.n, 2, seed=7))
    expected = torch.func.jvp(dense, (p.values, b), tangents)[1]
    close(torch.func.jvp(sparse, (p.values, b), tangents)[1], expected)
    with forward_ad.dual_level():
        x = sparse(
            forward_ad.make_dual(p.values, tangents[0]), forward_ad.make_dual(b, tangents[1])
        )
        close(forward_ad.unpack_dual(x).tangent, expected)


@every
def test_transforms(engine: str, p: Problem) -> None:
    sparse, dense = functions(engine, p)
    values, b = p.values, vector(p, p.n)
    x_bar = vector(p, p.n, seed=5)
    vjp = torch.func.vjp(sparse, values, b)[1](x_bar)
    for actual, expected in zip(vjp, torch.func.vjp(dense, values, b)[1](x_bar), strict=True):
        close(actual, expected)
    for argument in (0, 1):
        if p.values.dtype not in COMPLEX:  # torch defines Jacobians of real functions only
            close(
                torch.func.jacfwd(sparse, argument)(values, b),
                torch.func.jacfwd(dense, argument)(values, b),
            )
            close(
                torch.func.jacrev(sparse, argument)(values, b),
                torch.func.jacrev(dense, argument)(values, b),
            )

    def loss(solve: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda values, b: solve(values, b).abs().square().sum()

    for argument in (0, 1):
        close(
            torch.func.grad(loss(sparse), argument)(values, b),
            torch.func.grad(loss(dense), argument)(values, b),
        )
        # The simulation cannot multiply by numbers where forward mode is on.
        if p.values.dtype not in COMPLEX and p.values.device != simulated_gpu.DEVICE:
            close(
                torch.func.hessian(loss(sparse), argument)(values, b),
                torch.func.hessian(loss(dense), argument)(values, b),
            )


@every
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (None, 1)])
def test_vmap(engine: str, p: Problem, in_dims: tuple[int | None, int | None]) -> None:
    sparse, dense = functions(engine, p)
    factors = torch.tensor([1.0, 1.5, 2.0], dtype=p.values.dtype).to(p.values.device)
    values = p.values if in_dims[0] is None else factors.unsqueeze(1) * p.values
    b = vector(p, p.n)
    if in_dims[1] is not None:
        b = vector(p, 3, p.n).movedim(0, in_dims[1])

    def one(i: int) -> tuple[Tensor, Tensor]:
        return (
            values if in_dims[0] is None else values.select(in_dims[0], i),
            b if in_dims[1] is None else b.select(in_dims[1], i),
        )

    def loss(solve: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.func.grad(lambda values, b: solve(values, b).abs().square().sum())

    close(
        torch.func.vmap(sparse, in_dims)(values, b), torch.stack([dense(*one(i)) for i in range(3)])
    )
    close(
        torch.func.vmap(loss(sparse), in_dims)(values, b),
        torch.stack([loss(dense)(*one(i)) for i in range(3)]),
    )
    # The graph of a vmapped solve also leads back through vmap.
    leaf = values.clone().requires_grad_()
    (mine,) = torch.autograd.grad(
        torch.func.vmap(sparse, in_dims)(leaf, b).abs().square().sum(), leaf
    )
    expected = torch.stack([loss(dense)(*one(i)) for i in range(3)])
    close(mine, expected.sum(0) if in_dims[0] is None else expected)


@every
def test_compiled(engine: str, p: Problem) -> None:
    if p.values.device == simulated_gpu.DEVICE:
        pytest.skip("Dynamo does not trace the simulation")
    sparse, _ = functions(engine, p)
    torch._dynamo.reset()
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    values, b = p.values.clone().requires_grad_(), vector(p, p.n).requires_grad_()
    x_bar = vector(p, p.n, seed=5)
    close(compiled(values, b), sparse(values, b))
    for actual, expected in zip(
        torch.autograd.grad(compiled(values, b), (values, b), x_bar),
        torch.autograd.grad(sparse(values, b), (values, b), x_bar),
        strict=True,
    ):
        close(actual, expected)


@every
def test_batched_values_share_one_analysis(engine: str, p: Problem) -> None:
    P = ss.Pattern(p.rows, p.cols, p.shape)
    values = torch.stack((p.values, 2 * p.values, p.values / 4))
    b = vector(p, 3, p.n, 2)
    dense = torch.stack((p.dense, 2 * p.dense, p.dense / 4))
    close(P.solve(values, b, assume=p.kind, engine=engine), torch.linalg.solve(dense, b))
    F = P.factorize(values, assume=p.kind, engine=engine)
    assert F.info.analysis_seconds == 0
    assert F.shape == (3, p.n, p.n)
    close(F.solve(b), torch.linalg.solve(dense, b))


@every
def test_info_is_about_this_factor(engine: str, p: Problem) -> None:
    P = ss.Pattern(p.rows, p.cols, p.shape)
    first = P.factorize(p.values, assume=p.kind, engine=engine).info
    second = P.factorize(2 * p.values, assume=p.kind, engine=engine).info
    assert first.analysis_seconds > 0
    assert second.analysis_seconds == 0
    for info in (first, second):
        assert info.factorization_seconds > 0
        assert (info.n, info.nnz, info.engine_reason) == (p.n, p.values.numel(), "asked for")
        assert info.factor_nnz is None or p.n <= info.factor_nnz <= p.n**2 + p.n
        assert info.memory_bytes is None or info.memory_bytes > 0
        assert info.factor_flops is None or info.factor_flops >= p.n


@every
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_the_scale_of_the_matrix_does_not_matter(engine: str, p: Problem, scale: float) -> None:
    b = vector(p, p.n)
    x = ss.Pattern(p.rows, p.cols, p.shape).solve(
        p.values * scale, b * scale, assume=p.kind, engine=engine
    )
    close(x, torch.linalg.solve(p.dense, b))
