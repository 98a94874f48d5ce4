"""Strong scaling of solves over MPI.

    python -m benchmarks.cluster [--quick] [--ranks 1 2 4] [names of grids]

Each row is a run of its own, with one thread per rank. A step of training (forward and backward
pass with new values, after the analysis) stands beside the solver itself, which factors once and
solves twice. Then follow peak memory, the fraction of a step spent in MPI, waiting included, and
the time of the exchange that the gradient needs. Times are medians, of the slowest rank.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparse_solver._engines.mkl.parameters import FACTORIZATION

from .processes import kilobytes

if TYPE_CHECKING:  # the import needs MPI
    from sparse_solver.distributed import Pattern

ROOT = Path(__file__).parent.parent
GRIDS = {"grid 1000²": (1000, 1000), "grid 60³": (60, 60, 60)}
QUICK = {"grid 200²": (200, 200), "grid 20³": (20, 20, 20)}
COLUMNS = "grid | ranks | step | bare | step / bare | analysis | memory | in MPI | exchange"


class Grid:
    """The rows in `block` of a weighted Laplacian plus one, on a grid; no rank has the whole."""

    def __init__(self, sides: tuple[int, ...], block: range):
        node, stride, edges = torch.arange(block.start, block.stop), 1, []
        for side in reversed(sides):
            at = node // stride % side
            edges += [(node[at > 0], -stride), (node[at < side - 1], stride)]
            stride *= side
        # The ends of each edge, the first of which is in the block.
        self._start = torch.cat([rows for rows, _ in edges])
        self._end = torch.cat([rows + shift for rows, shift in edges])
        self._block, self.count = block, len(block)
        self.rows, self.cols = torch.cat((node, self._start)), torch.cat((node, self._end))

    def values(self, step: int) -> Tensor:
        """The values of one step, by weights that both ends of an edge compute."""
        weights = 1.5 + torch.sin(0.1 * (self._start + self._end).double() + step)
        diagonal = torch.ones(self.count, dtype=torch.double)
        diagonal.index_add_(0, self._start - self._block.start, weights)
        return torch.cat((diagonal, -weights))


class Bare:
    """The solver alone: a factorisation and two solves, on arrays that are prepared.

    By LDLᵀ without exchanges, as in the package: the solver's own Cholesky takes as long, and
    takes indefinite matrices for definite ones.
    """

    def __init__(self, P: Pattern, values: Tensor):
        from sparse_solver.distributed._mkl_cluster import Handle

        self._rows = rows = P._rows
        self._arrangement = arrangement = rows.arrange("spd")
        cols = rows.numbering.number(rows.read[arrangement.col])
        pattern, gathered = (arrangement.crow, cols), self.gather(values)
        start = time.perf_counter()
        self.handle = Handle(rows.group, rows.numbering, "spd", *pattern, gathered, False)
        self.analysis_seconds = time.perf_counter() - start

    def gather(self, values: Tensor) -> Tensor:
        """The values in the order of the solver."""
        return self._arrangement.gather(self._rows.structure.canonical(values), False)

    def run(self, values: Tensor, b: Tensor) -> None:
        """Factor, without a look at the pivots, and solve twice."""
        self.handle._values = values
        self.handle._call(FACTORIZATION)
        for _ in range(2):
            self.handle.substitute(b.unsqueeze(0), False)


def measure(sides: tuple[int, ...], rounds: int) -> dict[str, float]:
    """The figures of one run; called on all ranks."""
    from mpi4py import MPI

    from sparse_solver.distributed import Pattern, partition

    comm, n = MPI.COMM_WORLD, torch.Size(sides).numel()

    def pattern_of(grid: Grid, n: int) -> Pattern:
        return Pattern(grid.rows, grid.cols, (n, n), comm=comm)

    small = Grid((8, 8), partition((64, 64), comm=comm))
    values = small.values(0)
    pattern_of(small, 64).solve(values, values[: small.count])
    before = kilobytes("VmRSS")  # with all libraries loaded
    grid = Grid(sides, partition((n, n), comm=comm))
    b, P = torch.sin(torch.arange(grid.count).double()), pattern_of(grid, n)

    def time_call(call: Callable[[], object]) -> float:
        """Seconds on the slowest rank, after all ranks started together."""
        comm.Barrier()
        start = time.perf_counter()
        call()
        return float(comm.allreduce(time.perf_counter() - start, MPI.MAX))

    def step(values: Tensor) -> None:
        x = P.solve(values, b, assume="spd")
        x.backward(x.detach())

    in_mpi, found = _clock_of_mpi(), defaultdict(list)
    for number in range(rounds + 1):  # the first round makes the analysis, and is not counted
        values, waited = grid.values(number).requires_grad_(), in_mpi()
        seconds = time_call(partial(step, values))
        if number:
            found["step"].append(seconds)
            found["in MPI"].append((in_mpi() - waited) / seconds)
    memory = max(comm.allgather(kilobytes("VmHWM") - before)) * 1024
    P.release_idle()
    bare = Bare(P, grid.values(0))
    for number in range(1, rounds + 1):
        run = partial(bare.run, bare.gather(grid.values(number)), b)
        found["bare"].append(time_call(run))
    x = bare.handle.substitute(b.unsqueeze(0), False)
    difference = (x[0] - P.solve(grid.values(rounds), b, assume="spd")).abs()
    error = comm.allreduce(float(difference.max() / x.abs().max()), MPI.MAX)
    assert error < 1e-10, error
    found["exchange"] = [time_call(lambda: P._rows.extend(x)) for _ in range(20)]
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    return {**medians, "analysis": bare.analysis_seconds, "memory": float(memory)}


def _clock_of_mpi() -> Callable[[], float]:
    """The seconds that this process has spent in MPI; zero without the library that counts."""
    if "LD_PRELOAD" not in os.environ:
        return lambda: 0.0
    seconds = ctypes.CDLL(None).mpi_seconds
    seconds.restype = ctypes.c_double
    return lambda: float(seconds())


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("grids", nargs="*", help=f"some of {', '.join(GRIDS | QUICK)}")
    parser.add_argument("--quick", action="store_true", help="measure small grids")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks")
    parser.add_argument("--rounds", type=int, default=3, help="steps that are timed")
    # Given to the processes of a run, which are its ranks.
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.grids or list(QUICK if options.quick else GRIDS)
    if options.measure:
        from mpi4py import MPI

        result = measure((GRIDS | QUICK)[names[0]], options.rounds)
        if MPI.COMM_WORLD.rank == 0:
            print(json.dumps(result))
        return
    print(COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        shim = compile_shim(Path(folder))
        for name in names:
            for ranks in options.ranks:
                found = run(name, ranks, options.rounds, shim)
                print(format_row(name, ranks, found, shim is not None), flush=True)


def compile_shim(folder: Path) -> Path | None:
    """The library that measures the time of each call of MPI; None without a compiler."""
    library, source = folder / "mpi_seconds.so", Path(__file__).with_name("mpi_seconds.c")
    include = Path(sysconfig.get_path("data"), "include")
    command = ["cc", "-shared", "-fPIC", "-O2", "-Wl,-z,lazy", f"-I{include}", "-o", str(library)]
    try:
        subprocess.run([*command, str(source)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return library


def run(name: str, ranks: int, rounds: int, shim: Path | None) -> dict[str, float]:
    """Measure one grid on so many ranks, in processes of their own."""
    command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)]
    command += ["-env", "LD_PRELOAD", str(shim)] if shim else []
    command += [sys.executable, "-m", "benchmarks.cluster", "--measure"]
    command += ["--rounds", str(rounds), name]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def format_row(name: str, ranks: int, found: dict[str, float], has_shim: bool) -> str:
    """One row of the table."""
    step, bare, memory = found["step"], found["bare"], found["memory"] / 2**20
    cells = [name, str(ranks), f"{step:.3f} s", f"{bare:.3f} s", f"{step / bare:.2f}"]
    cells += [f"{found['analysis']:.2f} s", f"{memory:,.0f} MiB"]
    cells += [f"{100 * found['in MPI']:.0f} %" if has_shim else "–"]
    return " | ".join([*cells, f"{1e3 * found['exchange']:.2f} ms"])


if __name__ == "__main__":
    main()
