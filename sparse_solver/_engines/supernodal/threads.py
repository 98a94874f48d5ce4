"""Running a kernel by several threads that work together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .blas import one_thread
from .primitives import STOP, SYNC_SIZE


def run_together(kernel: Callable[..., None], arguments: tuple[Any, ...], share: bool) -> Any:
    """Call ``kernel(*arguments, sync, thread, threads)``; return the array `sync`.

    With `share`, as many threads call it as torch uses.

    New threads are started for each call, which takes less than a tenth of a millisecond: threads
    that were kept would not survive a fork. The calling thread waits for them, so that Ctrl-C
    reaches it; then the kernels stop early.
    """
    sync = np.zeros(SYNC_SIZE, dtype=np.int64)
    threads = torch.get_num_threads() if share else 1
    with one_thread():
        if threads > 1:
            _run_in_threads(kernel, arguments, sync, threads)
        else:
            kernel(*arguments, sync, 0, 1)
    return sync


def _run_in_threads(
    kernel: Callable[..., None], arguments: tuple[Any, ...], sync: Any, threads: int
) -> None:
    errors: list[BaseException] = []
    start, count = threading.Event(), [0]

    def work(thread: int) -> None:
        start.wait()
        try:
            if thread < count[0]:
                kernel(*arguments, sync, thread, count[0])
        except BaseException as error:  # raised again below
            sync[STOP] = 1
            errors.append(error)

    started: list[threading.Thread] = []
    try:
        for thread in range(threads):
            worker = threading.Thread(target=work, args=(thread,), daemon=True)
            try:
                worker.start()
            except RuntimeError:  # the system provides no more threads
                break
            started.append(worker)
            count[0] = len(started)
        start.set()
        if not started:
            kernel(*arguments, sync, 0, 1)
        for worker in started:
            worker.join()
    except BaseException:
        sync[STOP] = 1
        start.set()
        _wait_for(started)
        raise
    if errors:
        raise errors[0]


def _wait_for(workers: list[threading.Thread]) -> None:
    """Wait for threads that are about to stop; further interrupts are raised afterwards."""
    interrupt: BaseException | None = None
    for worker in workers:
        while worker.is_alive():
            try:
                worker.join()
            except KeyboardInterrupt as error:
                interrupt = error
    if interrupt is not None:
        raise interrupt
