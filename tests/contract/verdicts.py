"""Judge single solves against reference solutions in extended precision.

"right" : the answer is accurate, or a singular matrix raises SingularMatrixError
"loose" : right, but not as accurate as the componentwise condition number allows
"wrong" : an answer for a singular matrix, or one with an error beyond the condition number
"no digit" : an answer with an error above 1/2, though the condition number explains it
"refused" : an error, though dense torch in the same dtype is accurate
"refused fairly" : an error, where dense torch is not accurate either
"other error" : a singular matrix raises another error than SingularMatrixError
"crash" : an exception that is not one of the package
"undecided" : the reference solution is not known well enough
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]  # missing in torch's stubs

import sparse_solver as ss
from tests.contract import physics_kinds, singular_kinds  # they register their kinds
from tests.contract.matrix_kinds import KINDS, make_matrix
from tests.contract.reference import LARGEST_EXTENDED, Reference, extended

__all__ = [
    "FAULTS",
    "VERDICTS",
    "Case",
    "Options",
    "draw_case",
    "judge",
    "physics_kinds",
    "singular_kinds",
]

FAULTS = ("wrong", "no digit", "refused", "other error", "crash")
VERDICTS = (*FAULTS, "right", "loose", "refused fairly", "undecided")

WRONG_ERROR = 0.5  # not a digit is right
WRONG_MULTIPLE = 100  # of ε times the condition number
LUCKY_ERROR = 5e-2  # an answer that is right for the rounded matrix, though that is singular
ACCURATE_ERROR = 1e-2  # of dense torch, from which on an error is a refusal
CERTAIN_ERROR = 0.1  # of the reference solution


@dataclass(frozen=True)
class Options:
    """How a matrix is solved.

    way : "factorize", "solve", "block" (all right-hand sides at once) or "batch" (all at once, each
        with a multiple of the matrix)
    adjoint : whether systems with Aᵀ are solved as the conjugates of systems with Aᴴ
    """

    engine: str | None = None
    assume: str = "auto"
    triangle: str | None = None
    way: str = "factorize"
    adjoint: bool = False

    @property
    def is_joint(self) -> bool:
        """Whether one call solves for all right-hand sides, so that one error refuses them all."""
        return self.way in ("block", "batch")

    def __str__(self) -> str:
        names = f"engine={self.engine}, assume={self.assume}, triangle={self.triangle}"
        return f"{names}, {self.way}{', adjoint' * self.adjoint}"


@dataclass(frozen=True)
class Case:
    """A matrix that can be made again, and how it is solved."""

    kind: str
    n: int
    seed: int
    dtype: str
    engine: str | None = None

    def __str__(self) -> str:
        engine = "" if self.engine is None else f", engine={self.engine!r}"
        return f"Case({self.kind!r}, {self.n}, {self.seed}, {self.dtype!r}{engine})"


@dataclass
class Verdict:
    """The verdict on one solve, and what it rests on."""

    verdict: str
    case: Case
    options: Options
    rhs: str
    transpose: bool
    detail: str = ""

    def __str__(self) -> str:
        side = f"b={self.rhs}, transpose={self.transpose}"
        return f"{self.verdict}: {self.case}, {self.options}, {side}: {self.detail}"


def right_hand_sides(A: sp.csr_matrix, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Four right-hand sides, rounded to the dtype of A."""
    n, wide = A.shape[0], A.astype(extended(A.dtype))

    def normal() -> Any:
        x = rng.standard_normal(n)
        return x + 1j * rng.standard_normal(n) if A.dtype.kind == "c" else x

    maxima = abs(wide).max(1).toarray().ravel()
    unit = np.zeros(n)
    unit[rng.integers(n)] = 1.0
    graded = normal() * 10.0 ** (-rng.uniform(0, 6) * rng.random(n))
    sides = {
        "A x": wide @ normal(),
        "scaled": normal() * maxima,
        "unit": unit,
        "A graded": wide @ graded,
    }
    for name, b in sides.items():
        with np.errstate(over="ignore", under="ignore"):
            rounded = b.astype(A.dtype)
        if np.isfinite(rounded).all():
            yield name, rounded


def draw_options(
    symmetry: str, real: bool, engine: str | None, rng: np.random.Generator
) -> Options:
    """A way to solve: mostly with the defaults."""
    way = str(rng.choice(["factorize", "solve", "block", "batch"], p=[0.6, 0.15, 0.15, 0.1]))
    adjoint = not real and bool(rng.random() < 0.5)
    if rng.random() < 0.6:
        return Options(engine, way=way, adjoint=adjoint)
    named = [symmetry]
    if symmetry == "spd":
        named = ["spd", "spd", "symmetric" if real else "hermitian"]
    assume = str(rng.choice(named))
    triangle = None
    if assume != "general" and rng.random() < 0.3:
        triangle = str(rng.choice(["lower", "upper"]))
    return Options(engine, assume, triangle, way, adjoint)


