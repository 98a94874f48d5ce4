"""`Pattern` and `Factorization`, as those of the package, with the rows of the matrix distributed over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._factorization import Info
from .._kinds import Assume, Options
from .._matrix import largest_modulus, raise_non_finite
from .._plain import plainly, resolved
from .._solve import check_rhs, check_values
from .._tensors import check_coo, check_range, shape_of
from .._untraced import untraced
from ..errors import DeviceError, OptionError, ShapeError
from ._cluster import ENGINE, Handles, check_available
from ._group import Group
from ._mpi import MPI
from ._numeric import Numeric
from ._rows import Rows, check_rows, checked_block, partition
from ._solve import solve
from ._sums import check_plain, is_recorded

_CPU = torch.device("cpu")


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
        self, rows: Tensor, cols: Tensor, shape: Sequence[int], comm: MPI.Comm | None = None, block: range | None = None
    ):
        self._group = group = Group.of(comm)

        def check() -> tuple[tuple[int, int], range]:
            check_available()
            size = shape_of(shape)
            if size[0] != size[1]:
                raise ShapeError(f"the matrix has shape {size}; only a square one, (n, n), can be solved with")
            mine = partition(size, group.comm) if block is None else block
            if not isinstance(mine, range) or mine.step != 1:
                raise OptionError(f"block={block!r}: expected range(start, stop), or None")
            check_coo(rows, cols)
            if rows.device != _CPU:
                raise DeviceError(f"indices are on {rows.device}; distributed matrices are on the CPU")
            check_range("column", cols, size[1], "columns")
            check_rows(rows, mine)
            return size, mine

        (size, mine), _ = group.agree("Pattern", check, same=lambda checked: {"rows": checked[0][0]})
        self.shape, self.block, self.nnz = size, mine, rows.numel()
        self._number = group.calls
        with plainly(), group.collective():
            checked_block(group, mine, size[0])
            self._rows = Rows(group, rows.to(torch.int64, copy=True), cols.to(torch.int64, copy=True), size, mine)

    @untraced
    def solve(self, values: Tensor, b: Tensor, *, assume: Assume = "auto", transpose: bool = False) -> Tensor:
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

    @untraced
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

    def _agree(self, call: str, values: Tensor, assume: Assume, right: tuple[Tensor, bool] | None = None) -> bool:
        """Whether any rank records what is computed from the values and the `right`-hand side (b, transpose); raises where they
        cannot be used."""

        def check() -> tuple[Tensor, ...]:
            check_values(values, self.nnz, _CPU)
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

    def _factored(self, values: Tensor, assume: Assume) -> Numeric:
        with plainly(), self._group.collective():
            return Numeric(self._rows, self._number, resolved(values).contiguous(), assume)

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
        raise TypeError("a distributed Pattern belongs to its ranks; make another one from the indices")


class Factorization:
    """A factored matrix, distributed; made by `Pattern.factorize`, and like the package's `Factorization`.

    Solutions are differentiable in the values that were factored and in `b`. The memory of the factor is used again, or
    released, by a factorisation after all ranks have dropped it and the graphs of its solutions.
    """

    _pattern: Pattern
    _values: Tensor
    _numeric: Numeric

    @classmethod
    def _of(cls, pattern: Pattern, values: Tensor, numeric: Numeric) -> Factorization:
        made = cls.__new__(cls)
        made._pattern, made._values, made._numeric = pattern, values, numeric
        return made

    @property
    def info(self) -> Info:
        """What is known about the factorisation; memory and stored entries are those of this rank. Not collective."""
        numeric, pattern = self._numeric, self._pattern
        factor = None if numeric.trusted is None else numeric.trusted.factor
        return Info(
            assume=numeric.kind,
            assume_reason=numeric.kind_reason,
            engine=ENGINE,
            engine_reason="distributed",
            device="cpu",
            n=pattern.shape[0],
            nnz=pattern._rows.structure.canonical_nnz,
            factor_nnz=factor.nnz if factor else 0,
            factor_flops=None,
            memory_bytes=factor.memory_bytes if factor else 0,
            perturbed_pivots=factor.perturbed_pivots if factor else 0,
            analysis_seconds=numeric.analysis_seconds,
            factorization_seconds=numeric.factorization_seconds,
        )

    @untraced
    def solve(self, b: Tensor, *, transpose: bool = False) -> Tensor:
        """x = A⁻¹ b, or A⁻ᵀ b with ``transpose=True`` (never A⁻ᴴ); `b` and errors as for `Pattern.solve`. Collective."""
        pattern, values, numeric = self._pattern, self._values, self._numeric
        _, (recorded, _) = pattern._group.agree(
            "Factorization.solve",
            lambda: pattern._check_rhs(b, values, transpose),
            same=lambda _: {"with the factorization of call": numeric.call, **_described(b, transpose)},
            any_of=lambda _: (is_recorded(values, b),),
        )
        return _solved(values, b, numeric, pattern._rows, transpose, recorded)

    def __repr__(self) -> str:
        return f"Factorization(shape={self._pattern.shape}, block={self._pattern.block}, assume={self._numeric.kind!r})"

    def __reduce__(self) -> Any:
        raise TypeError("a Factorization lives in the memory of a native library, on all ranks")


def _check_finite(name: str, tensor: Tensor) -> None:
    if tensor.numel() and not largest_modulus(tensor) < float("inf"):
        raise_non_finite(name, tensor)


def _described(b: Tensor, transpose: bool) -> dict[str, object]:
    return {"transpose": transpose, "right-hand sides": "one vector" if b.dim() == 1 else b.shape[1]}


def _solved(values: Tensor, b: Tensor, numeric: Numeric, rows: Rows, transpose: bool, recorded: bool) -> Tensor:
    rhs = b.unsqueeze(0) if b.dim() == 1 else b.mT
    x = solve(values, rhs, numeric, rows, transpose, recorded)
    return x.squeeze(0) if b.dim() == 1 else x.mT
