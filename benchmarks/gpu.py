"""Forward and backward on a GPU against bare cuDSS and others.

    python -m benchmarks.gpu [--quick]

A sample is a solve, the loss ‖x‖² and its gradient in the values, between two events of the device,
with new values each time. In every round each contender runs once, in a new order; answers are
checked before anything is timed. Medians are printed, and their ratios to the bare calls. Analyses
are excluded, because they are made once. The memory is the peak of torch's allocator during the
first two steps, with the analysis and the factor, in which all contenders but nvmath allocate.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from math import nan
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

import sparse_solver as ss
from sparse_solver._engines.cudss.engine import CudssSymbolic
from sparse_solver._engines.registry import engine_named, installed_on
from sparse_solver._sparse.block_diagonal import split_batch
from sparse_solver._sparse.matrix import Matrix

from . import peers
from .contenders import Dense, Ours, Step
from .problems import Absent, Problem, batch, grid, mesh

BARE = "bare cuDSS"


class _Bare(Function):
    """One factorisation and two substitutions by cuDSS, and the gradient by hand, unchecked."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, b: Tensor, step: Bare) -> Tensor:
        step.factor(values)
        x = step.substitute(b)
        ctx.step = step
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override] # of one output
        (x,), step = ctx.saved_tensors, ctx.step
        lam = step.substitute(x_bar)
        return peers.entries_bar(lam, x, step.problem), lam, None


class Bare(Step):
    name = BARE

    def __init__(self, problem: Problem):
        super().__init__(problem)
        pattern = ss.Pattern(problem.rows, problem.cols, (problem.n, problem.n))
        self._structure = pattern._structure
        if problem.batch:
            batch, self._structure = next(split_batch(self._structure, problem.batch))
            if batch.stop != problem.batch:
                raise Absent("the batch is not one factorisation")
        engine, device = engine_named("cudss"), problem.rows.device
        if "cudss" not in installed_on(device):
            raise Absent(f"cuDSS on {device}: {engine.availability()}")
        symbolic = engine.analyze(self._structure, "spd", problem.rhs.dtype, None)
        assert isinstance(symbolic, CudssSymbolic)
        plan = symbolic.plan()
        self._symbolic, self.workspace = symbolic, plan.take_workspace()
        weakref.finalize(self, plan.give_back, self.workspace).atexit = False

    def factor(self, values: Tensor) -> None:
        self.workspace.factor(self.arrange(values))
        self.workspace.is_factored = True  # so that the next one is a refactorisation, as ours is

    def substitute(self, b: Tensor) -> Tensor:
        """The solutions for b (n,), (n, k) or (batch, n), of which cuDSS takes the columns."""
        columns = b.dim() == 2 and not self.problem.batch
        rows = b.T.contiguous() if columns else b.reshape(1, -1)
        x = self.workspace.substitute(rows, False)
        return x.T if columns else x.view_as(b)

    def arrange(self, values: Tensor) -> Tensor:
        return self._symbolic.arrange(Matrix(self._structure, values.reshape(-1)))

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        x: Tensor = _Bare.apply(values, b, self)
        return x


class NonBlocking(Ours):
    name = "sparse_solver, non_blocking=True"

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        return self.pattern.solve(values, b, assume=self.problem.kind, non_blocking=True)


class OnHost(Ours):
    """The first engine for the CPU, with the transfers."""

    name = "sparse_solver on the CPU"

    def solve(self, values: Tensor, b: Tensor) -> Tensor:
        engine = installed_on(torch.device("cpu"))[0]
        return self.pattern.solve(values, b, assume=self.problem.kind, engine=engine)


