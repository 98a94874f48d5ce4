"""``python -m sparse_solver``: what this machine solves with, and whether that works.

It prints versions and engines, for a bug report; checks a solve and a gradient by each engine; and
says what to install. The exit status is 1 if a check fails.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass

import numpy
import psutil
import torch
from torch import Tensor

from . import Pattern, __version__, engines
from ._engines.protocol import Compiled
from ._engines.registry import engine_named

# Rounding errors of the grid below, whose condition number is below ten, are some 1e-16.
MAX_ERROR = 1e-12
SIDE = 20  # of the grid


def describe_machine() -> str:
    """Describe the package, torch, Python and the engines, in a table."""
    rows = {
        "sparse_solver": __version__,
        "torch": torch.__version__ + _describe_gpu(),
        "threads": f"{torch.get_num_threads()} (cores: {_count_cores()})",
        "NumPy": numpy.__version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **engines(),
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _describe_gpu() -> str:
    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


def _count_cores() -> int:
    """The physical cores, as far as this process may use them."""
    logical = psutil.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return min(psutil.cpu_count(logical=False) or logical, usable)


@dataclass(frozen=True)
class Check:
    """The result of `check_engine`.

    residual : ‖A x − b‖ / (‖A‖ ‖x‖ + ‖b‖), in largest entries and row sums
    gradient_error : the largest difference from the gradient by dense torch, relative to its
        largest entry
    """

    residual: float
    gradient_error: float

    @property
    def passed(self) -> bool:
        """Whether both are rounding errors; numbers that are NaN are not."""
        return self.residual <= MAX_ERROR and self.gradient_error <= MAX_ERROR

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"{verdict}: residual {self.residual:.1e}, gradient off by {self.gradient_error:.1e}"


def check_engine(name: str) -> Check:
    """Solve A(w) x = b on a grid by this engine, and differentiate ‖x‖² in the weights w.

    A(w) is the weighted Laplacian of the grid plus the identity. The solution is put into the
    dense matrix, and the gradient is compared with that of `torch.linalg.solve`.
    """
    device = engine_named(name).device_types[0]
    n = SIDE**2
    nodes = torch.arange(n)
    grid = nodes.reshape(SIDE, SIDE)
    i = torch.cat([grid[:, :-1].flatten(), grid[:-1].flatten()])
    j = torch.cat([grid[:, 1:].flatten(), grid[1:].flatten()])
    rows, cols = torch.cat([nodes, i, j, i, j]), torch.cat([nodes, j, i, i, j])
    w = torch.linspace(0.5, 1.5, len(i), dtype=torch.double, device=device, requires_grad=True)
    b = (nodes % 7 - 3).to(w)
    values = torch.cat([torch.ones_like(b), -w, -w, w, w])

    x = Pattern(rows, cols, (n, n)).solve(values, b, assume="spd", engine=name)
    places = rows.to(device), cols.to(device)
    A = torch.zeros(n, n, dtype=torch.double, device=device)
    A = A.index_put(places, values, accumulate=True)
    gradient, expected = _gradient(x, w), _gradient(torch.linalg.solve(A, b), w)
    A, x = A.detach(), x.detach()
    scale = A.abs().sum(1).max() * x.abs().max() + b.abs().max()
    return Check(
        residual=float((A @ x - b).abs().max() / scale),
        gradient_error=float((gradient - expected).abs().max() / expected.abs().max()),
    )


def _gradient(x: Tensor, w: Tensor) -> Tensor:
    return torch.autograd.grad((x**2).sum(), w, retain_graph=True)[0]


def check_engines() -> bool:
    """Check the installed engines, and print a line for each; whether all of them passed."""
    installed = [name for name, found in engines().items() if found.installed]
    # Those that are compiled come last, since that may take a while the first time.
    installed.sort(key=lambda name: isinstance(engine_named(name), Compiled))
    width = max(map(len, installed))
    passed = True
    for name in installed:
        try:
            check = check_engine(name)
        except Exception as error:  # whatever it is, it belongs into the report
            passed, verdict = False, f"FAILED: {type(error).__name__}: {error}"
        else:
            passed, verdict = passed and check.passed, str(check)
        print(f"{name:<{width}}  {verdict}", flush=True)
    return passed


def advise() -> list[str]:
    """What this machine lacks: packages for more speed or more functions, and threads."""
    advice: dict[str, list[str]] = {}  # the engines by the reason why they are missing
    for name, found in engines().items():
        if found.missing and "pip install" in found.missing:
            advice.setdefault(found.missing, []).append(name)
    lines = [f"{', '.join(names)}: {missing}" for missing, names in advice.items()]
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        lines.append("there is a GPU by NVIDIA, but this torch was built without CUDA")
    threads, cores = torch.get_num_threads(), _count_cores()
    if threads < cores:
        lines.append(
            f"torch uses {threads} of {cores} cores: torch.set_num_threads({cores}), or "
            f"OMP_NUM_THREADS={cores} in the environment"
        )
    return lines or ["there is nothing to install for this machine"]


def main() -> int:
    """Print the report; the exit status."""
    print(describe_machine())
    print(f"\nA solve and a gradient by each engine, on a grid of {SIDE} x {SIDE}:")
    passed = check_engines()
    print("\nWhat would give more speed or more functions here:")
    for line in advise():
        print(f"- {line}")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
