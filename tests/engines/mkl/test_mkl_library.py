"""Finding and loading oneMKL."""

from __future__ import annotations

import os
import subprocess
import sys

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
