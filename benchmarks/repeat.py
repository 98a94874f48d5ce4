"""Contenders for one matrix, factored before the clock starts, and many right-hand sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import sparse_solver as ss

from .bare import SPLU_OPTIONS, BarePardiso
from .contenders import Contender, Step
from .problems import Problem


class Repeat(Step):
    """Solves (n,) right-hand sides one by one, or (n, k) at once; subclasses `solve_one`."""

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self.at_once = problem.rhs.shape[1] > 1
        self.values = problem.values(torch.empty(0))

    def fresh(self, theta: Tensor) -> Any:
        return [theta.T.contiguous()] if self.at_once else list(theta)

    def run(self, rhs: Any) -> Any:
        return [self.solve_one(b) for b in rhs]

    def answer(self, theta: Tensor, result: Any) -> Tensor:
        x = [torch.as_tensor(one) for one in result]
        return x[0].T if self.at_once else torch.stack(x)

    def solve_one(self, b: Any) -> Any:
        raise NotImplementedError


class OursRepeat(Repeat):
    name = "sparse_solver"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        pattern = ss.Pattern(problem.rows, problem.cols, (problem.n, problem.n))
        self._factorization = pattern.factorize(self.values, assume="spd")

    def solve_one(self, b: Tensor) -> Tensor:
        return self._factorization.solve(b)


class BareRepeat(Repeat):
    name = BarePardiso.name

    def __init__(self, problem: Problem):
        super().__init__(problem)
        self._engine = BarePardiso(problem)
        self._engine.factor(self._engine.fresh(torch.empty(0)))

    def fresh(self, theta: Tensor) -> Any:
        return [theta] if self.at_once else [b.unsqueeze(0) for b in theta]

    def solve_one(self, b: Tensor) -> Tensor:
        return self._engine.solve(b, torch.empty_like(b))

    def answer(self, theta: Tensor, result: Any) -> Tensor:
        x = torch.cat(result)
        residual = self.problem.scipy_matrix(self.values) @ x.numpy().T - theta.numpy().T
        if not np.abs(residual).max() <= 1e-9 * float(theta.abs().max()):
            raise AssertionError(f"the bare engine is wrong: {self.problem.name}")
        return x

    def close(self) -> None:
        self._engine.close()


class SpluRepeat(Repeat):
    name = "SciPy splu"

    def __init__(self, problem: Problem):
        from scipy.sparse.linalg import splu

        super().__init__(problem)
        self._lu = splu(problem.scipy_matrix(self.values).tocsc(), **SPLU_OPTIONS)

    def fresh(self, theta: Tensor) -> Any:
        return [b.numpy() for b in super().fresh(theta)]

    def solve_one(self, b: Any) -> Any:
        return self._lu.solve(b)


class CholespyRepeat(Repeat):
    name, needs = "cholespy", "cholespy"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        from cholespy import CholeskySolverD, MatrixType

        n = problem.n
        indices = torch.stack((problem.rows, problem.cols))
        A = torch.sparse_coo_tensor(indices, self.values, (n, n)).coalesce()
        self._solver = CholeskySolverD(n, *A.indices(), A.values(), MatrixType.COO)

    def solve_one(self, b: Tensor) -> Tensor:
        x = torch.empty_like(b)
        self._solver.solve(b, x)
        return x


class PypardisoRepeat(Repeat):
    name, needs = "pypardiso", "pypardiso"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        from pypardiso import PyPardisoSolver

        self._solver, self._A = PyPardisoSolver(), problem.scipy_matrix(self.values)
        self._solver.factorize(self._A)

    def fresh(self, theta: Tensor) -> Any:
        return [np.asfortranarray(b.numpy()) for b in super().fresh(theta)]

    def solve_one(self, b: Any) -> Any:
        return self._solver.solve(self._A, b)

    def close(self) -> None:
        self._solver.free_memory(everything=True)


OURS: tuple[type[Contender], ...] = (OursRepeat,)
BARE: tuple[type[Contender], ...] = (BareRepeat,)
PEERS: tuple[type[Contender], ...] = (SpluRepeat, CholespyRepeat, PypardisoRepeat)
