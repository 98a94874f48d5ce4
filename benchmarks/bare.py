"""The limit: engines called directly on prepared arrays, for one factorisation and two solves.

What depends on the pattern alone, and the conversion of the values, is done before the clock
starts. No code that solves is shared with sparse_solver, so that an error there cannot hide here.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .problems import MOST_ITERATIONS, Absent, Problem, refuse_to_factor

Array = NDArray[Any]
_TYPES = {"spd": (2, 4), "symmetric": (-2, 6), "general": (11, 13)}
# The options of SciPy's `splu` for positive definite matrices.
SPLU_OPTIONS: dict[str, Any] = {
    "permc_spec": "MMD_AT_PLUS_A",
    "diag_pivot_thresh": 0.0,
    "options": {"SymmetricMode": True},
}
# SciPy's SuperLU takes some seconds for so many operations of a Cholesky factorisation; and the
# tolerance of SciPy's conjugate gradients, which solve the larger problems.
_MOST_FLOPS_FOR_SCIPY, _CG_TOLERANCE = 2e9, 1e-13


class Matrices:
    """The values of a problem's matrices as engines read them: "full", or the "upper" triangle."""

    def __init__(self, problem: Problem, coverage: str):
        from scipy.sparse import coo_matrix

        self.problem = problem
        rows, cols, n = problem.rows.numpy(), problem.cols.numpy(), problem.n
        keep = rows <= cols if coverage == "upper" else np.ones_like(rows, dtype=bool)
        self._keep = torch.from_numpy(np.flatnonzero(keep))
        self._rows, self._cols, node = rows[keep], cols[keep], np.arange(n)
        # PARDISO reads the whole diagonal of symmetric matrices, zeros included.
        places = (np.concatenate((self._rows, node)), np.concatenate((self._cols, node)))
        pattern = coo_matrix((np.ones(len(places[0])), places), shape=(n, n)).tocsr()
        pattern.sort_indices()
        self.crow, self.col = pattern.indptr.astype(np.int64), pattern.indices.astype(np.int64)
        key = np.repeat(np.arange(n), np.diff(pattern.indptr)) * n + pattern.indices
        self._at = torch.from_numpy(np.searchsorted(key, self._rows * n + self._cols))

    def of(self, values: Tensor) -> Tensor:
        values = values.detach()
        out = torch.zeros((*values.shape[:-1], len(self.col)), dtype=values.dtype)
        return out.index_add_(-1, self._at, values[..., self._keep])


