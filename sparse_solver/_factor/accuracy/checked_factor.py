"""A factorisation that checks its solutions, and goes on to a better one where they fail."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from ..._engines.protocol import Factor, IterativeFactor, Kind
from ..._sparse.values import is_single, raise_non_finite, scaling_power
from ..._torch.fork_safe_lock import ForkSafeLock
from ...errors import (
    ConvergenceError,
    EngineError,
    NonFiniteError,
    SingularMatrixError,
    SparseSolverError,
)
from .judge import Judge, Outcome, Verdict
from .systems import Systems, Vectors


@dataclass
class Record:
    """How a factorisation came about.

    kind, kind_reason : what the matrix was taken for, and why
    engine, engine_reason : the engine, and why
    method, method_reason : how it factored, and why not by a faster method
    """

    kind: Kind
    kind_reason: str
    engine: str = "none"
    engine_reason: str = "nothing to factor"
    method: str = "none"
    method_reason: str = "nothing to factor"
    analysis_seconds: float = 0.0
    factorization_seconds: float = 0.0


class InverseOperator(Protocol):
    """The inverse of a matrix, applied by a factor that is checked in some way."""

    @property
    def record(self) -> Record:
        """How the factor came about."""

    @property
    def factor(self) -> Factor | None:
        """The factor, if the matrix has rows."""

    def apply_inverse(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """Apply A⁻¹ or A⁻ᵀ to the rows of `rhs`; see `CheckedFactor.apply_inverse`."""


class EmptyFactor:
    """The factorisation of a matrix without rows."""

    factor: Factor | None = None

    def __init__(self, record: Record):
        self.record = record

    def apply_inverse(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        return torch.empty_like(rhs)


class SoundFactor:
    """A factor whose pivots show that all its solutions are good.

    like : the record of an earlier factor that was made in the same way
    seconds : the time of the factorisation
    """

    def __init__(self, like: Record, factor: Factor, vectors: Vectors, seconds: float):
        self._like, self._vectors, self._seconds = like, vectors, seconds
        self.factor: Factor | None = factor
        self._substitute = factor.substitute

    @property
    def record(self) -> Record:
        """How the factor came about."""
        return replace(self._like, analysis_seconds=0.0, factorization_seconds=self._seconds)

    def apply_inverse(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """Apply A⁻¹ or A⁻ᵀ to the rows of the contiguous `rhs` (k, n); see `CheckedFactor`."""
        vectors = self._vectors
        if vectors.is_empty(rhs):
            return torch.empty_like(rhs)
        x = self._substitute(rhs, transpose)
        # A right-hand side that is not finite has no solution that is.
        if vectors.all_finite(x):
            return x
        if not vectors.all_finite(rhs):
            return _apply_to_finite(self, vectors, rhs, transpose, strict)
        if strict:
            raise _overflow(x)
        return x


def _apply_to_finite(
    operator: InverseOperator, vectors: Vectors, rhs: Tensor, transpose: bool, strict: bool
) -> Tensor:
    """A⁻¹ or A⁻ᵀ applied to right-hand sides of which some are not finite."""
    if strict:
        raise_non_finite("b", rhs.view(-1, vectors.order))
        message = "b is too large: the modulus of an entry is infinite"
        raise NonFiniteError(message, argument="b", index=None)
    finite = vectors.spread(torch.isfinite(vectors.sizes(rhs)))
    x = operator.apply_inverse(torch.where(finite, rhs, 0), transpose, strict)
    return torch.where(finite, x, math.nan)


@cache
def _largest_factor(dtype: torch.dtype) -> float:
    """The number beyond which products of two may overflow, and those of inverses underflow.

    Products of numbers in single precision are formed in double precision.
    """
    return math.inf if is_single(dtype) else float(torch.finfo(dtype).max ** 0.5)


def _find_powers(systems: Systems, rhs: Tensor) -> Tensor | None:
    """(k, n) powers of two that bring huge and tiny right-hand sides near one, if there are any.

    What underflows hides errors. So right-hand sides stay as they are where smaller entries, which
    may be those of smaller rows, would underflow.
    """
    limit, numbers = _largest_factor(rhs.dtype), scaling_power(systems.sizes(rhs))
    numbers = torch.where((numbers > limit) | (numbers < 1 / limit), numbers, 1)
    powers = systems.spread(numbers)
    numbers = torch.where(systems.sizes(rhs * powers / powers - rhs) == 0, numbers, 1)
    return systems.spread(numbers) if bool((numbers != 1).any()) else None


def _overflow(x: Tensor) -> NonFiniteError:
    return NonFiniteError(f"the solution is too large for {x.dtype}", argument="x", index=None)


class BlockInDoubt(Exception):
    """A block-diagonal matrix whose blocks are better judged one by one."""


@dataclass(frozen=True)
class Rung:
    """A factor of the matrix, and how it was made.

    method, engine : the method in words, and the name of the engine
    symbolic : the analysis, to use it again
    sound : whether the pivots alone show that all solutions are good
    may_perturb_less : whether the next rung may enlarge fewer pivots, at the price of an analysis
    is_last : whether no rung follows
    """

    factor: Factor
    method: str
    engine: str
    symbolic: object
    sound: bool
    may_perturb_less: bool
    is_last: bool

    @property
    def may_fail(self) -> bool:
        """Whether a solve may raise ConvergenceError, after which a later rung is needed."""
        return isinstance(self.factor, IterativeFactor) and not self.is_last


_INACCURATE = "a faster method did not solve accurately"


class Ladder(Protocol):
    """The factorisations of one matrix, from the fastest method to the most robust.

    failure : the error of the last method, if it gave no factor
    obstacle : why the latest method that gave no factor gave none; None if all gave one
    """

    failure: SparseSolverError | None
    obstacle: str | None

    def climb(self) -> Rung | None:
        """The factor by the next method that gives one; None after the last method."""

    def keep(self, rung: Rung, reason: str) -> None:
        """Record this factor, and start with its method for later values of the pattern."""

    def systems(self, factor: Factor) -> Systems:
        """The systems that this factor, and every other one, solves."""

    def explain_structure(self) -> str | None:
        """Why the matrix is singular whatever its values are, if it is."""


class CheckedFactor:
    """The first factor of a ladder that is good enough for the matrix and its right-hand sides.

    rung : the first one; None if no method gives a factor

    Raises an error if there is none, or BlockInDoubt.
    """

    def __init__(self, record: Record, ladder: Ladder, rung: Rung | None):
        self.record, self._lock = record, ForkSafeLock()
        failure: ConvergenceError | None = None
        found: tuple[Judge, Rung, str] | None = None
        reason = ladder.obstacle or "the fastest method for this kind"
        while rung is not None:
            systems = self._systems = ladder.systems(rung.factor)
            judge = Judge(systems, rung.factor, rung.sound, rung.is_last)
            verdict, failure = judge.examine(), judge.failure or failure
            if systems.blocks > 1 and judge.in_doubt:
                raise BlockInDoubt
            # Rounding errors may hide that rows share too few columns.
            structure = ladder.explain_structure() if judge.in_doubt else None
            if structure is not None or verdict is Verdict.SINGULAR:
                raise self._singular(judge, rung.engine, structure)
            if judge.is_usable:
                found = judge, rung, reason
                if not (judge.is_perturbed and rung.may_perturb_less):
                    break
                reason = f"{rung.method} had to enlarge pivots"
            elif found is not None:
                break
            else:
                reason = f"{rung.method} was not accurate"
            rung = ladder.climb()
        if found is None:
            raise self._explain_failure(ladder, ladder.failure or failure)
        self.judge = found[0]
        if systems.blocks > 1 and not self.judge.is_beyond_doubt:
            raise BlockInDoubt
        ladder.keep(*found[1:])
        self._ladder = None if self.judge.sound and not found[1].may_fail else ladder

    @property
    def factor(self) -> Factor:
        """The factor that solves."""
        return self.judge.factor

    def apply_inverse(self, rhs: Tensor, transpose: bool, strict: bool) -> Tensor:
        """Apply A⁻¹ or A⁻ᵀ to the rows of the contiguous `rhs` (k, n), in a new tensor.

        Rows that hold NaN or infinity raise NonFiniteError if `strict`, else they give NaN: a loss
        that overflowed must reach a gradient scaler as what it is.
        """
        systems = self._systems
        if systems.is_empty(rhs):
            return torch.empty_like(rhs)
        if not systems.have_squares(rhs):  # zeros, NaN, and what is out of range are rare
            if not systems.all_finite(rhs):
                return _apply_to_finite(self, systems, rhs, transpose, strict)
            powers = _find_powers(systems, rhs)
            if powers is not None:
                x = self.apply_inverse(rhs * powers, transpose, False) / powers
                if systems.all_finite(x):  # else the matrix is as tiny, or the solution too large
                    return x
        while True:
            judge = self.judge
            try:
                x, outcome = judge.solve(rhs, transpose)
            except ConvergenceError as error:
                if self._improve(judge, str(error)):
                    continue
                raise
            if outcome is Outcome.GOOD:
                return x
            if outcome is Outcome.NO_DIGIT or not self._improve(judge, _INACCURATE):
                break
        if systems.all_finite(x):
            raise self._inaccurate(judge)
        if strict:
            raise _overflow(x)
        return x

    def _improve(self, judge: Judge, reason: str) -> bool:
        """Replace this judge by that of the next usable factor; False if there is none."""
        with self._lock:
            if self.judge is not judge:  # another thread has replaced it
                return True
            ladder = self._ladder
            while ladder is not None and (rung := ladder.climb()) is not None:
                better = Judge(self._systems, rung.factor, rung.sound, rung.is_last)
                better.examine()
                if better.is_usable:
                    self.judge = better
                    ladder.keep(rung, reason)
                    return True
            return False

    def _explain_failure(
        self, ladder: Ladder, failure: SparseSolverError | None
    ) -> SparseSolverError:
        """The error for a matrix that no method factors accurately, after the last failure."""
        record = self.record
        if not isinstance(failure, SingularMatrixError):
            return failure or self._inaccurate()
        message = ladder.explain_structure() or str(failure)
        return SingularMatrixError(message, engine=failure.engine or record.engine, row=failure.row)

    def _singular(self, judge: Judge, engine: str, structure: str | None) -> SingularMatrixError:
        """The error for a matrix that is singular to working precision, or by its structure."""
        message = structure or (
            f"the matrix is singular to working precision: a relative change of its entries by "
            f"{judge.distance:.0e} makes it singular (a graph or mesh Laplacian needs an anchor: a "
            f"fixed vertex, or a multiple of the identity or of the mass matrix added)"
        )
        return SingularMatrixError(message, engine=engine, row=None)

    def _inaccurate(self, judge: Judge | None = None) -> SparseSolverError:
        """The error for a right-hand side that no factor solves accurately."""
        record, dtype = self.record, self._systems.dtype
        if judge is not None and judge.in_doubt:
            message = (
                f"the matrix is so ill-conditioned that the solution for this right-hand side has "
                f"no correct digit in {dtype}; scale its rows and columns, or use a dtype with "
                f"more digits"
            )
            return SingularMatrixError(message, engine=record.engine, row=None)
        return EngineError(
            f"no method could factor this {record.kind} matrix accurately; scale its rows and "
            f"columns",
            engine=record.engine,
            code=None,
        )