def to_torch(A: sp.csr_matrix, triangle: str | None) -> Tensor:
    if triangle is not None:
        A = sp.csr_matrix((sp.tril if triangle == "lower" else sp.triu)(A))
    A = A.tocoo()
    indices = torch.from_numpy(np.stack([A.row, A.col]).astype(np.int64))
    return torch.sparse_coo_tensor(
        indices, torch.from_numpy(A.data), A.shape, check_invariants=False
    ).coalesce()


def batch_scales(A: sp.csr_matrix, count: int) -> Tensor:
    """Powers of two: the solution of 2ᵏ A x = b is 2⁻ᵏ times that of A x = b, without rounding."""
    sizes, limits = abs(A.data), np.finfo(A.dtype)
    powers = np.array([0, -6, 9, 0][:count])
    if sizes.max() > limits.max * 2.0**-11 or sizes.min() < limits.tiny * 2.0**6:
        powers *= 0
    return torch.from_numpy(np.exp2(powers).astype(A.dtype))


def solve_all(A: sp.csr_matrix, B: Tensor, options: Options, transpose: bool) -> list[Any]:
    """The solution of A x = b or Aᵀ x = b, or the exception, for each column b of B."""
    if transpose and options.adjoint:
        answers = _solve_all(A, B.conj(), options, {"adjoint": True})
        return [x if isinstance(x, Exception) else x.conj().resolve_conj() for x in answers]
    return _solve_all(A, B, options, {"transpose": transpose})


def _solve_all(A: sp.csr_matrix, B: Tensor, options: Options, side: dict[str, bool]) -> list[Any]:
    chosen: dict[str, Any] = {"assume": options.assume, "triangle": options.triangle}
    chosen["engine"] = options.engine
    tensor, columns = to_torch(A, options.triangle), list(B.T.contiguous())
    try:
        if options.way == "block":
            return list(ss.solve(tensor, B, **side, **chosen).T)
        if options.way == "batch":
            scales = batch_scales(A, len(columns))
            P = ss.Pattern.from_tensor(tensor)
            values = scales[:, None] * tensor.values()
            return list(P.solve(values, B.T.contiguous(), **side, **chosen) * scales[:, None])
        if options.way == "factorize":
            F = ss.factorize(tensor, **chosen)
    except Exception as error:
        return [error] * len(columns)
    found: list[Any] = []
    for b in columns:
        try:
            if options.way == "factorize":
                found.append(F.solve(b, **side))
            else:
                found.append(ss.solve(tensor, b, **side, **chosen))
        except Exception as error:
            found.append(error)
    return found


@dataclass(frozen=True)
class Truth:
    """A right-hand side and its solution, with its condition number and its uncertainty."""

    b: Any
    x: Any
    skeel: float
    doubt: float
    transpose: bool

    @property
    def is_certain(self) -> bool:
        return self.doubt < CERTAIN_ERROR


