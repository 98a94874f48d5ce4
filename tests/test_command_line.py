"""`python -m sparse_solver`: what it prints, what it checks, and its exit status."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pytest
import torch

import sparse_solver as ss
from sparse_solver import __main__ as command_line
from sparse_solver._engines import registry

INSTALLED = [name for name, found in ss.engines().items() if found.installed]


def test_the_report_has_versions_checks_and_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main() == 0
    versions, checks, advice = capsys.readouterr().out.split("\n\n")
    for word in (ss.__version__, torch.__version__, "threads", *registry.engine_names()):
        assert word in versions
    found = {line.split()[0]: line for line in checks.splitlines()[1:]}
    assert set(found) == set(INSTALLED)
    assert all(" passed: residual " in line for line in found.values())
    assert advice.startswith("What would give more speed or more functions here:\n- ")


@pytest.mark.parametrize("engine", INSTALLED)
def test_a_check_compares_with_dense_torch(engine: str) -> None:
    check = command_line.check_engine(engine)
    assert check.passed
    assert 0 < check.residual < 1e-14
    assert 0 < check.gradient_error < 1e-13


@pytest.mark.parametrize("is_wrong", ["solution", "gradient"])
def test_a_wrong_answer_fails_the_check(is_wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    solve = ss.Pattern.solve

    def solve_wrongly(*arguments: object, **options: object) -> torch.Tensor:
        x = solve(*arguments, **options)  # type: ignore[arg-type]  # whatever the check passes
        return x * (1 + 1e-9) if is_wrong == "solution" else x.detach() + 2 * (x - x.detach())

    monkeypatch.setattr(ss.Pattern, "solve", solve_wrongly)
    check = command_line.check_engine("superlu")
    assert not check.passed
    assert str(check).startswith("FAILED")
    assert (check.residual < 1e-14) == (is_wrong == "gradient")


def test_a_result_that_is_not_a_number_fails() -> None:
    assert not command_line.Check(math.nan, 0.0).passed
    assert not command_line.Check(0.0, math.nan).passed


def test_an_engine_that_fails_is_reported_and_the_others_are_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    superlu = registry.engine_named("superlu")

    def fail(*_: object) -> None:
        raise ss.EngineError("out of order", engine="superlu", code=3)

    monkeypatch.setattr(type(superlu), "analyze", fail)
    assert command_line.main() == 1
    out = capsys.readouterr().out
    assert "FAILED: EngineError: out of order" in out
    assert out.count(" passed: ") == len(INSTALLED) - 1


def test_what_can_be_installed_is_advised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "one": ss.Availability(missing="pip install something"),
        "two": ss.Availability(missing="pip install something"),
        "three": ss.Availability(missing="there is none for this machine"),
        "four": ss.Availability(version="4"),
    }
    monkeypatch.setattr(command_line, "engines", lambda: found)
    monkeypatch.setattr(command_line, "_count_cores", lambda: torch.get_num_threads())
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert command_line.advise() == ["one, two: pip install something"]
    found.clear()
    assert command_line.advise() == ["there is nothing to install for this machine"]


def test_idle_cores_and_an_idle_gpu_are_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(command_line, "engines", dict)
    monkeypatch.setattr(command_line, "_count_cores", lambda: threads + 2)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    gpu, cores = command_line.advise()
    assert "GPU" in gpu
    assert f"torch uses {threads} of {threads + 2} cores" in cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinities here")
def test_cores_that_this_process_may_not_use_do_not_count(run_python: Callable[..., str]) -> None:
    script = """
import os
from sparse_solver.__main__ import _count_cores
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(_count_cores())
"""
    assert run_python(script).strip() == "1"
