"""Forward and backward on a GPU against the bare library and others: ``python -m benchmarks.gpu [--quick]``.

One sample is a solve, the loss ‖x‖² and its gradient in the values, between two events of the device, with values that are
new each time. In every round each contender runs once, in a new order; answers are checked before anything is timed. What
is printed are medians, and how many times as long as the bare calls each took: analysis excluded, as it is made once.
"""

from __future__ import annotations

import argparse
import random
import statistics
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

import sparse_solver as ss
from sparse_solver._engines import registry as _engines
from sparse_solver._engines.cudss.engine import CudssSymbolic
from sparse_solver._sparse.block_diagonal import split_batch
from sparse_solver._sparse.matrix import Matrix

from . import peers
from .contenders import Ours, Step
from .problems import Absent, Problem, batch, grid

BARE = "bare cuDSS"


class _Bare(Function):
    """One factorisation and two substitutions by cuDSS, and the gradient by hand: nothing is checked or read back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, b: Tensor, step: Bare) -> Tensor:
        step.workspace.factor(step.arranged(values))
        x = step.workspace.solve(b.reshape(1, -1), False).view_as(b)
        ctx.step = step
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        (x,), step = ctx.saved_tensors, ctx.step
        lam = step.workspace.solve(x_bar.reshape(1, -1), False).view_as(x)
        problem: Problem = step.problem
        return -lam[..., problem.rows] * x[..., problem.cols], lam, None


class Bare(Step):
    name = BARE

    def __init__(self, problem: Problem):
        super().__init__(problem)
        pattern = ss.Pattern(problem.rows, problem.cols, (problem.n, problem.n))
        self._structure = pattern._structure
        if problem.batch:
            part, self._structure = next(split_batch(self._structure, problem.batch))
            if part.stop != problem.batch:
                raise Absent("the batch is not one factorisation")
        engine = _engines.engine_named("cudss")
        if (
            problem.rows.device.type not in engine.device_types
            or not engine.availability().installed
        ):
            raise Absent(f"cuDSS is {engine.availability()}")
        symbolic = engine.analyze(self._structure, "spd", problem.rhs.dtype, None)
        assert isinstance(symbolic, CudssSymbolic)
        self._symbolic, self.workspace = symbolic, symbolic.plan().workspace()

    def arranged(self, values: Tensor) -> Tensor:
        return self._symbolic.arranged(Matrix(self._structure, values.reshape(-1)))

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        x: Tensor = _Bare.apply(values, b, self)
        return x


class Deferred(Ours):
    name = "sparse_solver, non_blocking=True"

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        return self.pattern.solve(values, b, assume=self.problem.kind, non_blocking=True)


class OnHost(Ours):
    """The fastest engine for the CPU, and the transfers."""

    name = "sparse_solver on the CPU"

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        installed = _engines.installed_on(torch.device("cpu"))
        return self.pattern.solve(values, b, assume=self.problem.kind, engine=installed[0])


class _Nvmath(Function):
    """nvmath's DirectSolver, planned at each call: new tensors of values invalidate its plan."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, b: Tensor, problem: Problem) -> Tensor:
        from nvmath.sparse.advanced import direct_solver

        A = torch.sparse_coo_tensor(
            torch.stack((problem.rows, problem.cols)), values, (problem.n, problem.n)
        )
        ctx.A, ctx.problem = A.coalesce().to_sparse_csr(), problem
        x: Tensor = direct_solver(ctx.A, b)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        from nvmath.sparse.advanced import direct_solver

        (x,), problem = ctx.saved_tensors, ctx.problem
        lam = direct_solver(ctx.A, x_bar.contiguous())
        return peers.entries_bar(lam, x, problem), lam, None


class Nvmath(Step):
    name, needs = "nvmath DirectSolver", "nvmath"

    def __init__(self, problem: Problem):
        super().__init__(problem)
        if problem.batch:
            raise Absent("no int64 indices for batches")

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        x: Tensor = _Nvmath.apply(values, b, self.problem)
        return x


class TorchSlaCudss(peers.TorchSla):
    name, backend, method = "torch-sla with cuDSS", "cudss", "cholesky"


CONTENDERS: tuple[type[Step], ...] = (
    Bare,
    Ours,
    Deferred,
    OnHost,
    peers.Cholespy,
    Nvmath,
    TorchSlaCudss,
)


def problems(quick: bool) -> list[Callable[[], Problem]]:
    if quick:
        return [lambda: grid(100, 100), lambda: grid(12, 12, 12), lambda: batch(64, 20)]
    return [
        lambda: grid(500, 500),
        lambda: grid(1000, 1000),
        lambda: grid(40, 40, 40),
        lambda: grid(60, 60, 60),
        lambda: batch(4096, 20),
    ]


def on_device(problem: Problem, device: torch.device) -> Problem:
    """The same with θ for the values, on the device."""
    return replace(
        problem,
        rows=problem.rows.to(device),
        cols=problem.cols.to(device),
        rhs=problem.rhs.to(device),
        fresh=lambda: problem.values(problem.fresh()).detach().to(device),
        values=lambda theta: theta,
    )


def milliseconds(
    problem: Problem, contenders: dict[str, Step], rounds: int, device: torch.device
) -> dict[str, float]:
    gpu, samples = torch.get_device_module(device), {name: [] for name in contenders}  # type: ignore[var-annotated]
    for _ in range(rounds):
        theta, order = problem.fresh(), list(contenders)
        random.shuffle(order)
        for name in order:
            prepared = contenders[name].fresh(theta)
            start, end = gpu.Event(enable_timing=True), gpu.Event(enable_timing=True)
            start.record()
            contenders[name].run(prepared)
            end.record()
            end.synchronize()
            samples[name].append(start.elapsed_time(end))
    ss.synchronize()
    return {name: statistics.median(times) for name, times in samples.items()}


def taking_part(problem: Problem, tell: Callable[[str], object]) -> dict[str, Step]:
    """Those whose gradient agrees with that of an engine for the CPU; the others are told about."""
    theta, found = problem.fresh(), {}
    expected = OnHost(problem).run(theta.clone().requires_grad_()).cpu()
    for make in CONTENDERS:
        try:
            step = make(problem)
            for _ in range(2):  # the second without the analysis
                gradient = step.run(step.fresh(theta)).cpu()
        except Exception as error:  # of another library, anything
            if make in (Ours, Deferred, OnHost):
                raise
            tell(f"  {make.name}: absent ({type(error).__name__}: {str(error)[:80]})")
            continue
        wrong = float((gradient - expected).abs().max() / expected.abs().max())
        if wrong < 1e-6:
            found[make.name] = step
        else:
            tell(f"  {make.name}: wrong by {wrong:.0e}")
    return found


def main(arguments: list[str] | None = None, device: torch.device | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small systems")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(arguments)
    if device is None:
        if not torch.cuda.is_available():
            print("torch finds no CUDA device, and there is nothing to be timed without one")
            return 1
        device = torch.device("cuda", torch.cuda.current_device())
        print(torch.cuda.get_device_name(device), "·", ss.engines()["cudss"])
    warnings.simplefilter("ignore")
    for make in problems(options.quick):
        problem = on_device(make(), device)
        print(f"{problem.name}, {problem.n} rows")
        times = milliseconds(problem, taking_part(problem, print), options.rounds, device)
        unit = times.get(BARE)
        for name, time in sorted(times.items(), key=lambda item: item[1]):
            print(f"  {name:<34}{time:10.2f} ms" + (f"{time / unit:8.2f} ×" if unit else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