class BarePardiso:
    """`pardiso_64` with the parameters that were found best on two cores: see `iparm` below."""

    name = "bare PARDISO"

    def __init__(self, problem: Problem):
        refuse_to_factor(problem)
        self._problem = problem
        self._matrices = Matrices(problem, "full" if problem.kind == "general" else "upper")
        self._pardiso = _pardiso()
        self._pt = (ctypes.c_int64 * 64)()
        self._iparm = (ctypes.c_int64 * 64)()
        # (1) no defaults, (2) parallel nested dissection, (10) small pivots, (21) 2×2 pivots,
        # (24) two-level factorisation, (35) count from zero.
        small_pivots = 13 if problem.kind == "general" else 8
        for number, value in {1: 1, 2: 3, 10: small_pivots, 21: 1, 24: 1, 35: 1}.items():
            self._iparm[number - 1] = value
        self._type = _TYPES[problem.kind][int(problem.rhs.is_complex())]
        self.b = problem.rhs_rows.contiguous()
        self._k = 1 if problem.batch else self.b.shape[0]
        self._call(11, None, None, None)
        example = self.fresh(problem.fresh()).reshape(-1, len(self._matrices.col))[0]
        self.factor(example)
        # (14): perturbed pivots, which scaling (11) and matching (13) avoid, but not with (24).
        if self._iparm[13]:
            self.close()
            self._iparm[10], self._iparm[12], self._iparm[23] = 1, 1, 0
            self._call(11, example, None, None)

    def _call(self, phase: int, values: Tensor | None, b: Tensor | None, x: Tensor | None) -> None:
        def by(value: int) -> Any:
            return ctypes.byref(ctypes.c_int64(value))

        error, matrices = ctypes.c_int64(0), self._matrices
        address = [None if t is None else _pointer(t) for t in (values, b, x)]
        indices = [ctypes.c_void_p(array.ctypes.data) for array in (matrices.crow, matrices.col)]
        self._pardiso(
            *(self._pt, by(1), by(1), by(self._type), by(phase), by(self._problem.n)),
            *(address[0], *indices, None, by(self._k), self._iparm, by(0)),
            *(address[1], address[2], ctypes.byref(error)),
        )
        if error.value:
            raise RuntimeError(f"PARDISO: phase {phase}, error {error.value}")

    def fresh(self, theta: Tensor) -> Tensor:
        return self._matrices.of(self._problem.values(theta))

    def run(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """x = A⁻¹ b and y = A⁻ᵀ 2x̄, for each matrix."""
        x, y = torch.empty_like(self.b), torch.empty_like(self.b)
        each = [(values, self.b, x, y)]
        if values.dim() > 1:
            each = list(zip(values, self.b, x, y, strict=True))
        for matrix, b, one_x, one_y in each:
            self.factor(matrix)
            self.solve(b, one_x)
            self.solve(2 * one_x.conj() if one_x.is_complex() else 2 * one_x, one_y, transpose=True)
        return x, y

    def factor(self, values: Tensor) -> None:
        self._values = values
        self._call(22, values, None, None)

    def solve(self, b: Tensor, x: Tensor, transpose: bool = False) -> Tensor:
        """Solve for the rows of `b`, and write to `x`."""
        # (12): solve with the transpose, which equals a symmetric matrix.
        self._iparm[11] = 2 if transpose and self._type in (11, 13) else 0
        self._call(33, self._values, b.resolve_conj(), x)
        return x

    def answer(self, theta: Tensor, result: tuple[Tensor, Tensor]) -> Tensor:
        return gradient_by_hand(self._problem, theta, *result)

    def close(self) -> None:
        self._call(-1, None, None, None)


class BareQdldl:
    """The C functions of the qdldl package on arrays in the order of elimination."""

    name = "bare QDLDL"

    def __init__(self, problem: Problem):
        import qdldl
        from scipy.sparse import csc_matrix

        if problem.kind != "spd" or problem.rhs.is_complex():
            raise Absent("real symmetric matrices only")
        if problem.n > 2000 and problem.workload not in ("chain", "batch"):
            raise Absent("far too slow for matrices with fill")
        self._problem, n = problem, problem.n
        self._matrices = Matrices(problem, "upper")
        row = np.repeat(np.arange(n), np.diff(self._matrices.crow))
        col = self._matrices.col
        identity = csc_matrix(((row == col) * 1.0, (row, col)), shape=(n, n))
        order = qdldl.Solver(identity, upper=True).factors()[2]
        place = np.empty(n, dtype=np.int64)
        place[order] = np.arange(n)
        i, j = np.minimum(place[row], place[col]), np.maximum(place[row], place[col])
        source = np.lexsort((i, j))
        starts = np.concatenate(([0], np.bincount(j, minlength=n).cumsum()))
        arrays = (order, place, source, starts, i[source])
        self._order, self._place, self._source, self._Ap, self._Ai = (
            torch.from_numpy(array.astype(np.int64)) for array in arrays
        )
        self._b = problem.rhs_rows[:, self._order].contiguous()
        self._k = 1 if problem.batch else self._b.shape[0]
        self._prepare(ctypes.CDLL(qdldl.__file__), n)

    def _prepare(self, library: Any, n: int) -> None:
        """Find the elimination tree, allocate, and keep the arguments of the C functions."""
        self._factor, self._solve = library.QDLDL_factor, library.QDLDL_solve
        self._factor.restype, library.QDLDL_etree.restype = ctypes.c_int64, ctypes.c_int64
        self._Lnz, self._etree, work = (torch.empty(n, dtype=torch.int64) for _ in range(3))
        n64, tree = ctypes.c_int64(n), (self._Lnz, self._etree)
        below = library.QDLDL_etree(n64, *map(_pointer, (self._Ap, self._Ai, work, *tree)))
        self._Lp, self._Li = (torch.empty(k, dtype=torch.int64) for k in (n + 1, below))
        self._Lx = torch.empty(below, dtype=torch.float64)
        self._work = torch.empty(3, n, dtype=torch.float64)
        self._integers = torch.empty(4 * n, dtype=torch.int64)  # 3 n integers, and n bytes
        pivots, inverse, doubles = self._work
        factor = (self._Lp, self._Li, self._Lx, pivots, inverse, *tree)
        flags = ctypes.c_void_p(self._integers.data_ptr() + 24 * n)
        self._pattern = (n64, _pointer(self._Ap), _pointer(self._Ai))
        work_arrays = (flags, _pointer(self._integers), _pointer(doubles))
        self._rest = (*map(_pointer, factor), *work_arrays)
        self._L = (n64, *map(_pointer, (self._Lp, self._Li, self._Lx, inverse)))

    def fresh(self, theta: Tensor) -> Tensor:
        values = self._matrices.of(self._problem.values(theta))
        return values.reshape(-1, values.shape[-1])[:, self._source].contiguous()

    def run(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """x and y in the order of elimination."""
        n, x = self._problem.n, self._b.clone()
        y = torch.empty_like(x)
        at = 0
        for matrix in values:
            if self._factor(*self._pattern, _pointer(matrix), *self._rest) != n:
                raise RuntimeError("QDLDL: the matrix is not positive definite")
            for i in range(at, at + self._k):
                self._solve(*self._L, ctypes.c_void_p(x.data_ptr() + 8 * n * i))
                torch.mul(x[i], 2, out=y[i])
                self._solve(*self._L, ctypes.c_void_p(y.data_ptr() + 8 * n * i))
            at += self._k
        return x, y

    def answer(self, theta: Tensor, result: tuple[Tensor, Tensor]) -> Tensor:
        x, y = (solution[:, self._place] for solution in result)
        return gradient_by_hand(self._problem, theta, x, y)

    def close(self) -> None:
        pass


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def reference(problem: Problem, theta: Tensor) -> Tensor:
    """The gradient by hand from SciPy's solutions, for problems without a bare engine."""
    from scipy.sparse.linalg import splu

    batch, n = max(1, problem.batch), problem.n
    values = problem.values(theta.detach()).reshape(batch, -1)
    may_iterate = problem.kind == "spd" and problem.iterations <= MOST_ITERATIONS
    if may_iterate and problem.factor_flops > _MOST_FLOPS_FOR_SCIPY:
        A = problem.scipy_matrix(values[0])
        solution = _iterate(A, problem.rhs_rows)
        return gradient_by_hand(problem, theta, solution, _iterate(A, 2 * solution))
    x, y = [], []
    options = SPLU_OPTIONS if problem.kind == "spd" else {}
    for matrix, b in zip(values, problem.rhs_rows.reshape(batch, -1, n), strict=True):
        lu = splu(problem.scipy_matrix(matrix).tocsc(), **options)
        x.append(torch.from_numpy(lu.solve(b.numpy().T).T.copy()))
        y.append(
            torch.from_numpy(lu.solve(2 * x[-1].conj().resolve_conj().numpy().T, "T").T.copy())
        )
    return gradient_by_hand(problem, theta, torch.cat(x), torch.cat(y))


def _iterate(A: Any, b: Tensor) -> Tensor:
    """The solutions for the rows of `b` by SciPy's conjugate gradients."""
    from scipy.sparse import diags
    from scipy.sparse.linalg import cg

    scale = diags(1 / A.diagonal())
    x = [cg(A, one_b.numpy(), rtol=_CG_TOLERANCE, M=scale)[0] for one_b in b]
    return torch.from_numpy(np.stack(x))


def gradient_by_hand(problem: Problem, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of ‖x‖² from x and y = A⁻ᵀ 2 conj(x), whose residuals are checked first."""
    theta = theta.detach().requires_grad_()
    values = problem.values(theta)
    batch, n = max(1, problem.batch), problem.n
    b, xs, ys = (v.reshape(batch, -1, n) for v in (problem.rhs_rows, x, y))
    lam = ys.conj()
    for matrix, one_b, one_x, one_y in zip(
        values.detach().reshape(batch, -1), b, xs, ys, strict=True
    ):
        A = problem.scipy_matrix(matrix)
        for M, solution, right in ((A, one_x, one_b), (A.T, one_y, 2 * one_x.conj())):
            residual = M @ solution.numpy().T - right.resolve_conj().numpy().T
            scale = abs(M).max() * solution.abs().max() + right.abs().max()
            if not np.abs(residual).max() <= 1e-9 * float(scale):
                raise AssertionError(f"the bare engine is wrong: {problem.name}")
    values_bar = (
        -(lam[..., problem.rows] * xs[..., problem.cols].conj()).sum(1).reshape(values.shape)
    )
    return torch.autograd.grad(values, theta, values_bar)[0]


def _pardiso() -> Callable[..., None]:
    try:
        files = importlib.metadata.files("mkl") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    names = [f for f in files if f.name.startswith(("libmkl_rt.so", "mkl_rt."))]
    if not names:
        raise Absent("libmkl_rt is not installed")
    library = ctypes.CDLL(str(Path(str(names[0].locate())).resolve()))
    function = library.pardiso_64
    function.restype = None
    return cast("Callable[..., None]", function)
