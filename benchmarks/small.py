"""Small general systems: `Pattern.solve` by each engine, against SciPy's `splu` and a solve.

    python -m benchmarks.small [--quick]

A row is one matrix with five random entries a row, or three on diagonals; microseconds are medians
over fresh values, the contenders in turn. `DENSE_ROWS` of `_engines/select.py` follows from the
table. PARDISO has a table of its own, since its threads slow down what runs beside them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

import sparse_solver as ss

SIZES = (14, 32, 64, 96, 118, 128, 160, 192, 256)
SECONDS = 1.0


class System:
    """A pattern, values to choose from, and a right-hand side."""

    def __init__(self, n: int, band: bool, dtype: torch.dtype):
        i, g = torch.arange(n), torch.Generator().manual_seed(n)
        if band:
            rows, cols = torch.cat((i, i[1:], i[:-1])), torch.cat((i, i[:-1], i[1:]))
        else:
            far = torch.randint(n, (4 * n,), generator=g)
            rows, cols = torch.unique(torch.stack((i.repeat(5), torch.cat((i, far)))), dim=1)
        self.n, self.rows, self.cols = n, rows, cols
        self.b = torch.ones(n, dtype=dtype)
        dominant = 4.0 * (rows == cols)
        values = (torch.randn(len(rows), dtype=dtype, generator=g) + dominant for _ in range(8))
        self.fresh: Iterator[Tensor] = cycle(list(values))

    def by_engine(self, engine: str) -> Callable[[], Any]:
        pattern = ss.Pattern(self.rows, self.cols, (self.n, self.n))
        return lambda: pattern.solve(next(self.fresh), self.b, assume="general", engine=engine)

    def by_scipy(self) -> Callable[[], Any]:
        from scipy.sparse import coo_matrix, csc_matrix
        from scipy.sparse.linalg import splu

        shape, count = (self.n, self.n), len(self.rows)
        places = self.rows.numpy(), self.cols.numpy()
        numbered = coo_matrix((torch.arange(count).numpy() + 1.0, places), shape=shape).tocsc()
        order, b = numbered.data.astype(int) - 1, self.b.numpy()

        def solve() -> Any:
            values = next(self.fresh).numpy()[order]
            return splu(csc_matrix((values, numbered.indices, numbered.indptr), shape)).solve(b)

        return solve


def medians(contenders: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Microseconds of each contender, after a few calls that are not counted."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        for _ in range(3):
            call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return {name: 1e6 * statistics.median(times) for name, times in samples.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one size, for a moment")
    quick = parser.parse_args(arguments).quick
    sizes, seconds = ((14,), 0.05) if quick else (SIZES, SECONDS)
    installed = [name for name, found in ss.engines().items() if found.installed]
    with_pardiso: list[str] = [name for name in ("lapack", "pardiso") if name in installed]
    groups: list[list[str]] = [["lapack", "superlu"], with_pardiso]
    for names in groups:
        print("| system | SciPy splu | " + " | ".join(names) + " |")
        print("|---" * (2 + len(names)) + "|")
        for dtype in (torch.float64, torch.complex128):
            for n in sizes:
                for band in (False, True):
                    system = System(n, band, dtype)
                    contenders = {"SciPy splu": system.by_scipy()}
                    contenders |= {name: system.by_engine(name) for name in names}
                    times = medians(contenders, seconds)
                    kind = f"{'band' if band else 'random'} {n}, {str(dtype)[6:]}"
                    cells = [kind, *(f"{times[name]:.0f}" for name in contenders)]
                    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
