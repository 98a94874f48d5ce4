"""Finding native libraries, and loading the first one that loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_solver._engines import shared_library
from sparse_solver._engines.shared_library import find_candidates, find_package_files, load_first


def test_files_of_a_package() -> None:
    found = find_package_files("torch", lambda name: name == "functional.py")
    assert any(Path(path).parts[-2:] == ("torch", "functional.py") for path in found)
    assert find_package_files("no-such-package", lambda name: True) == []


def test_candidates_exist_and_do_not_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "libsome.so"
    there.touch()
    monkeypatch.setattr(shared_library, "find_library", lambda name: f"lib{name}.so.1")
    found = find_candidates([str(there), str(there), str(tmp_path / "absent.so")], "some")
    assert found == [str(there), "libsome.so.1"]


def test_the_first_library_that_loads() -> None:
    def load(path: str) -> int:
        if path != "good":
            raise OSError("it is broken")
        return 7

    assert load_first(["bad", "good", "worse"], load) == (7, [])
    assert load_first(["bad", "worse"], load) == (
        None,
        ["bad: it is broken", "worse: it is broken"],
    )
    with pytest.raises(OSError):
        load_first(["bad"], load, (AttributeError,))
