"""The files in `dist`, which `make dist` has built: what they contain, and what they say."""

from __future__ import annotations

import email.message
import email.parser
import tarfile
import zipfile
from pathlib import Path

import pytest

import sparse_solver

ROOT = Path(__file__).parent.parent.parent
VERSION = sparse_solver.__version__
STEM = f"sparse_solver-{VERSION}"
PACKAGE = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "sparse_solver").rglob("*")
    if path.suffix == ".py" or path.name == "py.typed"
}


@pytest.fixture(scope="module")
def wheel() -> zipfile.ZipFile:
    return zipfile.ZipFile(ROOT / "dist" / f"{STEM}-py3-none-any.whl")


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    text = wheel.read(f"{STEM}.dist-info/METADATA").decode("utf-8")
    return email.parser.Parser().parsestr(text)


def test_there_are_one_wheel_and_one_source_distribution() -> None:
    found = {path.name for path in (ROOT / "dist").iterdir()}
    assert found == {f"{STEM}-py3-none-any.whl", f"{STEM}.tar.gz"}


def test_the_wheel_has_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    assert "sparse_solver/py.typed" in PACKAGE
    described = {name for name in wheel.namelist() if name.startswith(f"{STEM}.dist-info/")}
    assert set(wheel.namelist()) - described == PACKAGE
    assert f"{STEM}.dist-info/licenses/LICENSE" in described


def test_the_source_distribution_can_be_built_and_has_no_tests() -> None:
    with tarfile.open(ROOT / "dist" / f"{STEM}.tar.gz") as archive:
        names = {member.name.removeprefix(f"{STEM}/") for member in archive if member.isfile()}
    made = {name for name in names if name.startswith("sparse_solver.egg-info/")}
    files = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md"}
    assert names - made - PACKAGE == files | {
        "pyproject.toml",
        "MANIFEST.in",
        "PKG-INFO",
        "setup.cfg",
    }
    assert names >= PACKAGE


def test_the_metadata_describe_this_version(metadata: email.message.Message) -> None:
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    required = {line.split(">")[0] for line in metadata.get_all("Requires-Dist", [])}
    assert {"torch", "numpy", "scipy"} <= required


def test_the_classifiers_are_the_tested_versions_of_python(metadata: email.message.Message) -> None:
    prefix = "Programming Language :: Python :: 3."
    classifiers = metadata.get_all("Classifier", [])
    minors = [int(c.removeprefix(prefix)) for c in classifiers if c.startswith(prefix)]
    assert metadata["Requires-Python"] == f">=3.{min(minors)}"
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    for minor in minors:
        assert f'"3.{minor}"' in workflow
