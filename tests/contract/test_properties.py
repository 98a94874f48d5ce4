"""Property tests: every call gives a right result or a typed error, and never crashes.

A long run by `tests.contract.stress` sets SPARSE_SOLVER_CALLS, the number of calls, and
SPARSE_SOLVER_CALL_FILE, a file for the call that runs, which is to blame if the process ends.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from tests.contract.random_calls import CALLS, Call, find_fault

LONG_RUN = os.environ.get("SPARSE_SOLVER_CALLS")
CALL_FILE = os.environ.get("SPARSE_SOLVER_CALL_FILE")
USUAL_CALLS = 2000
NUMBERS_EACH = 5  # calls that differ only in their numbers, since drawing the choices takes longer


@settings(
    max_examples=int(LONG_RUN or USUAL_CALLS) // NUMBERS_EACH,
    derandomize=LONG_RUN is None,
    phases=(Phase.generate, Phase.shrink),
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(CALLS)
def test_every_call_gives_a_right_result_or_a_typed_error(first: Call) -> None:
    for number in range(NUMBERS_EACH):
        call = replace(first, seed=first.seed + number)
        if CALL_FILE is not None:
            Path(CALL_FILE).write_text(repr(call))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fault = find_fault(call)
        assert fault is None, f"{fault}: {call}"
