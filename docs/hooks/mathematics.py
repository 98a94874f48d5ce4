"""MathJax for the site, from an installed wheel instead of a server."""

from __future__ import annotations

from importlib.metadata import files
from typing import Any

from mkdocs.structure.files import File, Files

WHEEL = "sphinx-mathjax-offline"
SCRIPT = "tex-svg.js"  # complete in itself: its letters are paths, not fonts


def on_files(found: Files, /, *, config: Any) -> Files:
    """Add MathJax to the files of the site."""
    (script,) = (path for path in files(WHEEL) or () if path.name == SCRIPT)
    source = str(script.locate())
    found.append(File.generated(config, "assets/mathjax.js", abs_src_path=source))
    return found
