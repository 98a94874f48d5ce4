"""The README is short, its links lead somewhere, and it has what its first version had."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 110


def test_its_links_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README)
    local = [target for target in targets if not target.startswith("https://")]
    assert len(local) > 5
    for target in local:
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "call",
    [
        "python -m pip install .",
        "pytest",
        "python examples/minimal.py",
        "python examples/benchmark.py",
        "x = ss.SparseSolver.apply(A,",
    ],
)
def test_the_calls_of_the_first_version_are_there(call: str) -> None:
    assert re.search(rf"^{re.escape(call)}", README, re.MULTILINE)
