"""Two versions of the package in one process, and klujax where it is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.versions import load_version

ROOT = Path(__file__).parent.parent


def test_a_version_beside_the_installed_one_is_measured() -> None:
    """In a process of its own, since both versions register the same operators of torch."""
    command = [sys.executable, "-m", "benchmarks.versions", str(ROOT), "ring", "general", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["| chain 256", "| general, 14 rows, no gradient"]
    for row in rows:
        before, after, bare = (float(re.match(r"[\d.e+]+", cell)[0]) for cell in row[1:4])  # type: ignore[index] # no match fails the test
        assert min(before, after, bare) > 0


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no package sparse_solver in"):
        load_version(tmp_path)
