"""Pages whose text is that of the files at the root, so that it is written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {"developer_guide.md": "CONTRIBUTING.md", "changes.md": "CHANGELOG.md"}


def on_files(found: Files, /, *, config: Any) -> Files:
    """Add the pages; links into docs/ become links beside them."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        found.append(File.generated(config, page, content=text))
    return found
