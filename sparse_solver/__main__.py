"""``python -m sparse_solver``: what a bug report needs to say about this machine."""

from __future__ import annotations

import platform

import torch

from . import __version__, engines


def report() -> str:
    lines = {
        "sparse_solver": __version__,
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        **{name: str(found) for name, found in engines().items()},
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


if __name__ == "__main__":
    print(report())
