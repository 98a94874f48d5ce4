"""What matrices are factored for, by name: a compiled graph can hold a name, but not an object.

Rooms above this one register their own purposes, so that the solve need not know what they require
of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .._sparse.structure import Structure
from ..errors import SparseSolverError
from .accuracy.checked_factor import InverseOperator
from .ladder.ladder import factor_matrix


def _explain_nothing(error: SparseSolverError, structure: Structure, matrices: Tensor) -> None:
    """The error already names the value."""


@dataclass(frozen=True)
class Purpose:
    """What a matrix is factored for, which may require more of it than a solve does.

    factor : factors a matrix; called as `factor_matrix` is
    explain : raises a better error for `matrices` (batch, nnz) that are not finite or not
        symmetric, if there is one
    """

    factor: Callable[..., InverseOperator] = factor_matrix
    explain: Callable[[SparseSolverError, Structure, Tensor], None] = _explain_nothing


_purposes: dict[str, Callable[[str], Purpose]] = {"solve": lambda _: Purpose()}


def register_purpose(name: str, build: Callable[[str], Purpose]) -> None:
    """Let `purpose_named` give ``build(argument)`` for "name:argument"."""
    _purposes[name] = build


def purpose_named(name: str) -> Purpose:
    """The purpose called "name" or "name:argument"."""
    name, _, argument = name.partition(":")
    return _purposes[name](argument)
