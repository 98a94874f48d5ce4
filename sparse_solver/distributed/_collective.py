"""Groups of ranks, and what they compare before each collective call.

Each call begins with one small reduction: whether all ranks make the same call, with the same
number and options, and whether an error was raised on any of them. So an error on one rank is
raised on all of them, and ranks that make different calls raise errors instead of deadlocking. The
end of the program is such a call, too: a rank that ends early does not leave the others waiting.
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
# The most conditions that one call may compare: the length of the reduced array is fixed.
_CONDITIONS = 2


class Group:
    """The ranks of a communicator, which make collective calls together.

    comm, solver_comm : duplicates of the communicator, for the messages of this package and for
        those of the library that factors
    calls : the number of collective calls so far, the same on all ranks; it identifies an object
        that a call made
    memory : objects that other modules keep for the group
    """

    _key: int | None = None
    _all: list[Group] = []

    @classmethod
    def of(cls, comm: MPI.Comm | None) -> Group:
        """The group of a communicator; collective at the first call for each one."""
        comm = MPI.COMM_WORLD if comm is None else comm
        if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
            expected = "an intracommunicator of mpi4py, or None for MPI.COMM_WORLD"
            raise OptionError(f"comm={comm!r}: expected {expected}")
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
        self.comm, self.solver_comm = comm.Dup(), comm.Dup()
        self.rank, self.size = comm.rank, comm.size
        self.calls = 0
        self.memory: dict[str, Any] = {}
        self._ended = ""  # why further calls are impossible
        _share_cores(self.comm)

    def agree(
        self,
        call: str,
        check: Callable[[], T],
        same: Callable[[T], dict[str, object]] = lambda _: {},
        any_of: Callable[[T], Iterable[bool]] = lambda _: (),
    ) -> tuple[T, list[bool]]:
        """Check the arguments of a collective call, and that all ranks make the same one.

        check : checks the arguments of this rank; an error that it raises is raised on all ranks
        same : the options that must be equal on all ranks, from the result of `check`
        any_of : at most two conditions, from the result of `check`

        Returns the result of `check`, and whether each condition holds on any of the ranks.
        """
        if self._ended:
            raise CollectiveError(f"{call} cannot be called any more: {self._ended}")
        checked, options, conditions = None, "", [False] * _CONDITIONS
        error: Exception | None = None
        try:
            checked = check()
            options = "".join(f", {name} {option}" for name, option in same(checked).items())
            conditions = [*any_of(checked), *conditions][:_CONDITIONS]
        except Exception as caught:
            error = caught
        self.calls += 1
        failed = 0 if error is None else self.size - self.rank  # the first rank has the largest
        equal = self.calls, crc32(call.encode()), crc32(options.encode())
        largest, smallest = self._extremes([*equal, failed, call == _END, *conditions])
        bounds = zip(largest[:3], smallest[:3], strict=True)
        number, name, differ = (high != low for high, low in bounds)
        failed, ends, *held = largest[3:]
        described = call + options + (f" (number {self.calls})" if number else "")
        self.calls = largest[0]
        try:
            if number or name or (differ and not failed):
                raise self._report_difference(described, bool(ends)) from error
            if failed:
                raise self._share_error(error, self.size - failed)
        finally:
            error = None  # its traceback holds this frame
        return checked, [bool(one) for one in held]  # type: ignore[return-value] # no error

    @contextmanager
    def collective(self) -> Iterator[None]:
        """A context for what the ranks compute together after they have agreed.

        A SparseSolverError depends on reduced numbers and is raised on all ranks. Any other error,
        such as a lack of memory, would leave the other ranks waiting, and ends the program on all.
        """
        try:
            yield
        except SparseSolverError:
            raise
        except BaseException:
            if self.size > 1:
                traceback.print_exc()
                message = f"rank {self.rank} failed while others wait for it; the program ends"
                print(message, file=sys.stderr, flush=True)
                self.comm.Abort(1)
            raise

    def end(self) -> None:
        """Take part in no more calls."""
        if self.size > 1 and not self._ended and not MPI.Is_finalized():
            with suppress(CollectiveError):
                self.agree(_END, lambda: None)

    def _report_difference(self, mine: str, ends: bool) -> CollectiveError:
        """The error for different calls, of which `mine` describes this rank's."""
        calls = self.comm.allgather(mine)
        each = "; ".join(f"rank {rank}: {call}" for rank, call in enumerate(calls))
        what = "ranks made different collective calls, or the same one with different options"
        message = f"{what}: {each}"
        if ends:
            self._ended = message
        return CollectiveError(message, calls=tuple(calls))

    def _share_error(self, mine: Exception | None, rank: int) -> Exception:
        """The error to raise on this rank for the error of `rank`."""
        sent = None
        if rank == self.rank and isinstance(mine, SparseSolverError):
            sent = pickle.dumps((type(mine), str(mine), mine.__dict__))
        elif rank == self.rank:
            sent = pickle.dumps((CollectiveError, f"{type(mine).__name__}: {mine}", {}))
        kind, message, data = pickle.loads(self.comm.bcast(sent, rank))
        return mine or kind(f"on rank {rank}: {message}", **data)

    def _extremes(self, numbers: list[int]) -> tuple[list[int], list[int]]:
        """The largest and the smallest over all ranks, entry by entry."""
        mine = np.array([numbers, [-number for number in numbers]], np.int64)
        self.comm.Allreduce(MPI.IN_PLACE, mine, MPI.MAX)
        return mine[0].tolist(), (-mine[1]).tolist()

    def reduce_max(self, numbers: Tensor) -> Tensor:
        """The largest over all ranks, entry by entry; NaN counts as infinity."""
        if numbers.is_floating_point():
            numbers = numbers.nan_to_num(nan=float("inf"), posinf=float("inf"))
        return self._reduce(numbers, MPI.MAX)

    def reduce_sum(self, numbers: Tensor) -> Tensor:
        """The sum over all ranks, entry by entry."""
        return self._reduce(numbers, MPI.SUM)

    def _reduce(self, numbers: Tensor, operation: MPI.Op) -> Tensor:
        reduced = numbers.detach().clone(memory_format=torch.contiguous_format).resolve_conj()
        self.comm.Allreduce(MPI.IN_PLACE, reduced.numpy(), operation)
        return reduced


def _share_cores(comm: MPI.Comm) -> None:
    """Divide the cores of a machine among its ranks, unless OMP_NUM_THREADS is set.

    Ranks that run on each other's cores wait for each other.
    """
    here = comm.Split_type(MPI.COMM_TYPE_SHARED)
    has_affinity = hasattr(os, "sched_getaffinity")
    own = os.sched_getaffinity(0) if has_affinity else set(range(os.cpu_count() or 1))
    cores: set[int] = set().union(*here.allgather(own))
    share = min(max(1, len(cores) // here.size), len(own))
    if here.size > 1 and "OMP_NUM_THREADS" not in os.environ and share < torch.get_num_threads():
        torch.set_num_threads(share)
    here.Free()


@atexit.register  # runs before mpi4py finalizes MPI
def _end() -> None:
    for group in Group._all:
        group.end()
