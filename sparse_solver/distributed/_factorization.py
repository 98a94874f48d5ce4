"""`Factorization` with the rows of the matrix distributed over ranks, and its right-hand sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from .._factor.accuracy.checked_factor import CheckedFactor, EmptyFactor
from .._solve.info import Info, collect_info
from .._solve.shapes import check_flags, check_rhs
from .._sparse.values import CPU, check_finite
from .._torch.dynamo import disable_dynamo
from .._torch.modes import is_recorded
from ..errors import ShapeError
from ._autograd import apply_inverse
from ._halo_exchange import Rows
from ._reductions import refuse_transforms


class Factorization:
    """A factored matrix whose rows are distributed, made by `Pattern.factorize`.

    Solutions are differentiable in the values that were factored and in `b`. After all ranks have
    dropped this object and the graphs of its solutions, a later factorisation uses the memory of
    the factor or releases it.

    Attributes
    ----------
    info : Info
        What is known about the factorisation.

    Examples
    --------
    >>> import torch
    >>> from mpi4py import MPI
    >>> from sparse_solver.distributed import Pattern
    >>> P = Pattern(torch.arange(2), torch.arange(2), (2, 2), comm=MPI.COMM_SELF)
    >>> P.factorize(torch.tensor([1.0, 2.0]))
    Factorization(shape=(2, 2), block=range(0, 2), assume='spd')
    """

    def __init__(self, rows: Rows, values: Tensor, factor: CheckedFactor | EmptyFactor):
        self._rows, self._values, self._factor = rows, values, factor
        self._call = rows.group.calls  # the number of the call that factored

    @property
    def info(self) -> Info:
        """What is known about the factorisation, a `sparse_solver.Info`; not collective.

        Memory and stored entries are those of this rank.
        """
        info = collect_info(self._rows.structure, [self._factor], CPU)
        return replace(info, n=self._rows.shape[0])

    @disable_dynamo
    def solve(self, b: Tensor, *, transpose: bool = False, adjoint: bool = False) -> Tensor:
        """Solve A x = b; differentiable in the values that were factored and in `b`; collective.

        Parameters
        ----------
        b : Tensor
            (m,) or (m, k), the rows of this rank; of the dtype of the matrix.
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
            As for `Pattern.solve`.

        Examples
        --------
        >>> import torch
        >>> from mpi4py import MPI
        >>> from sparse_solver.distributed import Pattern
        >>> rows, cols = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
        >>> F = Pattern(rows, cols, (2, 2), comm=MPI.COMM_SELF).factorize(torch.ones(3))
        >>> F.solve(torch.ones(2)), F.solve(torch.ones(2), transpose=True)
        (tensor([0., 1.]), tensor([1., 0.]))
        """
        rows, values, right = self._rows, self._values, RightHandSides(b, transpose, adjoint)
        _, (recorded, _) = rows.group.agree(
            "Factorization.solve",
            lambda: right.check(values, rows),
            same=lambda _: {"with the factorization of call": self._call, **right.describe()},
            any_of=lambda _: (is_recorded(values, b),),
        )
        return right.solve(values, self._factor, rows, recorded)

    def __repr__(self) -> str:
        shape, block, kind = self._rows.shape, self._rows.block, self._factor.record.kind
        return f"Factorization(shape={shape}, block={block}, assume={kind!r})"

    def __reduce__(self) -> Any:
        raise TypeError("a Factorization lives in the memory of a native library, on all ranks")


class RightHandSides(NamedTuple):
    """The share of the right-hand sides, and which system to solve."""

    b: Tensor
    transpose: bool
    adjoint: bool

    def check(self, values: Tensor, rows: Rows) -> None:
        """Raise unless they fit the matrix."""
        b, m = self.b, rows.n
        check_rhs("b", b, values)
        if b.dim() not in (1, 2) or b.shape[0] != m:
            shape, has = tuple(b.shape), f"this rank has {m} of {rows.shape[0]} rows"
            raise ShapeError(f"b has shape {shape}, but {has}; expected ({m},) or ({m}, k)")
        check_flags(self.transpose, self.adjoint)
        refuse_transforms(b)
        check_finite("b", b.detach() if b.dim() == 1 else b.detach().mT)

    def describe(self) -> dict[str, object]:
        """What has to be equal on all ranks."""
        count = "one vector" if self.b.dim() == 1 else self.b.shape[1]
        return {"transpose": self.transpose, "adjoint": self.adjoint, "right-hand sides": count}

    def solve(
        self, values: Tensor, factor: CheckedFactor | EmptyFactor, rows: Rows, recorded: bool
    ) -> Tensor:
        """Solve, after the ranks have agreed."""
        b, is_vector = (self.b.conj() if self.adjoint else self.b), self.b.dim() == 1
        rhs, transpose = b.unsqueeze(0) if is_vector else b.mT, self.transpose or self.adjoint
        x = apply_inverse(values, rhs, factor, rows, transpose, recorded)
        x = x.squeeze(0) if is_vector else x.mT
        return x.conj() if self.adjoint else x  # A⁻ᴴ b = conj(A⁻ᵀ conj(b))
