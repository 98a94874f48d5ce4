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
    sizeof,
)
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...errors import EngineError, EngineUnsupportedError
from ..shared_library import find_candidates, find_package_files, load_first

# Names the file of a libcudss.so.1 to load instead of the one of the wheel.
LIBRARY_VARIABLE = "SPARSE_SOLVER_CUDSS"
# The first version that solves with the transpose; the constants below belong to it.
_MAJOR = 1
# With this library, analyses use all cores of the host.
_THREADING_LAYER = "libcudss_mtlayer_gomp.so.1"
# What libcudss needs of CUDA, and the packages with it; those for CUDA 12 have its name at the end.
_NEEDED = {"libcublas.so": "nvidia-cublas", "libnvrtc.so": "nvidia-cuda-nvrtc"}


class Phase(IntEnum):
    """cudssPhase_t."""

    ANALYSIS = 3
    FACTORIZATION = 4
    REFACTORIZATION = 8
    SOLVE = 1008


class Config(IntEnum):
    """cudssConfigParam_t."""

    MATCHING_ALG = 3
    SOLVE_MODE = 4
    PIVOT_EPSILON = 9
    HYBRID_MEMORY_MODE = 11
    HYBRID_DEVICE_MEMORY_LIMIT = 12
    UBATCH_SIZE = 18
    DETERMINISTIC_MODE = 24


class Data(IntEnum):
    """cudssDataParam_t."""

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
    # These two have the type of the column indices, which are 32-bit here.
    Data.NPIVOTS: c_int,
    Data.INERTIA: c_int * 2,
    Data.HYBRID_DEVICE_MEMORY_MIN: c_int64,
}

# cudssMatrixType_t, cudssMatrixViewType_t, cudssIndexBase_t, cudssLayout_t, cudssMatchingAlg_t,
# cudssSolveMode_t, and cudaDataType_t for indices and values.
MATRIX_TYPES = {"general": 0, "symmetric": 1, "hermitian": 2, "spd": 3, "hpd": 4}
VIEW_FULL, VIEW_UPPER = 0, 2
BASE_ZERO, COLUMN_MAJOR = 0, 0
MATCHING_NONE, MATCHING_MAX_DIAG_PRODUCT = 0, 5
SOLVE_NORMAL, SOLVE_TRANSPOSE = 0, 1
INT32, INT64 = 10, 24
VALUE_TYPES = {torch.float32: 0, torch.float64: 1, torch.complex64: 4, torch.complex128: 5}

# cudssStatus_t
STATUSES = (
    *("SUCCESS", "NOT_INITIALIZED", "ALLOC_FAILED", "INVALID_VALUE", "NOT_SUPPORTED"),
    *("EXECUTION_FAILED", "INTERNAL_ERROR", "IR_FAILED"),
)
ALLOC_FAILED, NOT_SUPPORTED = 2, 4

Allocate = CFUNCTYPE(c_int, c_void_p, POINTER(c_void_p), c_size_t, c_void_p)
Free = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t, c_void_p)


class DeviceMemHandler(Structure):
    """cudssDeviceMemHandler_t: how cuDSS allocates on the device; its functions return a status."""

    _fields_ = (
        ("context", c_void_p),
        ("device_alloc", Allocate),
        ("device_free", Free),
        ("name", c_char * 64),
    )


_HANDLE = c_void_p  # an opaque pointer: a handle, a configuration, data, or a matrix
_HANDLES = POINTER(_HANDLE)

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "GetProperty": (c_int, POINTER(c_int)),
    "Create": (_HANDLES,),
    "Destroy": (_HANDLE,),
    "SetStream": (_HANDLE, c_void_p),
    "SetThreadingLayer": (_HANDLE, c_char_p),
    "SetDeviceMemHandler": (_HANDLE, POINTER(DeviceMemHandler)),
    "ConfigCreate": (_HANDLES,),
    "ConfigDestroy": (_HANDLE,),
    "ConfigSet": (_HANDLE, c_int, c_void_p, c_size_t),
    "DataCreate": (_HANDLE, _HANDLES),
    "DataDestroy": (_HANDLE, _HANDLE),
    "DataSet": (_HANDLE, _HANDLE, c_int, c_void_p, c_size_t),
    "DataGet": (_HANDLE, _HANDLE, c_int, c_void_p, c_size_t, POINTER(c_size_t)),
    # matrix; rows, columns, entries; row starts, row ends, columns, values; the types of offsets,
    # indices, values and matrix; view, base
    "MatrixCreateCsr": (_HANDLES, *[c_int64] * 3, *[c_void_p] * 4, *[c_int] * 6),
    # matrix; rows, columns, leading dimension; values; type, layout
    "MatrixCreateDn": (_HANDLES, *[c_int64] * 3, c_void_p, c_int, c_int),
    "MatrixSetValues": (_HANDLE, c_void_p),
    "MatrixDestroy": (_HANDLE,),
    # handle, phase, configuration, data; A, x, b
    "Execute": (_HANDLE, c_int, *[_HANDLE] * 5),
}


