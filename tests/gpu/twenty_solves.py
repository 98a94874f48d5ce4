"""Twenty solves of each kind and dtype on a GPU, with gradients, for compute-sanitizer.

    compute-sanitizer --tool memcheck python -m tests.gpu.twenty_solves

With PYTORCH_NO_CUDA_MEMORY_CACHING=1, torch returns memory when it is released, so that later
accesses are found.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from problems import DTYPES, kinds_of, problem, rhs

import sparse_solver as ss

SOLVES = 20


def solve_and_differentiate(kind: str, dtype: torch.dtype, device: torch.device) -> float:
    """Twenty steps, half of them without waiting; return the largest residual over ‖b‖."""
    p = problem(kind, dtype, n=40).to(device)
    P, worst = ss.Pattern(p.rows, p.cols, p.shape), 0.0
    for i in range(SOLVES):
        scale = 1 + i / SOLVES
        values = (scale * p.values).requires_grad_()
        b = rhs(40, 2, dtype=dtype, seed=i).to(device).requires_grad_()
        x = P.solve(values, b, assume=kind, non_blocking=i % 2 == 1)  # type: ignore[arg-type] # a str
        torch.autograd.grad(x, (values, b), torch.ones_like(x))
        residual = scale * (p.dense @ x) - b
        worst = max(worst, (residual.norm() / b.norm()).item())
    ss.synchronize()
    return worst


def main(device: torch.device | None = None) -> int:
    device = device or torch.device("cuda", torch.cuda.current_device())
    failed = 0
    for dtype in DTYPES:
        for kind in kinds_of(dtype):
            residual = solve_and_differentiate(kind, dtype, device)
            is_right = residual < 1000 * torch.finfo(dtype).eps
            failed += not is_right
            print(f"{kind:<10} {dtype!s:<16} residual {residual:.1e} {'' if is_right else 'WRONG'}")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