@dataclass
class Judge:
    """The judge of the solves with one matrix."""

    matrix: sp.csr_matrix
    singular_by_construction: bool
    reference: Reference = field(init=False)

    def __post_init__(self) -> None:
        self.reference = Reference(self.matrix)
        self.eps = float(np.finfo(self.matrix.dtype).eps)
        self.is_singular = self.singular_by_construction or bool(self.reference.singular)

    def judge_columns(
        self, b: Any, found: list[Any], transpose: bool, assume: str
    ) -> list[tuple[str, str]]:
        """The verdict on each answer or exception, and its reasons."""
        if self.reference.certified:
            x, skeel, doubt = self.reference.solve(b, transpose)
        else:
            x, skeel, doubt = np.full(b.shape, np.nan), *np.full((2, b.shape[1]), np.inf)
        verdicts = []
        for j, answer in enumerate(found):
            truth = Truth(b[:, j], x[:, j], float(skeel[j]), float(doubt[j]), transpose)
            if isinstance(answer, Exception):
                verdicts.append(self._judge_error(answer, truth, assume))
            else:
                verdicts.append(self._judge_answer(answer.detach().numpy(), truth))
        return verdicts

    def _judge_answer(self, answer: Any, truth: Truth) -> tuple[str, str]:
        found, x = answer.astype(extended(self.matrix.dtype)), truth.x
        size, limits = abs(x).max(), np.finfo(self.matrix.dtype)
        error = float(abs(found - x).max() / size) if size > 0 else float(abs(found).max())
        about = f"error {error:.1e}{self._scaled_error(found, truth)}, {self._describe(truth)}"
        if not np.isfinite(found).all():
            return "wrong", f"not finite; {about}"
        if self.is_singular:
            is_lucky = truth.is_certain and error <= LUCKY_ERROR
            return ("right" if is_lucky else "wrong"), f"singular, answered; {about}"
        if not truth.is_certain or size < limits.tiny / self.eps:
            return "undecided", about
        limit = WRONG_MULTIPLE * self.eps
        generous = min(self.reference.norm_condition, self.reference.equilibrated)
        if error > WRONG_ERROR and error <= limit * truth.skeel:
            return "no digit", about
        if error > min(WRONG_ERROR, limit * max(truth.skeel, generous)):
            return "wrong", about
        return ("loose" if error > limit * max(truth.skeel, 1) else "right"), about

    def _judge_error(self, error: Exception, truth: Truth, assume: str) -> tuple[str, str]:
        about = f"{type(error).__name__}: {str(error)[:160]}; {self._describe(truth)}"
        if not isinstance(error, ss.SparseSolverError):
            return "crash", about
        if self.is_singular:
            allowed: tuple[type[Exception], ...] = (ss.SingularMatrixError,)
            if assume == "spd":
                allowed += (ss.NotPositiveDefiniteError,)
            return ("right" if isinstance(error, allowed) else "other error"), about
        if not self.reference.certified:  # too near to a singular one, unless it is too large
            is_small = self.reference.n <= LARGEST_EXTENDED
            return ("refused fairly" if is_small else "undecided"), about
        if max(self.reference.equilibrated, truth.skeel) * self.eps > ACCURATE_ERROR:
            return "refused fairly", about
        dense = self._dense_error(truth)
        about = f"{about}, dense error {dense:.1e}"
        return ("refused" if dense <= ACCURATE_ERROR else "refused fairly"), about

    def _dense_error(self, truth: Truth) -> float:
        dense, b = torch.from_numpy(self.matrix.toarray()), torch.from_numpy(truth.b)
        try:
            found = torch.linalg.solve(dense.mT if truth.transpose else dense, b).numpy()
        except LinAlgError:
            return np.inf
        with np.errstate(all="ignore"):
            error = float(abs(found - truth.x).max() / abs(truth.x).max())
        return error if np.isfinite(error) else np.inf

    def _scaled_error(self, found: Any, truth: Truth) -> str:
        """The error in the variables of the equilibrated matrix."""
        if not self.reference.certified:
            return ""
        scale = self.reference.rows if truth.transpose else self.reference.cols
        largest = abs(truth.x / scale).max()
        return f" ({float(abs((found - truth.x) / scale).max() / largest):.1e} scaled)"

    def _describe(self, truth: Truth) -> str:
        r = self.reference
        nature = "singular" if self.is_singular else "regular"
        norms = f"κ {r.norm_condition:.1e}, {r.equilibrated:.1e} equilibrated"
        return f"{nature}, cond(A, x) {truth.skeel:.1e}, ρ(|A⁻¹||A|) {r.condition:.1e}, {norms}"


def judge(case: Case) -> list[Verdict]:
    """The verdicts on the solves of a case: two ways, with four right-hand sides each."""
    kind = KINDS[case.kind]
    rng = np.random.default_rng([case.n, case.seed, 1])
    A, symmetry = make_matrix(kind, case.n, case.seed, case.dtype)
    if not np.isfinite(A.data).all():
        return []
    sides = list(right_hand_sides(A, rng))
    if not sides:
        return []
    names, b = [name for name, _ in sides], np.stack([b for _, b in sides], 1)
    judged = Judge(A, kind.singular)
    verdicts = []
    for transpose in (False, True):
        options = draw_options(symmetry, A.dtype.kind == "f", case.engine, rng)
        found = solve_all(A, torch.from_numpy(b), options, transpose)
        if any(isinstance(error, ss.EngineUnsupportedError) for error in found):
            continue
        judgements = judged.judge_columns(b, found, transpose, options.assume)
        one_is_hard = any(verdict == "refused fairly" for verdict, _ in judgements)
        for name, (verdict, why) in zip(names, judgements, strict=True):
            if verdict == "refused" and options.is_joint and one_is_hard:
                verdict = "refused fairly"
            verdicts.append(Verdict(verdict, case, options, name, transpose, why))
    return verdicts


def draw_case(rng: np.random.Generator, largest: int, kinds: list[str], engine: str | None) -> Case:
    """A random case, with n from 3 to `largest`, more often small than large."""
    kind = KINDS[str(rng.choice(kinds))]
    n = round(np.exp(rng.uniform(np.log(3), np.log(largest))))
    return Case(kind.name, n, int(rng.integers(2**31)), str(rng.choice(kind.dtypes)), engine)
