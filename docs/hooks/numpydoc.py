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


ERRORS = exported_names(ROOT / "errors.py")
PUBLIC = {name: name for name in (*exported_names(ROOT / "__init__.py"), *ERRORS)}
# Inside of this package, the same names mean its own objects.
OWN = {name: f"distributed.{name}" for name in exported_names(ROOT / "distributed" / "__init__.py")}


def split_group(match: re.Match[str]) -> str:
    """Parameters that are described together, without a type, as one entry each."""
    return "".join(f"{name}\n{match[2]}" for name in match[1].split(", "))


def to_markdown(text: str, places: dict[str, str]) -> str:
    """Translate a docstring, in which names have these places in the reference."""

    def link_name(match: re.Match[str]) -> str:
        name, _, attribute = match[1].removeprefix("sparse_solver.").partition(".")
        if name not in places:
            return match[0]
        place = f"sparse_solver.{places[name]}"
        if not attribute:
            return f"[`{match[1]}`][{place}]"
        # Some attributes have no place of their own.
        target = f'optional identifier="{place}.{attribute}"'
        return f"<autoref {target}><code>{match[1]}</code></autoref>"

    # The parser gives all parameters of a group the type of the first one.
    text = re.sub(
        r"^([a-z]\w*(?:, [a-z]\w*)+)\n((?: +.+\n)+)", split_group, text, flags=re.MULTILINE
    )
    # The first one of several values is not the default, as the parser believes.
    text = re.sub(r"(?<= : )\{(.*)\}", lambda m: m[1].replace(", ", " | "), text)
    text = re.sub(r"^\.\. \[(\d+)\] ", r"\\[\1\\] ", text, flags=re.MULTILINE)
    text = re.sub(r"\s*\[(\d+)\]_", r" \\[\1\\]", text)
    return re.sub(r"(?<!`)`([A-Za-z_]\w*(?:\.[A-Za-z]\w*)*)`(?!`)", link_name, text)


class Numpydoc(griffe.Extension):
    """Translate each docstring before it is divided into sections."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Translate the docstring of one object."""
        if obj.docstring:
            is_distributed = obj.path.startswith("sparse_solver.distributed.")
            places = {**PUBLIC, **OWN} if is_distributed else PUBLIC
            obj.docstring.value = to_markdown(obj.docstring.value, places)
