"""The examples as the gallery shows them, and `make gallery`, which keeps what they print.

    python docs/hooks/example_files.py [NAME ...]

An example is a file in examples/ that can be run and asserts its result. Its title and its text are
its docstring, its pictures are docs/images/NAME.gif and .png, and what it printed is in
docs/outputs/NAME.txt. A line that begins with "mpiexec" in its docstring says how it is run on
several ranks.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1]
EXAMPLES = DOCS.parent / "examples"
PROGRESS = re.compile(r"^(.*: )?step \d+( of \d+,|:).*\n", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """An example, and what belongs to it in docs/."""

    path: Path
    code: str

    @property
    def name(self) -> str:
        """The name of the file, without its suffix."""
        return self.path.stem

    @property
    def lead(self) -> str:
        """The first sentence of the docstring."""
        return self._docstring.partition("\n")[0]

    @property
    def text(self) -> str:
        """The docstring without its first sentence."""
        return self._docstring.partition("\n")[2].strip("\n")

    @property
    def title(self) -> str:
        """The first sentence up to its colon."""
        return self.lead.split(":")[0].rstrip(".")

    @property
    def pictures(self) -> list[str]:
        """The names of the pictures, the moving one first."""
        paths = [DOCS / "images" / f"{self.name}.{suffix}" for suffix in ("gif", "png")]
        return [path.name for path in paths if path.exists()]

    @property
    def output_path(self) -> Path:
        """Where `make gallery` keeps what the example printed."""
        return DOCS / "outputs" / f"{self.name}.txt"

    @property
    def _docstring(self) -> str:
        return ast.get_docstring(ast.parse(self.code)) or ""

    def run(self) -> str:
        """Run the example and return what it printed, without its progress."""
        command = [sys.executable, str(self.path)]
        if ranks := re.search(r"^mpiexec -n (\d+)", self.text.replace("    ", ""), re.MULTILINE):
            mpiexec = Path(sysconfig.get_path("scripts")) / "mpiexec"
            command = [str(mpiexec), "-n", ranks[1], *command]
        environment = {**os.environ, "PYTHONPATH": str(DOCS.parent)}
        finished = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return PROGRESS.sub("", finished.stdout)


def read_examples() -> list[Example]:
    """All examples, the minimal one first."""
    paths = sorted(EXAMPLES.glob("*.py"), key=lambda path: (path.stem != "minimal", path.stem))
    found = [Example(path, path.read_text(encoding="utf-8")) for path in paths]
    return [e for e in found if "__main__" in e.code and "assert" in e.code]


if __name__ == "__main__":
    (DOCS / "outputs").mkdir(exist_ok=True)
    for example in read_examples():
        if example.name in sys.argv[1:] or not sys.argv[1:]:
            print(example.name, flush=True)
            example.output_path.write_text(example.run(), encoding="utf-8")
