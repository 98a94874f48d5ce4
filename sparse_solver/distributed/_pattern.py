"""`Pattern` and `Factorization`, as those of the package, with the rows of the matrix distributed over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._factor.accuracy import EmptyFactor
from .._factor.options import Assume, Options
from .._solve.factorization import Info, collect_info
from .._solve.shapes import check_rhs, check_values
from .._sparse.index_checks import check_coo, check_range, check_shape
from .._sparse.values import CPU, largest_modulus, raise_non_finite
from .._torch.dynamo import disable_dynamo
from .._torch.modes import is_recorded, materialize, outside_transforms
from ..errors import DeviceError, OptionError, ShapeError
from ._autograd import solve
from ._collective import Group
from ._halo_exchange import Rows, check_rows, checked_block, partition
from ._mkl_cluster import Handles, check_available
from ._mpi import MPI
from ._numeric import DistributedFactor, factor_distributed
from ._reductions import check_plain


class Pattern:
    """Where the entries of a sparse matrix are, whose rows are distributed over ranks.

    rows, cols : (nnz,) int64 or int32, the entries in the rows of this rank, with indices of the whole matrix, in any order;
        entries at the same place are summed
    shape : (n, n) of the whole matrix
    comm : an intracommunicator of mpi4py; None: MPI.COMM_WORLD
    block : the rows of this rank, ``range(start, stop)``: contiguous blocks in the order of the ranks, of any size, empty ones
        included; None: those of `partition`

    Collective, as everything that is done with it. All matrices and dtypes of the package, on the CPU.

    Raises `ShapeError` where blocks do not follow each other or the matrix is not square, `IndexRangeError` for entries outside
    of the block or the matrix, `DeviceError`, `EngineUnavailableError` where oneMKL or its solver for clusters is missing, and
    `CollectiveError` where ranks do something else: on all ranks, whichever of them is to blame.

    >>> import torch
    >>> from mpi4py import MPI
    >>> from sparse_solver.distributed import Pattern
    >>> P = Pattern(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 1]), (2, 2), comm=MPI.COMM_SELF)
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
        comm: MPI.Comm | None = None,
        block: range | None = None,
    ):
        self._group = group = Group.of(comm)

        def check() -> tuple[tuple[int, int], range]:
            check_available()
            size = check_shape(shape)
            if size[0] != size[1]:
                raise ShapeError(
                    f"the matrix has shape {size}; only a square one, (n, n), can be solved with"
                )
            mine = partition(size, group.comm) if block is None else block
            if not isinstance(mine, range) or mine.step != 1:
                raise OptionError(f"block={block!r}: expected range(start, stop), or None")
            check_coo(rows, cols)
            if rows.device != CPU:
                raise DeviceError(
                    f"indices are on {rows.device}; distributed matrices are on the CPU"
                )
            check_range("column", cols, size[1], "columns")
            check_rows(rows, mine)
            return size, mine

        (size, mine), _ = group.agree(
            "Pattern", check, same=lambda checked: {"rows": checked[0][0]}
        )
        self.shape, self.block, self.nnz = size, mine, rows.numel()
        self._number = group.calls
        with outside_transforms(), group.collective():
            checked_block(group, mine, size[0])
            self._rows = Rows(
                group, rows.to(torch.int64, copy=True), cols.to(torch.int64, copy=True), size, mine
            )

    @disable_dynamo
    def solve(
        self, values: Tensor, b: Tensor, *, assume: Assume = "auto", transpose: bool = False
    ) -> Tensor:
        """x = A(values)⁻¹ b, or A⁻ᵀ b with ``transpose=True``, differentiable in `values` and `b` to any order.

        values : (nnz,), those of this rank's entries; float32, float64, complex64 or complex128, the same on all ranks
        b : (m,) or (m, k), the share of this rank, which has m rows; of the same dtype
        assume : "auto", "spd", "symmetric", "hermitian" or "general", as for the package's `solve`
        returns : the share of x, of the shape of b

        The gradient of an entry is −λ_i conj(x_j) with λ = A⁻ᴴ x̄; where another rank has x_j, it sends it, by a plan that is
        made with the pattern. The backward pass is collective, too: every rank calls it, with a loss that depends on x.

        Raises what the package's `solve` does, and `CollectiveError`, on all ranks.
        """
        recorded = self._agree("solve", values, assume, (b, transpose))
        return _solved(values, b, self._factored(values, assume), self._rows, transpose, recorded)

    @disable_dynamo
    def factorize(self, values: Tensor, *, assume: Assume = "auto") -> Factorization:
        """Factor A(values) once, to solve with it often; see `solve`.

        >>> import torch
        >>> from mpi4py import MPI
        >>> from sparse_solver.distributed import Pattern
        >>> F = Pattern(torch.arange(2), torch.arange(2), (2, 2), comm=MPI.COMM_SELF).factorize(torch.tensor([1.0, 2.0]))
        >>> F.solve(torch.ones(2)), F.info.engine
        (tensor([1.0000, 0.5000]), 'cluster')
        """
        self._agree("factorize", values, assume)
        # A copy, since what is written to `values` later is not part of this matrix, nor of its graph.
        return Factorization._of(self, values.clone(), self._factored(values, assume))

    def release_idle(self) -> None:
        """Gives the memory of dead factors back, of all patterns on these ranks. Collective.

        A few are kept otherwise, for the next factorisation with the same pattern, which then needs no analysis.
        """
        self._group.agree("release_idle", lambda: None)
        with self._group.collective():
            Handles.of(self._group).release(self._group)

    def _agree(
        self, call: str, values: Tensor, assume: Assume, right: tuple[Tensor, bool] | None = None
    ) -> bool:
        """Whether any rank records what is computed from the values and the `right`-hand side (b, transpose); raises where they
        cannot be used."""

        def check() -> tuple[Tensor, ...]:
            check_values(values, self.nnz)
            if values.device != CPU:
                raise DeviceError(
                    f"values are on {values.device}; distributed matrices are on the CPU"
                )
            if values.dim() != 1:
                raise ShapeError(
                    f"values have shape {tuple(values.shape)}: a distributed matrix is one at a time, ({self.nnz},)"
                )
            Options(assume).check(values.dtype)
            check_plain(values)
            _check_finite("values", values.detach())
            if right is None:
                return (values,)
            self._check_rhs(right[0], values, right[1])
            return values, right[0]

        _, (recorded, _) = self._group.agree(
            call,
            check,
            same=lambda _: {
                "with the pattern of call": self._number,
                "dtype": values.dtype,
                "assume": assume,
                **({} if right is None else _described(*right)),
            },
            any_of=lambda tensors: (is_recorded(*tensors),),
        )
        return recorded

    def _factored(self, values: Tensor, assume: Assume) -> DistributedFactor | EmptyFactor:
        with outside_transforms(), self._group.collective():
            return factor_distributed(
                self._rows, self._number, materialize(values).contiguous(), assume
            )

    def _check_rhs(self, b: Tensor, values: Tensor, transpose: bool) -> None:
        check_rhs("b", b, values)
        if b.dim() not in (1, 2) or b.shape[0] != len(self.block):
            m = len(self.block)
            raise ShapeError(
                f"b has shape {tuple(b.shape)}, and this rank has {m} of {self.shape[0]} rows; expected ({m},) or ({m}, k)"
            )
        if not isinstance(transpose, bool):
            raise OptionError(f"transpose={transpose!r}: expected True or False")
        check_plain(b)
        _check_finite("b", b.detach() if b.dim() == 1 else b.detach().mT)

    def __repr__(self) -> str:
        return f"Pattern(shape={self.shape}, block={self.block}, nnz={self.nnz})"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a distributed Pattern belongs to its ranks; make another one from the indices"
        )


