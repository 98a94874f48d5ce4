"""cuDSS, found and loaded: its constants, and its functions with every status checked.

Source: NVIDIA cuDSS 1.0 documentation, "Data types" and "Functions", and the header cudss.h.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    byref,
    c_char,
    c_char_p,
    c_double,
    c_int,
    c_int64,
    c_size_t,
    c_void_p,
)
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...errors import EngineError, EngineUnsupportedError
from ..shared_library import candidates, files_of, first_loaded

LIBRARY_VARIABLE = (
    "SPARSE_SOLVER_CUDSS"  # the path of libcudss.so.1, for one that is not the wheel's
)


_MAJOR = 1  # the first version that solves with the transpose; the constants below are its


_THREADING_LAYER = "libcudss_mtlayer_gomp.so.1"  # with which analyses use all cores of the host


class Phase(IntEnum):
    ANALYSIS = 3
    FACTORIZATION = 4
    REFACTORIZATION = 8
    SOLVE = 1008


class Config(IntEnum):
    MATCHING_ALG = 3
    SOLVE_MODE = 4
    PIVOT_EPSILON = 9
    HYBRID_MEMORY_MODE = 11
    HYBRID_DEVICE_MEMORY_LIMIT = 12
    UBATCH_SIZE = 18
    DETERMINISTIC_MODE = 24


class Data(IntEnum):
    INFO = 0
    LU_NNZ = 1
    NPIVOTS = 2
    INERTIA = 3
    HYBRID_DEVICE_MEMORY_MIN = 10


CONFIG_TYPES: dict[Config, type[Any]] = {
    Config.MATCHING_ALG: c_int,
    Config.SOLVE_MODE: c_int,
    Config.PIVOT_EPSILON: c_double,
    Config.HYBRID_MEMORY_MODE: c_int,
    Config.HYBRID_DEVICE_MEMORY_LIMIT: c_int64,
    Config.UBATCH_SIZE: c_int,
    Config.DETERMINISTIC_MODE: c_int,
}


DATA_TYPES: dict[Data, type[Any]] = {
    Data.INFO: c_int,
    Data.LU_NNZ: c_int64,
    Data.NPIVOTS: c_int,  # of the type of the column indices, which are 32-bit here; so are the next
    Data.INERTIA: c_int * 2,
    Data.HYBRID_DEVICE_MEMORY_MIN: c_int64,
}


# Values of enumerations: cudssMatrixType_t, cudssMatrixViewType_t, cudssMatchingAlg_t, cudssSolveMode_t, cudaDataType_t.
MATRIX_TYPES = {"general": 0, "symmetric": 1, "hermitian": 2, "spd": 3, "hpd": 4}


VIEW_FULL, VIEW_UPPER = 0, 2


BASE_ZERO, COLUMN_MAJOR = 0, 0


MATCHING_NONE, MATCHING_MAX_DIAG_PRODUCT = 0, 5


SOLVE_NORMAL, SOLVE_TRANSPOSE = 0, 1


INT32, INT64 = 10, 24


VALUE_TYPES = {torch.float32: 0, torch.float64: 1, torch.complex64: 4, torch.complex128: 5}


STATUSES = (
    "SUCCESS",
    "NOT_INITIALIZED",
    "ALLOC_FAILED",
    "INVALID_VALUE",
    "NOT_SUPPORTED",
    "EXECUTION_FAILED",
    "INTERNAL_ERROR",
    "IR_FAILED",
)


ALLOC_FAILED, NOT_SUPPORTED = 2, 4


Allocate = CFUNCTYPE(c_int, c_void_p, POINTER(c_void_p), c_size_t, c_void_p)


Free = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t, c_void_p)


class DeviceMemHandler(Structure):
    """cudssDeviceMemHandler_t: how cuDSS gets memory of the device; the functions return 0, or an error."""

    _fields_ = (
        ("context", c_void_p),
        ("device_alloc", Allocate),
        ("device_free", Free),
        ("name", c_char * 64),
    )


_HANDLE = c_void_p  # pointers to what cuDSS does not tell about: handle, config, data, matrix


SIGNATURES: dict[str, tuple[Any, ...]] = {
    "GetProperty": (c_int, POINTER(c_int)),
    "Create": (POINTER(_HANDLE),),
    "Destroy": (_HANDLE,),
    "SetStream": (_HANDLE, c_void_p),
    "SetThreadingLayer": (_HANDLE, c_char_p),
    "SetDeviceMemHandler": (_HANDLE, POINTER(DeviceMemHandler)),
    "ConfigCreate": (POINTER(_HANDLE),),
    "ConfigDestroy": (_HANDLE,),
    "ConfigSet": (_HANDLE, c_int, c_void_p, c_size_t),
    "DataCreate": (_HANDLE, POINTER(_HANDLE)),
    "DataDestroy": (_HANDLE, _HANDLE),
    "DataSet": (_HANDLE, _HANDLE, c_int, c_void_p, c_size_t),
    "DataGet": (_HANDLE, _HANDLE, c_int, c_void_p, c_size_t, POINTER(c_size_t)),
    #                  matrix            rows     columns  entries  row start row end   columns   values
    "MatrixCreateCsr": (POINTER(_HANDLE), c_int64, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_void_p,
                        # types: offsets, indices, values, of the matrix; view, base
                        c_int, c_int, c_int, c_int, c_int, c_int),
    #                 matrix            rows     columns  leading  values    type   layout
    "MatrixCreateDn": (POINTER(_HANDLE), c_int64, c_int64, c_int64, c_void_p, c_int, c_int),
    "MatrixSetValues": (_HANDLE, c_void_p),
    "MatrixDestroy": (_HANDLE,),
    #          handle   phase  config   data     A        x        b
    "Execute": (_HANDLE, c_int, _HANDLE, _HANDLE, _HANDLE, _HANDLE, _HANDLE),
}  # fmt: skip


class Library:
    """The functions of cuDSS that are used here; `functions` has them under their full names."""

    def __init__(self, functions: Any, threading_layer: str | None = None):
        self.threading_layer = threading_layer
        self._functions: dict[str, Any] = {}
        for name, arguments in SIGNATURES.items():
            function = getattr(functions, "cudss" + name)
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function
        self.version = ".".join(str(self._property(i)) for i in range(3))
        if self._property(0) != _MAJOR:
            raise OSError(f"it is version {self.version}, and {_MAJOR}.x is needed")

    def _property(self, which: int) -> int:
        value = c_int()
        self.call("GetProperty", which, byref(value))
        return value.value

    def status(self, name: str, *arguments: Any) -> int:
        status: int = self._functions[name](*arguments)
        return status

    def call(self, name: str, *arguments: Any) -> None:
        """Calls cudss`name`; raises EngineError, or EngineUnsupportedError, for a status that is not success."""
        status = self.status(name, *arguments)
        if status:
            raise error_of(status, name)

    def created(self, name: str, *arguments: Any) -> c_void_p:
        """What cudss`name` makes, whose place is the first of its arguments."""
        made = c_void_p()
        self.call(name, byref(made), *arguments)
        return made


def error_of(status: int, name: str, reason: str = "") -> EngineError | EngineUnsupportedError:
    """The error for a status of the function cudss`name`."""
    called = STATUSES[status] if status < len(STATUSES) else "unknown status"
    message = f"cuDSS failed in cudss{name} with status {status} ({called})" + (
        f": {reason}" if reason else ""
    )
    if status == NOT_SUPPORTED:
        return EngineUnsupportedError(message, engine="cudss")
    return EngineError(message, engine="cudss", code=status, out_of_memory=status == ALLOC_FAILED)


@cache
def library() -> Library | str:
    """The loaded library, or why there is none."""
    cuda = torch.version.cuda
    if cuda is None:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    wanted = os.environ.get(LIBRARY_VARIABLE)
    package = f"nvidia-cudss-cu{cuda.split('.')[0]}"
    paths = candidates(files_of(package, lambda name: name.startswith("libcudss.so")), "cudss")
    loaded, problems = load([wanted] if wanted else paths)
    if loaded is not None:
        return loaded
    if wanted:
        return f"{LIBRARY_VARIABLE}={wanted} cannot be loaded ({problems[0]})"
    remedy = f"pip install '{package}>={_MAJOR}', or name it in {LIBRARY_VARIABLE}"
    if problems:
        return f"libcudss cannot be loaded ({'; '.join(problems)}); {remedy}"
    return f"libcudss was not found; {remedy}"


def load(paths: list[str]) -> tuple[Library | None, list[str]]:
    """The first library that can be loaded, with its threading layer, or what is wrong with each."""

    def one(path: str) -> Library:
        beside = Path(path).with_name(_THREADING_LAYER)
        return Library(ctypes.CDLL(path), str(beside) if beside.exists() else None)

    return first_loaded(paths, one, (OSError, AttributeError, EngineError))
