"""The documents are true: their snippets run, and their tables are complete."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import sparse_solver as ss
from sparse_solver import errors
from sparse_solver.__main__ import describe_machine
from sparse_solver._engines.registry import engine_names

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("*/*.md")))
}
# Its snippet is collective, and is run on several ranks by tests/mpi/test_cluster_documents.py.
COLLECTIVE = {"docs/cluster.md"}
LANGUAGES = {"python", "console", "bash", "text"}


def snippets_of(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", DOCUMENTS[document], re.DOTALL | re.MULTILINE)


def run_snippets(document: str) -> dict[str, Any]:
    """Run the snippets of a document from top to bottom, and return their variables."""
    namespace: dict[str, Any] = {}
    for number, snippet in enumerate(snippets_of(document)):
        exec(compile(snippet, f"{document}, snippet {number}", "exec"), namespace)
    return namespace


WITH_SNIPPETS = [name for name in DOCUMENTS if snippets_of(name) and name not in COLLECTIVE]


@pytest.mark.parametrize("document", WITH_SNIPPETS)
def test_a_document_runs_from_top_to_bottom(
    document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_snippets(document)


def test_there_are_snippets_in_the_readme_and_the_guide() -> None:
    assert "README.md" in WITH_SNIPPETS
    assert len(WITH_SNIPPETS) > 8


def test_the_page_on_gaussian_fields_finds_a_maximum() -> None:
    names = run_snippets("docs/gaussian.md")
    assert float(names["theta"].grad.abs().max()) < 1e-3
    assert names["samples"].shape == (100, names["n"])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_says_which_language_it_is(document: str) -> None:
    """So that no Python hides from the test above."""
    fences = re.findall(r"^ *```(.*)$", DOCUMENTS[document], re.MULTILINE)
    assert set(fences[::2]) <= LANGUAGES
    assert set(fences[1::2]) <= {""}


def test_the_guide_names_every_engine_and_every_error() -> None:
    for engine in engine_names():
        assert f"| `{engine}` |" in DOCUMENTS["docs/choosing_a_method.md"], engine
    for name in errors.__all__:
        assert f"`{name}`" in DOCUMENTS["docs/errors.md"], name


def test_the_reference_has_every_public_name() -> None:
    pages = [text for name, text in DOCUMENTS.items() if name.startswith("docs/reference/")]
    found = re.findall(r"^::: sparse_solver\.(\S+)$", "\n".join(pages), re.MULTILINE)
    distributed = (ROOT / "sparse_solver" / "distributed" / "__init__.py").read_text("utf-8")
    (listed,) = re.findall(r"^__all__ = \[(.*?)\]", distributed, re.DOTALL | re.MULTILINE)
    expected = [name for name in ss.__all__ if name != "__version__"]
    expected += [f"distributed.{name}" for name in re.findall(r'"(\w+)"', listed)]
    assert sorted(found) == sorted(expected)


def test_the_report_for_bug_reports() -> None:
    text = describe_machine()
    for word in ("sparse_solver", "torch", "Python", *engine_names()):
        assert word in text


def test_the_changelog_describes_this_version() -> None:
    assert f"## {ss.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_pictures_are_there() -> None:
    for document, text in DOCUMENTS.items():
        for picture in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
            data = (ROOT / document).parent.joinpath(picture).read_bytes()
            assert data.startswith((b"\x89PNG", b"GIF89a")), picture


def test_the_gallery_shows_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    specification = importlib.util.spec_from_file_location(
        "example_files", DOCS / "hooks" / "example_files.py"
    )
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "example_files", module)
    specification.loader.exec_module(module)
    examples = module.read_examples()
    assert {"minimal", "conductivity"} <= {example.name for example in examples}
    for example in examples:
        assert example.title, example.name
        assert example.text, example.name
    printed = "fit: step 3 of 30, loss 1.0\nstep 1: precision 2\nerror 0.4 -> 0.1\n"
    assert module.PROGRESS.sub("", printed) == "error 0.4 -> 0.1\n"


def test_contributing_names_every_room() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    for room in (ROOT / "sparse_solver").iterdir():
        if (room / "__init__.py").exists():
            assert f"`{room.name}/`" in contributing, room.name


def test_all_errors_are_exported() -> None:
    classes = {name for name, cls in inspect.getmembers(errors, inspect.isclass)
               if issubclass(cls, ss.SparseSolverError)}  # fmt: skip
    assert set(errors.__all__) == classes <= set(ss.__all__)