class _Nvmath(Function):
    """nvmath's DirectSolver, planned at each call: new tensors of values invalidate its plan."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, b: Tensor, problem: Problem) -> Tensor:
        from nvmath.sparse.advanced import direct_solver

        indices = torch.stack((problem.rows, problem.cols))
        A = torch.sparse_coo_tensor(indices, values, (problem.n, problem.n))
        ctx.A, ctx.problem = A.coalesce().to_sparse_csr(), problem
        x: Tensor = direct_solver(ctx.A, b)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, x_bar: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override] # of one output
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


OURS: tuple[type[Step], ...] = (Ours, NonBlocking, OnHost)
CONTENDERS: tuple[type[Step], ...] = (
    Bare, *OURS, Dense, peers.Cholespy, Nvmath, TorchSlaCudss,
)  # fmt: skip


def problems(quick: bool) -> list[Callable[[], Problem]]:
    if quick:
        small = [lambda: grid(100, 100), lambda: grid(12, 12, 12), lambda: batch(64, 20)]
        return [*small, lambda: mesh(50, 50, 3, squared=True)]
    return [
        lambda: grid(500, 500),
        lambda: grid(1000, 1000),
        lambda: grid(40, 40, 40),
        lambda: grid(60, 60, 60),
        lambda: batch(4096, 20),
        lambda: mesh(300, 333, 3, squared=True),
    ]


def on_device(problem: Problem, device: torch.device) -> Problem:
    """The same problem on the device, with θ for the values."""
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
    gpu = torch.get_device_module(device)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for round in range(rounds + 1):
        theta, order = problem.fresh(), list(contenders)
        random.shuffle(order)
        for name in order:
            prepared = contenders[name].fresh(theta)
            start, end = gpu.Event(enable_timing=True), gpu.Event(enable_timing=True)
            start.record()
            contenders[name].run(prepared)
            end.record()
            end.synchronize()
            if round > 0:  # before, an analysis that another contender displaced is made again
                samples[name].append(start.elapsed_time(end))
    ss.synchronize()
    return {name: statistics.median(times) for name, times in samples.items()}


def find_contenders(
    problem: Problem, device: torch.device, report: Callable[[str], object]
) -> tuple[dict[str, Step], dict[str, float]]:
    """The contenders with the gradient of an engine for the CPU, and their peaks of memory in MB.

    `report` explains the rest.
    """
    gpu, theta, found, megabytes = torch.get_device_module(device), problem.fresh(), {}, {}
    expected = OnHost(problem).run(theta.clone().requires_grad_()).cpu()
    for make in CONTENDERS:
        ss.clear_cache()  # each contender makes its own analysis
        gc.collect()
        gpu.reset_peak_memory_stats(device)
        before = gpu.memory_allocated(device)
        try:
            step = make(problem)
            for _ in range(2):  # the first one makes the analysis
                gradient = step.run(step.fresh(theta)).cpu()
            ss.synchronize()
        except Exception as error:  # another library may raise anything
            if make in OURS:
                raise
            report(f"  {make.name}: absent ({type(error).__name__}: {str(error)[:80]})")
            continue
        wrong = float((gradient - expected).abs().max() / expected.abs().max())
        megabytes[make.name] = (gpu.max_memory_allocated(device) - before) / 1e6
        if wrong < 1e-6:
            found[make.name] = step
        else:
            report(f"  {make.name}: wrong by {wrong:.0e}")
    return found, megabytes


def main(arguments: list[str] | None = None, device: torch.device | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="small systems")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(arguments)
    if device is None:
        if not torch.cuda.is_available():
            print("torch finds no CUDA device, without which nothing can be timed")
            return 1
        device = torch.device("cuda", torch.cuda.current_device())
        print(torch.cuda.get_device_name(device), "·", ss.engines()["cudss"])
    warnings.simplefilter("ignore")
    for make in problems(options.quick):
        problem = on_device(make(), device)
        print(f"{problem.name}, {problem.n} rows")
        contenders, megabytes = find_contenders(problem, device, print)
        times = milliseconds(problem, contenders, options.rounds, device)
        for name, time in sorted(times.items(), key=lambda item: item[1]):
            ratio, more = time / times.get(BARE, nan), megabytes[name] / megabytes.get(BARE, nan)
            in_memory = f"{megabytes[name]:10.1f} MB{more:8.2f} ×"
            print(f"  {name:<34}{time:10.2f} ms{ratio:8.2f} ×{in_memory}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
