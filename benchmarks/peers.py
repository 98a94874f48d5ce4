"""Other differentiable sparse solves in PyTorch: libraries, and autograd Functions around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

import sparse_solver as ss

from .bare import SPLU_OPTIONS
from .contenders import Contender, Dense, Step, is_installed
from .problems import MOST_ITERATIONS, Absent, Problem, refuse_to_factor, refuse_to_iterate


class _Splu(Function):
    """SciPy's SuperLU, factored at each call; the backward pass uses the factor again."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, b: Tensor, problem: Problem) -> Tensor:
        from scipy.sparse import csc_matrix
        from scipy.sparse.linalg import splu

        places = (problem.rows.numpy(), problem.cols.numpy())
        A = csc_matrix((values.numpy(), places), shape=(problem.n, problem.n))
        lu = splu(A, **(SPLU_OPTIONS if problem.kind == "spd" else {}))
        x = torch.from_numpy(lu.solve(b.numpy()))
        ctx.lu, ctx.problem = lu, problem
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        lam = torch.from_numpy(ctx.lu.solve(x_bar.resolve_conj().numpy(), "H"))
        return entries_bar(lam, x, ctx.problem), lam, None


def entries_bar(lam: Tensor, x: Tensor, problem: Problem) -> Tensor:
    """The gradient of the values for x (n,) or (n, k), or for those (batch, n) of a batch."""
    if problem.batch and x.dim() == 2:
        return -lam[:, problem.rows] * x[:, problem.cols].conj()
    product = -lam[problem.rows] * x[problem.cols].conj()
    return product if product.dim() == 1 else product.sum(-1)


class Factoring(Step):
    """A step that factors the matrix, unless that is predicted to take too long."""

    def __init__(self, problem: Problem):
        super().__init__(problem)
        refuse_to_factor(problem)


class Splu(Factoring):
    name, needs = "SciPy splu", "scipy"

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        if self.problem.batch:
            pairs = zip(values, b, strict=True)
            return torch.stack([_Splu.apply(v, one_b, self.problem) for v, one_b in pairs])
        x: Tensor = _Splu.apply(values, b, self.problem)
        return x


