"""The site refers to no other host, except by links that a reader clicks."""

from __future__ import annotations

import logging
from html.parser import HTMLParser
from pathlib import Path
from re import findall
from typing import Any

log = logging.getLogger("mkdocs.hooks.local_files")
EXTERNAL = ("http:", "https:", "//")


class LoadedFiles(HTMLParser):
    """Collect the addresses of what a browser loads for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Look at the attributes by which elements load other files."""
        names = ("src", "srcset", "data", "poster") if tag == "a" else ("src", "href", "srcset")
        self.addresses += [value for name, value in attributes if name in names and value]


def external_files(path: Path) -> list[str]:
    """The addresses on other hosts that an HTML page or a style sheet loads."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        addresses = findall(r"url\(\s*[\"']?([^\"')]+)", text)
        addresses += findall(r"@import\s+[\"']([^\"']+)", text)
    else:
        parser = LoadedFiles()
        parser.feed(text)
        addresses = parser.addresses
    return [address for address in addresses if address.startswith(EXTERNAL)]


def on_post_build(*, config: Any) -> None:
    """Warn, which fails a strict build, about every file that is loaded from elsewhere."""
    site = Path(config.site_dir)
    for path in (*site.rglob("*.html"), *site.rglob("*.css")):
        for address in external_files(path):
            log.warning("%s loads %s", path.relative_to(site), address)
