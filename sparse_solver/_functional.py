"""`solve` and `factorize` for torch sparse tensors, `engines` and `clear_cache`."""

from __future__ import annotations

from torch import Tensor

from . import _engines
from ._factorization import Factorization
from ._kinds import Assume, Options, Reporting, Triangle
from ._quadratic import programs
from ._solve import solve_values
from ._stencil import stencils
from ._structure import Structure, cache
from ._tensors import entries
from ._untraced import untraced


def solve(
    A: Tensor,
    b: Tensor,
    *,
    assume: Assume = "auto",
    triangle: Triangle | None = None,
    transpose: bool = False,
    engine: str | None = None,
    check: Reporting = "sync",
) -> Tensor:
    """x = A⁻¹ b for a sparse matrix A, differentiable in A's stored entries and in b.

    A : (n, n) torch sparse COO (coalesced or not), CSR or CSC tensor, or a batch of CSR or CSC matrices that share
        one pattern; float32, float64, complex64 or complex128
    b : (n,), (n, k), or batched, as for `torch.linalg.solve`; of the same dtype
    assume : what A is known to be
        "auto": found out from the values: Cholesky if A = Aᴴ has a positive diagonal, and if that meets a pivot that
        is not positive, a symmetric indefinite factorisation; LU if A is not symmetric
        "spd": symmetric (Hermitian) positive definite; "symmetric": A = Aᵀ; "hermitian": A = Aᴴ; each is checked
        "general": LU
    triangle : "lower" or "upper" if A stores one triangle of a symmetric matrix only
    transpose : solve with Aᵀ (never Aᴴ) instead
    engine : one of the names in `engines()`; by default the fastest for this matrix is taken
    check : when errors that depend on the values are raised; on the CPU, always at once
        "sync": at once, for which the host waits for a GPU
        "deferred": the host does not wait; solutions of systems that fail are NaN, and the error is raised by a later
        deferred solve, or by `check_deferred`. `assume` must not be "auto"
    returns : x, of the shape that `torch.linalg.solve` gives

    Stored entries are independent variables: the gradient is −λ_i conj(x_j), λ = A⁻ᴴ x̄, at the places of A's entries,
    in A's layout and order, which is what the dense gradient has there. With `triangle`, an entry off the diagonal
    stands for two and receives the sum of both. Entries at the same place each receive its gradient.

    Costs one factorisation and one substitution a right-hand side, and the backward one substitution; the analysis of
    the pattern is remembered. PARDISO's LU and LDLᵀ, which pivot within limits, cost a test substitution more a
    factorisation, a residual and where it helps some refinement a solve, and once a second analysis where pivots are bad.

    Raises `ShapeError`, `DtypeError`, `DeviceError`, `LayoutError`, `IndexRangeError`, `OptionError`, `TriangleError`,
    `NonFiniteError`, `NotSymmetricError`, `NotPositiveDefiniteError`, `SingularMatrixError`, `EngineUnavailableError`,
    `EngineUnsupportedError`, `EngineError`: all of them `SparseSolverError`.

    >>> import torch, sparse_solver as ss
    >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]]).to_sparse().requires_grad_()
    >>> x = ss.solve(A, torch.tensor([1.0, 2.0]))
    >>> x
    tensor([0.0909, 0.6364], grad_fn=<SqueezeBackward1>)
    >>> x.sum().backward()
    >>> A.grad.to_dense()
    tensor([[-0.0165, -0.1157],
            [-0.0248, -0.1736]])
    """
    structure, values = _taken_apart(A)
    return solve_values(structure, values, b, Options(assume, triangle, engine, reporting=check), transpose)


def factorize(
    A: Tensor,
    *,
    assume: Assume = "auto",
    triangle: Triangle | None = None,
    engine: str | None = None,
    check: Reporting = "sync",
) -> Factorization:
    """Factor a sparse matrix once, to solve with it often; arguments and errors as for `solve`.

    >>> import torch, sparse_solver as ss
    >>> F = ss.factorize(torch.tensor([[4.0, 1.0], [1.0, 3.0]]).to_sparse())
    >>> F.solve(torch.tensor([1.0, 2.0]))
    tensor([0.0909, 0.6364])
    """
    structure, values = _taken_apart(A)
    factorization: Factorization = Factorization(structure, values, Options(assume, triangle, engine, reporting=check))
    return factorization


@untraced
def _taken_apart(A: Tensor) -> tuple[Structure, Tensor]:
    return entries(A)


def engines() -> dict[str, _engines.Availability]:
    """The engines, each with its `version`, or why it is `missing` and what to install.

    >>> import sparse_solver as ss
    >>> ss.engines()["superlu"].installed
    True
    """
    return _engines.available()


def clear_cache() -> None:
    """Forget the patterns that were seen, and with them their analyses; a live `Pattern` keeps its own.

    Memory that was kept for factorisations to come is given back, too.

    >>> import sparse_solver as ss
    >>> ss.clear_cache()
    """
    cache.clear()
    programs.clear()
    stencils.clear()
    _engines.release_idle()
