"""Time x = (I + L(θ))⁻¹ b and the gradient of ‖x‖² in θ on rings, and draw the times.

    python examples/benchmark.py [--quick] [--plot FILE]

Dense torch and other solvers are timed, too. Random graphs follow, with six edges for each node, of
which a factor would be nearly dense. Both are workloads of `python -m benchmarks`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.__main__ import main  # not on the path before
from benchmarks.methods import SECONDS, print_table
from benchmarks.problems import graph

if __name__ == "__main__":
    status = main(["chain", "--peers", "--plot", "benchmark.png", *sys.argv[1:]])
    is_quick = "--quick" in sys.argv
    sizes, seconds = ((300,), 0.1) if is_quick else ((10_000, 100_000), SECONDS)
    print_table([partial(graph, n) for n in sizes], seconds)
    raise SystemExit(status)
