"""The benchmark of Gaussian fields runs, and notices wrong results."""

from __future__ import annotations

import sys

import pytest
import torch
from test_benchmarks import needs_mkl

from benchmarks import gaussian

pytestmark = needs_mkl


def test_the_table_has_all_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gaussian", "--quick"])
    monkeypatch.setattr(gaussian, "ENOUGH_SECONDS", 0.0)
    gaussian.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| grid")]
    assert len(rows) == len(gaussian.QUICK)
    assert all(len(row.split("|")) == len(gaussian.COLUMNS) + 3 for row in rows)
    assert any(line.startswith("| a sample over a substitution | 0.7 |") for line in lines)


def test_wrong_gradients_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    field = gaussian.Field(gaussian.QUICK[0]())
    gaussian.check(field)
    right = field.logdet_with_gradient
    monkeypatch.setattr(field, "logdet_with_gradient", lambda values: right(values) * (1 + 1e-6))
    with pytest.raises(AssertionError):
        gaussian.check(field)
    monkeypatch.setattr(field, "logdet", lambda values: torch.tensor(1.0))
    with pytest.raises(AssertionError):
        gaussian.check(field)
