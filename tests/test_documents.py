"""The README is true: its snippets run, and its tables list what there is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import sparse_solver as ss
from sparse_solver import errors
from sparse_solver.__main__ import describe_machine
from sparse_solver._engines import registry as _engines

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readme_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(SNIPPETS) > 3
    namespace: dict[str, object] = {}
    for number, snippet in enumerate(SNIPPETS):
        exec(compile(snippet, f"README.md, snippet {number}", "exec"), namespace)


def test_the_readme_names_every_engine_and_every_error() -> None:
    for engine in _engines.engine_names():
        assert f"`{engine}`" in README
    for name, cls in inspect.getmembers(errors, inspect.isclass):
        if issubclass(cls, ss.SparseSolverError):
            assert f"`{name}`" in README, name


def test_the_report_for_bug_reports() -> None:
    text = describe_machine()
    for word in ("sparse_solver", "torch", "Python", *_engines.engine_names()):
        assert word in text


def test_the_changelog_knows_this_version() -> None:
    assert f"## {ss.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_pictures_are_there() -> None:
    for document in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", document.read_text())
        assert pictures
        for picture in pictures:
            assert (document.parent / picture).read_bytes().startswith((b"\x89PNG", b"GIF89a")), (
                picture
            )
