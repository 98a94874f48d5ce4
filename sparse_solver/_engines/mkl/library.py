"""oneMKL, found and loaded: the functions that are used here, with their argument types."""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, c_char_p, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

from ..shared_library import candidates, files_of, first_loaded

LIBRARY_VARIABLE = "SPARSE_SOLVER_MKL"  # the path of libmkl_rt, for an MKL that is not the wheel's


class Library:
    """The functions of libmkl_rt that are used here, with their argument types declared."""

    def __init__(self, path: str):
        self.path = path
        runtime = ctypes.CDLL(path)
        self.pardiso = runtime.pardiso_64
        integer = POINTER(c_int64)
        #                     pt        maxfct   mnum     mtype    phase    n        a
        self.pardiso.argtypes = [c_void_p, integer, integer, integer, integer, integer, c_void_p,
                                 # ia       ja        perm      nrhs     iparm     msglvl   b         x         error
                                 c_void_p, c_void_p, c_void_p, integer, c_void_p, integer, c_void_p, c_void_p, integer]  # fmt: skip
        self.pardiso.restype = None
        self.set_threads = runtime.MKL_Set_Num_Threads_Local
        self.set_threads.argtypes, self.set_threads.restype = [c_int], c_int
        version = ctypes.create_string_buffer(200)
        runtime.mkl_get_version_string.argtypes, runtime.mkl_get_version_string.restype = (
            [c_char_p, c_int],
            None,
        )
        runtime.mkl_get_version_string(version, len(version))
        self.version = version.value.decode().strip()


@cache
def library() -> Library | str:
    """The loaded library, or why there is none."""
    wanted = os.environ.get(LIBRARY_VARIABLE)
    loaded, problems = first_loaded([wanted] if wanted else _candidates(), Library)
    if loaded is not None:
        return loaded
    if wanted:
        return f"{LIBRARY_VARIABLE}={wanted} cannot be loaded ({problems[0]})"
    if problems:
        return f"libmkl_rt cannot be loaded ({'; '.join(problems)}); reinstall it: pip install mkl"
    return (
        "libmkl_rt was not found; pip install mkl (x86-64 Linux and Windows), or name it in "
        + LIBRARY_VARIABLE
    )


def _candidates() -> list[str]:
    ending = ".dll" if os.name == "nt" else ""
    found = files_of(
        "mkl", lambda name: name.startswith(("libmkl_rt.so", "mkl_rt.")) and name.endswith(ending)
    )
    folder = Path(sys.prefix, "Library", "bin") if os.name == "nt" else Path(sys.prefix, "lib")
    found += [str(path) for path in sorted(folder.glob("*mkl_rt*"), reverse=True)]
    return candidates(found, "mkl_rt")
