"""What numpydoc writes in reStructuredText, in Markdown: citations, and names of this package."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[2] / "sparse_solver"


def exported_names(path: Path) -> list[str]:
    """The names in the `__all__` of a module, which is not imported."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            elements = node.value.elts  # type: ignore[attr-defined]  # it is a list
            return [str(e.value) for e in elements if isinstance(e, ast.Constant)]
    raise ValueError(f"{path} has no __all__")


PUBLIC = {*exported_names(ROOT / "__init__.py"), *exported_names(ROOT / "errors.py")}


def link_name(match: re.Match[str]) -> str:
    """`name` as a link to the reference, if it is public."""
    name = match[1]
    if name in PUBLIC:
        return f"[`{name}`][sparse_solver.{name}]"
    if name.split(".")[0] in PUBLIC:  # attributes have no place of their own in the reference
        target = f'optional identifier="sparse_solver.{name}"'
        return f"<autoref {target}><code>{name}</code></autoref>"
    return match[0]


def to_markdown(text: str) -> str:
    """Translate a docstring."""
    # The first one of several values is not the default, as the parser believes.
    text = re.sub(r"(?<= : )\{(.*)\}", lambda m: m[1].replace(", ", " | "), text)
    text = re.sub(r"^\.\. \[(\d+)\] ", r"\\[\1\\] ", text, flags=re.MULTILINE)
    text = re.sub(r"\s*\[(\d+)\]_", r" \\[\1\\]", text)
    return re.sub(r"(?<!`)`([A-Za-z_]\w*(?:\.[a-z]\w*)?)`(?!`)", link_name, text)


class Numpydoc(griffe.Extension):
    """Translate each docstring before it is divided into sections."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Translate the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
