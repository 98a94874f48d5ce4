"""The ways to factor a matrix, by name: a compiled graph can hold a name, but not an object.

Rooms above this one register their own, so that the solve need not know what they require of a
matrix.
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
class Method:
    """A way to factor a matrix.

    factor : factors a matrix; called as `factor_matrix` is
    explain : raises a better error for `matrices` (batch, nnz) that are not finite or not
        symmetric, if there is one
    """

    factor: Callable[..., InverseOperator] = factor_matrix
    explain: Callable[[SparseSolverError, Structure, Tensor], None] = _explain_nothing


_methods: dict[str, Callable[[str], Method]] = {"solve": lambda _: Method()}


def register_method(name: str, build: Callable[[str], Method]) -> None:
    """Let `method_named` give ``build(argument)`` for "name:argument"."""
    _methods[name] = build


def method_named(name: str) -> Method:
    name, _, argument = name.partition(":")
    return _methods[name](argument)
