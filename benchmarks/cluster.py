"""Strong scaling of solves over MPI: ``python -m benchmarks.cluster [--quick] [--ranks 1 2 4] [names of grids]``.

Each row is a run of its own, with one thread a rank: a training step (forward and backward pass, new values, the analysis
remembered) beside the solver itself, which factors and solves twice; peak memory; the share of a step that is spent in MPI,
waiting included; and the exchange of numbers that the gradient needs. Times are medians, of the slowest rank.
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
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sparse_solver._engines.mkl.parameters import FACTORIZATION

from .processes import kilobytes

ROOT = Path(__file__).parent.parent
GRIDS = {"grid 1000²": (1000, 1000), "grid 60³": (60, 60, 60)}
QUICK = {"grid 200²": (200, 200), "grid 20³": (20, 20, 20)}
COLUMNS = (
    "grid",
    "ranks",
    "step",
    "bare",
    "step / bare",
    "analysis",
    "memory",
    "in MPI",
    "exchange",
)


class Grid:
    """The rows in `block` of a Laplacian with weights plus one, on a grid: no rank makes the whole matrix."""

    def __init__(self, sides: tuple[int, ...], block: range):
        self.n = torch.Size(sides).numel()
        node, stride, parts = torch.arange(block.start, block.stop), 1, []
        for side in reversed(sides):
            at = node // stride % side
            parts += [(node[at > 0], -stride), (node[at < side - 1], stride)]
            stride *= side
        self._of = torch.cat(
            [rows for rows, _ in parts]
        )  # the node that each edge belongs to, and the one at its other end
        self._to = torch.cat([rows + shift for rows, shift in parts])
        self._block = block
        self.rows, self.cols = torch.cat((node, self._of)), torch.cat((node, self._to))

    def values(self, step: int) -> Tensor:
        """Weights that both ends of an edge know."""
        weights = 1.5 + torch.sin(0.1 * (self._of + self._to).double() + step)
        diagonal = torch.ones(len(self._block), dtype=torch.double)
        return torch.cat((diagonal.index_add_(0, self._of - self._block.start, weights), -weights))


def measured(sides: tuple[int, ...], rounds: int) -> dict[str, float]:
    """What one run finds; to be called on all ranks."""
    from mpi4py import MPI

    from sparse_solver.distributed import Pattern, partition

    comm, shim = MPI.COMM_WORLD, os.environ.get("LD_PRELOAD")
    n = torch.Size(sides).numel()
    grid = Grid(sides, partition((n, n), comm))
    b = torch.sin(torch.arange(len(grid._block)).double())
    small = Grid((8, 8), partition((64, 64), comm))
    Pattern(small.rows, small.cols, (64, 64), comm=comm).solve(
        small.values(0), small.values(0)[: len(small._block)]
    )
    before = kilobytes("VmRSS")  # with all libraries loaded
    P = Pattern(grid.rows, grid.cols, (n, n), comm=comm)
    in_mpi: Callable[[], float] = lambda: 0.0  # noqa: E731
    if shim:
        in_mpi = ctypes.CDLL(None).mpi_seconds
        in_mpi.restype = ctypes.c_double  # type: ignore[attr-defined]

    def timed(call: Callable[[], object]) -> float:
        """Seconds on the slowest rank; all begin together."""
        comm.Barrier()
        start = time.perf_counter()
        call()
        return float(comm.allreduce(time.perf_counter() - start, MPI.MAX))

    def step(values: Tensor) -> Tensor:
        x = P.solve(values, b, assume="spd")
        x.backward(x.detach())
        return x.detach()

    found: dict[str, list[float]] = {"step": [], "in MPI": [], "bare": [], "exchange": []}
    for number in range(rounds + 1):  # the first one makes the analysis, and is not counted
        values, waited = grid.values(number).requires_grad_(), in_mpi()
        seconds = timed(lambda: step(values))  # noqa: B023
        if number:
            found["step"].append(seconds)
            found["in MPI"].append((in_mpi() - waited) / seconds)
    memory = max(comm.allgather(kilobytes("VmHWM") - before)) * 1024
    P.release_idle()
    bare = Bare(P, grid.values(0))
    for number in range(1, rounds + 1):
        values = bare.arranged(grid.values(number))
        found["bare"].append(timed(lambda: bare.run(values, b)))  # noqa: B023
    x = bare.handle.solve(b.unsqueeze(0), False)
    with torch.no_grad():
        error = float(
            (x[0] - P.solve(grid.values(rounds), b, assume="spd")).abs().max() / x.abs().max()
        )
    assert comm.allreduce(error, MPI.MAX) < 1e-10, error
    found["exchange"] = [timed(lambda: P._rows.extend(x)) for _ in range(20)]
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    return {**medians, "analysis": bare.analysis_seconds, "memory": float(memory)}


class Bare:
    """The solver and nothing else: a factorisation and two solves, on arrays that lie ready.

    By LDLᵀ without exchanges, as the package does; the solver's own Cholesky takes as long, and takes indefinite matrices for
    definite ones.
    """

    def __init__(self, P: object, values: Tensor):
        from sparse_solver.distributed import _numeric
        from sparse_solver.distributed._mkl_cluster import Handle

        self._rows = rows = P._rows  # type: ignore[attr-defined]
        self._layout = layout = _numeric._layout(rows, "spd")
        numbering = rows.numbering
        cols = numbering.columns(rows.read[layout.col])
        start = time.perf_counter()
        self.handle = Handle(
            rows.group,
            numbering.block,
            numbering.n,
            "spd",
            layout.crow,
            cols,
            values.dtype,
            self.arranged(values),
            False,
        )
        self.analysis_seconds = time.perf_counter() - start

    def arranged(self, values: Tensor) -> Tensor:
        return self._layout.gather(self._rows.structure.canonical(values), False)

    def run(self, values: Tensor, b: Tensor) -> None:
        self.handle._values = values
        self.handle._call(FACTORIZATION)  # without a look at the pivots
        for _ in range(2):
            self.handle.solve(b.unsqueeze(0), False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grids", nargs="*", help=f"some of {', '.join(GRIDS | QUICK)}")
    parser.add_argument("--quick", action="store_true", help="small ones")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--measure", action="store_true", help=argparse.SUPPRESS
    )  # this is one of the ranks
    options = parser.parse_args()
    grids = GRIDS | QUICK
    names = options.grids or list(QUICK if options.quick else GRIDS)
    if options.measure:
        from mpi4py import MPI

        result = measured(grids[names[0]], options.rounds)
        if MPI.COMM_WORLD.rank == 0:
            print(json.dumps(result))
        return
    print(" | ".join(COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        shim = compiled(Path(folder))
        for name in names:
            for ranks in options.ranks:
                print(
                    row(name, ranks, run(name, ranks, options.rounds, shim), shim is not None),
                    flush=True,
                )


def compiled(folder: Path) -> Path | None:
    """The library that looks at the clock at each call of MPI; None where there is no compiler."""
    library = folder / "mpi_seconds.so"
    include = Path(sysconfig.get_path("data"), "include")
    command = ["cc", "-shared", "-fPIC", "-O2", "-Wl,-z,lazy", f"-I{include}", "-o", str(library)]
    try:
        subprocess.run(
            [*command, str(Path(__file__).with_name("mpi_seconds.c"))],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return library


def run(name: str, ranks: int, rounds: int, shim: Path | None) -> dict[str, float]:
    mpiexec = str(Path(sys.executable).with_name("mpiexec"))
    command = [mpiexec, "-n", str(ranks)] + (["-env", "LD_PRELOAD", str(shim)] if shim else [])
    command += [
        sys.executable,
        "-m",
        "benchmarks.cluster",
        "--measure",
        "--rounds",
        str(rounds),
        name,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, ranks: int, found: dict[str, float], has_shim: bool) -> str:
    cells = [name, str(ranks)]
    cells += [f"{found[key]:.3f} s" for key in ("step", "bare")]
    cells += [
        f"{found['step'] / found['bare']:.2f}",
        f"{found['analysis']:.2f} s",
        f"{found['memory'] / 2**20:,.0f} MiB",
    ]
    cells += [
        f"{100 * found['in MPI']:.0f} %" if has_shim else "–",
        f"{1e3 * found['exchange']:.2f} ms",
    ]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
