"""Which engine factors a matrix: one pure function of what is known about it.

The constants were calibrated by ``python -m benchmarks.calibrate``; benchmarks/calibrate.txt is the table behind them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch

from .._sparse.structure import Structure
from .protocol import Kind

# Simple loops (QDLDL) beat blocked ones (PARDISO) while fewer floating-point operations than this are spent, ...
FIXED_FLOPS = 3e5


# ... plus this many a column: blocked codes pay for every supernode, however small.
FLOPS_PER_COLUMN = 120.0


# The same for the operations within an envelope, which are counted in full where `predicted_flops` is a lower bound.
ENVELOPE_FLOPS_PER_COLUMN = 700.0


# Where SuperLU, which has no separate analysis, takes over from simple loops on machines without PARDISO.
FIXED_FLOPS_FOR_SUPERLU = 5e7


FLOPS_PER_COLUMN_FOR_SUPERLU = 1500.0


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


def envelope_flops(structure: Structure) -> float:
    """The operations of a Cholesky factorisation that fills its envelope, after a reverse Cuthill–McKee ordering.

    Matrices with a narrow band have little fill, but nested dissection, which predicts `factor_nnz`, does not see it.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    n = structure.shape[0]
    ones = torch.ones(structure.canonical_nnz, dtype=torch.int8).numpy()
    matrix = csr_matrix(
        (ones, structure.col.numpy(), structure.crow.numpy()), shape=structure.shape
    )
    order = torch.from_numpy(reverse_cuthill_mckee(matrix, symmetric_mode=False).astype("int64"))
    place = torch.empty(n, dtype=torch.int64)
    place[order] = torch.arange(n)
    i, j = place[structure.canonical_rows], place[structure.col]
    first = torch.arange(n).scatter_reduce(0, torch.maximum(i, j), torch.minimum(i, j), "amin")
    return float((1 + torch.arange(n) - first).double().square().sum())


def select(
    n: int,
    kind: Kind,
    dtype: torch.dtype,
    installed: Collection[str],
    factor_nnz: int | None = None,
    envelope: float | None = None,
) -> Choice | None:
    """The engine for an n-by-n matrix of this kind and dtype among the `installed` ones for its device; None: there is none.

    `factor_nnz` is the predicted number of entries of the Cholesky factor, None as long as it is not known;
    `envelope` the `envelope_flops`, where they are known.

    >>> select(100_000, "spd", torch.float64, {"pardiso", "qdldl", "superlu"}, factor_nnz=300_000).engine
    'qdldl'
    >>> select(250_000, "spd", torch.float64, {"pardiso", "qdldl", "superlu"}, factor_nnz=8_700_000).engine
    'pardiso'
    >>> select(5, "general", torch.complex64, {"superlu"}).engine
    'superlu'
    """
    if "cudss" in installed:
        return Choice("cudss", "the matrix is on the GPU")
    blocked = next((name for name in ("pardiso", "superlu") if name in installed), None)
    if kind != "spd" or dtype.is_complex or "qdldl" not in installed:
        if blocked is None:
            return None
        why = (
            "it takes all matrices, and has an analysis to reuse"
            if blocked == "pardiso"
            else "the only one installed for this kind of matrix"
        )
        return Choice(blocked, why)
    if blocked is None:
        return Choice("qdldl", "the only one installed for this kind of matrix")
    limit = FIXED_FLOPS + FLOPS_PER_COLUMN * n
    if blocked == "superlu":
        limit = FIXED_FLOPS_FOR_SUPERLU + FLOPS_PER_COLUMN_FOR_SUPERLU * n
    most = predicted_flops(n, n * (n + 1) // 2)
    flops = most if factor_nnz is None else predicted_flops(n, factor_nnz)
    if flops <= limit:
        return Choice(
            "qdldl",
            f"little fill: about {flops:.0e} operations, simple loops are fastest below {limit:.0e}",
        )
    if envelope is not None and envelope <= FIXED_FLOPS + ENVELOPE_FLOPS_PER_COLUMN * n:
        return Choice(
            "qdldl", f"a narrow band: at most {envelope:.0e} operations, simple loops are fastest"
        )
    if factor_nnz is None:
        return Choice(blocked, "its analysis tells the fill", provisional=True)
    return Choice(
        blocked,
        f"much fill: about {flops:.0e} operations, blocked loops are fastest above {limit:.0e}",
    )


def is_close(n: int, factor_nnz: int) -> bool:
    """Whether a narrow band might still turn the choice, so that it is worth looking for one."""
    limit = FIXED_FLOPS + FLOPS_PER_COLUMN * n
    return limit < predicted_flops(n, factor_nnz) <= 20 * limit
