"""The gallery: a page for each example, with its picture, what it printed, and its code."""

from __future__ import annotations

import logging
import re
from typing import Any

from example_files import DOCS, Example, read_examples  # beside this file
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.hooks.gallery")


def read_output(example: Example) -> str:
    """What the example printed; a strict build fails if that was not kept."""
    if example.output_path.exists():
        return example.output_path.read_text(encoding="utf-8")
    log.warning("%s is missing; `make gallery` makes it", example.output_path)
    return ""


def write_page(example: Example) -> str:
    """The page of an example, in Markdown."""
    return "\n\n".join(
        [
            f"# {example.title}",
            example.lead,
            *(f"![{example.title}](../images/{picture})" for picture in example.pictures),
            f"```text\n{read_output(example)}```",
            example.text,
            f"## The code\n\n`examples/{example.name}.py`:\n\n```python\n{example.code}```",
        ]
    )


def write_card(example: Example) -> str:
    """The card of an example on the first page, in Markdown: its title, picture and subject."""
    lines = [f"-   [**{example.title}**]({example.name}.md)"]
    for picture in example.pictures[-1:]:  # the one that does not move
        lines.append(f"    [![{example.title}](../images/{picture})]({example.name}.md)")
    subject = example.lead.partition(": ")[2]
    return "\n\n".join([*lines, f"    {subject[:1].upper()}{subject[1:]}"])


def on_config(config: Any) -> Any:
    """Put the pages into the navigation, with the beginnings of their titles."""
    pages = [
        {re.split(r",|:", example.title)[0]: f"gallery/{example.name}.md"}
        for example in read_examples()
    ]
    for entry in config.nav:
        if "Gallery" in entry:
            entry["Gallery"] = ["gallery/index.md", *pages]
    return config


def on_files(found: Files, /, *, config: Any) -> Files:
    """Add the pages to the files of the site."""
    examples = read_examples()
    for example in examples:
        page = File.generated(config, f"gallery/{example.name}.md", content=write_page(example))
        found.append(page)
    introduction = (DOCS / "hooks" / "gallery_introduction.md").read_text(encoding="utf-8")
    cards = "\n\n".join(write_card(example) for example in examples)
    index = f'{introduction}\n<div class="grid cards" markdown>\n\n{cards}\n\n</div>\n'
    found.append(File.generated(config, "gallery/index.md", content=index))
    return found
