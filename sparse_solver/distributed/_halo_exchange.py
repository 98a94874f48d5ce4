"""The block of rows of each rank, and the exchange of numbers between ranks that products need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._engines.protocol import Kind
from .._factor.ladder.starting_method import Start
from .._sparse.structure import Structure, row_pointers
from .._sparse.triangle import Arrangement
from ..errors import IndexRangeError, ShapeError
from ._collective import Group
from ._mpi import MPI


def partition(shape: Sequence[int], *, comm: MPI.Comm | None = None) -> range:
    """Return the rows of this rank in an even distribution.

    Parameters
    ----------
    shape : sequence of int
        (n, n), the shape of the whole matrix.
    comm : mpi4py.MPI.Comm, optional
        An intracommunicator; by default MPI.COMM_WORLD.

    Returns
    -------
    range
        The rows of this rank. The blocks are contiguous, in the order of the ranks, and their
        lengths differ by at most one.

    Notes
    -----
    This call is not collective.

    Examples
    --------
    >>> from mpi4py import MPI
    >>> from sparse_solver.distributed import partition
    >>> partition((10, 10), comm=MPI.COMM_SELF)
    range(0, 10)
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    n, rank, size = shape[0], comm.rank, comm.size
    return range(n * rank // size, n * (rank + 1) // size)


class Exchange:
    """A plan to read numbers that other ranks hold, by one message from and to each neighbour.

    owner : (r,) the rank that holds each number that this rank reads
    wanted : (r, w) how the owner identifies each of them
    locate : maps (s, w) identifiers to positions among the numbers that this rank holds, or to −1
        for a number that counts as zero
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
        self._has_absent = bool(self._absent.any())
        self._from, self._to = _neighbours(counts), _neighbours(given)

    def gather(self, held: Tensor) -> Tensor:
        """(k, r) the numbers that this rank reads, where each rank holds (k, m) numbers."""
        sent = held.index_select(1, self._held.clamp(min=0))
        if self._has_absent:
            sent = sent.masked_fill(self._absent, 0)
        received = self._swap(sent, self._to, self._from)
        gathered = torch.empty_like(received)
        gathered[:, self._order] = received
        return gathered

    def scatter_add(self, held: Tensor, read: Tensor) -> Tensor:
        """`held` (k, m) plus the numbers (k, r) of each reader: the adjoint of `gather`."""
        received = self._swap(read.index_select(1, self._order), self._from, self._to)
        if self._has_absent:
            received = received.masked_fill(self._absent, 0)
        return held.index_add(1, self._held.clamp(min=0), received)

    def scatter_max(self, held: Tensor, read: Tensor) -> Tensor:
        """The maximum of `held` (m,) and the numbers (r,) of each reader."""
        received = self._swap(read[self._order].unsqueeze(0), self._from, self._to).squeeze(0)
        return held.scatter_reduce(0, self._held, received, "amax")

    def _swap(
        self, sent: Tensor, to: list[tuple[int, slice]], source: list[tuple[int, slice]]
    ) -> Tensor:
        """Send columns of `sent` to the ranks `to`, and receive others from those of `source`."""
        columns = sent.mT.resolve_conj().contiguous()  # each message is contiguous
        received = columns.new_empty(source[-1][1].stop if source else 0, sent.shape[0])
        comm, there, here = self._group.comm, columns.numpy(), received.numpy()
        messages = [comm.Irecv(here[chosen], rank) for rank, chosen in source]
        messages += [comm.Isend(there[chosen], rank) for rank, chosen in to]
        MPI.Request.Waitall(messages)
        return received.mT


def _neighbours(counts: Tensor) -> list[tuple[int, slice]]:
    """The ranks with nonzero counts, and where the numbers of each are."""
    ends = zip(counts.cumsum(0).tolist(), counts.tolist(), strict=True)
    slices = [slice(end - count, end) for end, count in ends]
    return [(rank, chosen) for rank, chosen in enumerate(slices) if chosen.start < chosen.stop]


class Numbering:
    """The rows as the solver for clusters numbers them, with at least one row on each rank.

    With an empty rank the solver hangs, fails, or gives wrong numbers (MKL 2026.2, depending on the
    rank and on n). So such a rank has a padding row with a diagonal entry, independent of the rest.

    n : the number of rows, with padding
    block : the rows of this rank
    is_padding : whether the row of this rank is a padding row
    """

    def __init__(self, group: Group, stops: Tensor, block: range):
        empty = torch.diff(stops, prepend=stops.new_zeros(1)) == 0
        self._stops, self._shifts = stops, empty.cumsum(0) - empty.long()
        self.is_padding = len(block) == 0
        self.n = int(stops[-1] + empty.sum())
        start = block.start + int(self._shifts[group.rank])
        self.block = range(start, start + max(1, len(block)))

    def number(self, cols: Tensor) -> Tensor:
        """The solver's numbers of these columns of the matrix."""
        return cols + self._shifts[_find_owner(cols, self._stops)] if self._shifts.any() else cols


def _find_owner(rows: Tensor, stops: Tensor) -> Tensor:
    """The rank of each row, where the blocks of the ranks have these `stops`."""
    return torch.searchsorted(stops, rows, right=True)


class Rows:
    """The entries in the rows of this rank, and the exchange that products with them need.

    The columns that this rank reads are those of its entries and those of its own rows. The local
    `structure` numbers them in order, so that its canonical order is that of the whole matrix.

    block : the rows of this rank
    read : the columns that this rank reads
    before : how many of them precede the block
    rows, cols : (canonical_nnz,) the places of the canonical entries in the whole matrix
    diagonal : (n,) the canonical positions of the diagonal entries; −1 where none is stored
    empty_line : "row" or "column" and the number of one in this block without entries, if any
    starts : for kinds and dtypes, where the ladder of factorisations starts
    """

    def __init__(
        self, group: Group, rows: Tensor, cols: Tensor, shape: tuple[int, int], block: range
    ):
        self.group, self.shape, self.block, self.n = group, shape, block, len(block)
        self._stops = torch.tensor(group.comm.allgather(block.stop))
        self.numbering = Numbering(group, self._stops, block)
        own = torch.arange(block.start, block.stop)
        self.read = torch.unique(torch.cat((cols, own)))
        self.before = int((self.read < block.start).sum())
        local = rows - block.start, torch.searchsorted(self.read, cols)
        self.structure = Structure(*local, (self.n, self.read.numel()))
        away = torch.cat((self.read[: self.before], self.read[self.before + self.n :]))
        owner = _find_owner(away, self._stops)
        self._halo = Exchange(group, owner, away.unsqueeze(1), lambda ids: ids[:, 0] - block.start)
        self.rows = self.structure.canonical_rows + block.start
        self.cols = self.read[self.structure.col]
        self.diagonal = self._find(torch.stack((own, own), 1))
        self.empty_line = self._find_empty_line()
        self.starts: dict[tuple[Kind, torch.dtype], Start] = {}
        self._upper: Arrangement | None = None
        self._mirror: tuple[Exchange, Tensor] | None = None

    def extend(self, x: Tensor) -> Tensor:
        """(k, read) the numbers of the columns that this rank reads, from the shares (k, n)."""
        away = self._halo.gather(x)
        return torch.cat((away[:, : self.before], x, away[:, self.before :]), 1)

    def fold(self, y: Tensor) -> Tensor:
        """(k, n) the sums over all ranks of their (k, read) numbers: the adjoint of `extend`."""
        return self._halo.scatter_add(*self._split(y))

    def fold_max(self, y: Tensor) -> Tensor:
        """(n,) the maxima over all ranks of their (read,) numbers."""
        own, away = self._split(y.unsqueeze(0))
        return self._halo.scatter_max(own[0], away[0])

    def _split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers of this rank's rows, and those of other ranks'."""
        after = self.before + self.n
        return y[:, self.before : after], torch.cat((y[:, : self.before], y[:, after:]), 1)

    def arrange(self, kind: Kind) -> Arrangement:
        """The entries that the solver wants, in the columns that this rank reads.

        All entries, or the upper triangle with every diagonal entry.
        """
        structure = self.structure
        if kind == "general":
            return Arrangement("full", structure.canonical_rows, structure.crow, structure.col)
        if self._upper is None:
            self._upper = self._arrange_upper()
        return self._upper

    def _arrange_upper(self) -> Arrangement:
        structure = self.structure
        kept = torch.nonzero(self.rows <= self.cols).squeeze(-1)
        missing = torch.nonzero(self.diagonal < 0).squeeze(-1)
        rows = torch.cat((structure.canonical_rows[kept], missing))
        # The columns of this rank's rows are contiguous among those that it reads.
        cols = torch.cat((structure.col[kept], missing + self.before))
        source = torch.cat((kept, torch.full_like(missing, -1)))
        order = torch.sort(rows * (self.read.numel() + 1) + cols)[1]
        rows, cols, source = rows[order], cols[order], source[order]
        pointers, has_gaps = row_pointers(rows, self.n), bool(missing.numel())
        return Arrangement("upper", rows, pointers, cols, source, None, has_gaps)

    def gather_opposite(self, canonical: Tensor) -> Tensor:
        """(canonical_nnz,) the entries at the opposite places; zero where none is stored."""
        if self._mirror is None:
            self._mirror = self._plan_mirror()
        exchange, source = self._mirror
        received = exchange.gather(canonical.unsqueeze(0))[0]
        return torch.cat((canonical, received, canonical.new_zeros(1))).index_select(0, source)

    def _plan_mirror(self) -> tuple[Exchange, Tensor]:
        """An exchange of entries, and where the opposite of each entry is.

        That is among the entries of this rank, those that it receives, and a zero.
        """
        places, nnz = torch.stack((self.cols, self.rows), 1), self.cols.numel()
        is_own = (self.cols >= self.block.start) & (self.cols < self.block.stop)
        away = places[~is_own]
        owner = _find_owner(self.cols[~is_own], self._stops)
        exchange = Exchange(self.group, owner, away, self._find)
        source, end = torch.empty_like(self.cols), nnz + len(away)
        found = self._find(places[is_own])
        source[is_own] = torch.where(found >= 0, found, end)
        source[~is_own] = torch.arange(nnz, end)
        return exchange, source

    def _find(self, places: Tensor) -> Tensor:
        """(s,) the canonical positions of entries at (s, 2) places in this block; −1 if absent."""
        keys = self.structure.canonical_rows * self.shape[1] + self.cols
        wanted = (places[:, 0] - self.block.start) * self.shape[1] + places[:, 1]
        at = torch.searchsorted(keys, wanted)
        found = at < keys.numel()
        found[found.clone()] = keys[at[found]] == wanted[found]
        return torch.where(found, at, -1)

    def _find_empty_line(self) -> tuple[str, int] | None:
        structure = self.structure
        in_rows = torch.bincount(structure.rows, minlength=self.n)
        in_cols = torch.bincount(structure.cols, minlength=self.read.numel())
        counts = ("row", in_rows), ("column", self.fold(in_cols.unsqueeze(0))[0])
        for name, count in counts:
            empty = torch.nonzero(count == 0)
            if empty.numel():
                return name, int(empty[0]) + self.block.start
        return None

    def diagonal_of(self, canonical: Tensor) -> Tensor:
        """(n,) the diagonal entries in this block; zero where none is stored."""
        if canonical.numel() == 0:
            return canonical.new_zeros(self.n)
        at = self.diagonal
        return canonical.index_select(0, at.clamp(min=0)).masked_fill(at < 0, 0)


def check_blocks(group: Group, block: range, n: int) -> None:
    """Raise ShapeError on all ranks unless their blocks divide n rows; collective.

    The blocks have to be contiguous, in the order of the ranks.
    """
    expected = 0
    for rank, (start, stop) in enumerate(group.comm.allgather((block.start, block.stop))):
        if start != expected or stop < start:
            raise ShapeError(
                f"the block of rank {rank} is rows {start} to {stop}, but has to begin with row "
                f"{expected}: blocks are contiguous, in the order of the ranks"
            )
        expected = stop
    if expected != n:
        raise ShapeError(f"the blocks of all ranks have {expected} rows, the matrix has {n}")


def check_rows(rows: Tensor, block: range) -> None:
    """Raise IndexRangeError unless all entries are in rows of the block."""
    outside = torch.nonzero((rows < block.start) | (rows >= block.stop))
    if outside.numel():
        entry = int(outside[0])
        row = int(rows[entry])
        own = f"rows {block.start} to {block.stop - 1}" if len(block) else "no rows"
        message = f"entry {entry} is in row {row}, but this rank has {own}; pass it to its own rank"
        raise IndexRangeError(message, entry=entry, index=row)
