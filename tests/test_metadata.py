"""The version and its date are the same in all files that state them."""

from __future__ import annotations

import re
from pathlib import Path

import sparse_solver as ss

ROOT = Path(__file__).parent.parent
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)


def test_the_changelog_keeps_the_form_of_keep_a_changelog() -> None:
    unreleased, *versions = HEADINGS
    assert unreleased == "Unreleased"
    for heading in versions:
        assert re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", heading), heading
    dates = [heading.split(" - ")[1] for heading in versions]
    assert dates == sorted(dates, reverse=True)
    kinds = re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_is_of_the_latest_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^([\w-]+): +\"?([^\"\n]+)\"?$", citation, re.MULTILINE))
    assert fields["version"] == ss.__version__
    assert HEADINGS[1] == f"{fields['version']} - {fields['date-released']}"
    assert fields["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
