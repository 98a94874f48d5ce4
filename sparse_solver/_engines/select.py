"""Which engine factors a matrix: a pure function of its size, kind, dtype and fill.

Dense LU (LAPACK) is fastest for small general matrices. Simple loops (QDLDL) are fastest while a
factorisation takes few operations. Blocked loops (PARDISO, supernodal, rslab, SuperLU) pay for
every block of columns, however small, and are fastest for the rest. The limits were measured by
``python -m benchmarks.calibrate``; benchmarks/calibrate.txt has its tables.

Where there is no MKL, the supernodal factorisation is taken for positive definite matrices, though
it has to be compiled, and rslab for others. rslab takes 0.2 to 1.1 times the time of SuperLU, but
several times as much on long and narrow bands, which SuperLU factors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch

from .._sparse.structure import Structure
from .protocol import Kind

# Simple loops beat PARDISO up to this many operations, plus so many per column.
FIXED_FLOPS, FLOPS_PER_COLUMN = 3e5, 120.0
# The same per column for the operations in an envelope, where every one is counted, whereas
# `predicted_flops` is a lower bound.
ENVELOPE_FLOPS_PER_COLUMN = 700.0
# The supernodal factorisation, which is called from Python, beats them beyond these operations,
# also if they are those in an envelope.
FIXED_FLOPS_FOR_SUPERNODAL, FLOPS_PER_COLUMN_FOR_SUPERNODAL = 1e6, 1300.0
# SuperLU, which has no separate analysis, beats simple loops only beyond these.
FIXED_FLOPS_FOR_SUPERLU, FLOPS_PER_COLUMN_FOR_SUPERLU = 5e7, 1500.0
# SuperLU beats rslab on bands with so many rows, up to so many operations per column in the
# envelope: 19 times on a ring of 10⁶ nodes, 2 to 3 times on grids that are 4 and 10 nodes wide.
ROWS_OF_A_LONG_BAND, ROWS_OF_A_LONG_BAND_IF_SYMMETRIC = 2_000, 200_000
FLOPS_PER_COLUMN_OF_A_NARROW_BAND = 200.0
# Up to this many rows, dense LU is faster than sparse LU, whatever the pattern is; see
# ``benchmarks.small``. Complex operations take longer, and OpenBLAS starts threads earlier.
DENSE_ROWS, DENSE_ROWS_IF_COMPLEX = 128, 96
# Beyond this many times the limit, no pattern of benchmarks.calibrate had a band narrow enough.
_NARROW_BAND_RANGE = 20

# What a factorisation with two substitutions costs, in bytes moved: for each entry of the factor,
# and for each operation; see ``benchmarks.iterate_or_factor``.
BYTES_PER_FACTOR_ENTRY = 350.0
BYTES_PER_FLOP_IN_BLOCKS, BYTES_PER_FLOP_IN_LOOPS = 1.6, 8.0
# The operations on grids, meshes and graphs, relative to the lower bound `predicted_flops`.
USUAL_FLOPS = 3.0


# Why these engines are taken for all matrices of a kind, whatever their patterns.
_REASONS = {
    "pardiso": "it takes all matrices, and its analysis serves all values",
    "rslab": "it is mostly the fastest one where there is no MKL",
    "supernodal": "it is fastest where there is no MKL",
}


class Choice(NamedTuple):
    """An engine, and why it was chosen.

    provisional : whether the choice depends on `envelope`, or on `factor_nnz`, which this engine
        predicts
    by_envelope : whether the envelope is to be found first, since it may settle the choice without
        an analysis
    """

    engine: str
    reason: str
    provisional: bool = False
    by_envelope: bool = False


def predicted_flops(n: int, factor_nnz: float) -> float:
    """A lower bound of the operations Σ c_j² of a Cholesky factorisation.

    c_j is the number of entries of column j. By Cauchy–Schwarz, Σ c_j² ≥ (Σ c_j)² / n. The bound
    has the right order on grids, meshes and graphs.
    """
    return factor_nnz**2 / n if n else 0.0


def direct_cost(engine: str, n: int, factor_nnz: float, single: bool) -> float:
    """The cost of a Cholesky factorisation and two substitutions, in bytes moved.

    Operations count as the bytes that are moved in as much time.

    >>> f"{direct_cost('pardiso', 250_000, 8_700_000, single=False):.1e}"
    '4.5e+09'
    """
    flops = USUAL_FLOPS * predicted_flops(n, factor_nnz)
    in_blocks = engine in ("pardiso", "supernodal")
    of_flop = BYTES_PER_FLOP_IN_BLOCKS if in_blocks else BYTES_PER_FLOP_IN_LOOPS
    cost = BYTES_PER_FACTOR_ENTRY * factor_nnz + of_flop * flops
    return cost / 2 if single else cost


def envelope_flops(structure: Structure) -> float:
    """The operations of a Cholesky factorisation that fills the envelope of the matrix.

    The rows are in reverse Cuthill–McKee order. Matrices with a narrow band have little fill in
    that order, but more in nested dissection, which predicts `factor_nnz`.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    n = structure.shape[0]
    ones = torch.ones(structure.canonical_nnz, dtype=torch.int8).numpy()
    indices = structure.col.numpy(), structure.crow.numpy()
    matrix = csr_matrix((ones, *indices), shape=structure.shape)
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
    """The engine for an n-by-n matrix among those `installed` for its device; None if none suits.

    `factor_nnz` is the predicted number of entries of the Cholesky factor, and `envelope` the
    result of `envelope_flops`; both are None as long as they are not known.

    >>> engines = {"pardiso", "qdldl", "superlu"}
    >>> select(100_000, "spd", torch.float64, engines, factor_nnz=300_000).engine
    'qdldl'
    >>> select(250_000, "spd", torch.float64, engines, factor_nnz=8_700_000).engine
    'pardiso'
    >>> select(5, "general", torch.complex64, {"superlu"}).engine
    'superlu'
    """
    if "cudss" in installed:
        return Choice("cudss", "the matrix is on the GPU")
    if kind == "general" and "lapack" in installed and n <= _dense_rows(dtype):
        return Choice("lapack", f"dense LU is fastest up to {_dense_rows(dtype)} rows")
    is_real_spd = kind == "spd" and not dtype.is_complex
    without_mkl = "supernodal" if is_real_spd else "rslab" if kind != "spd" else "superlu"
    blocks = ("pardiso", without_mkl, "superlu")
    blocked = next((name for name in blocks if name in installed), None)
    only_one = "no other engine that is installed takes this kind of matrix"
    if blocked == "rslab" and "superlu" in installed:
        return _choose_lu(n, kind, envelope)
    if not is_real_spd or "qdldl" not in installed:
        return None if blocked is None else Choice(blocked, _REASONS.get(blocked, only_one))
    if blocked is None:
        return Choice("qdldl", only_one)
    return _choose_loops(n, blocked, factor_nnz, envelope)


