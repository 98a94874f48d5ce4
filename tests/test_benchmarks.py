"""The benchmark measures correct answers, and reports wrong ones. No test asserts a time."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import simulated_gpu
import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    contenders,
    energies,
    gpu,
    iterate_or_factor,
    problems,
    processes,
    repeat,
    small,
    targets,
    timing,
    two_level,
)
from benchmarks.__main__ import as_json, main, read_rows, wrong  # noqa: E402
from benchmarks.peers import PEERS  # noqa: E402
from benchmarks.plot import spread  # noqa: E402


def has_mkl() -> bool:
    try:
        importlib.metadata.version("mkl")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_mkl = pytest.mark.skipif(not has_mkl(), reason="the bare engine is PARDISO")


def test_the_quick_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All gradients are right, for every workload and every contender that is installed."""
    found, picture = tmp_path / "found.json", tmp_path / "images" / "chain.png"
    assert main(["--quick", "--peers", "--json", str(found), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = json.loads(found.read_text())["rows"]
    assert {row["workload"] for row in rows} == set(problems.table(quick=True))
    for row in rows:
        for name, timed in row["contenders"].items():
            if timed["absent"] is None:
                assert timed["error"] < 1e-5, (row["problem"], name)
                assert timed["milliseconds"]
            else:
                assert not timed["absent"].startswith("failed"), (name, timed["absent"])
    printed = capsys.readouterr().out
    assert "| chain 256 |" in printed
    assert "4 rhs at once |" in printed


def test_saved_samples_are_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {"sparse_solver": timing.Timed([2.0, 3.0, 7.0], error=0.0)}
    times |= {"bare PARDISO": timing.Timed([1.0], error=0.0), "cholespy": timing.Timed([], "wrong")}
    rows = [targets.Row("chain", f"chain {n}", n, times) for n in (256, 512)]
    saved, picture = tmp_path / "saved.json", tmp_path / "chain.png"
    saved.write_text(json.dumps(as_json(rows, [])))
    assert read_rows(saved) == rows
    monkeypatch.setattr("benchmarks.__main__.measure", None)  # nothing is measured
    assert main(["--saved", str(saved), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        main(["--saved", str(saved)])
    assert "--saved needs --plot" in capsys.readouterr().err


def test_labels_of_lines_keep_their_distance_and_their_order() -> None:
    heights = {"c": 0.3, "a": 0.0, "b": 0.1, "e": 5.0, "d": 0.35}
    found = spread(heights, 1.0)
    assert list(found) == ["a", "b", "c", "d", "e"]
    levels = list(found.values())
    assert all(above - below >= 1 - 1e-12 for below, above in itertools.pairwise(levels))
    assert sum(levels[:4]) == pytest.approx(0.75)  # as near to the lines as possible
    assert found["e"] == 5.0
    assert spread({}, 1.0) == {}


def test_workloads_that_do_not_exist_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["chian"])
    assert "no workload chian; there are chain, graph" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["graph", "--plot", "plot.png"])
    assert "--plot draws the chain" in capsys.readouterr().err


def test_the_quick_table_of_iterating_or_factoring(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["iterate_or_factor", "--quick"])
    iterate_or_factor.main()
    assert "always iterate" in capsys.readouterr().out


@needs_mkl
def test_a_wrong_gradient_disqualifies() -> None:
    class Wrong(contenders.Ours):
        def solve(self, values: Tensor, b: Tensor) -> Tensor:
            return super().solve(values, b).detach() + 0 * values.sum()

    problem = problems.chain(64)
    times = timing.measure(problem, contenders.BARE, (Wrong,), (), set(), 0.0, lambda text: None)
    row = targets.Row("chain", problem.name, problem.n, times)
    assert row.bare is not None
    assert row.of("sparse_solver") is None
    assert wrong([row]) == ["chain 64: sparse_solver is wrong by 1.0e+00"]
    values = [target.values for target in targets.targets([row], set(), None, None)]
    assert not any(values)


@needs_mkl
def test_a_fresh_theta_for_every_sample() -> None:
    seen: list[Tensor] = []

    class Watching(contenders.Ours):
        def fresh(self, theta: Tensor) -> Any:
            seen.append(theta)
            return super().fresh(theta)

    timing.measure(problems.chain(64), (), (Watching,), (), set(), 0.05, lambda text: None)
    assert len(seen) > 3
    assert len({tuple(theta.tolist()) for theta in seen}) == len(seen)


def test_contenders_that_raise_absent_or_fail_are_absent_and_errors_of_ours_are_raised() -> None:
    class Broken(contenders.Ours):
        name = "broken"

        def solve(self, values: Tensor, b: Tensor) -> Tensor:
            raise MemoryError("too much")

    class Missing(contenders.Ours):
        name, needs = "missing", "a_package_that_does_not_exist"

    problem = problems.chain(64)
    times = timing.measure(problem, (), (), (Broken, Missing), set(), 0.0, lambda text: None)
    assert times["broken"].absent == "failed: MemoryError: too much"
    assert times["missing"].absent == "a_package_that_does_not_exist is not installed"
    with pytest.raises(MemoryError):
        timing.measure(problem, (), (Broken,), (), set(), 0.0, lambda text: None)


def test_without_a_bare_engine_answers_are_compared_with_scipy() -> None:
    for problem in (
        problems.convection(6),
        problems.helmholtz(6),
        problems.mesh(8, 8, 3),
        problems.batch(3, 4),
    ):
        assert problem.batch in (0, 3)
        times = timing.measure(problem, (), (contenders.Ours,), (), set(), 0.0, lambda text: None)
        assert 0 <= (times["sparse_solver"].error or 0) < 1e-9


@needs_mkl
def test_the_bare_engine_checks_itself() -> None:
    problem = problems.grid(6, 6)
    bare = contenders.BarePardiso(problem)
    theta = problem.fresh()
    x, y = bare.run(bare.fresh(theta))
    with pytest.raises(AssertionError, match="the bare engine is wrong"):
        bare.answer(theta, (x + 1e-3, y))
    bare.close()


def test_meshes_and_matrices_have_the_properties_of_their_names() -> None:
    problem = problems.mesh(12, 12, 3)
    A = dense(problem)
    torch.testing.assert_close(A, A.mT)
    masses = A.sum(1)  # of M + t L, as L annihilates constants
    assert (masses > 0).all()
    assert float(masses.mean()) == pytest.approx(1.0)
    assert torch.linalg.eigvalsh(A)[0] > 0
    squared = dense(problems.mesh(12, 12, 3, True))
    assert torch.equal(squared, squared.mT)
    assert torch.linalg.eigvalsh(squared)[0] > 0
    saddle = torch.linalg.eigvalsh(dense(problems.saddle_point(8)))
    assert saddle[0] < 0 < saddle[-1]
    convection = dense(problems.convection(5))
    assert not torch.equal(convection, convection.mT)
    helmholtz = dense(problems.helmholtz(5))
    assert helmholtz.is_complex()
    assert torch.equal(helmholtz, helmholtz.mT)


def dense(problem: problems.Problem) -> Tensor:
    values = problem.values(problem.fresh())
    A = torch.zeros(problem.n, problem.n, dtype=values.dtype)
    return A.index_put((problem.rows, problem.cols), values, accumulate=True)


def test_targets_are_judged_by_their_worst_value() -> None:
    def timed(milliseconds: float) -> timing.Timed:
        return timing.Timed([milliseconds], error=0.0)

    def row(n: int, **milliseconds: float) -> targets.Row:
        times = {name.replace("_", " "): timed(value) for name, value in milliseconds.items()}
        times["Pattern.solve"] = times.pop("pattern")
        return targets.Row("grid2d", f"grid {n}²", n**2, times)

    rows = [
        row(300, bare_PARDISO=10, pattern=11),
        row(500, bare_PARDISO=10, pattern=12, x=1),
        *(
            targets.Row("chain", f"{n}", n, {"sparse_solver": timed(n**1.5)})
            for n in (2**10, 2**12, 2**14)
        ),
    ]
    found = {target.what: target for target in targets.targets(rows, {"x"}, 0.1, 1.1)}
    pattern = next(
        target for what, target in found.items() if what.startswith("`Pattern.solve` over")
    )
    assert pattern.worst == ("grid 500²", pytest.approx(1.2))
    assert "met by 1 of 2" in str(pattern)
    growth = next(target for what, target in found.items() if "growth exponent" in what)
    assert growth.values["chain"] == pytest.approx(1.5)


def test_the_first_import_is_measured() -> None:
    alone, more = processes.import_seconds(samples=1)
    assert alone > 0
    assert abs(more) < alone


@needs_mkl
def test_peak_memory_of_a_process() -> None:
    ours, bare = (
        processes.peak_memory(name, (20, 20)) for name in ("Pattern.solve", "bare PARDISO")
    )
    assert ours is None or (ours > 0 and bare is not None and bare > 0)


def test_contenders_have_names_of_their_own() -> None:
    direct = (*contenders.BARE, *contenders.OURS, *PEERS)
    for group in (direct, (*repeat.BARE, *repeat.OURS, *repeat.PEERS)):
        names = [make.name for make in group]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("shuffled", [False, True])
def test_hessians_of_energies_are_right_before_they_are_timed(
    shuffled: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert energies.difference(energies.Sheet(6, shuffled)) < 1e-12
    monkeypatch.setattr(sys, "argv", ["energies", "--quick"])
    energies.main()
    assert "| 32, shuffled |" in capsys.readouterr().out


def test_the_example_runs(tmp_path: Path) -> None:
    picture = tmp_path / "chain.png"
    example = str(ROOT / "examples" / "benchmark.py")
    command = [sys.executable, example, "--quick", "--plot", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| chain 1024 |" in done.stdout
    assert picture.exists()


def test_the_benchmark_of_the_gpu(
    cudss: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    meshes = [lambda: problems.mesh(6, 6, 3, squared=True)]
    makers = [lambda: problems.grid(6, 6), lambda: problems.batch(4, 3), *meshes]
    monkeypatch.setattr(gpu, "problems", lambda quick: makers)
    with warnings.catch_warnings():
        assert gpu.main(["--quick", "--rounds", "1"], simulated_gpu.DEVICE) == 0
    printed = capsys.readouterr().out
    ours = ("sparse_solver", "sparse_solver, non_blocking=", "sparse_solver on the CPU")
    for name in ("bare cuDSS", *ours, "dense torch"):
        row = rf"^  {name}.* ms .* × .* MB .* ×$"
        assert len(re.findall(row, printed, re.MULTILINE)) >= 3, printed
    assert "nvmath DirectSolver: absent" in printed


def test_the_quick_tables_of_small_systems(capsys: pytest.CaptureFixture[str]) -> None:
    small.main(["--quick"])
    rows = capsys.readouterr().out.splitlines()
    assert any(row.startswith("| band 14, complex128 |") for row in rows)


@needs_mkl
def test_the_quick_table_of_two_level_factorisations(capsys: pytest.CaptureFixture[str]) -> None:
    two_level.main(["--quick"])
    assert "| grid 12² | 144 | 9 |" in capsys.readouterr().out
