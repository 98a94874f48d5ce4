"""Time the ring x = (I + L(θ))⁻¹ b and the gradient of ‖x‖² in θ, and draw the times.

    python examples/benchmark.py [--quick] [--plot FILE]

Dense torch and other solvers are timed, too. It is one of the workloads of `python -m benchmarks`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.__main__ import main  # not on the path before

if __name__ == "__main__":
    raise SystemExit(main(["chain", "--peers", "--plot", "benchmark.png", *sys.argv[1:]]))
