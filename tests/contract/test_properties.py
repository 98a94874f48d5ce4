"""Property tests: every call gives a right result or a typed error, and never crashes.

The environment variable SPARSE_SOLVER_CALLS gives the number of random calls of a long run, which
`tests.contract.stress` makes; the call that runs is then written to SPARSE_SOLVER_CALL_FILE, which
names it if the process ends.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from tests.contract.random_calls import CALLS, Call, find_fault

LONG_RUN = os.environ.get("SPARSE_SOLVER_CALLS")
CALL_FILE = os.environ.get("SPARSE_SOLVER_CALL_FILE")
USUAL_CALLS = 1500


@settings(
    max_examples=int(LONG_RUN or USUAL_CALLS),
    derandomize=LONG_RUN is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(CALLS)
def test_every_call_gives_a_right_result_or_a_typed_error(call: Call) -> None:
    if CALL_FILE is not None:
        Path(CALL_FILE).write_text(repr(call))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert find_fault(call) is None
