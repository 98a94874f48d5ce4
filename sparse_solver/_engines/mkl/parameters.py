"""What PARDISO and the solver for clusters share: phases, types of matrices, settings, errors.

Numbers in comments are the manual's, which counts from one: iparm(24) is ``iparm[23]``. Source:
Intel oneMKL Developer Reference for C, "pardiso iparm Parameter" and "cluster_sparse_solver iparm
Parameter".
"""

from __future__ import annotations

import torch

from ..._sparse.values import is_single
from ...errors import EngineError, SingularMatrixError
from ..protocol import Kind

ANALYSIS, FACTORIZATION, SOLVE, RELEASE_ALL = 11, 22, 33, -1  # phases
ZERO_PIVOT, _SINGULAR_DIAGONAL = -4, -7  # error codes
_OUT_OF_MEMORY = (-2, -9)

_MESSAGES = {
    -1: "input inconsistent",
    -2: "not enough memory",
    -3: "reordering problem",
    ZERO_PIVOT: "zero pivot",
    -5: "unclassified internal error",
    -6: "reordering failed",
    _SINGULAR_DIAGONAL: "diagonal matrix is singular",
    -8: "32-bit integer overflow",
    -9: "not enough memory for out-of-core",
    -10: "error opening out-of-core files",
    -11: "error reading or writing out-of-core files",
    -12: "pardiso_64 called from a 32-bit library",
    -13: "interrupted by the progress function",
    -15: "internal error which can appear for iparm(24)=10 and iparm(13)=1",
}

_REAL_TYPES: dict[Kind, int] = {"spd": 2, "symmetric": -2, "hermitian": -2, "general": 11}
_COMPLEX_TYPES: dict[Kind, int] = {"spd": 4, "symmetric": 6, "hermitian": -4, "general": 13}


def engine_error(
    code: int, phase: str, engine: str = "pardiso", called: str = "PARDISO"
) -> EngineError | SingularMatrixError:
    """The exception for an error code of the solver that messages call `called`."""
    if code in (ZERO_PIVOT, _SINGULAR_DIAGONAL):
        message = f"{called} met a zero pivot during {phase}: the matrix is singular"
        return SingularMatrixError(message, engine=engine)
    reason = _MESSAGES.get(code, "unknown error")
    message = f"{called} failed during {phase} with error {code} ({reason})"
    return EngineError(message, engine=engine, code=code, out_of_memory=code in _OUT_OF_MEMORY)


def matrix_type(kind: Kind, dtype: torch.dtype) -> int:
    """The manual's number mtype."""
    return (_COMPLEX_TYPES if dtype.is_complex else _REAL_TYPES)[kind]


def parameters(kind: Kind, dtype: torch.dtype, matching: bool) -> list[int]:
    """The settings iparm, with METIS for the ordering."""
    single = is_single(dtype)
    iparm = [0] * 64
    iparm[0] = 1  # (1): these values instead of the defaults
    iparm[1] = 2  # (2): nested dissection
    # (10): a pivot below 10^-iparm(10) times the norm is enlarged to that. 13 and 8 are the
    # manual's values for double precision; in single precision they are below rounding errors.
    if kind == "general":
        iparm[9] = 6 if single else 13
    else:
        iparm[9] = 4 if single else 8
    iparm[10] = iparm[12] = int(matching)  # (11), (13): scaling and weighted matching
    iparm[17] = -1  # (18): report the entries of the factor
    # (21): 1-by-1 and 2-by-2 pivots; 1-by-1 only for Hermitian matrices, see `pardiso`
    iparm[20] = int(kind != "hermitian")
    iparm[27] = int(single)  # (28): single precision
    iparm[34] = 1  # (35): indices count from zero
    return iparm
