"""The contenders: the calls of sparse_solver, and dense torch; `peers` has other libraries.

A contender is made for a problem; it raises `Absent` if it cannot solve the problem. `fresh`
prepares its input from θ before the clock starts, `run` is timed, and `answer` gives the gradient
in θ, which is checked.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Protocol

import torch
from torch import Tensor

import sparse_solver as ss
from sparse_solver._engines.analysis import analyze
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import structure_of

from .bare import BarePardiso, BareQdldl
from .problems import Absent, Problem, refuse_to_factor, refuse_to_iterate


class Contender(Protocol):
    name: str

    def __init__(self, problem: Problem): ...

    def fresh(self, theta: Tensor) -> Any: ...

    def run(self, prepared: Any) -> Any: ...

    def answer(self, theta: Tensor, result: Any) -> Tensor: ...

    def close(self) -> None: ...


def is_installed(package: str | None) -> bool:
    """Whether a contender finds the package that it needs, if it needs one."""
    return package is None or importlib.util.find_spec(package) is not None


class Step:
    """A training step: values of θ, solve, loss, and the gradient in θ; subclasses `solve`."""

    name = "step"
    needs: str | None = None  # the package that must be installed

    def __init__(self, problem: Problem):
        if not is_installed(self.needs):
            raise Absent(f"{self.needs} is not installed")
        self.problem = problem

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def fresh(self, theta: Tensor) -> Any:
        return theta.clone().requires_grad_()

    def run(self, prepared: Any) -> Any:
        return self.problem.solved_by(self.solve, prepared)

    def answer(self, theta: Tensor, result: Any) -> Tensor:
        gradient: Tensor = result
        return gradient

    def close(self) -> None:
        pass


class Ours(Step):
    name = "sparse_solver"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self.pattern = ss.Pattern(problem.rows, problem.cols, (problem.n, problem.n))

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        return self.pattern.solve(values, b, assume=self.problem.kind)


class OursDirect(Ours):
    """The direct engine that is chosen where iterating is ruled out, by its name."""

    name = "sparse_solver, direct"

    def __init__(self, problem: Problem):
        refuse_to_factor(problem)
        super().__init__(problem)
        structure = structure_of(problem.rows, problem.cols, self.pattern.shape)
        matrix = Matrix(structure, problem.values(problem.fresh()).detach())
        self.engine: str = analyze(matrix, problem.kind, None, None).engine

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        return self.pattern.solve(values, b, assume=self.problem.kind, engine=self.engine)


class OursCg(Ours):
    """Conjugate gradients by name."""

    name = "sparse_solver, cg"

    def __init__(self, problem: Problem):
        if problem.kind != "spd" or problem.rhs.is_complex():
            raise Absent("real symmetric positive definite matrices only")
        refuse_to_iterate(problem)
        super().__init__(problem)

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        try:
            return self.pattern.solve(values, b, assume="spd", engine="cg")
        except ss.ConvergenceError as error:
            raise Absent(f"no convergence: {error}") from error


class OursFromValues(Ours):
    """`Pattern.solve` alone: from values to their gradient."""

    name = "Pattern.solve"

    def fresh(self, theta: Tensor) -> Any:
        return self.problem.values(theta).detach().requires_grad_()

    def run(self, values: Any) -> Any:
        x = self.solve(values, self.problem.rhs)
        return torch.autograd.grad(x, values, 2 * x.detach())[0]

    def answer(self, theta: Tensor, result: Any) -> Tensor:
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(self.problem.values(theta), theta, result)[0]


class OursFromTensor(Ours):
    """`solve(A, b)`: from a sparse tensor to its gradient."""

    layout: torch.layout

    def __init__(self, problem: Problem):
        super().__init__(problem)
        if problem.batch:
            raise Absent("batches are solved as values")

    def fresh(self, theta: Tensor) -> Any:
        values = self.problem.values(theta).detach()
        return self.pattern.tensor(values, layout=self.layout).requires_grad_()

    def run(self, A: Any) -> Any:
        x = ss.solve(A, self.problem.rhs, assume=self.problem.kind)
        return torch.autograd.grad(x, A, 2 * x.detach())[0]

    def answer(self, theta: Tensor, result: Any) -> Tensor:
        import numpy as np
        from scipy.sparse import coo_matrix, csr_matrix

        shape = tuple(result.shape)
        if self.layout == torch.sparse_csr:
            indices = (result.col_indices().numpy(), result.crow_indices().numpy())
            A_bar = csr_matrix((result.values().numpy(), *indices), shape=shape)
        else:
            indices = tuple(result._indices().numpy())
            A_bar = coo_matrix((result._values().numpy(), indices), shape=shape).tocsr()
        places = (self.problem.rows.numpy().copy(), self.problem.cols.numpy().copy())
        sampled = torch.from_numpy(np.asarray(A_bar[places]).ravel())
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(self.problem.values(theta), theta, sampled)[0]


class OursFromCSR(OursFromTensor):
    name, layout = "solve(CSR)", torch.sparse_csr


class OursFromCOO(OursFromTensor):
    name, layout = "solve(COO)", torch.sparse_coo


class Dense(Step):
    name = "dense torch"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        if problem.n > 4096 or max(1, problem.batch) * problem.n**2 > 2e8:
            raise Absent("too large")

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        problem, n = self.problem, self.problem.n
        zeros = values.new_zeros((*values.shape[:-1], n, n))
        if not problem.batch:
            A = zeros.index_put((problem.rows, problem.cols), values, accumulate=True)
        else:
            places = problem.rows * n + problem.cols
            A = zeros.flatten(1).index_add(1, places, values).unflatten(1, (n, n))
        x: Tensor = torch.linalg.solve(A, b)
        return x


OURS: tuple[type[Contender], ...] = (Ours, OursFromValues, OursFromCSR, OursFromCOO)
METHODS: tuple[type[Contender], ...] = (Ours, OursDirect, OursCg)
BARE: tuple[type[Contender], ...] = (BarePardiso, BareQdldl)
