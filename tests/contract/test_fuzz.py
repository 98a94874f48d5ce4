"""A thousand random calls, most of them wrong: a result or a typed error, and never a crash.

They run in a process of their own, which a crash of a native library ends without the tests.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

import sparse_solver as ss

CASES = 1000
DTYPES = [
    torch.float32, torch.float64, torch.complex64, torch.complex128,
    torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool,
]  # fmt: skip


def one_case(seed: int) -> str:
    """Run a case and return how it ended; other exceptions than the package's are let through."""
    chance, g = random.Random(seed), torch.Generator().manual_seed(seed)
    n = chance.choice([0, 1, 2, 3, 5, 17])
    m = n if chance.random() < 0.95 else n + 1
    nnz = chance.randrange(0, 4 * n + 1)
    dtype = chance.choice(DTYPES[:4] if chance.random() < 0.9 else DTYPES)
    index_dtype = chance.choice(
        [torch.int64, torch.int32] if chance.random() < 0.97 else [torch.int16, torch.float32]
    )

    def numbers(*shape: int, of: torch.dtype = dtype) -> Tensor:
        base = torch.complex128 if of.is_complex else torch.float64
        t = torch.randn(shape, dtype=base, generator=g) * 10.0 ** chance.choice(
            [0, 0, 0, -200, 200, -20, 20]
        )
        if t.numel() and chance.random() < 0.04:
            t.reshape(-1)[chance.randrange(t.numel())] = chance.choice(
                [float("nan"), float("inf"), 0.0]
            )
        return torch.nan_to_num(t.real).clamp(-100, 100).to(of) if of in DTYPES[4:] else t.to(of)

    rows = torch.randint(0, max(n, 1), (nnz,), generator=g)
    cols = torch.randint(0, max(m, 1), (nnz,), generator=g)
    if chance.random() < 0.7:  # likely solvable: a diagonal
        rows, cols = torch.cat((rows, torch.arange(n))), torch.cat((cols, torch.arange(n)))
    if chance.random() < 0.4:  # symmetric places
        rows, cols = torch.cat((rows, cols)), torch.cat((cols, rows))
    if n == 0:
        rows, cols = rows[:0], cols[:0]
    values = numbers(rows.numel())
    if chance.random() < 0.3 and values.dtype.is_floating_point:
        values = values.abs() + 1
    if rows.numel() and chance.random() < 0.08:  # a corrupted index
        rows = rows.clone()
        rows[chance.randrange(rows.numel())] = chance.choice([-1, n, 2**31 - 1, -(2**31), 10**6])
    rows, cols = rows.to(index_dtype), cols.to(index_dtype)
    if chance.random() < 0.03:
        values = values[:-1]
    b_dtype = dtype if chance.random() < 0.95 else chance.choice(DTYPES)
    shape = chance.choice([(n,), (n, 1), (n, 3), (2, n, 2), (n + 1,), (n, 0), (), (1, 1, n, 2)])
    b: Any = numbers(*shape, of=b_dtype)
    options: dict[str, Any] = {
        "assume": chance.choice(
            ["auto", "auto", "auto", "spd", "symmetric", "hermitian", "general", "lu"]
        ),
        "triangle": chance.choice([None, None, None, None, "lower", "upper"]),
        "transpose": chance.random() < 0.3,
        "engine": chance.choice([None, None, *ss.engines()]),
    }
    try:
        way = chance.choice(["pattern", "coo", "csr", "csc", "csr-corrupt", "factorize"])
        if way in ("pattern", "factorize"):
            P = ss.Pattern(rows, cols, (n, m))
            if values.dtype.is_floating_point or values.dtype.is_complex:
                values.requires_grad_()
            if way == "pattern":
                x = P.solve(values, b, **options)
            else:
                transpose = options.pop("transpose")
                x = P.factorize(values, **options).solve(b, transpose=transpose)
        else:
            if way == "coo":
                indices = torch.stack((rows, cols))
                if index_dtype not in (torch.int32, torch.int64) or values.numel() != rows.numel():
                    return "not a tensor"
                A = torch.sparse_coo_tensor(indices.long(), values, (n, m), check_invariants=False)
            else:
                count, inner = (n, cols) if way != "csc" else (m, rows)
                pointers = torch.linspace(0, inner.numel(), count + 1).long()
                if index_dtype not in (torch.int32, torch.int64) or values.numel() != inner.numel():
                    return "not a tensor"
                if way == "csr-corrupt" and count:
                    pointers[chance.randrange(count + 1)] = chance.choice([-5, 10**9, 0, 3])
                make = torch.sparse_csc_tensor if way == "csc" else torch.sparse_csr_tensor
                A = make(pointers, inner.long(), values, (n, m), check_invariants=False)
            x = ss.solve(A, b, **options)
        if x.requires_grad:
            x.abs().sum().backward()
    except ss.SparseSolverError as error:
        return type(error).__name__ if str(error) else "an error without a message"
    assert x.dtype == dtype
    assert x.shape == b.shape or b.dim() == 1
    return "solved"


def run(first: int) -> None:
    for seed in range(first, CASES):
        print(seed, flush=True)
        print(f"{seed} {one_case(seed)}", flush=True)


def test_a_thousand_random_calls() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "0"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    lines = done.stdout.split("\n")
    assert done.returncode == 0, (
        f"case {lines[-2:]} ended with {done.returncode}:\n{done.stderr[-3000:]}"
    )
    endings = [line.split(maxsplit=1)[1] for line in lines if " " in line]
    assert len(endings) == CASES
    kinds = set(endings)
    assert "an error without a message" not in kinds
    assert endings.count("solved") > CASES / 8
    assert {
        "IndexRangeError",
        "NonFiniteError",
        "NotSymmetricError",
        "SingularMatrixError",
        "ShapeError",
    } <= kinds


if __name__ == "__main__":
    run(int(sys.argv[1]))
