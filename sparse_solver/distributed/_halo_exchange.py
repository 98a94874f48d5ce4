"""Which rank has which rows, and the exchange of numbers between ranks that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._sparse.structure import Structure
from .._sparse.triangle import Arrangement
from ..errors import IndexRangeError, ShapeError
from ._collective import Group
from ._mpi import MPI


def partition(shape: Sequence[int], comm: MPI.Comm | None = None) -> range:
    """The rows of this rank where `shape` is distributed evenly, in contiguous blocks, in the order of the ranks.

    >>> from mpi4py import MPI
    >>> from sparse_solver.distributed import partition
    >>> partition((10, 10), MPI.COMM_SELF)
    range(0, 10)
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    n, rank, size = shape[0], comm.rank, comm.size
    return range(n * rank // size, n * (rank + 1) // size)


class Exchange:
    """Numbers that other ranks hold and this one reads: a plan of one message from and to each neighbour.

    owner : (r,) the rank of each number that is read here
    wanted : (r, w) what its owner knows it by
    locate : maps (s, w) of these to positions among what this rank holds, or −1 for a zero that it does not hold
    """

    def __init__(
        self, group: Group, owner: Tensor, wanted: Tensor, locate: Callable[[Tensor], Tensor]
    ):
        self._group, comm = group, group.comm
        self._order = torch.sort(owner, stable=True)[1]
        counts = torch.bincount(owner, minlength=group.size)
        given = torch.empty_like(counts)
        comm.Alltoall(counts.numpy(), given.numpy())
        width = wanted.shape[1]
        requests = torch.empty(int(given.sum()), width, dtype=torch.int64)
        comm.Alltoallv(
            [wanted[self._order].contiguous().numpy(), (counts * width).tolist()],
            [requests.numpy(), (given * width).tolist()],
        )
        self._held = locate(requests)
        self._absent = self._held < 0
        self._gaps = bool(self._absent.any())
        self._from, self._to = _parts(counts), _parts(given)

    def gather(self, numbers: Tensor) -> Tensor:
        """(k, r) what is read here, of (k, m) what each rank holds."""
        sent = numbers.index_select(1, self._held.clamp(min=0) if self._gaps else self._held)
        if self._gaps:
            sent = sent.masked_fill(self._absent, 0)
        received = self._swapped(sent, self._to, self._from)
        gathered = torch.empty_like(received)
        gathered[:, self._order] = received
        return gathered

    def add(self, read: Tensor, held: Tensor) -> Tensor:
        """`held` (k, m), and where it was read, what each reader gives back, (k, r): the adjoint of `gather`."""
        received = self._swapped(read.index_select(1, self._order), self._from, self._to)
        if self._gaps:
            received = received.masked_fill(self._absent, 0)
        return held.index_add(1, self._held.clamp(min=0), received)

    def most(self, read: Tensor, held: Tensor) -> Tensor:
        """The same with maxima, of (r,) and (m,)."""
        received = self._swapped(read[self._order].unsqueeze(0), self._from, self._to).squeeze(0)
        return held.scatter_reduce(0, self._held, received, "amax")

    def _swapped(
        self, sent: Tensor, to: list[tuple[int, slice]], source: list[tuple[int, slice]]
    ) -> Tensor:
        columns = sent.mT.resolve_conj().contiguous()  # the numbers for a neighbour lie together
        received = columns.new_empty(source[-1][1].stop if source else 0, sent.shape[0])
        comm, there, here = self._group.comm, columns.numpy(), received.numpy()
        messages = [comm.Irecv(here[part], rank) for rank, part in source]
        messages += [comm.Isend(there[part], rank) for rank, part in to]
        MPI.Request.Waitall(messages)
        return received.mT


def _parts(counts: Tensor) -> list[tuple[int, slice]]:
    """The neighbours, and where the numbers of each are."""
    ends = counts.cumsum(0).tolist()
    return [
        (rank, slice(end - count, end))
        for rank, (end, count) in enumerate(zip(ends, counts.tolist(), strict=True))
        if count
    ]


def _owner(rows: Tensor, stops: Tensor) -> Tensor:
    return torch.searchsorted(stops, rows, right=True)


class Numbering:
    """The rows as the solver for clusters knows them: one at least on each rank.

    With a rank that has none it waits for ever, or gives up, or gives wrong numbers (MKL 2026.2, depending on which one it
    is, and on n). So such a rank gets a row of its own, with a diagonal entry, that nothing else depends on.

    n, block : of the solver; `is_padding` : whether this rank's is made up
    """

    def __init__(self, group: Group, stops: Tensor, block: range):
        empty = torch.diff(stops, prepend=stops.new_zeros(1)) == 0
        self._stops, self._shifts = stops, empty.cumsum(0) - empty.long()
        self.is_padding = len(block) == 0
        self.n = int(stops[-1] + empty.sum())
        start = block.start + int(self._shifts[group.rank])
        self.block = range(start, start + max(1, len(block)))

    def columns(self, cols: Tensor) -> Tensor:
        """The numbers of columns of the matrix."""
        if not self._shifts.any():
            return cols
        return cols + self._shifts[_owner(cols, self._stops)]


class Rows:
    """The entries of this rank's block of rows, and the numbers of other ranks that products with them read.

    Columns are numbered among those that occur here or belong to this rank ("read" columns), in their order, so that the
    canonical order of the local `structure`, (rows of the block, read columns), is that of the whole matrix.
    """

    def __init__(
        self, group: Group, rows: Tensor, cols: Tensor, shape: tuple[int, int], block: range
    ):
        self.group, self.shape, self.block, self.n = group, shape, block, len(block)
        stops = torch.tensor(group.comm.allgather(block.stop))
        own = torch.arange(block.start, block.stop)
        self.read = torch.unique(torch.cat((cols, own)))
        self.before = int((self.read < block.start).sum())
        self.structure = Structure(
            rows - block.start, torch.searchsorted(self.read, cols), (self.n, self.read.numel())
        )
        self._stops = stops  # of the blocks of all ranks
        self.numbering = Numbering(group, stops, block)
        away = torch.cat((self.read[: self.before], self.read[self.before + self.n :]))
        self._exchange = Exchange(
            group, self.owner(away), away.unsqueeze(1), lambda them: them[:, 0] - block.start
        )
        self.rows = self.structure.canonical_rows + block.start
        self.cols = self.read[self.structure.col]
        self._mirror: tuple[Exchange, Tensor, bool] | None = None
        self._diagonal: Tensor | None = None
        self.upper: Arrangement | None = None  # the upper triangle, once it is needed
        self.needed: dict[
            tuple[str, torch.dtype], int
        ] = {}  # by kinds of matrices: which way to factor them was needed
        ones = torch.ones(1, self.structure.nnz, dtype=torch.int64)
        counts = self.fold(
            torch.zeros(1, self.read.numel(), dtype=torch.int64).index_add(
                1, self.structure.cols, ones
            )
        )
        empty_rows = torch.nonzero(torch.bincount(self.structure.rows, minlength=self.n) == 0)
        empty_cols = torch.nonzero(counts[0] == 0)
        self.empty_line: tuple[str, int] | None = (
            None  # a row or column of this block that has no entry
        )
        for name, empty in (("row", empty_rows), ("column", empty_cols)):
            if empty.numel() and self.empty_line is None:
                self.empty_line = name, int(empty[0]) + block.start

    def owner(self, rows: Tensor) -> Tensor:
        """The rank of each row."""
        return _owner(rows, self._stops)

    def extend(self, x: Tensor) -> Tensor:
        """(k, read) the numbers of all columns that are read here, of (k, n) the share of this rank."""
        away = self._exchange.gather(x)
        return torch.cat((away[:, : self.before], x, away[:, self.before :]), 1)

    def fold(self, y: Tensor) -> Tensor:
        """(k, n) the sum of what all ranks have for the rows of this one, of (k, read): the adjoint of `extend`."""
        own, away = self._divided(y)
        return self._exchange.add(away, own)

    def most(self, y: Tensor) -> Tensor:
        """(n,) the same with maxima, of (read,)."""
        own, away = self._divided(y.unsqueeze(0))
        return self._exchange.most(away[0], own[0])

    def _divided(self, y: Tensor) -> tuple[Tensor, Tensor]:
        after = self.before + self.n
        return y[:, self.before : after], torch.cat((y[:, : self.before], y[:, after:]), 1)

    def opposite(self, canonical: Tensor) -> Tensor:
        """(canonical_nnz,) the entries at the opposite places; zero where none is stored."""
        if self._mirror is None:
            inside = (self.cols >= self.block.start) & (self.cols < self.block.stop)
            places = torch.stack((self.cols, self.rows), 1)
            exchange = Exchange(
                self.group, self.owner(self.cols[~inside]), places[~inside], self._find
            )
            # Among the entries of this rank, those that others send, and a zero.
            source, nnz = torch.empty_like(self.cols), self.cols.numel()
            away = nnz - int(inside.sum())
            source[inside] = (found := self._find(places[inside])).where(
                found >= 0, torch.tensor(nnz + away)
            )
            source[~inside] = torch.arange(nnz, nnz + away)
            self._mirror = exchange, source, bool(away or (found < 0).any())
        exchange, source, others = self._mirror
        received = exchange.gather(canonical.unsqueeze(0))[0]
        if others:
            canonical = torch.cat((canonical, received, canonical.new_zeros(1)))
        return canonical.index_select(0, source)

    def _find(self, places: Tensor) -> Tensor:
        """(s,) the canonical positions of the entries at (s, 2) places in rows of this block; −1 where there is none."""
        keys = self.structure.canonical_rows * self.shape[1] + self.cols
        wanted = (places[:, 0] - self.block.start) * self.shape[1] + places[:, 1]
        at = torch.searchsorted(keys, wanted)
        found = at < keys.numel()
        found[found.clone()] = keys[at[found]] == wanted[found]
        return torch.where(found, at, -1)

    def diagonal_of(self, canonical: Tensor) -> Tensor:
        """(n,) the diagonal entries in this block; zero where none is stored."""
        if canonical.numel() == 0:
            return canonical.new_zeros(self.n)
        return canonical.index_select(0, self.diagonal.clamp(min=0)).masked_fill(
            self.diagonal < 0, 0
        )

    @property
    def diagonal(self) -> Tensor:
        """(n,) the canonical positions of the diagonal entries of this block; −1 where there is none."""
        own = torch.arange(self.block.start, self.block.stop)
        if self._diagonal is None:
            self._diagonal = self._find(torch.stack((own, own), 1))
        return self._diagonal


def checked_block(group: Group, block: range, n: int) -> None:
    """Raises `ShapeError` on all ranks unless their blocks are contiguous, in order, and all there is; collective."""
    blocks = group.comm.allgather((block.start, block.stop))
    expected = 0
    for rank, (start, stop) in enumerate(blocks):
        if start != expected or stop < start:
            raise ShapeError(
                f"the block of rank {rank} is rows {start} to {stop}, and should begin with row {expected}: blocks follow "
                f"each other in the order of the ranks"
            )
        expected = stop
    if expected != n:
        raise ShapeError(f"the blocks of all ranks have {expected} rows, the matrix has {n}")


def check_rows(rows: Tensor, block: range) -> None:
    """Raises unless all entries are in rows of the block."""
    outside = torch.nonzero((rows < block.start) | (rows >= block.stop))
    if outside.numel():
        entry = int(outside[0])
        raise IndexRangeError(
            f"entry {entry} is in row {int(rows[entry])}, and this rank has rows {block.start} to {block.stop - 1}"
            if len(block)
            else f"entry {entry} is in row {int(rows[entry])}, and this rank has no rows",
            entry=entry,
            index=int(rows[entry]),
        )
