"""When Numba compiles again, and what happens where it cannot keep what it compiled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sparse_solver._engines.supernodal import compilation


def test_the_digest_follows_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(compilation.__file__).parent
    copies = [Path(shutil.copy(file, tmp_path)) for file in folder.glob("*.py")]
    monkeypatch.setattr(compilation, "__file__", str(tmp_path / "compilation.py"))
    find = compilation.digest.__wrapped__
    found = {str(find().dtype)}
    assert found == {str(compilation.digest().dtype)}
    for copy in copies:
        copy.write_text(copy.read_text() + "\n")
        found.add(str(find().dtype))
    assert len(found) == 1 + len(copies)


def test_without_a_folder_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    decorate, asked = compilation._decorate, []

    def refuse(**options: Any) -> Any:
        asked.append(options.get("cache", False))
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return decorate(**options)

    monkeypatch.setattr(compilation, "_decorate", refuse)

    def add(a: float, b: float) -> float:
        return a + b

    assert compilation.compile_entry(add)(1.0, 2.0) == 3.0
    assert asked == [True, False]
