"""Times the ring x = (I + L(θ))⁻¹ b and the gradient of ‖x‖² in θ against dense torch and other solvers, and plots it.

    python examples/benchmark.py [--quick] [--plot FILE]

One of the workloads of `python -m benchmarks`, which does the work.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.__main__ import main  # noqa: E402: found only from here on

if __name__ == "__main__":
    raise SystemExit(main(["chain", "--peers", "--plot", "benchmark.png", *sys.argv[1:]]))
