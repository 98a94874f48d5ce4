"""How much memory is free, and factors that are refused before they are begun."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch
from problems import generator, grid, laplacian_places, laplacian_values

import sparse_solver as ss
from sparse_solver._engines import free_memory
from sparse_solver._engines.free_memory import check_memory, free_bytes

ENGINES = [name for name in ("pardiso", "qdldl", "supernodal") if ss.engines()[name].installed]


def limit(folder: Path, most: str, used: str, statistics: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "memory.max").write_text(most + "\n")
    (folder / "memory.current").write_text(used + "\n")
    (folder / "memory.stat").write_text(statistics)
    return folder


def test_no_more_is_free_than_the_machine_and_its_container_have(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().total
    assert 0 < free_bytes(tmp_path / "missing") <= machine
    stat = "anon 10\ninactive_file 300\nactive_file 7\n"
    assert free_bytes(limit(tmp_path, "5000", "1200", stat)) == 5000 - 1200 + 300
    assert free_bytes(limit(tmp_path, "1000", "1400", stat)) == 0
    assert free_bytes(limit(tmp_path, str(100 * machine), "0", stat)) <= machine
    assert free_bytes(limit(tmp_path, "max", "1200", stat)) > 5000
    assert free_bytes(limit(tmp_path, "5000", "1200", "anon 10\n")) > 5000  # no such number
    first = tmp_path / "memory"
    first.mkdir()
    (first / "memory.limit_in_bytes").write_text("9000")
    (first / "memory.usage_in_bytes").write_text("2000")
    (first / "memory.stat").write_text("total_inactive_file 500\n")
    (tmp_path / "memory.max").unlink()
    assert free_bytes(tmp_path) == 7500


def test_this_machine_has_free_memory() -> None:
    assert free_bytes() > 2**26
    check_memory("any", 2**23, torch.float64)
    with pytest.raises(ss.MemoryLimitError, match="GB are free"):
        check_memory("any", 2**60, torch.float32)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["auto", "spd", "symmetric", "general"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factor_that_would_not_fit_is_refused(
    engine: str, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine in ("qdldl", "supernodal") and kind not in ("auto", "spd"):
        pytest.skip("it takes positive definite matrices only")
    edges, n = grid(20)
    weights = torch.rand(edges.shape[1], dtype=dtype, generator=generator(0)) + 0.1
    values, b = laplacian_values(weights, n), torch.ones(n, dtype=dtype)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    options = {"assume": kind, "engine": engine}
    x = P.solve(values, b, **options)  # type: ignore[arg-type] # plain strings
    nnz = P.factorize(values, **options).info.factor_nnz  # type: ignore[arg-type]
    assert nnz is not None
    monkeypatch.setattr(free_memory, "_SMALL", 1)
    monkeypatch.setattr(free_memory, "free_bytes", lambda: 4000)
    for solve in (lambda: P.solve(values, b, **options), lambda: P.factorize(values, **options)):  # type: ignore[arg-type]
        with pytest.raises(ss.MemoryLimitError, match="entries and need") as caught:
            solve()
        assert isinstance(caught.value, MemoryError)
        assert caught.value.engine == engine
        assert caught.value.free_bytes == 4000
        needed = caught.value.needed_bytes
        assert needed is not None
        assert nnz * 4 - 8 * n <= needed <= nnz * 16
    monkeypatch.setattr(free_memory, "free_bytes", lambda: 2**40)
    torch.testing.assert_close(P.solve(values, b, **options), x)  # type: ignore[arg-type]


@pytest.mark.skipif("pardiso" not in ENGINES, reason="only its analysis takes no memory for fill")
def test_the_prediction_is_that_of_the_analysis(monkeypatch: pytest.MonkeyPatch) -> None:
    edges, n = grid(20)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    nnz = P.factorize(values, assume="spd", engine="pardiso").info.factor_nnz
    assert nnz is not None
    ss.clear_cache()
    monkeypatch.setattr(free_memory, "_SMALL", 1)
    monkeypatch.setattr(free_memory, "free_bytes", lambda: 8 * nnz - 1)
    with pytest.raises(ss.MemoryLimitError, match=f"would have {nnz:,} entries"):
        P.solve(values, torch.ones(n).double(), assume="spd", engine="pardiso")
    monkeypatch.setattr(free_memory, "free_bytes", lambda: 8 * nnz)
    P.solve(values, torch.ones(n).double(), assume="spd", engine="pardiso")
