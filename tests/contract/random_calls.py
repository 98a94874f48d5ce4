"""Random calls of the public functions: shapes, dtypes, layouts, views, options and mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from hypothesis import strategies as st
from torch import Tensor

import sparse_solver as ss
from tests.contract.reference import is_exactly_singular

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
WAYS = (
    "coalesced", "coo", "csr", "csr32", "csc", "csc32", "pattern", "pattern32", "from_csr",
    "from_csc", "from_tensor", "scipy", "factorize", "batched csr", "batched csc", "batched coo",
)  # fmt: skip
COMPRESSED = ("csr", "csr32", "csc", "csc32", "from_csr", "from_csc", "batched csr", "batched csc")
VIEWS = ("plain", "strided", "transposed", "conjugate", "negative", "expanded", "requires_grad")
STRUCTURES = ("general", "symmetric", "hermitian", "spd", "lower", "upper", "empty", "ones")
# Mistakes, each of which must raise a typed error.
INDEX_MISTAKES = ("row too large", "row negative", "row enormous", "float indices", "wrong shape")
POINTER_MISTAKES = ("pointer too large", "pointer negative", "pointers shuffled", "pointers short")
VALUE_MISTAKES = ("values short", "values long", "values NaN", "values infinite", "values integer")
SIDE_MISTAKES = (
    "b NaN", "b infinite", "b long", "b scalar", "b of another dtype", "b integer", "b None",
    "b a list", "b an array", "b sparse",
)  # fmt: skip
MATRIX_MISTAKES = ("A dense", "A an array", "A from SciPy", "A None", "A of one dimension")
OPTION_MISTAKES = ("assume", "engine", "triangle", "transpose and adjoint")
MISTAKES = (
    *INDEX_MISTAKES, *POINTER_MISTAKES, *VALUE_MISTAKES, *SIDE_MISTAKES, *MATRIX_MISTAKES,
    *OPTION_MISTAKES,
)  # fmt: skip
SOLVABLE_CONDITION = 1e3  # a valid call with a smaller condition number must be answered
REFINEMENTS = 3  # of the reference solution, in extended precision
MARGIN = 100  # times ε and the condition number: the largest error of an answer


@dataclass(frozen=True)
class Call:
    """All choices of a call; the numbers come from `seed`."""

    seed: int
    n: int
    dtype: torch.dtype
    way: str
    structure: str
    batch: tuple[int, ...]
    b_batch: tuple[int, ...]
    columns: int | None
    values_view: str
    b_view: str
    scale: int
    assume: str
    triangle: str | None
    transpose: bool
    adjoint: bool
    engine: str | None
    non_blocking: bool
    mistake: str | None


def _mostly(usual: Any, *others: Any, times: int = 4) -> st.SearchStrategy[Any]:
    return st.sampled_from((usual,) * times + others)


CALLS = st.builds(
    Call,
    seed=st.integers(0, 2**31),
    n=st.sampled_from((3, 2, 1, 5, 9, 17, 0)),
    dtype=st.sampled_from(DTYPES),
    way=st.sampled_from(WAYS),
    structure=_mostly("general", *STRUCTURES[1:], times=5),
    batch=_mostly((), (2,), (3, 1), (1,), (0,)),
    b_batch=_mostly((), (2,), (3, 2), (1,), (0,)),
    columns=st.sampled_from((None, None, 1, 3, 0)),
    values_view=_mostly(*VIEWS),
    b_view=_mostly(*VIEWS),
    scale=_mostly(0, 15, -15, 150, -150, times=12),
    assume=_mostly("auto", "general", "symmetric", "hermitian", "spd"),
    triangle=_mostly(None, "lower", "upper", times=8),
    transpose=st.booleans(),
    adjoint=_mostly(False, True),
    engine=_mostly(None, *ss.engines(), times=8),
    non_blocking=_mostly(False, True, times=8),
    mistake=_mostly(None, *MISTAKES, times=80),
)


def as_view(t: Tensor, view: str) -> Tensor:
    """The same numbers (for "expanded", the first of them) in another view."""
    if view == "strided":
        return torch.stack((t, -t), -1)[..., 0]
    if view == "transposed" and t.dim() >= 2:
        return t.mT.contiguous().mT
    if view == "conjugate" and t.is_complex():
        return t.conj().resolve_conj().conj()
    if view == "negative" and t.numel():
        return torch._neg_view(-t)
    if view == "expanded" and t.dim() >= 2 and t.shape[0]:
        return t[:1].expand(t.shape)
    return t.clone().requires_grad_() if view == "requires_grad" else t


def to_array(t: Tensor) -> Any:
    wide = torch.complex128 if t.is_complex() else torch.float64
    return t.detach().resolve_conj().resolve_neg().to(wide).numpy()


class NotATensor(Exception):
    """Torch refuses to make the tensor with the mistake."""


def make_tensor(make: Any, *arguments: Any, **options: Any) -> Tensor:
    try:
        tensor: Tensor = make(*arguments, **options, check_invariants=False)
    except (RuntimeError, TypeError) as error:
        raise NotATensor from error
    return tensor


class Attempt:
    """The tensors of a call, the call itself, and the check of its answer."""

    def __init__(self, call: Call):
        self.call, self.rng = call, np.random.default_rng(call.seed)
        self.rows, self.cols = self._draw_places()
        batch = call.batch if "batched" in call.way or self._is_pattern else ()
        values = self._draw_values((*batch, len(self.rows)))
        if call.way == "batched coo" and call.structure == "general":  # with different patterns
            values = values * torch.from_numpy(self.rng.random(values.shape) < 0.8)
        self.values = as_view(values, call.values_view)
        columns = () if call.columns is None else (call.columns,)
        b = self._draw((*call.b_batch, call.n, *columns))
        self.b: Any = as_view(b, call.b_view)
        self.options: dict[str, Any] = {
            "assume": call.assume, "triangle": call.triangle, "engine": call.engine,
            "non_blocking": call.non_blocking,
        }  # fmt: skip
        self.inputs = [t for t in (self.values, self.b) if t.requires_grad]
        self.sides: dict[str, Any] = {"transpose": call.transpose}
        self.sides["adjoint"] = call.adjoint and not call.transpose

    @property
    def _is_pattern(self) -> bool:
        names = ("pattern", "pattern32", "from_csr", "from_csc", "from_tensor", "scipy")
        return self.call.way in (*names, "factorize")

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        numbers = self.rng.standard_normal(shape)
        if self.call.dtype.is_complex:
            numbers = numbers + 1j * self.rng.standard_normal(shape)
        return torch.from_numpy(np.asarray(numbers)).to(self.call.dtype)

    def _draw_places(self) -> tuple[Any, Any]:
        n, structure = self.call.n, self.call.structure
        A = self.rng.random((n, n)) < self.rng.choice([0.2, 0.6])
        if structure != "general" or self.rng.random() < 0.5:
            np.fill_diagonal(A, True)
        if structure in ("symmetric", "hermitian", "spd"):
            A = A | A.T
        A = {"lower": np.tril(A), "upper": np.triu(A), "empty": A & False}.get(structure, A)
        rows, cols = np.nonzero(A)
        if "csc" in self.call.way:
            cols, rows = np.nonzero(A.T)
        if self.call.way in ("coo", "batched coo") and self.rng.random() < 0.5:  # duplicates
            rows, cols = np.append(rows, rows[: n // 2]), np.append(cols, cols[: n // 2])
        if self.call.way in ("coo", "batched coo", "pattern", "pattern32", "factorize"):
            order = self.rng.permutation(len(rows))
            rows, cols = rows[order], cols[order]
        return rows, cols

    def _draw_values(self, shape: tuple[int, ...]) -> Tensor:
        n, structure = self.call.n, self.call.structure
        if structure == "ones":
            return torch.ones(shape, dtype=self.call.dtype)
        M = to_array(self._draw((*shape[:-1], n, n)))
        if structure == "symmetric":
            M = M + np.swapaxes(M, -1, -2)
        if structure in ("hermitian", "spd"):
            M = M + np.swapaxes(M, -1, -2).conj()
        shift = 6.0 * n if structure == "spd" else self.rng.choice([0.0, 3.0])
        M = M + shift * np.eye(n)
        factor = 10.0 ** (self.call.scale / (10 if torch.finfo(self.call.dtype).eps > 1e-10 else 1))
        return torch.from_numpy(M[..., self.rows, self.cols] * factor).to(self.call.dtype)

    def corrupt(self) -> None:
        """Put the mistake into the tensors and options."""
        mistake, n, at = self.call.mistake, self.call.n, int(self.rng.integers(2**20))
        wrong = {"row too large": n, "row negative": -1, "row enormous": 2**40}
        if mistake in wrong and len(self.rows):
            self.rows = self.rows.copy()
            self.rows[at % len(self.rows)] = wrong[mistake]
        if mistake in ("values NaN", "values infinite", "b NaN", "b infinite"):
            name, what = mistake.split()
            t = (
                getattr(self, "values" if name == "values" else "b")
                .detach()
                .resolve_conj()
                .contiguous()
                .clone()
            )
            if t.numel():
                t.view(-1)[at % t.numel()] = np.nan if what == "NaN" else -np.inf
            setattr(self, "values" if name == "values" else "b", t)
        if mistake == "values short":
            self.values = self.values[..., :-1]
        if mistake == "values long":
            self.values = torch.cat((self.values, self.values[..., :1]), -1)
        if mistake == "values integer":
            self.values = self.values.detach().real.nan_to_num().clamp(-9, 9).to(torch.int64)
        if mistake in SIDE_MISTAKES[2:]:
            self.b = self._wrong_side(mistake, self.b.detach())
        options = {"assume": "lu", "engine": "nonsense", "triangle": "diagonal"}
        if mistake in options:
            self.options[str(mistake)] = options[str(mistake)]
        if mistake == "transpose and adjoint":
            self.sides = {"transpose": True, "adjoint": True}

    def _wrong_side(self, mistake: str, b: Tensor) -> Any:
        if mistake == "b of another dtype":
            return b.to(torch.float32 if b.dtype == torch.float64 else torch.float64)
        return {
            "b long": torch.ones(self.call.n + 1, dtype=b.dtype),
            "b scalar": torch.tensor(1.0, dtype=b.dtype),
            "b integer": torch.ones(b.shape, dtype=torch.int32),
            "b None": None,
            "b a list": b.tolist(),
            "b an array": to_array(b),
            "b sparse": b.resolve_conj().contiguous().to_sparse(),
        }[mistake]

    def run(self) -> Tensor:
        """Make the call."""
        call, way = self.call, self.call.way
        shape = (call.n, call.n + (call.mistake == "wrong shape"))
        index_dtype = torch.int32 if way.endswith("32") else torch.int64
        if call.mistake == "row enormous":
            index_dtype = torch.int64
        if call.mistake == "float indices":
            index_dtype = torch.float64
        rows, cols = (torch.from_numpy(i).to(index_dtype) for i in (self.rows, self.cols))
        if self._is_pattern:
            if way in ("from_csr", "from_csc"):
                pointers, indices = self._compress(rows, cols, index_dtype)
                P = getattr(ss.Pattern, way)(pointers, indices, shape)
            elif way == "scipy" and call.mistake not in INDEX_MISTAKES:
                P = ss.Pattern.from_scipy(
                    sp.csr_matrix((self.rows * 0 + 1.0, (self.rows, self.cols)), shape)
                )
            elif way == "from_tensor" and call.mistake != "float indices":
                P = ss.Pattern.from_tensor(self._tensor(rows, cols, rows.double(), shape))
            else:
                P = ss.Pattern(rows, cols, shape)
            if way == "factorize":
                F = P.factorize(self.values, **self.options)
                return F.solve(self.b, **self.sides)
            x: Tensor = P.solve(self.values, self.b, **self.options, **self.sides)
            return x
        return ss.solve(self._matrix(rows, cols, shape), self.b, **self.options, **self.sides)

    def _matrix(self, rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> Any:
        mistake = self.call.mistake
        if mistake == "A None":
            return None
        if mistake in ("A dense", "A an array"):
            A = torch.eye(self.call.n, dtype=self.call.dtype)
            return A if mistake == "A dense" else A.numpy()
        if mistake == "A from SciPy":
            return sp.eye(self.call.n, format="csr")
        if mistake == "A of one dimension":
            return torch.ones(self.call.n, dtype=self.call.dtype).to_sparse()
        return self._tensor(rows, cols, self.values, shape)

    def _tensor(self, rows: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
        way = self.call.way
        if way in ("coo", "coalesced", "from_tensor"):
            indices = torch.stack((rows, cols))
            return make_tensor(
                torch.sparse_coo_tensor, indices, values, shape, is_coalesced=way == "coalesced"
            )
        if way == "batched coo":
            return self._coo_batch(rows, cols, values, shape)
        pointers, indices = self._compress(rows, cols, rows.dtype)
        batch = values.shape[:-1]
        pointers, indices = (i.expand(*batch, *i.shape).contiguous() for i in (pointers, indices))
        layout = torch.sparse_csc if "csc" in way else torch.sparse_csr
        make, full = torch.sparse_compressed_tensor, (*batch, *shape)
        A = make_tensor(make, pointers, indices, values.detach(), full, layout=layout)
        if values.requires_grad and not batch:
            self.inputs.append(A.requires_grad_())
        return A

    def _coo_batch(
        self, rows: Tensor, cols: Tensor, values: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        batch, mistake = self.call.batch, self.call.mistake
        stored = torch.ones(*batch, len(rows), dtype=torch.bool)
        if mistake is None:
            stored = values.detach() != 0
        *numbers, entries = torch.nonzero(stored).T
        indices = torch.stack((*numbers, rows[entries], cols[entries]))
        numbers_stored = values[stored] if mistake is None else values.flatten()
        return make_tensor(torch.sparse_coo_tensor, indices, numbers_stored, (*batch, *shape))

    def _compress(self, rows: Tensor, cols: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        by_column = "csc" in self.call.way
        outer, inner = (cols, rows) if by_column else (rows, cols)
        counts = np.bincount(
            np.clip(outer.long().numpy(), 0, max(self.call.n - 1, 0)), minlength=self.call.n
        )
        pointers = np.append(0, np.cumsum(counts))
        mistake, at = self.call.mistake, self.call.seed % len(pointers)
        if mistake == "pointer too large":
            pointers[at] = len(inner) + 1 + at * 10**6
        if mistake == "pointer negative":
            pointers[at] = -1 - at
        if mistake == "pointers shuffled":
            pointers = pointers[::-1].copy()
        if mistake == "pointers short":
            pointers = pointers[:-1]
        return torch.from_numpy(pointers).to(dtype), inner

    @property
    def must_fail(self) -> bool:
        """Whether the mistake applies to this call."""
        call, mistake = self.call, self.call.mistake
        has_matrices = "batched" not in call.way or 0 not in call.batch
        stored = len(self.rows) > 0 and has_matrices
        if mistake is None or mistake in SIDE_MISTAKES:
            if mistake in ("b NaN", "b infinite"):  # an empty batch of matrices uses no number
                return self.b.numel() > 0 and 0 not in self.values.shape[:-1]
            return mistake is not None
        if mistake in MATRIX_MISTAKES:
            return not self._is_pattern
        if mistake in POINTER_MISTAKES:
            return call.way in COMPRESSED and (mistake != "pointers shuffled" or stored)
        if mistake in ("row too large", "row negative", "row enormous"):
            return stored and "csr" not in call.way
        if mistake == "float indices":
            return self._is_pattern
        if mistake in ("values NaN", "values infinite"):
            return bool(self.values.numel())
        if mistake in ("values short", "values long"):
            return stored
        return True

    def dense(self) -> tuple[Any, Any]:
        """The matrices (..., n, n), and the sums of the moduli of their entries."""
        values, n = to_array(self.values), self.call.n
        A = np.zeros((*values.shape[:-1], n, n), values.dtype)
        modulus = np.zeros(A.shape)
        rows, cols = self.rows, self.cols
        for k, (i, j) in enumerate(zip(rows, cols, strict=True)):
            A[..., i, j] += values[..., k]
            modulus[..., i, j] += abs(values[..., k])
        if self.call.triangle is not None:
            opposite = np.swapaxes(A, -1, -2)
            if self.call.assume in ("spd", "hermitian"):
                opposite = opposite.conj()
            A = A + opposite * (1 - np.eye(n))
            modulus = modulus + np.swapaxes(modulus, -1, -2) * (1 - np.eye(n))
        return A, modulus

    def check(self, x: Tensor | None) -> str | None:
        """What is wrong with an answer, or with an error (None) in its place."""
        call = self.call
        A, modulus = self.dense()
        eye = torch.eye(call.n, dtype=call.dtype).expand(A.shape)
        try:
            shape = torch.linalg.solve(eye, self.b.detach()).shape
        except RuntimeError:
            return None if x is None else f"an answer of shape {tuple(x.shape)}, where none exists"
        if x is not None and (x.shape != shape or x.dtype != call.dtype):
            return f"{x.dtype} of shape {tuple(x.shape)} instead of {tuple(shape)}"
        flat = self.b.dim() == 1 or self.b.shape == A.shape[:-1]
        b = to_array(self.b)
        batch = shape[:-1] if flat else shape[:-2]
        b = np.broadcast_to(b[..., None] if flat else b, (*batch, call.n, 1 if flat else shape[-1]))
        found = None if x is None else to_array(x).reshape(b.shape)
        if self.sides["transpose"] or self.sides["adjoint"]:
            A, modulus = np.swapaxes(A, -1, -2), np.swapaxes(modulus, -1, -2)
            A = A.conj() if self.sides["adjoint"] else A
        A, modulus = (np.broadcast_to(M, (*batch, call.n, call.n)) for M in (A, modulus))
        hardest = 0.0
        for index in np.ndindex(*batch):
            why, condition = self._check_one(
                A[index], modulus[index], b[index], None if found is None else found[index]
            )
            if why is not None:
                return f"system {index}: {why}"
            hardest = max(hardest, condition)
        is_plain = call.assume in ("auto", "general") and call.engine is None and not call.scale
        is_plain = is_plain and call.triangle is None and not call.non_blocking
        if x is None and is_plain and 0 < hardest < SOLVABLE_CONDITION:
            return f"an error, though all condition numbers are at most {hardest:.1e}"
        return None

    def _check_one(self, A: Any, modulus: Any, b: Any, x: Any) -> tuple[str | None, float]:
        """What is wrong with one solution, and the condition number."""
        eps, largest = torch.finfo(self.call.dtype).eps, abs(A).max(initial=0)
        if largest == 0:
            return ("singular, answered" if x is not None and len(A) else None), np.inf if len(
                A
            ) else 1.0
        try:
            inverse = np.linalg.inv(A / largest)
        except np.linalg.LinAlgError:
            inverse = np.full(A.shape, np.inf)
        condition = float(abs(inverse).sum(1).max() * (modulus / largest).sum(1).max())
        if not condition * eps < 1e-2:
            rounded = self.call.way in ("coo", "batched coo")  # sums of duplicates
            is_singular = x is not None and not rounded and is_exactly_singular(sp.csr_matrix(A))
            return ("singular, answered" if is_singular else None), np.inf
        if x is None:
            return None, condition
        wide = np.result_type(A, np.longdouble)
        right, scaled = (b / largest).astype(wide), (A / largest).astype(wide)
        exact = (inverse @ right).astype(wide)
        for _ in range(REFINEMENTS):
            exact = exact + inverse @ (right - scaled @ exact).astype(A.dtype)
        bound = abs(inverse) @ ((modulus / largest) @ abs(exact) + abs(b) / largest)
        tiny = torch.finfo(self.call.dtype).tiny
        limit = MARGIN * eps * bound.max(0, initial=0) + len(A) * tiny
        error = abs(x - exact).max(0, initial=0)
        if not (error <= limit).all():
            return f"error {error.max():.1e}, at most {limit.max():.1e} is right", condition
        return None, condition


def find_fault(call: Call) -> str | None:
    """Make the call; return what is wrong with its answer or its error, or None.

    Exceptions that are not of the package are let through.
    """
    attempt = Attempt(call)
    attempt.corrupt()
    try:
        x = attempt.run()
        if x.requires_grad:
            torch.autograd.grad(x.abs().sum(), attempt.inputs, allow_unused=True)
    except NotATensor:
        return None
    except ss.SparseSolverError as error:
        if not str(error):
            return "an error without a message"
        return None if attempt.must_fail or call.mistake else attempt.check(None)
    if attempt.must_fail:
        return f"{call.mistake!r} was accepted"
    if call.mistake is not None:  # one that does not apply to this call
        return None
    return attempt.check(x)
