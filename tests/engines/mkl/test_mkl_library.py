"""Finding and loading oneMKL."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import sparse_solver as ss
from sparse_solver._engines.mkl import library as mkl

needs_pardiso = pytest.mark.skipif(
    not ss.engines()["pardiso"].installed, reason="PARDISO is not installed"
)
SCRIPT = """
import sparse_solver as ss, torch
print(ss.engines()['pardiso'].missing)
ss.solve(torch.eye(3).to_sparse(), torch.ones(3))
ss.solve(torch.eye(3).to_sparse(), torch.ones(3), assume='general')
"""


def find_reason(**environment: str) -> str:
    """Why PARDISO is missing in a process with these variables, which solves in any case."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    variables = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_library_that_cannot_be_loaded_is_reported_and_replaced() -> None:
    reason = find_reason(SPARSE_SOLVER_MKL="/nowhere/libmkl_rt.so")
    assert "SPARSE_SOLVER_MKL=/nowhere/libmkl_rt.so cannot be loaded" in reason


@needs_pardiso
def test_a_variable_names_the_library() -> None:
    library = mkl.library()
    assert isinstance(library, mkl.Library)
    assert find_reason(SPARSE_SOLVER_MKL=library.path) == "None"


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        ("Intel(R) Architecture processors", "generic x86-64"),
        ("Intel(R) Advanced Vector Extensions 2 (Intel(R) AVX2) enabled processors", "AVX2"),
        (
            "Intel(R) Advanced Vector Extensions 10 Version 2 (Intel(R) AVX 10.2) enabled "
            "processors with support for Intel(R) Advanced Matrix Extensions (Intel(R) AMX)",
            "AVX 10.2",
        ),
        ("a processor of the future", "a processor of the future"),
    ],
)
def test_instruction_sets_have_short_names(processor: str, name: str) -> None:
    assert mkl.name_instruction_set(processor) == name


@needs_pardiso
def test_the_instruction_set_is_the_one_that_mkl_reports(run_python: Callable[..., str]) -> None:
    """With MKL_VERBOSE, MKL describes its code by itself when one of its functions is called."""
    script = """
import ctypes, numpy as np
from sparse_solver._engines.mkl import library as mkl
library = mkl.library()
x, one = np.ones(1), ctypes.c_int(1)
pointer = x.ctypes.data_as(ctypes.c_void_p)
ctypes.CDLL(library.path).dscal_(ctypes.byref(one), pointer, pointer, ctypes.byref(one))
print(library.instruction_set)
"""
    *reported, name = run_python(script, MKL_VERBOSE="1").splitlines()
    described = re.search(r"architecture (.*?(?:processors|E4M3)\S*),? ", reported[0])
    assert described
    assert mkl.name_instruction_set(described[1].rstrip(",")) == name


@pytest.mark.parametrize(
    ("system", "machine", "helps"),
    [("linux", "x86_64", True), ("win32", "AMD64", True), ("linux", "aarch64", False),
     ("darwin", "arm64", False)],
)  # fmt: skip
def test_the_wheel_is_named_where_there_is_one(
    system: str, machine: str, helps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(mkl.LIBRARY_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(mkl, "_find_paths", list)
    reason = mkl.library.__wrapped__()
    assert isinstance(reason, str)
    assert ("pip install mkl" in reason) == helps


def test_another_library_is_not_taken_for_mkl() -> None:
    other = torch.__path__[0] + "/lib/libc10.so"
    if not os.path.exists(other):
        pytest.skip("torch has no libc10.so here")
    assert "cannot be loaded" in find_reason(SPARSE_SOLVER_MKL=other)


@needs_pardiso
def test_the_threads_of_other_users_of_mkl_are_left_alone() -> None:
    library = mkl.library()
    assert isinstance(library, mkl.Library)
    before = library.set_threads(1)
    try:
        F = ss.factorize(torch.eye(4).to_sparse(), assume="general", engine="pardiso")
        F.solve(torch.ones(4))
        assert library.set_threads(1) == 1
    finally:
        library.set_threads(before)
