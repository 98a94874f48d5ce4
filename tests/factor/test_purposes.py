"""What matrices are factored for, by name."""

from __future__ import annotations

import pytest
import torch
from problems import problem, rhs
from torch import Tensor

import sparse_solver as ss
from sparse_solver._factor import purposes
from sparse_solver._factor.factors import Factors
from sparse_solver._factor.ladder.ladder import factor_matrix
from sparse_solver._factor.options import Options
from sparse_solver._factor.problem import Problem
from sparse_solver._factor.purposes import Purpose, purpose_named, register_purpose
from sparse_solver._sparse.structure import Structure

P = problem("general", torch.float64)


def test_the_default_is_the_ladder() -> None:
    assert Problem(Structure(P.rows, P.cols, P.shape), Options()).purpose == "solve"
    assert purpose_named("solve").factor is factor_matrix


def test_a_registered_purpose_gets_its_argument_and_explains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(purposes, "_purposes", dict(purposes._purposes))
    seen = []

    def build(argument: str) -> Purpose:
        def factor(structure: Structure, values: Tensor, *rest: object) -> object:
            seen.append(argument)
            return factor_matrix(structure, 2 * values, *rest)  # type: ignore[arg-type]

        def explain(error: Exception, structure: Structure, matrices: Tensor) -> None:
            raise ss.NonFiniteError("Q is not finite", argument="Q", index=None) from error

        return Purpose(factor, explain)  # type: ignore[arg-type]

    register_purpose("twice", build)
    given = Problem(Structure(P.rows, P.cols, P.shape), Options(), purpose="twice:now")
    b = rhs(1, P.n, dtype=torch.float64)
    x = Factors(given).apply_inverse(P.values, b, False, True)
    torch.testing.assert_close(x[0], torch.linalg.solve(2 * P.dense, b[0]))
    assert seen == ["now"]
    with pytest.raises(ss.NonFiniteError, match="Q is not finite"):
        Factors(given).prepare(P.values * torch.nan)
