"""The supernodal factorisation as an engine: when it is loaded and chosen, and what it tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gaussian.gaussian_cases import CASES, grid, pattern_of

import sparse_solver as ss
from sparse_solver._engines import registry
from sparse_solver._engines.protocol import Compiled, SolvesHalf
from sparse_solver._engines.supernodal import engine as engine_module
from sparse_solver._engines.supernodal import library

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", CASES)
def test_solutions_and_what_the_factor_tells(case: str) -> None:
    A = CASES[case]().tocsr()
    P, values = pattern_of(A)
    n = P.shape[0]
    F = P.factorize(values, assume="spd", engine="supernodal")
    size = torch.from_numpy(np.sqrt(A.diagonal()))[:, None]
    b = torch.randn(n, 3, dtype=torch.float64) * size
    D = P.tensor(values).to_dense()
    expected = torch.linalg.solve(D / size / size.mT, b / size)
    torch.testing.assert_close(F.solve(b) * size, expected, rtol=1e-10, atol=1e-11)
    (part,) = F._factors.parts
    factor = part.factor.factor
    assert isinstance(factor, SolvesHalf)
    assert factor.sound
    assert factor.nnz == F.info.factor_nnz >= n + (P.nnz - n) // 2
    assert F.info.factor_flops >= factor.nnz
    assert F.info.memory_bytes >= 8 * factor.nnz
    assert torch.equal(factor.values, values[(P.rows <= P.cols)])


def test_what_listing_and_other_solves_load(run_python: Callable[..., str]) -> None:
    script = """
import sys, torch
import sparse_solver as ss
def loaded(): print(sorted({"numba", "llvmlite"} & {m.split(".")[0] for m in sys.modules}))
assert ss.engines()["supernodal"].version.startswith("Numba ")
A = torch.eye(3).to_sparse()
ss.solve(A, torch.ones(3)); ss.solve(A, torch.ones(3), assume="spd")
loaded()
F = ss.factorize(A, engine="supernodal")
print(F.info.engine, F.solve(torch.ones(3)).tolist())
"""
    assert run_python(script).splitlines() == ["[]", "supernodal [1.0, 1.0, 1.0]"]


def test_it_is_chosen_where_it_is_compiled_or_there_is_no_mkl(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = registry.engine_named("supernodal")
    assert isinstance(engine, Compiled)
    P, values = pattern_of(grid(5, 5))
    P.factorize(values, engine="supernodal")
    assert engine.is_ready
    pardiso = type(registry.engine_named("pardiso"))
    has_mkl, missing = ss.Availability(version="2026"), ss.Availability(missing="pip install mkl")
    for is_ready in (False, True):
        monkeypatch.setattr(engine_module, "is_compiled", lambda is_ready=is_ready: is_ready)
        monkeypatch.setattr(pardiso, "availability", lambda self: has_mkl)
        assert ("supernodal" in registry.direct_engines_on(CPU)) == is_ready
        monkeypatch.setattr(pardiso, "availability", lambda self: missing)
        assert "supernodal" in registry.direct_engines_on(CPU)
    monkeypatch.setattr(type(registry.engine_named("qdldl")), "availability", lambda self: missing)
    ss.clear_cache()
    again = ss.Pattern(P.rows.clone(), P.cols.clone(), P.shape)
    F = again.factorize(values, assume="spd")
    assert F.info.engine == "supernodal"
    assert "no MKL" in F.info.engine_reason


def test_both_triangles_are_compared_while_they_are_gathered(counts: Counter[str]) -> None:
    """The second matrix takes the direct route, whose errors are those of the ladder."""
    P, values = pattern_of(grid(5, 5))
    b = torch.ones(25, dtype=torch.float64)
    x = P.solve(values, b, assume="spd", engine="supernodal")
    torch.testing.assert_close(P.solve(2 * values, b, assume="spd", engine="supernodal"), x / 2)
    assert counts["analyze"] == 1
    for bad in (torch.nan, torch.inf):
        broken = values.clone()
        broken[P.rows != P.cols] = bad
        with pytest.raises(ss.NonFiniteError):
            P.solve(broken, b, assume="spd", engine="supernodal")
        torch.testing.assert_close(P.solve(values, b, assume="spd", engine="supernodal"), x)
    with pytest.raises(ss.NotPositiveDefiniteError):
        P.solve(-values, b, assume="spd", engine="supernodal")


def test_nothing_is_compiled_before_the_kernels_are_loaded(monkeypatch) -> None:
    monkeypatch.delitem(library.sys.modules, f"{library.__package__}.elimination", raising=False)
    assert not library.is_compiled()


@pytest.mark.parametrize("missing", ["numba", "scipy"])
def test_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    find = engine_module.importlib.util.find_spec
    monkeypatch.setattr(
        engine_module.importlib.util,
        "find_spec",
        lambda name: None if name == missing else find(name),
    )
    found = engine_module._availability.__wrapped__()
    assert not found.installed
    assert missing in found.missing
    assert 'pip install "sparse-solver[gaussian]"' in found.missing


def test_kinds_that_it_does_not_take() -> None:
    P, values = pattern_of(grid(5, 5))
    for assume, dtype in (("general", torch.float64), ("spd", torch.complex64)):
        with pytest.raises(ss.EngineUnsupportedError, match="'supernodal' cannot factor"):
            P.factorize(values.to(dtype), assume=assume, engine="supernodal")
    with pytest.raises(ss.NotPositiveDefiniteError) as caught:
        P.factorize(values - 1.0 * (P.rows == P.cols), assume="spd", engine="supernodal")
    assert caught.value.engine == "supernodal"


def test_a_nearly_singular_matrix_in_single_precision_is_in_doubt() -> None:
    """Computed in double precision, its pivots are positive, but not those of the stored values."""
    P, values = pattern_of(grid(30, 30))
    singular = values - 0.1 * (P.rows == P.cols)
    F = P.factorize(values.float(), assume="spd", engine="supernodal")
    assert F._factors.parts[0].factor.factor.sound
    with pytest.raises((ss.SingularMatrixError, ss.NotPositiveDefiniteError)):
        P.factorize(singular.float(), assume="spd", engine="supernodal").solve(torch.ones(900))
