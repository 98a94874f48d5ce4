"""oneMKL, found and loaded: the functions that PARDISO needs, with their argument types."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from ..shared_library import find_candidates, find_package_files, load_first

# Names the file of a libmkl_rt to load instead of the one of the `mkl` wheel.
LIBRARY_VARIABLE = "SPARSE_SOLVER_MKL"

_INTEGER = POINTER(c_int64)
_PARDISO_ARGUMENTS: tuple[Any, ...] = (
    # pt; maxfct, mnum, mtype, phase, n; a, ia, ja, perm
    *(c_void_p, *[_INTEGER] * 5, *[c_void_p] * 4),
    # nrhs, iparm, msglvl; b, x, error
    *(_INTEGER, c_void_p, _INTEGER, c_void_p, c_void_p, _INTEGER),
)


# What MKL calls the code that runs on every x86-64 processor. It takes this code on processors by
# other makers than Intel, whatever instructions they have.
_GENERIC = "Intel(R) Architecture processors"


class _Version(Structure):
    """MKLVersion, where MKL describes itself."""

    _fields_ = (
        *(("major", c_int), ("minor", c_int), ("update", c_int), ("patch", c_int)),
        *(("status", c_char_p), ("build", c_char_p)),
        *(("processor", c_char_p), ("platform", c_char_p)),
    )


class Library:
    """The functions of libmkl_rt, with their argument types declared.

    version : the version, as MKL spells it
    instruction_set : the instructions of the code that MKL takes on this processor
    """

    def __init__(self, path: str):
        self.path = path
        runtime = ctypes.CDLL(path)
        self.pardiso = runtime.pardiso_64
        self.pardiso.argtypes, self.pardiso.restype = _PARDISO_ARGUMENTS, None
        self.set_threads = runtime.MKL_Set_Num_Threads_Local
        self.set_threads.argtypes, self.set_threads.restype = (c_int,), c_int
        write_version = runtime.mkl_get_version_string
        write_version.argtypes, write_version.restype = (c_char_p, c_int), None
        version = ctypes.create_string_buffer(200)
        write_version(version, len(version))
        self.version = version.value.decode().strip()
        described = _Version()
        describe = runtime.MKL_Get_Version
        describe.argtypes, describe.restype = (POINTER(_Version),), None
        describe(byref(described))
        self.instruction_set = name_instruction_set(described.processor.decode())


def name_instruction_set(processor: str) -> str:
    """The instructions of what MKL calls its "processor optimization".

    Examples
    --------
    >>> name_instruction_set("... Extensions 512 (Intel(R) AVX-512) enabled processors")
    'AVX-512'
    """
    if processor == _GENERIC:
        return "generic x86-64"
    name = re.search(r"\(Intel\(R\) ([^()]+)\)", processor)
    return name[1] if name else processor


@cache
def library() -> Library | str:
    """The loaded library, or the reason why there is none."""
    wanted = os.environ.get(LIBRARY_VARIABLE)
    loaded, problems = load_first([wanted] if wanted else _find_paths(), Library)
    if loaded is not None:
        return loaded
    if wanted:
        return f"{LIBRARY_VARIABLE}={wanted} cannot be loaded ({problems[0]})"
    if problems:
        return f"libmkl_rt cannot be loaded ({'; '.join(problems)}); reinstall it: pip install mkl"
    if _has_wheel():
        return f"libmkl_rt was not found; pip install mkl, or set {LIBRARY_VARIABLE} to its path"
    return "libmkl_rt was not found; oneMKL is there for x86-64 Linux and Windows only"


def _has_wheel() -> bool:
    """Whether there is a wheel of oneMKL for this machine."""
    return (sys.platform, platform.machine()) in (("linux", "x86_64"), ("win32", "AMD64"))


def _find_paths() -> list[str]:
    windows = os.name == "nt"

    def is_runtime(name: str) -> bool:
        ending = ".dll" if windows else ""
        return name.startswith(("libmkl_rt.so", "mkl_rt.")) and name.endswith(ending)

    folder = Path(sys.prefix, "Library", "bin") if windows else Path(sys.prefix, "lib")
    beside = [str(path) for path in sorted(folder.glob("*mkl_rt*"), reverse=True)]
    return find_candidates(find_package_files("mkl", is_runtime) + beside, "mkl_rt")
