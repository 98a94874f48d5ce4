"""How a matrix is stored, what it is assumed to be, and how it is factored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from .._engines.protocol import Kind
from .._engines.registry import check_name, iterates
from .._sparse.values import is_single
from ..errors import OptionError

Assume = Literal["auto", "spd", "symmetric", "hermitian", "general"]
Triangle = Literal["lower", "upper"]
Precision = Literal["full", "mixed"]


@dataclass(frozen=True)
class Options:
    """The options of a factorisation; the public calls describe them.

    assume : what the matrix is assumed to be
    triangle : the triangle that is stored, if it is only one
    engine : the engine that factors; None for a suitable one
    non_blocking : whether errors that depend on values are raised later, so that the host need not
        wait for a GPU
    precision : "mixed" to factor matrices of double precision in single precision
    """

    assume: Assume = "auto"
    triangle: Triangle | None = None
    engine: str | None = None
    non_blocking: bool = False
    precision: Precision = "full"

    def check(self, dtype: torch.dtype) -> None:
        """Raise OptionError where an option does not exist, or contradicts another one."""
        if self.assume not in get_args(Assume):
            kinds = ", ".join(map(repr, get_args(Assume)))
            raise OptionError(f"assume={self.assume!r}: expected one of {kinds}")
        if self.triangle is not None and self.triangle not in get_args(Triangle):
            raise OptionError(f"triangle={self.triangle!r}: expected 'lower', 'upper' or None")
        if self.engine is not None:
            check_name(self.engine)
        if not isinstance(self.non_blocking, bool):
            raise OptionError(f"non_blocking={self.non_blocking!r}: expected True or False")
        if self.non_blocking and self.assume == "auto":
            raise OptionError(
                "non_blocking=True does not wait to see the values, so that assume='auto' cannot "
                "look at them: pass assume='spd', 'symmetric', 'hermitian' or 'general'"
            )
        self._check_precision(dtype)
        if self.triangle is not None and self.assume == "general":
            raise OptionError(
                "triangle= stores half of a symmetric matrix, which assume='general' contradicts"
            )
        if self.triangle is not None and self.assume == "auto" and dtype.is_complex:
            raise OptionError(
                "one triangle of a complex matrix does not determine whether the other one is its "
                "transpose or its conjugate transpose: pass assume='symmetric', 'hermitian' or "
                "'spd'"
            )

    def _check_precision(self, dtype: torch.dtype) -> None:
        if self.precision not in get_args(Precision):
            raise OptionError(f"precision={self.precision!r}: expected 'full' or 'mixed'")
        if self.precision == "full":
            return
        if is_single(dtype):
            raise OptionError(
                f"precision='mixed' factors matrices of double precision in single precision, and "
                f"the matrix has dtype {dtype}: omit precision=, or convert the matrix"
            )
        if self.non_blocking:
            raise OptionError(
                "precision='mixed' waits to see whether single precision is enough: omit "
                "non_blocking=True"
            )
        if self.engine is not None and iterates(self.engine):
            raise OptionError(
                f"precision='mixed' is about factors, and the engine {self.engine!r} iterates "
                f"instead of factoring: omit one of them"
            )

    def kind(self, dtype: torch.dtype) -> Kind:
        """What the matrix is assumed to be, unless that is to be found out."""
        assert self.assume != "auto"
        return "symmetric" if self.assume == "hermitian" and not dtype.is_complex else self.assume

    def mirror(self, dtype: torch.dtype) -> str | None:
        """What an entry off the diagonal also stands for at the opposite place; see `Places`."""
        if self.triangle is None:
            return None
        is_hermitian = dtype.is_complex and self.assume in ("spd", "hermitian")
        return "hermitian" if is_hermitian else "symmetric"
