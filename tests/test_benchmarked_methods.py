"""The table of methods: who takes part, what is predicted, and how accurate it is."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sparse_solver as ss
from benchmarks import bare, conditions, contenders, methods, problems, processes, targets, timing
from benchmarks.peers import ITERATING, Cholespy, Pypardiso, Splu, TorchSla


def fresh_matrix(problem: problems.Problem) -> Any:
    """A dense matrix with fresh values."""
    return problem.scipy_matrix(problem.values(problem.fresh())).toarray()


def test_the_quick_tables_of_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert methods.main(["--quick", "--memory"]) == 0
    printed = capsys.readouterr().out
    for name in ("graph 300", "grid 8³", "grid 8³, shift 0.01", "stiff bi-Laplacian 400, 3 rhs"):
        assert f"| {name} |" in printed
    absent = r"- sparse_solver, cg: a solve takes about 18,\d+ iterations \(stiff .* 400, 3 rhs\)"
    assert re.search(absent, printed)
    assert "| step over the faster of both methods | 1.5 | " in printed
    assert "not measured" not in printed
    assert "GB of peak memory | 2 |" not in printed  # which is a limit for another grid
    if processes.STATUS.exists():
        assert "on the grid 20³, shift 0.01: " in printed


def test_libraries_that_are_not_installed_have_no_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for make in ITERATING:
        monkeypatch.setattr(make, "needs", "a_package_that_does_not_exist")
    rows = methods.print_table([lambda: problems.grid(6, 6)], 0.0)
    assert set(rows[0].times) == {make.name for make in contenders.METHODS}
    head, line, row, *rest = capsys.readouterr().out.splitlines()
    assert head == "| problem | chosen | step | direct | CG | over the faster |"
    assert head.count("|") == line.count("|") == row.count("|")
    assert not any(rest)


def test_absences_are_listed_by_their_reasons() -> None:
    def row(name: str, **times: timing.Timed) -> targets.Row:
        return targets.Row("graph", name, 9, times)

    absent = timing.Timed(absent="one right-hand side only")
    rows = [
        row("a, 3 rhs", x=absent, y=timing.Timed([1.0], error=0.0)),
        row("b", x=absent, y=timing.Timed([1.0], error=0.02)),
    ]
    assert list(methods.absences(rows)) == [
        "- x: one right-hand side only (a, 3 rhs; b)",
        "- y: wrong by 2e-02 (b)",
    ]


def test_methods_refuse_workloads_that_do_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        methods.main(["chain"])
    assert "no workload chain; there are graph, grid2d" in capsys.readouterr().err


def test_the_condition_numbers_of_the_bi_laplacians() -> None:
    for t, low, high in ((problems.SMOOTH, 1, 10), (problems.STIFF, 1e5, 1e7)):
        problem = problems.mesh(20, 20, 1, True, t)
        assert low < np.linalg.cond(fresh_matrix(problem)) < high
        assert (problem.condition is not None) == (t == problems.STIFF)


def test_condition_numbers_are_those_of_the_eigenvalues() -> None:
    torch.manual_seed(0)
    theta = (problem := problems.grid(6, 6, 6, shift=1e-2)).fresh()
    fixed = dataclasses.replace(problem, fresh=lambda: theta)
    A = fresh_matrix(fixed)
    scale = A.diagonal() ** -0.5
    wanted = [float(np.linalg.cond(M)) for M in (A, scale[:, None] * A * scale)]
    assert conditions.conditions_of(fixed) == pytest.approx(wanted, rel=1e-2)


def test_the_quick_table_of_conditions(capsys: pytest.CaptureFixture[str]) -> None:
    conditions.main(["--quick"])
    assert "| stiff bi-Laplacian 144 |" in capsys.readouterr().out


FACTORING = (contenders.BarePardiso, contenders.OursDirect, Splu, Cholespy, TorchSla, Pypardiso)


@pytest.mark.parametrize("make", FACTORING)
def test_who_factors_is_absent_where_that_takes_too_long(
    make: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problems.graph(300)
    monkeypatch.setattr(problems, "MOST_FLOPS", problem.factor_flops / 2)
    # A library that is not installed is absent for that reason.
    with pytest.raises(problems.Absent, match=r"takes about \de\+06 operations|not installed"):
        make(problem)
    times = timing.measure(problem, (), (contenders.Ours,), (make,), set(), 0.0, lambda text: None)
    assert times[make.name].absent is not None
    assert times["sparse_solver"].is_right


def test_factorisations_of_large_graphs_are_predicted_to_take_too_long() -> None:
    flops = [problems.graph(n).factor_flops for n in (100, 10_000, 20_000)]
    assert flops[1] < problems.MOST_FLOPS < flops[2]
    assert flops[0] <= 100**3 / 3  # no factor is fuller than a dense one
    assert problems.chain(10_000).factor_flops < 1e7
    assert 1e8 < problems.grid(20, 20, 20).factor_flops < 1e9


def test_conjugate_gradients_are_absent_where_they_take_too_long_or_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(problems.Absent, match=r"a solve takes about 18,\d+ iterations"):
        contenders.OursCg(problems.mesh(8, 8, 1, True, problems.STIFF))
    with pytest.raises(problems.Absent, match="positive definite matrices only"):
        contenders.OursCg(problems.convection(6))

    def fail(*arguments: Any, **options: Any) -> None:
        raise ss.ConvergenceError("after 9 iterations")

    problem = problems.grid(6, 6)
    cg = contenders.OursCg(problem)
    monkeypatch.setattr(ss.Pattern, "solve", fail)
    with pytest.raises(problems.Absent, match="no convergence: after 9 iterations"):
        cg.run(cg.fresh(problem.fresh()))


def test_large_references_are_found_by_conjugate_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    for problem in (problems.grid(8, 8, 8, shift=1e-2), problems.mesh(8, 8, 3)):
        theta = problem.fresh()
        factored = bare.reference(problem, theta)
        with monkeypatch.context() as patch:
            patch.setattr(bare, "_MOST_FLOPS_FOR_SCIPY", 0.0)
            patch.setattr("scipy.sparse.linalg.splu", None)
            iterated = bare.reference(problem, theta)
        torch.testing.assert_close(iterated, factored, rtol=1e-9, atol=1e-9)
        assert not torch.equal(iterated, factored)


@pytest.mark.skipif(importlib.util.find_spec("torch_sla") is None, reason="no torch-sla")
def test_torch_sla_as_accurate_has_smaller_residuals() -> None:
    problem = problems.grid(10, 10, 10, shift=1e-2)
    theta, norms = problem.fresh(), []
    values = problem.values(theta)
    for make in ITERATING:
        x = make(problem).solve(values, problem.rhs)  # type: ignore[attr-defined]
        residual = problem.rhs.numpy() - problem.scipy_matrix(values) @ x.numpy()
        norms.append(float((residual**2).sum() ** 0.5 / problem.rhs.norm()))
    assert 1e-13 < norms[0] < 1e-10  # its own tolerance
    assert norms[1] < 1e-14


def test_slow_contenders_are_sampled_once_and_others_in_every_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(contenders.Ours):
        name = "slow"

    class Middling(contenders.Ours):
        name = "middling"

    def run(contender: Any, theta: Tensor) -> tuple[float, object]:
        seconds = {"slow": 2 * timing.SLOW, "middling": 1.0}.get(contender.name, 0.125)
        return seconds, contender.run(contender.fresh(theta))

    monkeypatch.setattr(timing, "_run", run)
    ours = (contenders.Ours, Slow, Middling)
    problem = problems.chain(64)
    times = timing.measure(problem, (), ours, (), set(), 0.0, lambda text: None)
    counts = [len(times[make.name].milliseconds) for make in ours]
    assert counts == [3, 1, 3]
    assert times["slow"].median == 2e3 * timing.SLOW
    times = timing.measure(problem, (), (Slow,), (), set(), 1.0, lambda text: None)
    assert len(times["slow"].milliseconds) == 1


def test_the_targets_of_methods() -> None:
    def row(name: str, **milliseconds: float) -> targets.Row:
        names = [make.name for make in contenders.METHODS]
        by_word = dict(zip(("step", "direct", "cg"), names, strict=True))
        times = {by_word[key]: timing.Timed([ms], error=0.0) for key, ms in milliseconds.items()}
        return targets.Row("grid3d", name, 1, times)

    rows = [
        row("graph 10000", step=4, direct=1000, cg=2),
        row("graph 100000", step=300, cg=300),
        row("grid 100³, shift 0.01", step=12_000),
    ]
    found = [target.worst for target in methods.targets(rows, 1_500_000_000)]
    assert found[0] is None
    assert found[1] == ("graph 100000", pytest.approx(0.3))
    assert found[3:5] == [("grid 100³, shift 0.01", 12.0), ("grid 100³, shift 0.01", 1.5)]
    assert found[5] == ("graph 10000", 2.0)
    assert found[6] == ("all", pytest.approx(2**0.5))
    assert all(target.worst is None for target in methods.targets([], None))


def test_methods_whose_gradients_are_not_accurate_are_mistakes() -> None:
    times = {make.name: timing.Timed([1.0], error=1e-9) for make in contenders.METHODS}
    times["sparse_solver, cg"].error = 1e-6
    assert methods.find_mistakes([targets.Row("graph", "graph 9", 9, times)]) == [
        "graph 9: sparse_solver, cg is wrong by 1.0e-06"
    ]
    times["sparse_solver, cg"].error = float("nan")
    assert len(methods.find_mistakes([targets.Row("graph", "graph 9", 9, times)])) == 1
