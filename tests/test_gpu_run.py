"""The program that tests everything on a GPU, on groups of its own, and what it runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import simulated_gpu
import torch

from tests.gpu import __main__ as gpu_run
from tests.gpu import twenty_solves
from tests.gpu.__main__ import GROUPS, Group

TESTS = """
import pytest
def test_good(): pass
def test_bad(): raise ValueError("the reason\\nin two lines")
def test_absent(): pytest.skip("not here")
"""


def test_the_summary_tells_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "test_three.py"
    file.write_text(TESTS)
    slow = (sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)")
    groups = (Group("three", 60, (str(file),)), Group("too slow", 1, command=slow))
    assert gpu_run.run_groups(groups, tmp_path / "log") == 1
    lines = capsys.readouterr().out.splitlines()
    assert "1 passed, 1 failed, 1 skipped" in next(line for line in lines if line[:5] == "three")
    assert "out of time" in next(line for line in lines if line[:8] == "too slow")
    assert any("test_bad: ValueError: the reason" in line for line in lines)
    assert "begun" in lines
    assert "in two lines" in (tmp_path / "log" / "three.txt").read_text()


def test_good_groups_have_the_exit_status_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Group("good", 60, command=(sys.executable, "-c", "print('a table')"))
    assert gpu_run.run_groups((good,), tmp_path) == 0
    assert "a table" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_is_tested_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_run.main([]) == 1
    assert "finds no CUDA device" in capsys.readouterr().out


def test_every_group_finds_its_tests() -> None:
    names = [word for group in GROUPS for word in group.tests if word.startswith("tests/")]
    assert all((gpu_run.ROOT / name).exists() for name in names)
    (contract,) = (group for group in GROUPS if group.name == "contract")
    line = [sys.executable, "-m", "pytest", "--collect-only", "-q", *contract.tests]
    listed = subprocess.run(line, cwd=gpu_run.ROOT, capture_output=True, text=True).stdout
    assert "[cudss-cuda-float64-spd" in listed
    assert GROUPS[0].tests[0] == "-x"
    assert not any("-x" in group.tests for group in GROUPS[1:])


def test_twenty_solves_of_each_kind(cudss: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert twenty_solves.main(simulated_gpu.DEVICE) == 0
    assert capsys.readouterr().out.count("residual") == 14


def test_the_simulation_leaves_real_gpus_alone(run_python: Callable[..., str]) -> None:
    script = (
        "import simulated_gpu, torch\n"
        "print(torch._C._get_privateuse1_backend_name(), simulated_gpu.MISSING)"
    )
    printed = run_python(script, SPARSE_SOLVER_REAL_GPU="1")
    assert printed.strip() == "privateuseone only real GPUs are tested"
    assert [group.name for group in GROUPS if group.simulates] == ["simulation"]