class Library:
    """The functions of cuDSS, which the object `functions` has under their full names.

    threading_layer : the path of the library with which analyses use several cores, or None
    """

    def __init__(self, functions: Any, threading_layer: str | None = None):
        self.threading_layer = threading_layer
        self._functions: dict[str, Any] = {}
        for name, arguments in SIGNATURES.items():
            function = getattr(functions, "cudss" + name)
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function
        version = [self._read_property(i) for i in range(3)]
        self.version = ".".join(map(str, version))
        if version[0] != _MAJOR:
            raise OSError(f"it is version {self.version}, and {_MAJOR}.x is needed")

    def _read_property(self, which: int) -> int:
        value = c_int()
        self.call("GetProperty", which, byref(value))
        return value.value

    def try_call(self, name: str, *arguments: Any) -> int:
        """Call the function cudss`name`, and return its status."""
        status: int = self._functions[name](*arguments)
        return status

    def call(self, name: str, *arguments: Any) -> None:
        """Call the function cudss`name`; raise unless its status is success."""
        status = self.try_call(name, *arguments)
        if status:
            raise error_of(status, name)

    def create(self, name: str, *arguments: Any) -> c_void_p:
        """Call the function cudss`name` that writes a new object to its first argument."""
        created = c_void_p()
        self.call(name, byref(created), *arguments)
        return created

    def configure(self, config: c_void_p, name: Config, value: float) -> None:
        """Set one value of a configuration."""
        number = CONFIG_TYPES[name](value)
        self.call("ConfigSet", config, name, byref(number), sizeof(number))


def error_of(
    status: int, name: str, reason: str = "", ran_out: bool = False
) -> EngineError | EngineUnsupportedError:
    """The exception for a status of the function cudss`name`.

    reason, ran_out : what the functions that allocate for cuDSS reported, and whether they had no
        memory, whatever status cuDSS makes of that
    """
    called = STATUSES[status] if status < len(STATUSES) else "unknown status"
    message = f"cuDSS failed in cudss{name} with status {status} ({called})"
    message += f": {reason}" if reason else ""
    ran_out = ran_out or status == ALLOC_FAILED
    if status == NOT_SUPPORTED and not ran_out:
        return EngineUnsupportedError(message, engine="cudss")
    return EngineError(message, engine="cudss", code=status, out_of_memory=ran_out)


@cache
def library() -> Library | str:
    """The loaded library, or the reason why there is none."""
    cuda = torch.version.cuda
    if cuda is None:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    wanted, major = os.environ.get(LIBRARY_VARIABLE), cuda.split(".")[0]
    package = f"nvidia-cudss-cu{major}"
    _load_needed(major)
    files = find_package_files(package, lambda name: name.startswith("libcudss.so"))
    loaded, problems = load([wanted] if wanted else find_candidates(files, "cudss"))
    if loaded is not None:
        return loaded
    if wanted:
        return f"{LIBRARY_VARIABLE}={wanted} cannot be loaded ({problems[0]})"
    remedy = f"pip install '{package}>={_MAJOR}', or set {LIBRARY_VARIABLE} to its path"
    if problems:
        return f"libcudss cannot be loaded ({'; '.join(problems)}); {remedy}"
    return f"libcudss was not found; {remedy}"


def _load_needed(major: str) -> None:
    """Load what libcudss needs of CUDA `major`, so that it is found wherever it is installed.

    libcudss searches in its own folder, and torch and its packages may be installed in another one.
    """
    for library, package in _NEEDED.items():
        name = f"{library}.{major}"
        paths = [name]  # what torch has loaded already, or the system finds
        for installed in (f"{package}-cu{major}", package):
            paths += find_package_files(installed, name.__eq__)
        load_first(paths, ctypes.CDLL)


def load(paths: list[str]) -> tuple[Library | None, list[str]]:
    """The first library that can be loaded, with its threading layer; else the problem of each."""

    def load_one(path: str) -> Library:
        layer = str(Path(path).with_name(_THREADING_LAYER))
        # cuDSS unloads it with each handle, while its threads may be running. So it is loaded here
        # as well, for good.
        is_loaded = load_first([layer], ctypes.CDLL)[0] is not None
        return Library(ctypes.CDLL(path), layer if is_loaded else None)

    return load_first(paths, load_one, (OSError, AttributeError, EngineError))
