"""How much memory is free, and the error for factors that would need more.

An operating system that promises more memory than it has ends a process that uses it. So a factor
whose size an analysis predicts is refused before it is begun.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import MemoryLimitError

# Smaller factors are not looked at: asking for the free memory takes longer than a small system.
_SMALL = 2**28
# Where Linux keeps the limit of a container, its use, and the pages of files in that, which can be
# dropped: control groups of version 2, and of version 1.
_CONTROL_GROUPS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def check_memory(engine: str, entries: int, dtype: torch.dtype) -> None:
    """Raise MemoryLimitError unless a factor with so many entries fits into the host's memory."""
    needed = entries * dtype.itemsize
    if needed < _SMALL or needed <= (free := free_bytes()):
        return
    raise MemoryLimitError(
        f"the factor would have {entries:,} entries and need {needed / 1e9:,.1f} GB of memory, of "
        f"which {free / 1e9:,.1f} GB are free; engine='cg' needs no factor of a positive definite "
        f"matrix, and sparse_solver.distributed shares a factor among several computers",
        engine=engine,
        needed_bytes=needed,
        free_bytes=free,
    )


def free_bytes(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The memory of the host that this process may still use without swapping."""
    import psutil

    free: int = psutil.virtual_memory().available
    for limit, use, dropped in _CONTROL_GROUPS:
        try:
            most, used = (int((groups / name).read_text()) for name in (limit, use))
            statistics = (groups / limit).with_name("memory.stat").read_text().split()
            droppable = int(statistics[statistics.index(dropped) + 1])
        except (OSError, ValueError):  # no such group, or a group without a limit ("max")
            continue
        free = min(free, most - used + droppable)
    return max(0, free)
