"""The long run catches whatever happens to its processes, and counts it."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

from tests.contract import stress
from tests.contract.verdicts import Case


class FatalCase(Case):
    """A case that ends the process which receives it."""

    def __reduce__(self) -> Any:
        return (os._exit, (11,))


def test_what_ends_a_process_or_fails_in_the_bed_is_counted() -> None:
    good = Case("laplacian_grid", 9, 0, "float64")
    fatal = FatalCase("laplacian_grid", 9, 1, "float64")
    unknown = Case("no such kind", 9, 0, "float64")
    verdicts = list(stress.run(iter([good, fatal, good, unknown]), 100, 1))
    crashes = [verdict for verdict in verdicts if verdict.verdict == "crash"]
    assert [str(verdict.case) for verdict in crashes] == [str(fatal)]
    assert "ended with 11" in crashes[0].detail
    counts = Counter(verdict.verdict for verdict in verdicts)
    assert counts == {"right": 2 * 8, "crash": 1, "bed": 1}


def test_cases_depend_on_the_seed_alone() -> None:
    words = ["--seed", "3", "--matrices", "20", "--kinds", "queues,kahan", "--largest", "50"]
    first, again = (list(stress.draw_cases(stress.parse(words))) for _ in range(2))
    assert first == again
    assert {case.kind for case in first} == {"queues", "kahan"}
    assert all(3 <= case.n <= 50 for case in first)
    assert first != list(stress.draw_cases(stress.parse(["--seed", "4", *words[2:]])))


def test_the_exit_status_is_that_of_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["--seed", "0", "--matrices", "4", "--kinds", "laplacian_grid", "--largest", "30"]
    assert stress.main([*words, "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "4 matrices, seed 0" in printed
    assert "laplacian_grid" in printed.split("kind", 1)[1]
