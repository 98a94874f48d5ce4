"""The documents are true: snippets of the README run, and its tables are complete."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

import sparse_solver as ss
from sparse_solver import errors
from sparse_solver.__main__ import describe_machine
from sparse_solver._engines.registry import engine_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readme_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(SNIPPETS) > 3
    namespace: dict[str, object] = {}
    for number, snippet in enumerate(SNIPPETS):
        exec(compile(snippet, f"README.md, snippet {number}", "exec"), namespace)


def test_the_page_on_gaussian_fields_runs() -> None:
    text = (ROOT / "docs" / "gaussian.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 2
    n = 40
    K = scipy.sparse.diags_array((-1.0, 2.0, -1.0), offsets=(-1, 0, 1), shape=(n, n)).tocsr()
    H = torch.eye(n, dtype=torch.float64).to_sparse()
    torch.manual_seed(0)
    y = torch.randn(n, dtype=torch.float64).cumsum(0)
    names = {"np": np, "scipy": scipy, "torch": torch, "ss": ss, "H": H, "y": y, "K": K}
    namespace: dict[str, Any] = {**names, "M": scipy.sparse.eye_array(n)}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"docs/gaussian.md, snippet {number}", "exec"), namespace)
    assert float(namespace["theta"].grad.abs().max()) < 1e-3
    assert namespace["samples"].shape == (100, n)


def test_the_readme_names_every_engine_and_every_error() -> None:
    for engine in engine_names():
        assert f"`{engine}`" in README
    for name, cls in inspect.getmembers(errors, inspect.isclass):
        if issubclass(cls, ss.SparseSolverError):
            assert f"`{name}`" in README, name


def test_the_report_for_bug_reports() -> None:
    text = describe_machine()
    for word in ("sparse_solver", "torch", "Python", *engine_names()):
        assert word in text


def test_the_changelog_describes_this_version() -> None:
    assert f"## {ss.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_pictures_are_there() -> None:
    for document in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", document.read_text())
        assert pictures
        for picture in pictures:
            data = (document.parent / picture).read_bytes()
            assert data.startswith((b"\x89PNG", b"GIF89a")), picture


def test_contributing_names_every_room() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for room in (ROOT / "sparse_solver").iterdir():
        if (room / "__init__.py").exists():
            assert f"`{room.name}/`" in contributing, room.name


def test_all_errors_are_exported() -> None:
    classes = {name for name, cls in inspect.getmembers(errors, inspect.isclass)
               if issubclass(cls, ss.SparseSolverError)}  # fmt: skip
    assert set(errors.__all__) == classes <= set(ss.__all__)
