"""What Newton's method reports while it runs, at its end, and in its errors."""

from __future__ import annotations

import math
import pickle
import sys
from typing import Any

import pytest
import torch
from sample_energies import FIXED, REST, Quartic, constants, structure
from torch import Tensor

import sparse_solver as ss


def test_non_convergence_carries_the_iterate_and_the_report() -> None:
    energy = structure(*constants())
    with pytest.raises(ss.ConvergenceError, match="max_iterations=2") as caught:
        ss.minimize(energy, REST + 1, fixed=FIXED, max_iterations=2)
    error = caught.value
    assert error.x.shape == REST.shape
    assert energy(error.x) < energy(REST + 1)
    assert [iteration.step > 0 for iteration in error.report.iterations] == [True, True, False]
    assert math.isclose(error.report.objective, float(energy(error.x)))
    assert "in 2 steps" in str(error)
    assert error.report.unique is None
    assert "did not converge" in str(error.report)
    assert isinstance(error, RuntimeError)
    again = pickle.loads(pickle.dumps(error))
    assert torch.equal(again.x, error.x)
    assert again.report == error.report
    downhill = ss.IndexedSum(lambda x: -x[0] - 0 * x[0] ** 2, torch.tensor([[0], [1]]))
    with pytest.raises(ss.ConvergenceError):
        ss.minimize(downhill, torch.zeros(2, dtype=torch.double))
    lying = Quartic(torch.ones(4).double(), torch.ones(4).double())
    lying.gradient = lambda x: -Quartic.gradient(lying, x)  # type: ignore[method-assign]
    with pytest.raises(ss.ConvergenceError, match="derivatives right"):
        ss.minimize(lying, torch.full((4,), 2.0).double())


def test_the_callback_sees_each_iteration() -> None:
    seen: list[tuple[Tensor, Any]] = []
    X, report = ss.minimize(
        structure(*constants()),
        REST,
        fixed=FIXED,
        callback=lambda X, iteration: seen.append((X, iteration)),
    )
    assert tuple(iteration for _, iteration in seen) == report.iterations
    assert torch.equal(seen[0][0], REST)
    assert torch.equal(seen[-1][0], X)


def test_nothing_is_shown_without_progress(capsys: pytest.CaptureFixture[str]) -> None:
    ss.minimize(structure(*constants()), REST, fixed=FIXED)
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_one_plain_line_per_iteration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)  # which is not needed
    _, report = ss.minimize(structure(*constants()), REST, fixed=FIXED, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\r" not in err
    lines = err.splitlines()
    assert len(lines) == len(report.iterations)
    for number, (line, iteration) in enumerate(zip(lines, report.iterations, strict=True), 1):
        assert line.startswith(f"minimize: iteration {number}, objective ")
        assert f"{iteration.objective:.6g}" in line
        assert f"{iteration.decrement:.1e}" in line


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, report = ss.minimize(structure(*constants()), REST, fixed=FIXED, progress=True)
    err = capsys.readouterr().err
    assert "\r" in err
    assert f"minimize: {len(report.iterations)}step" in err
    assert f"objective {report.objective:.6g}" in err
    assert err.count("\n") == 1  # the bar ends with its line
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ss.OptionError, match="tqdm"):
        ss.minimize(structure(*constants()), REST, fixed=FIXED, progress=True)


def test_reports_print_as_a_line_and_as_a_table() -> None:
    _, report = ss.minimize(structure(*constants()), REST, fixed=FIXED)
    assert repr(report).startswith("Report(converged=True, unique=True, steps=")
    assert "\n" not in repr(report) + repr(report.iterations[0])
    assert len(repr(report)) < 100
    head, names, *rows = str(report).splitlines()
    assert head.startswith(f"converged after {report.steps} steps")
    assert head.endswith(report.reason)
    assert names.split() == ["objective", "decrement", "step"]
    assert rows == [str(iteration) for iteration in report.iterations]
    assert repr(ss.Report(False, "the reason", (), None)).endswith("objective=nan)")


def test_the_reason_names_the_criterion() -> None:
    energy = structure(*constants())
    _, report = ss.minimize(energy, REST, fixed=FIXED, atol=1.0)
    assert report.reason == "the Newton decrement is small enough"
    _, report = ss.minimize(energy, REST, fixed=torch.ones(len(REST), dtype=torch.bool))
    assert report.reason == "all entries are fixed"
    i, x0 = torch.arange(2), torch.ones(2, dtype=torch.double)
    pattern = ss.Pattern(i, i, (2, 2))
    for atol, reason in ((10.0, "the residual is small enough"), (0.0, "the Newton step is short")):
        _, report = ss.find_root(lambda x: x**2 - 4, lambda x: 2 * x, pattern, x0, atol=atol)
        assert report.reason.startswith(reason)
