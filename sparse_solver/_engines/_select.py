"""Which engine factors a matrix: one pure function of what is known about it.

The constants were calibrated by ``python benchmarks/calibrate.py``, which prints the table behind them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch

from ._protocol import Kind

# Simple loops (QDLDL) beat blocked ones while fewer floating-point operations than this are spent, ...
FIXED_FLOPS = 4e5
# ... plus this many a column: blocked codes pay for every supernode, however small.
FLOPS_PER_COLUMN = 120.0
# Beyond this many, even a blocked code without a separate analysis beats simple loops.
FLOPS_FOR_BLOCKS = 6e7


class Choice(NamedTuple):
    """An engine and why it was chosen; `provisional` if the answer needs `factor_nnz`, which it can predict."""

    engine: str
    reason: str
    provisional: bool = False


def predicted_flops(n: int, factor_nnz: int) -> float:
    """A lower bound of the operations Σ_j c_j² of a Cholesky factorisation, c_j the entries of column j.

    Cauchy–Schwarz: Σ c_j² ≥ (Σ c_j)² / n. Of the right order on grids, meshes and graphs.
    """
    return factor_nnz**2 / n if n else 0.0


def select(
    n: int, kind: Kind, dtype: torch.dtype, installed: Collection[str], factor_nnz: int | None = None
) -> Choice | None:
    """The engine for an n-by-n matrix of this kind and dtype among the `installed` ones; None: there is none.

    `factor_nnz` is the predicted number of entries of the Cholesky factor, None as long as it is not known.

    >>> select(100_000, "spd", torch.float64, {"pardiso", "qdldl", "superlu"}, factor_nnz=300_000).engine
    'qdldl'
    >>> select(250_000, "spd", torch.float64, {"pardiso", "qdldl", "superlu"}, factor_nnz=8_700_000).engine
    'pardiso'
    >>> select(5, "general", torch.complex64, {"superlu"}).engine
    'superlu'
    """
    blocked = next((name for name in ("pardiso", "superlu") if name in installed), None)
    if kind != "spd" or dtype.is_complex or "qdldl" not in installed:
        if blocked is None:
            return None
        why = "the fastest one installed" if blocked == "pardiso" else "the only one installed for this kind of matrix"
        return Choice(blocked, why)
    if blocked is None:
        return Choice("qdldl", "the only one installed for this kind of matrix")
    limit = FIXED_FLOPS + FLOPS_PER_COLUMN * n if blocked == "pardiso" else FLOPS_FOR_BLOCKS
    most = predicted_flops(n, n * (n + 1) // 2)
    flops = most if factor_nnz is None else predicted_flops(n, factor_nnz)
    if flops <= limit:
        return Choice("qdldl", f"little fill: about {flops:.0e} operations, simple loops are fastest below {limit:.0e}")
    if factor_nnz is None:
        return Choice(blocked, "its analysis tells the fill", provisional=True)
    return Choice(blocked, f"much fill: about {flops:.0e} operations, blocked loops are fastest above {limit:.0e}")
