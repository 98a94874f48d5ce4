"""The index maps of a Hessian, which are computed once."""

from __future__ import annotations

import pytest
import torch
from energy_cases import Case

import sparse_solver as ss
from sparse_solver._energy import hessian_assembly


def test_a_merged_pattern_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = hessian_assembly._build_assembly
    monkeypatch.setattr(
        hessian_assembly, "_build_assembly", lambda *arguments: built.append(1) or build(*arguments)
    )
    ss.clear_cache()
    case = Case("sum")
    energy = case.make(*case.constants)
    pattern = None
    for _ in range(3):
        energy.hessian_values(torch.randn_like(case.X))
        assert pattern is None or energy.pattern is pattern
        pattern = energy.pattern
    other = case.make(*(2 * c for c in case.constants))  # new constants, equal indices
    other.hessian_values(case.X)
    assert other.pattern is pattern
    assert len(built) == 1
    monkeypatch.setattr(torch, "sort", None)
    monkeypatch.setattr(torch, "argsort", None)
    monkeypatch.setattr(torch, "unique", None)
    monkeypatch.setattr(torch.Tensor, "coalesce", None)
    energy.hessian(case.X)
