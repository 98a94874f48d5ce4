"""A right-hand side for which conjugate gradients do not converge is solved by the next rung."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import laplacian, laplacian_values, rhs

import sparse_solver as ss
from sparse_solver._engines.protocol import Factor
from sparse_solver._factor.accuracy.checked_factor import CheckedFactor, Record, Rung
from sparse_solver._factor.accuracy.systems import Systems
from sparse_solver._testing import checked_factors
from sparse_solver.errors import SparseSolverError


class _Ladder:
    """The rungs that are given."""

    failure: SparseSolverError | None = None
    obstacle: str | None = None

    def __init__(self, systems: Systems, *rungs: Rung):
        self._systems, self._rungs, self.kept = systems, list(rungs), [""]

    def climb(self) -> Rung | None:
        return self._rungs.pop(0) if self._rungs else None

    def keep(self, rung: Rung, reason: str) -> None:
        self.kept.append(rung.engine)

    def systems(self, factor: Factor) -> Systems:
        return self._systems

    def explain_structure(self) -> str | None:
        return None


@pytest.mark.parametrize("has_next", [True, False])
@pytest.mark.parametrize("sound", [True, False])  # False: the probe already fails
def test_the_next_rung_follows_where_one_does_not_converge(has_next: bool, sound: bool) -> None:
    P, edges, n = laplacian(12)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n, 1e-2)
    iterative, direct = (
        checked_factors(P.factorize(values, assume="spd", engine=engine))[0]
        for engine in ("cg", "lapack")
    )
    assert isinstance(direct, CheckedFactor)
    assert iterative.factor is not None
    factor: Any = iterative.factor
    factor._goal = factor._goal._replace(limit=3)
    rungs = [
        Rung(each, "", engine, None, is_sound, False, False)
        for each, engine, is_sound in (
            (iterative.factor, "cg", sound),
            (direct.factor, "lapack", True),
        )
    ]
    ladder = _Ladder(direct._systems, *rungs[1:] if has_next else [])
    b = rhs(1, n, dtype=torch.float64)

    def solve() -> torch.Tensor:
        return CheckedFactor(Record("spd", ""), ladder, rungs[0]).apply_inverse(b, False, True)

    if not has_next:
        with pytest.raises(ss.ConvergenceError):
            solve()
        return
    torch.testing.assert_close(solve(), direct.apply_inverse(b, False, True))
    assert ladder.kept[-1] == "lapack"