def _dense_rows(dtype: torch.dtype) -> int:
    return DENSE_ROWS_IF_COMPLEX if dtype.is_complex else DENSE_ROWS


def _choose_lu(n: int, kind: Kind, envelope: float | None) -> Choice:
    """rslab or SuperLU for a matrix that is not positive definite."""
    is_general = kind == "general"
    long = ROWS_OF_A_LONG_BAND if is_general else ROWS_OF_A_LONG_BAND_IF_SYMMETRIC
    if envelope is None and n >= long:
        return Choice("rslab", "the envelope decides", provisional=True, by_envelope=True)
    if envelope is not None and envelope <= FLOPS_PER_COLUMN_OF_A_NARROW_BAND * n and n >= long:
        return Choice("superlu", f"a long and narrow band: at most {envelope:.0e} operations")
    return Choice("rslab", _REASONS["rslab"])


def _choose_loops(n: int, blocked: str, factor_nnz: int | None, envelope: float | None) -> Choice:
    """QDLDL or the `blocked` engine for a real positive definite matrix."""
    limit, envelope_limit = _limits(n, blocked)
    flops = predicted_flops(n, n * (n + 1) // 2 if factor_nnz is None else factor_nnz)
    if flops <= limit:
        loops = f"simple loops are fastest below {limit:.0e}"
        return Choice("qdldl", f"little fill: about {flops:.0e} operations, {loops}")
    if envelope is not None and envelope <= envelope_limit:
        loops = "simple loops are fastest"
        return Choice("qdldl", f"a narrow band: at most {envelope:.0e} operations, {loops}")
    if factor_nnz is None:
        # Where the analysis has to be compiled, a narrow band is better found without it.
        first = blocked == "supernodal" and envelope is None
        return Choice(blocked, "its analysis predicts the fill", True, by_envelope=first)
    loops = f"blocked loops are fastest above {limit:.0e}"
    return Choice(blocked, f"much fill: about {flops:.0e} operations, {loops}")


def _limits(n: int, blocked: str) -> tuple[float, float]:
    """The operations, and those in an envelope, up to which loops beat the `blocked` engine."""
    in_envelope = FIXED_FLOPS + ENVELOPE_FLOPS_PER_COLUMN * n
    if blocked == "superlu":
        return FIXED_FLOPS_FOR_SUPERLU + FLOPS_PER_COLUMN_FOR_SUPERLU * n, in_envelope
    if blocked == "supernodal":
        limit = FIXED_FLOPS_FOR_SUPERNODAL + FLOPS_PER_COLUMN_FOR_SUPERNODAL * n
        return limit, limit
    return FIXED_FLOPS + FLOPS_PER_COLUMN * n, in_envelope


def settle(
    choice: Choice,
    n: int,
    kind: Kind,
    dtype: torch.dtype,
    installed: Collection[str],
    find_fill: Callable[[str], int | None],
    find_envelope: Callable[[], float],
) -> Choice:
    """What becomes of a choice once the envelope and the fill are known, as far as they matter.

    find_fill : predicts the entries of the factor, by the analysis of an engine
    find_envelope : gives `envelope_flops`
    """
    given = n, kind, dtype, installed
    found: Choice | None = choice
    if choice.by_envelope:
        found = select(*given, envelope=find_envelope())
    if found is not None and found.provisional:
        factor_nnz = find_fill(found.engine)
        if factor_nnz is not None:
            close = is_close(n, factor_nnz, found.engine)
            found = select(*given, factor_nnz, find_envelope() if close else None)
    assert found is not None  # since `choice` suits
    return found


def is_close(n: int, factor_nnz: int, blocked: str) -> bool:
    """Whether a narrow band might still change the choice, so that `envelope_flops` is needed."""
    limit, _ = _limits(n, blocked)
    return limit < predicted_flops(n, factor_nnz) <= _NARROW_BAND_RANGE * limit
