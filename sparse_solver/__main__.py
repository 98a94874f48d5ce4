"""``python -m sparse_solver``: versions of this machine's software, for a bug report."""

from __future__ import annotations

import platform

import torch

from . import __version__, engines


def describe_machine() -> str:
    """Describe the package, torch, Python and the engines, in a table."""
    rows = {
        "sparse_solver": __version__,
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **engines(),
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


if __name__ == "__main__":
    print(describe_machine())
