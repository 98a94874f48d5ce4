"""Decompositions of SuperLU, made and released by threads of their own.

SciPy keeps a table of SuperLU's memory for each thread, and a thread that releases memory of
another one loses it without an error (SciPy's issue 15921). So a few threads do nothing but make
decompositions, and release them when they are no longer needed.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _keep_thread_dictionary() -> None:
    """Keep the dictionary of this thread, in which SciPy has its table, for ever.

    A forked child releases the dictionaries of all other threads. SciPy's table then leaves an
    error behind, which makes Python's own preparation of the child fail.
    """
    python = ctypes.pythonapi
    python.PyThreadState_GetDict.restype = ctypes.c_void_p
    python.Py_IncRef(ctypes.c_void_p(python.PyThreadState_GetDict()))


class _Worker:
    """A thread that runs one function after the other."""

    def __init__(self) -> None:
        # Its `put` is safe in finalizers, which may run while this very thread is inside `put`.
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="SuperLU", daemon=True)
        self._thread.start()
        # The interpreter does not end well while a thread waits in `get`.
        atexit.register(self._stop)

    def _run(self) -> None:
        _keep_thread_dictionary()
        while (call := self._calls.get()) is not None:
            call()

    def _stop(self) -> None:
        if self.pid == os.getpid():
            self._calls.put(None)
            self._thread.join()

    def submit(self, call: Callable[[], None]) -> None:
        """Run this function, which raises nothing, after those submitted before."""
        self._calls.put(call)

    def decompose(self, matrix: Any, options: dict[str, Any]) -> list[Any]:
        """The decomposition as the only item of a list, to be cleared by this thread."""
        box: list[Any] = []
        failure: list[BaseException] = []
        done = threading.Event()

        def call() -> None:
            from scipy.sparse.linalg import splu

            try:
                box.append(splu(matrix, **options))
            except BaseException as error:
                failure.append(error)
            finally:
                done.set()

        self.submit(call)
        done.wait()
        if failure:
            raise failure.pop()
        return box


_idle: list[_Worker] = []


def _take_worker() -> _Worker:
    """An idle worker of this process, or a new one."""
    while True:
        try:
            worker = _idle.pop()
        except IndexError:
            return _Worker()
        if worker.pid == os.getpid():  # the threads of its parent do not run in a forked child
            return worker


class Decomposition:
    """L U = P A Q by SuperLU, with the options of `scipy.sparse.linalg.splu`.

    nnz : entries of L and U
    """

    def __init__(self, matrix: Any, options: dict[str, Any]):
        worker = _take_worker()
        try:
            self._box = worker.decompose(matrix, options)
        finally:
            _idle.append(worker)
        weakref.finalize(self, worker.submit, self._box.clear).atexit = False
        self.nnz = int(self._box[0].nnz)

    def permutations(self) -> tuple[Any, Any]:
        """(n,) the places of rows and of columns in the order of the pivots."""
        return self._box[0].perm_r, self._box[0].perm_c

    def pivots(self) -> Any:
        """(n,) the diagonal of U."""
        return self._box[0].U.diagonal()

    def substitute(self, rhs: Tensor, transpose: bool) -> Tensor:
        """Apply the inverse of the transpose of the decomposed matrix, or with `transpose` its own.

        The columns that SuperLU reads are the rows of `rhs`.
        """
        x = self._box[0].solve(rhs.numpy().T, trans="N" if transpose else "T")
        return torch.from_numpy(np.ascontiguousarray(x.T))
