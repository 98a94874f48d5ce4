"""`Pattern` with the rows of the matrix distributed over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._factor.accuracy.checked_factor import CheckedFactor, EmptyFactor
from .._factor.options import Assume, Options
from .._solve.shapes import check_values
from .._sparse.index_checks import check_coo, check_range, check_shape, check_square
from .._sparse.values import CPU, check_finite
from .._torch.dynamo import disable_dynamo
from .._torch.modes import copy_to_keep, is_recorded, materialize, outside_transforms
from ..errors import DeviceError, OptionError, ShapeError
from ._collective import Group
from ._factorization import Factorization, RightHandSides
from ._halo_exchange import Rows, check_blocks, check_rows, partition
from ._mkl_cluster import Handles, check_available
from ._mpi import MPI
from ._numeric import factor_distributed
from ._reductions import refuse_transforms


class Pattern:
    """Where the entries of a sparse matrix are, whose rows are distributed over ranks.

    Making a pattern is collective, and so are its methods: all ranks make the same calls, in the
    same order. An error on one rank is raised on all ranks.

    Parameters
    ----------
    rows, cols : Tensor
        (nnz,) int64 or int32, on the CPU: the entries in the rows of this rank, with indices of
        the whole matrix, in any order; entries at the same place are summed.
    shape : sequence of int
        (n, n), the shape of the whole matrix.
    comm : mpi4py.MPI.Comm, optional
        An intracommunicator; by default MPI.COMM_WORLD.
    block : range, optional
        The rows of this rank, ``range(start, stop)``: blocks are contiguous, in the order of the
        ranks, of any length, and may be empty. By default those of `partition`.

    Attributes
    ----------
    shape : tuple of int
        The shape of the whole matrix.
    block : range
        The rows of this rank.
    nnz : int
        The number of entries of this rank, duplicates included.

    Raises
    ------
    ShapeError
        If the matrix is not square, or the blocks do not divide its rows.
    IndexRangeError
        For entries outside of the block or the matrix.
    OptionError, DeviceError
        If an option is not as described, or indices are not on the CPU.
    EngineUnavailableError
        If oneMKL or its solver for clusters is not installed.
    CollectiveError
        If ranks make different calls.

    Examples
    --------
    >>> import torch
    >>> from mpi4py import MPI
    >>> from sparse_solver.distributed import Pattern
    >>> rows, cols = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 1])
    >>> P = Pattern(rows, cols, (2, 2), comm=MPI.COMM_SELF)
    >>> values = torch.tensor([4.0, 3.0, 1.0, 1.0], requires_grad=True)
    >>> x = P.solve(values, torch.tensor([1.0, 2.0]))
    >>> x.sum().backward()
    >>> values.grad
    tensor([-0.0165, -0.1736, -0.0248, -0.1157])
    """

    def __init__(
        self,
        rows: Tensor,
        cols: Tensor,
        shape: Sequence[int],
        *,
        comm: MPI.Comm | None = None,
        block: range | None = None,
    ):
        self._group = group = Group.of(comm)

        def check() -> tuple[tuple[int, int], range]:
            check_available()
            size = check_shape(shape)
            check_square(size)
            mine = partition(size, comm=group.comm) if block is None else block
            if not isinstance(mine, range) or mine.step != 1:
                raise OptionError(f"block={block!r}: expected range(start, stop), or None")
            check_coo(rows, cols)
            _check_device("indices", rows)
            check_range("column", cols, size[1], "columns")
            check_rows(rows, mine)
            return size, mine

        def same(checked: tuple[tuple[int, int], range]) -> dict[str, object]:
            return {"rows": checked[0][0]}

        (self.shape, self.block), _ = group.agree("Pattern", check, same)
        self.nnz, self._number = rows.numel(), group.calls
        with outside_transforms(), group.collective():
            check_blocks(group, self.block, self.shape[0])
            rows, cols = (index.to(torch.int64, copy=True) for index in (rows, cols))
            self._rows = Rows(group, rows, cols, self.shape, self.block)

    @disable_dynamo
    def solve(
        self,
        values: Tensor,
        b: Tensor,
        *,
        assume: Assume = "auto",
        transpose: bool = False,
        adjoint: bool = False,
    ) -> Tensor:
        """Solve A(values) x = b; differentiable in `values` and `b`, to any order.

        The call is collective, and so is its backward pass: every rank calls `backward`, with a
        loss that depends on x.

        Parameters
        ----------
        values : Tensor
            (nnz,), the values of this rank's entries; float32, float64, complex64 or complex128,
            the same on all ranks.
        b : Tensor
            (m,) or (m, k), the rows of this rank; of the same dtype.
        assume : {"auto", "spd", "symmetric", "hermitian", "general"}
            As for `sparse_solver.solve`.
        transpose : bool
            Solve Aᵀ x = b instead.
        adjoint : bool
            Solve Aᴴ x = b instead.

        Returns
        -------
        Tensor
            The rows of x of this rank, of the shape of `b`.

        Raises
        ------
        SparseSolverError
            As for `sparse_solver.solve`, on all ranks; `CollectiveError` if ranks make different
            calls, or pass different options.

        Notes
        -----
        The gradient of an entry is −λ_i conj(x_j) with λ = A⁻ᴴ x̄. If another rank has x_j, it
        sends x_j once, by a plan that is made with the pattern.

        Examples
        --------
        >>> import torch
        >>> from mpi4py import MPI
        >>> from sparse_solver.distributed import Pattern
        >>> P = Pattern(torch.arange(2), torch.arange(2), (2, 2), comm=MPI.COMM_SELF)
        >>> P.solve(torch.tensor([1.0, 2.0]), torch.ones(2))
        tensor([1.0000, 0.5000])
        """
        right = RightHandSides(b, transpose, adjoint)
        recorded = self._agree("solve", values, assume, right)
        return right.solve(values, self._factor(values, assume), self._rows, recorded)

    @disable_dynamo
    def factorize(self, values: Tensor, *, assume: Assume = "auto") -> Factorization:
        """Factor A(values) once, to solve with it often; collective.

        Parameters
        ----------
        values : Tensor
            As for `solve`.
        assume : {"auto", "spd", "symmetric", "hermitian", "general"}
            As for `sparse_solver.solve`.

        Returns
        -------
        Factorization
            The factored matrix.

        Raises
        ------
        SparseSolverError
            As for `solve`.

        Examples
        --------
        >>> import torch
        >>> from mpi4py import MPI
        >>> from sparse_solver.distributed import Pattern
        >>> P = Pattern(torch.arange(2), torch.arange(2), (2, 2), comm=MPI.COMM_SELF)
        >>> F = P.factorize(torch.tensor([1.0, 2.0]))
        >>> F.solve(torch.ones(2)), F.info.engine
        (tensor([1.0000, 0.5000]), 'cluster')
        """
        self._agree("factorize", values, assume)
        # A copy, since what is written to `values` later is not part of this matrix, nor of its
        # graph.
        return Factorization(self._rows, copy_to_keep(values), self._factor(values, assume))

    def release_idle(self) -> None:
        """Release the memory of dead factors of all patterns on these ranks; collective.

        Otherwise the memory of a few is kept for the next factorisations with the same patterns,
        which then need no analysis.

        Raises
        ------
        CollectiveError
            If ranks make different calls.
        """
        self._group.agree("release_idle", lambda: None)
        with self._group.collective():
            Handles.of(self._group).release(self._group)

    def _agree(
        self, call: str, values: Tensor, assume: Assume, right: RightHandSides | None = None
    ) -> bool:
        """Check the arguments on all ranks; return whether any rank records the results."""

        def check() -> tuple[Tensor, ...]:
            check_values(values, self.nnz)
            _check_device("values", values)
            if values.dim() != 1:
                shape, expected = tuple(values.shape), f"expected ({self.nnz},)"
                one = "distributed matrices are solved one at a time"
                raise ShapeError(f"values have shape {shape}; {one}: {expected}")
            Options(assume).check(values.dtype)
            refuse_transforms(values)
            check_finite("values", values.detach())
            if right is None:
                return (values,)
            right.check(values, self._rows)
            return values, right.b

        def same(_: tuple[Tensor, ...]) -> dict[str, object]:
            options = {"with the pattern of call": self._number, "dtype": values.dtype}
            return {**options, "assume": assume, **({} if right is None else right.describe())}

        _, (recorded, _) = self._group.agree(
            call, check, same, any_of=lambda given: (is_recorded(*given),)
        )
        return recorded

    def _factor(self, values: Tensor, assume: Assume) -> CheckedFactor | EmptyFactor:
        values = materialize(values).contiguous()
        with outside_transforms(), self._group.collective():
            return factor_distributed(self._rows, self._number, values, assume)

    def __repr__(self) -> str:
        return f"Pattern(shape={self.shape}, block={self.block}, nnz={self.nnz})"

    def __reduce__(self) -> Any:
        raise TypeError("a distributed Pattern belongs to its ranks; make another from the indices")


def _check_device(name: str, tensor: Tensor) -> None:
    if tensor.device != CPU:
        raise DeviceError(
            f"{name} are on {tensor.device}; distributed matrices are on the CPU: move them there"
        )
