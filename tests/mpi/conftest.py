"""For `mpiexec -n 4 python -m pytest tests/mpi`: all ranks run all tests, the first one tells how it went."""

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
    """A rank that fails by itself leaves the others in the middle of something: all of them stop."""
    if report.failed and COMM.size > 1:
        print(
            f"\nrank {COMM.rank} of {COMM.size}: {report.nodeid}\n{report.longreprtext}",
            file=sys.stderr,
            flush=True,
        )
        COMM.Abort(1)
