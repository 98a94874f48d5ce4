"""The shares that the ranks have of the matrices in `problems.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from mpi4py import MPI
from problems import Problem
from torch import Tensor

from sparse_solver.distributed import Pattern, partition

COMM = MPI.COMM_WORLD


def _even(n: int) -> list[int]:
    return [n * rank // COMM.size for rank in range(COMM.size + 1)]


def _last(n: int) -> list[int]:
    """The last rank has all rows."""
    return [0] * COMM.size + [n]


def _uneven(n: int) -> list[int]:
    """Every other rank has no rows, and the others have increasing numbers of rows."""
    weights = [rank * (rank % 2) + (COMM.size == 1) for rank in range(COMM.size)]
    ends = torch.tensor([0.0, *weights]).cumsum(0)
    return (ends * n / ends[-1]).round().int().tolist()


CUTS: dict[str, Callable[[int], list[int]]] = {"even": _even, "last": _last, "uneven": _uneven}


class Share:
    """The rows of this rank: `block`, and `entries`, a mask of the entries in these rows."""

    def __init__(self, p: Problem, cut: str = "even"):
        ends = CUTS[cut](p.n)
        self.problem, self.block = p, range(ends[COMM.rank], ends[COMM.rank + 1])
        self.entries = (p.rows >= self.block.start) & (p.rows < self.block.stop)
        self.values = p.values[self.entries]
        rows, cols = p.rows[self.entries], p.cols[self.entries]
        assert cut != "even" or self.block == partition(p.shape, comm=COMM)
        self.pattern = Pattern(
            rows, cols, p.shape, comm=COMM, block=None if cut == "even" else self.block
        )

    def of(self, x: Tensor) -> Tensor:
        return x[self.block.start : self.block.stop]


def whole(share: Tensor) -> Tensor:
    """The shares of all ranks, one after the other."""
    return torch.cat(COMM.allgather(share.detach()))


def launch(
    script: str, ranks: int = 2, **variables: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a script on ranks of its own."""
    environment = {
        name: value
        for name, value in (os.environ | variables).items()
        if value is not None and not name.startswith(("PMI", "HYD", "MPI"))
    }
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec), "-n", str(ranks), sys.executable, "-c", script]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
