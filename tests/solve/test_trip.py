"""How deep the Python stack is where an engine's native function is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import grid, laplacian_places, laplacian_values

import sparse_solver as ss
from sparse_solver import _testing
from sparse_solver._engines import lapack, qdldl
from sparse_solver._engines.mkl import library as mkl
from sparse_solver._engines.supernodal import library as supernodal

# The native functions: attributes of an object that holds those of a library loaded by ctypes,
# or kernels, which Python's profiler does not see, or names of SciPy's, which it does.
NATIVE = {
    "pardiso": (mkl.library, ("pardiso",)),
    "qdldl": (qdldl._library, ("factor", "solve")),
    "superlu": (None, ("gstrf", "solve")),
    "cg": (None, ("mv",)),
    "supernodal": (supernodal.load, ("factor", "substitute")),
    "rslab": (None, ("factor", "solve")),
    "lapack": (lambda: lapack.library(False), ("getrf", "getrs", "potrf", "potrs")),
}


def visible(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind one in Python, so that the profiler sees its calls."""

    def native(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)

    return native


CASES = [
    (engine, kind)
    for kind in ("spd", "symmetric", "general")
    for engine in _testing.installed_engines(kind)  # type: ignore[arg-type] # the names are kinds
]


@pytest.mark.parametrize(("engine", "kind"), CASES)
def test_frames_from_pattern_solve_and_from_backward_to_the_native_call(
    engine: str, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 12 and 8 frames of the package, both ends included; there were 20 to a native call.

    A solve with values that require gradients, in a pattern that was analysed before.
    `Pattern.solve` is frame 1 on the way there, `Solve.backward` on the way back, which is in the
    calling thread on the CPU; the last frame is the one that makes the native call.
    """
    assert engine in NATIVE, "name the native functions of this engine here"
    library, names = NATIVE[engine]
    if library is not None:
        for name in names:
            monkeypatch.setattr(library(), name, visible(getattr(library(), name)))
        names = ("native",)
    edges, n = grid(5)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n).requires_grad_()
    b = torch.ones(n, dtype=torch.float64, requires_grad=True)
    P.solve(values, b, assume=kind, engine=engine)

    with _testing.record_calls() as there:
        x = P.solve(values, b, assume=kind, engine=engine)
    with _testing.record_calls() as back:
        x.sum().backward()
    for calls, calls_least, frames_most in ((there, 2, 12), (back, 1, 8)):
        # Pattern.solve has the name of native functions, and is called from outside: depth 0.
        depths = [depth for name, depth in calls if name in names and depth > 1]
        assert len(depths) >= calls_least
        assert max(depths) <= frames_most