class Factorization:
    """A factored matrix, distributed; made by `Pattern.factorize`, and like the package's `Factorization`.

    Solutions are differentiable in the values that were factored and in `b`. The memory of the factor is used again, or
    released, by a factorisation after all ranks have dropped it and the graphs of its solutions.
    """

    _pattern: Pattern
    _values: Tensor
    _call: int
    _factor: DistributedFactor | EmptyFactor

    @classmethod
    def _of(
        cls, pattern: Pattern, values: Tensor, factor: DistributedFactor | EmptyFactor
    ) -> Factorization:
        made = cls.__new__(cls)
        made._pattern, made._values, made._factor = pattern, values, factor
        made._call = pattern._group.calls  # of the call that factored
        return made

    @property
    def info(self) -> Info:
        """What is known about the factorisation.

        Memory and stored entries are those of this rank. Not collective.
        """
        info = collect_info(self._pattern._rows.structure, [self._factor], CPU)
        return replace(info, n=self._pattern.shape[0])

    @disable_dynamo
    def solve(self, b: Tensor, *, transpose: bool = False) -> Tensor:
        """x = A⁻¹ b, or A⁻ᵀ b with ``transpose=True`` (never A⁻ᴴ); `b` and errors as for `Pattern.solve`. Collective."""
        pattern, values, factor = self._pattern, self._values, self._factor
        _, (recorded, _) = pattern._group.agree(
            "Factorization.solve",
            lambda: pattern._check_rhs(b, values, transpose),
            same=lambda _: {
                "with the factorization of call": self._call,
                **_described(b, transpose),
            },
            any_of=lambda _: (is_recorded(values, b),),
        )
        return _solved(values, b, factor, pattern._rows, transpose, recorded)

    def __repr__(self) -> str:
        return f"Factorization(shape={self._pattern.shape}, block={self._pattern.block}, assume={self._factor.record.kind!r})"

    def __reduce__(self) -> Any:
        raise TypeError("a Factorization lives in the memory of a native library, on all ranks")


def _check_finite(name: str, tensor: Tensor) -> None:
    if tensor.numel() and not largest_modulus(tensor) < float("inf"):
        raise_non_finite(name, tensor)


def _described(b: Tensor, transpose: bool) -> dict[str, object]:
    return {
        "transpose": transpose,
        "right-hand sides": "one vector" if b.dim() == 1 else b.shape[1],
    }


def _solved(
    values: Tensor,
    b: Tensor,
    factor: DistributedFactor | EmptyFactor,
    rows: Rows,
    transpose: bool,
    recorded: bool,
) -> Tensor:
    rhs = b.unsqueeze(0) if b.dim() == 1 else b.mT
    x = solve(values, rhs, factor, rows, transpose, recorded)
    return x.squeeze(0) if b.dim() == 1 else x.mT
