"""The comparison of engines without MKL with PARDISO runs, and hides MKL from one process only."""

from __future__ import annotations

import os

import pytest
from test_benchmarks import needs_mkl

from benchmarks import without_mkl
from sparse_solver._engines.mkl.library import LIBRARY_VARIABLE

pytestmark = [
    needs_mkl,
    pytest.mark.skipif(LIBRARY_VARIABLE in os.environ, reason="MKL is hidden, or another one"),
]


def test_each_problem_has_a_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(without_mkl, "REST_SECONDS", 0.0)
    without_mkl.main(["--quick", "--rounds", "1", "--threads", "1"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == len(without_mkl.QUICK)
    for row in rows:
        assert row[3].strip() != without_mkl.PARDISO
        assert float(row[6]) > 0
    assert LIBRARY_VARIABLE not in os.environ
