"""Measurements that need a process of their own: peak memory, and the time of the first import.

`python -m benchmarks.processes NAME SHIFT SIDES...` prints the bytes by which the memory of a
process grows at most while the contender NAME solves on a grid with this shift.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
STATUS = Path("/proc/self/status")


def peak_memory(name: str, sides: tuple[int, ...], shift: float = 1.0) -> int | None:
    """The bytes for two training steps, without the interpreter, torch and the problem itself.

    None where the system does not report it in /proc, as Linux does.
    """
    if not STATUS.exists():
        return None
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.processes", name]
    command += [str(number) for number in (shift, *sides)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def import_seconds(samples: int = 7) -> tuple[float, float]:
    """The median seconds of `import torch`, and the seconds that `import sparse_solver` adds."""
    alone, together = [], []
    for _ in range(samples):
        alone.append(_seconds("import torch"))
        together.append(_seconds("import torch, sparse_solver"))
    added = [b - a for a, b in zip(alone, together, strict=True)]
    return statistics.median(alone), statistics.median(added)


def _seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", statement], cwd=ROOT, check=True)
    return time.perf_counter() - start


def kilobytes(key: str) -> int:
    lines = [line for line in STATUS.read_text().splitlines() if line.startswith(key)]
    return int(lines[0].split()[1])


def main() -> None:
    from . import contenders, problems

    name, shift, *sides = sys.argv[1:]
    problem = problems.grid(*map(int, sides), shift=float(shift))
    make = {make.name: make for make in (*contenders.BARE, *contenders.OURS)}[name]
    prepared = [problem.fresh() for _ in range(2)]
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = kilobytes("VmRSS")
    contender = make(problem)
    for theta in prepared:
        contender.run(contender.fresh(theta))
    print(1024 * (kilobytes("VmHWM") - before))


if __name__ == "__main__":
    main()
