"""`mpiexec -n 4 python -m pytest tests/mpi`: all ranks run all tests, and the first one reports."""

from __future__ import annotations

import io
import sys

import pytest
from shares import COMM


@pytest.hookimpl(tryfirst=True)
def pytest_configure() -> None:
    if COMM.rank:
        sys.stdout = io.StringIO()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Stop all ranks if one fails, since the others would wait for it."""
    if report.failed and COMM.size > 1:
        where = f"rank {COMM.rank} of {COMM.size}: {report.nodeid}"
        print(f"\n{where}\n{report.longreprtext}", file=sys.stderr, flush=True)
        COMM.Abort(1)