class _Cholespy(Function):
    """The first version of this library: a COO tensor, and a new CHOLMOD solver at each call."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, b: Tensor) -> Tensor:
        from cholespy import CholeskySolverD, MatrixType

        rows, cols = A.indices()
        solver = CholeskySolverD(A.shape[0], rows, cols, A.values(), MatrixType.COO)
        x = torch.empty_like(b)
        solver.solve(b, x)
        ctx.solver = solver
        ctx.save_for_backward(A, x)
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        A, x = ctx.saved_tensors
        lam = torch.empty_like(x)
        ctx.solver.solve(x_bar.contiguous(), lam)
        rows, cols = A.indices()
        values_bar = -lam[rows] * x[cols]
        values_bar = values_bar if values_bar.dim() == 1 else values_bar.sum(-1)
        return torch.sparse_coo_tensor(A.indices(), values_bar, A.shape), lam


class Cholespy(Factoring):
    name, needs = "cholespy", "cholespy"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        if problem.kind != "spd" or problem.rhs.is_complex():
            raise Absent("real symmetric positive definite matrices only")
        self._indices = torch.stack((problem.rows, problem.cols))

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        if self.problem.batch:
            return torch.stack([self._solve(v, one_b) for v, one_b in zip(values, b, strict=True)])
        return self._solve(values, b)

    def _solve(self, values: Tensor, b: Tensor) -> Tensor:
        n = self.problem.n
        A = torch.sparse_coo_tensor(self._indices, values, (n, n)).coalesce()
        x: Tensor = _Cholespy.apply(A, b)
        return x


class TorchSla(Factoring):
    name, needs = "torch-sla", "torch_sla"
    backend, method = "scipy", "lu"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        if problem.batch:
            raise Absent("no direct method for batches")

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        import torch_sla

        problem, shape = self.problem, (self.problem.n, self.problem.n)
        x: Tensor = torch_sla.spsolve(
            values, problem.rows, problem.cols, shape, b, backend=self.backend, method=self.method
        )
        return x


class TorchSlaCg(Step):
    """The conjugate gradients of torch-sla, with its own tolerance: residuals of 1e-10 ‖b‖."""

    name, needs = "torch-sla, CG", "torch_sla"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        if problem.kind != "spd" or problem.rhs.is_complex():
            raise Absent("real symmetric positive definite matrices only")
        if problem.rhs.dim() == 2 and not problem.batch:
            raise Absent("one right-hand side only")
        refuse_to_iterate(problem)

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        import torch_sla
        from torch_sla.batch_solve import spsolve_batch_same_layout

        problem, shape = self.problem, (self.problem.n, self.problem.n)
        system = (values, problem.rows, problem.cols, shape, b)
        x: Tensor
        if problem.batch:
            x = spsolve_batch_same_layout(*system, method="cg", atol=1e-10)
        else:
            x = torch_sla.spsolve(*system, backend="pytorch", method="cg", is_spd=True)
        return x


class TorchSlaCgAsAccurate(TorchSlaCg):
    """The same until its residuals are as small as those of our solution.

    `torch_sla.spsolve` stops at 1e-10 ‖b‖, whatever tolerance it is given. So the autograd Function
    inside is called.
    """

    name = "torch-sla, CG as accurate"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        if problem.batch:
            raise Absent("no batches")
        values = problem.values(problem.fresh()).detach()
        pattern = ss.Pattern(problem.rows, problem.cols, (problem.n, problem.n))
        x = pattern.solve(values, problem.rhs, assume="spd")
        residual = problem.rhs.numpy() - problem.scipy_matrix(values) @ x.numpy()
        self.tolerance = float(np.linalg.norm(residual) / problem.rhs.norm())

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        from torch_sla.linear_solve import SparseLinearSolvePyTorch

        problem, shape = self.problem, (self.problem.n, self.problem.n)
        x: Tensor = SparseLinearSolvePyTorch.apply(
            *(values, problem.rows, problem.cols, shape, b, "cg"),
            *(0.0, self.tolerance, MOST_ITERATIONS, "jacobi", False),
        )
        return x


class _Pypardiso(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, b: Tensor, peer: Pypardiso) -> Tensor:
        ctx.A, ctx.peer = peer.problem.scipy_matrix(values), peer
        peer.solver.factorize(ctx.A)
        x = torch.from_numpy(np.ascontiguousarray(peer.solver.solve(ctx.A, _columns(b))))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        A, peer = ctx.A, ctx.peer
        if (
            peer.problem.kind == "general"
        ):  # it cannot solve with the transpose of a factored matrix
            A = A.T.tocsr()
            peer.solver.factorize(A)
        lam = torch.from_numpy(np.ascontiguousarray(peer.solver.solve(A, _columns(x_bar))))
        return entries_bar(lam, x, peer.problem), lam, None


def _columns(b: Tensor) -> Any:
    return np.asfortranarray(b.numpy())


class Pypardiso(Factoring):
    """oneMKL PARDISO through pypardiso, a binding for SciPy matrices: LU, analysed at each call."""

    name, needs = "pypardiso", "pypardiso"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        if problem.rhs.is_complex():
            raise Absent("real matrices only")
        if problem.batch:
            raise Absent("no batches")
        from pypardiso import PyPardisoSolver

        self.solver = PyPardisoSolver()

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        x: Tensor = _Pypardiso.apply(values, b, self)
        return x

    def close(self) -> None:
        self.solver.free_memory(everything=True)


class KluJax:
    """KLU for JAX, from values to their gradient, compiled; its matrices have no duplicates."""

    name, needs = "klujax", "klujax"

    def __init__(self, problem: Problem):
        if not is_installed(self.needs):
            raise Absent(f"{self.needs} is not installed")
        if problem.rhs.dim() != 1 and not problem.batch:
            raise Absent("one right-hand side only")
        import jax
        import klujax

        jax.config.update("jax_enable_x64", True)
        self._problem, n, b = problem, problem.n, jax.numpy.asarray(problem.rhs.numpy())
        keys, number = np.unique((problem.rows * n + problem.cols).numpy(), return_inverse=True)
        rows, cols = ((keys // n).astype(np.int32), (keys % n).astype(np.int32))

        def solve(values: Any, b: Any) -> Any:
            entries = jax.numpy.zeros(len(keys), values.dtype).at[number].add(values)
            return klujax.solve(rows, cols, entries, b)

        def loss(values: Any) -> Any:
            x = (jax.vmap(solve) if problem.batch else solve)(values, b)
            return (x * x.conj()).real.sum()

        self._to_jax, self._gradient = jax.numpy.asarray, jax.jit(jax.grad(loss))

    def fresh(self, theta: Tensor) -> Any:
        return self._to_jax(self._problem.values(theta).detach().numpy())

    def run(self, prepared: Any) -> Any:
        return self._gradient(prepared).block_until_ready()

    def answer(self, theta: Tensor, result: Any) -> Tensor:
        theta = theta.detach().requires_grad_()
        values_bar = torch.from_numpy(np.array(result)).conj()  # JAX leaves it unconjugated
        return torch.autograd.grad(self._problem.values(theta), theta, values_bar)[0]

    def close(self) -> None:
        pass


ITERATING: tuple[type[TorchSlaCg], ...] = (TorchSlaCg, TorchSlaCgAsAccurate)
PEERS: tuple[type[Contender], ...] = (Dense, Splu, Cholespy, TorchSla, TorchSlaCg, Pypardiso)
