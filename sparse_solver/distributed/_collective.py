"""The ranks that solve together, and what they agree upon before each collective call.

Each call begins with one small reduction: is this everybody's call number so-and-so, is it the same call with the same
options, and is anything wrong anywhere? So that an error on one rank is raised on all of them, and so that ranks that do
different things find out instead of waiting for each other for ever. The end of the program is such a call, too: a rank that
leaves early, by an error of its own perhaps, is not waited for in vain.
"""

from __future__ import annotations

import atexit
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from ..errors import CollectiveError, OptionError, SparseSolverError
from ._mpi import MPI

T = TypeVar("T")


_END = "the end of the program"


_QUESTIONS = 2  # at most


class Group:
    """A communicator of our own, kept until the program ends; `of` finds that of a user's.

    `calls` : how many collective calls there were, so that it is a number, the same on all ranks, for what a call makes
    """

    _key: int | None = None
    _all: list[Group] = []

    @classmethod
    def of(cls, comm: MPI.Comm | None) -> Group:
        """Collective at the first call with a communicator."""
        comm = MPI.COMM_WORLD if comm is None else comm
        if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
            raise OptionError(
                f"comm={comm!r}: expected an intracommunicator of mpi4py, or None for MPI.COMM_WORLD"
            )
        if cls._key is None:
            cls._key = MPI.Comm.Create_keyval()
        group: Any = comm.Get_attr(cls._key)
        if group is None:
            group = cls(comm)
            cls._all.append(group)
            comm.Set_attr(cls._key, group)
        assert isinstance(group, cls)
        return group

    def __init__(self, comm: MPI.Comm):
        self.comm, self.solver_comm = (
            comm.Dup(),
            comm.Dup(),
        )  # for messages of ours, and of the library that factors
        self.rank, self.size = comm.rank, comm.size
        self.calls = 0
        self.memory: dict[str, Any] = {}  # what others keep for the group
        self._ended = ""  # why there can be no more calls
        _share_cores(self.comm)

    def agree(
        self,
        call: str,
        check: Callable[[], T],
        same: Callable[[T], dict[str, object]] = lambda _: {},
        any_of: Callable[[T], Iterable[bool]] = lambda _: (),
    ) -> tuple[T, tuple[bool, ...]]:
        """What `check` returns here, if it raises nowhere and all ranks make this `call` with the `same` options; and which
        questions some rank answers with yes."""
        if self._ended:
            raise CollectiveError(f"{call} cannot be called any more: {self._ended}")
        checked, options, answers = None, "", (False,) * _QUESTIONS
        error: Exception | None = None
        try:
            checked = check()
            options = "".join(f", {name} {option}" for name, option in same(checked).items())
            answers = (*any_of(checked), *answers)[:_QUESTIONS]
        except Exception as caught:
            error = caught
        self.calls += 1
        equal = np.array([self.calls, crc32(call.encode()), crc32(options.encode())])
        failed = 0 if error is None else self.size - self.rank  # the largest is the first rank's
        mine = np.array([*equal, *-equal, failed, call == _END, *answers], np.int64)
        most = np.empty_like(mine)
        self.comm.Allreduce(mine, most, MPI.MAX)
        number, calls, differ = (
            bool(high != -low) for high, low in zip(most[:3], most[3:6], strict=True)
        )
        failed, ends, *answers = most[6:].tolist()
        try:
            if number or calls or (differ and not failed):
                raise self._different(
                    f"{call}{options} (number {self.calls})" if number else call + options,
                    bool(ends),
                ) from error
            if failed:
                raise self._raised(error, self.size - failed)
        finally:
            self.calls = int(most[0])
            error = None  # its traceback holds this frame
        return checked, tuple(map(bool, answers))  # type: ignore[return-value]

    @contextmanager
    def collective(self) -> Iterator[None]:
        """What ranks do together once they have agreed, and wait for each other in it.

        What is raised here on purpose is raised on all ranks. Where something else fails (for want of memory, say), there is no
        telling the others, who would wait for ever: the program ends on all ranks.
        """
        try:
            yield
        except SparseSolverError:
            raise
        except BaseException:
            if self.size > 1:
                traceback.print_exc()
                print(
                    f"rank {self.rank} failed where others wait for it; the program ends",
                    file=sys.stderr,
                    flush=True,
                )
                self.comm.Abort(1)
            raise

    def end(self) -> None:
        """This rank makes no more calls."""
        if self.size > 1 and not self._ended and not MPI.Is_finalized():
            with suppress(CollectiveError):
                self.agree(_END, lambda: None)

    def _different(self, mine: str, ends: bool) -> CollectiveError:
        calls = self.comm.allgather(mine)
        each = "; ".join(f"rank {rank}: {call}" for rank, call in enumerate(calls))
        message = (
            f"ranks made different collective calls, or the same one with different options: {each}"
        )
        if ends:
            self._ended = message
        return CollectiveError(message, calls=tuple(calls))

    def _raised(self, mine: Exception | None, rank: int) -> Exception:
        """The error to raise here for that of the `rank`."""
        sent = None
        if rank == self.rank and isinstance(mine, SparseSolverError):
            sent = pickle.dumps((type(mine), str(mine), mine.__dict__))
        elif rank == self.rank:
            sent = pickle.dumps((CollectiveError, f"{type(mine).__name__}: {mine}", {}))
        kind, message, data = pickle.loads(self.comm.bcast(sent, rank))
        return mine or kind(f"on rank {rank}: {message}", **data)

    def most(self, numbers: Tensor) -> Tensor:
        """The largest of all ranks, entry by entry; of floating-point numbers, infinity stands for NaN."""
        if numbers.is_floating_point():
            numbers = numbers.nan_to_num(nan=float("inf"), posinf=float("inf"))
        return self._reduced(numbers, MPI.MAX)

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all ranks, entry by entry."""
        return self._reduced(numbers, MPI.SUM)

    def _reduced(self, numbers: Tensor, operation: MPI.Op) -> Tensor:
        reduced = numbers.detach().clone(memory_format=torch.contiguous_format).resolve_conj()
        self.comm.Allreduce(MPI.IN_PLACE, reduced.numpy(), operation)
        return reduced


def _share_cores(comm: MPI.Comm) -> None:
    """Gives torch, and with it the solver, a fair share of the cores that the ranks on this machine may run on, where
    OMP_NUM_THREADS says nothing: ranks that run on each other's cores wait for each other."""
    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    own = (
        os.sched_getaffinity(0)
        if hasattr(os, "sched_getaffinity")
        else set(range(os.cpu_count() or 1))
    )
    cores: set[int] = set().union(*here.allgather(own))
    share = min(max(1, len(cores) // here.size), len(own))
    if here.size > 1 and "OMP_NUM_THREADS" not in os.environ and share < torch.get_num_threads():
        torch.set_num_threads(share)
    here.Free()


@atexit.register  # before mpi4py ends MPI
def _end() -> None:
    for group in Group._all:
        group.end()
