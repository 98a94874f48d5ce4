"""`solve` and `factorize` for sparse torch tensors, `engines` and `clear_cache`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._engines.protocol import Availability
from .._engines.registry import available_engines, release_idle
from .._factor.options import Assume, Options, Precision, Triangle
from .._factor.problem import Problem
from .._sparse.structure import Structure
from .._sparse.torch_tensors import split_tensor
from .._torch.dynamo import disable_dynamo
from .._torch.tensor_cache import clear_caches
from .factorization import Factorization, make_preconditioner, restore_factorization
from .pattern import Pattern
from .shapes import solve_values

# What `torch.load` may construct by default.
torch.serialization.add_safe_globals([Pattern, restore_factorization])


def solve(
    A: Tensor,
    b: Tensor,
    *,
    assume: Assume = "auto",
    triangle: Triangle | None = None,
    transpose: bool = False,
    adjoint: bool = False,
    engine: str | None = None,
    precision: Precision = "full",
    preconditioner: Factorization | None = None,
    non_blocking: bool = False,
) -> Tensor:
    """Solve A x = b with a sparse matrix A; differentiable in A's stored entries and in b.

    Parameters
    ----------
    A : Tensor
        (n, n) sparse COO (coalesced or not), CSR or CSC tensor, or a batch (..., n, n) of such
        matrices, whose patterns may differ; float32, float64, complex64 or complex128.
    b : Tensor
        (n,), (n, k), or batched, as for `torch.linalg.solve`; of the same dtype and device.
    assume : {"auto", "spd", "symmetric", "hermitian", "general"}
        What A is known to be.

        - "auto": found out from the values. If A = Aᴴ has a positive diagonal, Cholesky, and if
          that meets a pivot that is not positive, a symmetric indefinite factorisation; if A is
          not symmetric, LU.
        - "spd": symmetric (Hermitian) positive definite; "symmetric": A = Aᵀ; "hermitian":
          A = Aᴴ. Each is checked.
        - "general": LU.
    triangle : {"lower", "upper"}, optional
        The triangle that A stores, if it stores only one triangle of a symmetric matrix.
    transpose : bool
        Solve Aᵀ x = b instead.
    adjoint : bool
        Solve Aᴴ x = b instead.
    engine : str, optional
        A name in `engines()`; by default the engine that is fastest for this matrix. Where its
        factors are not accurate enough, SuperLU follows in double precision; `Info.method` says so.
    precision : {"full", "mixed"}
        "mixed": factor a matrix of double precision in single precision, which takes half the
        memory, and less time where the factor has much fill. Solutions are as accurate, by
        conjugate gradients or iterative refinement; where single precision is not enough, the
        matrix is factored in double precision after all.
    preconditioner : Factorization, optional
        A factorisation of a matrix that is close to A, such as older values of it, one in single
        precision, or one of another pattern. Real positive definite matrices are then not factored,
        but solved with by preconditioned conjugate gradients, as accurately. Where the two matrices
        are not close enough, or A is nearly singular, A is factored after all, unless
        ``engine="cg"``. Nothing is differentiated in the preconditioner, which must be that of one
        real matrix, and not of a batch.
    non_blocking : bool
        Whether the host goes on without waiting for a GPU. Solutions of systems that fail are
        then NaN, and the error is raised by a later non-blocking solve or by `synchronize`;
        `assume` must not be "auto". Without effect on the CPU.

    Returns
    -------
    Tensor
        x, of the shape that `torch.linalg.solve` gives.

    Raises
    ------
    ShapeError, DtypeError, DeviceError, LayoutError, IndexRangeError
        If A and b are not tensors as described, or do not fit each other.
    OptionError, TriangleError
        If an option does not exist, or contradicts another one or the matrix.
    NonFiniteError
        If an entry of A, b or x is NaN or infinite.
    NotSymmetricError, NotPositiveDefiniteError
        If A is not what `assume` says.
    SingularMatrixError
        If A is singular, or singular to working precision; or if A is so ill-conditioned that the
        largest entries of x have no correct digit.
    EngineUnavailableError, EngineUnsupportedError, EngineError
        If the engine is not installed, cannot factor such a matrix, or fails.
    MemoryLimitError
        If the factor would need more memory than is free.
    TransformError
        For derivatives that torch would compute wrongly.

    Notes
    -----
    Stored entries are independent variables: the gradient is −λ_i conj(x_j), λ = A⁻ᴴ x̄, at the
    places of A's entries, in A's layout and order, which are the entries of the dense gradient.
    With `triangle`, an entry off the diagonal stands for two and receives the sum of both
    gradients. Entries at the same place each receive the gradient of their sum [1]_.

    Costs one factorisation and one substitution a right-hand side, and the backward pass one
    substitution; the analysis of the pattern is remembered. PARDISO's Cholesky needs another half
    substitution per factorisation, to detect singular matrices. Its LU and LDLᵀ, which pivot within
    limits, need one extra solve per factorisation, one residual per solve, a few steps of
    refinement where they help, and, once per pattern, a second analysis if pivots are bad.

    The matrices of a batch are joined to a few block-diagonal ones, which are analysed and factored
    at once; "auto" takes a factorisation that suits all matrices that are joined. Each matrix is
    judged on its own, and errors name the matrix, counted through all batch dimensions.

    References
    ----------
    .. [1] M. B. Giles, "Collected matrix derivative results for forward and reverse mode
       algorithmic differentiation", Advances in Automatic Differentiation, 2008.

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]]).to_sparse().requires_grad_()
    >>> x = ss.solve(A, torch.tensor([1.0, 2.0]))
    >>> x
    tensor([0.0909, 0.6364], grad_fn=<SqueezeBackward1>)
    >>> x.sum().backward()
    >>> A.grad.to_dense()
    tensor([[-0.0165, -0.1157],
            [-0.0248, -0.1736]])

    A batch of two matrices with different patterns:

    >>> A = torch.tensor([[[2.0, 0.0], [0.0, 4.0]], [[1.0, 1.0], [0.0, 1.0]]]).to_sparse()
    >>> ss.solve(A, torch.ones(2))
    tensor([[0.5000, 0.2500],
            [0.0000, 1.0000]])
    """
    structure, values = _split(A)
    options = Options(assume, triangle, engine, non_blocking, precision)
    problem = Problem(structure, options, preconditioner=make_preconditioner(preconditioner))
    return solve_values(problem, values, b, transpose=transpose, adjoint=adjoint)


def factorize(
    A: Tensor,
    *,
    assume: Assume = "auto",
    triangle: Triangle | None = None,
    engine: str | None = None,
    precision: Precision = "full",
    preconditioner: Factorization | None = None,
    non_blocking: bool = False,
) -> Factorization:
    """Factor a sparse matrix once, to solve with it often.

    Parameters
    ----------
    A : Tensor
        As for `solve`.
    assume, triangle, engine, precision, preconditioner, non_blocking
        As for `solve`.

    Returns
    -------
    Factorization
        The factored matrix; differentiable in A's stored entries.

    Raises
    ------
    SparseSolverError
        As for `solve`.

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> F = ss.factorize(torch.tensor([[4.0, 1.0], [1.0, 3.0]]).to_sparse())
    >>> F.solve(torch.tensor([1.0, 2.0]))
    tensor([0.0909, 0.6364])
    """
    structure, values = _split(A)
    options = Options(assume, triangle, engine, non_blocking, precision)
    problem = Problem(structure, options, preconditioner=make_preconditioner(preconditioner))
    return Factorization(problem, values)


@disable_dynamo
def _split(A: Tensor) -> tuple[Structure, Tensor]:
    return split_tensor(A, different_patterns=True)


class SparseSolver:
    """The call of the library that this one grew from.

    Examples
    --------
    >>> import torch, sparse_solver
    >>> sparse_solver.SparseSolver.apply(torch.eye(2).to_sparse(), torch.ones(2))
    tensor([1., 1.])
    """

    @staticmethod
    def apply(A: Tensor, b: Tensor) -> Tensor:
        """Solve A x = b; the same as ``sparse_solver.solve(A, b)``.

        Parameters
        ----------
        A, b : Tensor
            As for `sparse_solver.solve`.

        Returns
        -------
        Tensor
            x.

        Raises
        ------
        SparseSolverError
            As for `sparse_solver.solve`.
        """
        return solve(A, b)


class EngineTable(dict[str, Availability]):
    """The engines by name; printed as a table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:<{width}}  {found}" for name, found in self.items())


def engines() -> EngineTable:
    """List the engines, each with its version or the reason why it cannot be used here.

    Returns
    -------
    EngineTable
        A dictionary of `Availability` by name, which prints as a table.

    Examples
    --------
    >>> import sparse_solver as ss
    >>> ss.engines()["superlu"].installed
    True
    """
    return EngineTable(available_engines())


def clear_cache() -> None:
    """Forget the patterns that were used, and with them their analyses.

    A living `Pattern` keeps its own. Memory that was kept for new factorisations is released.

    Examples
    --------
    >>> import sparse_solver as ss
    >>> ss.clear_cache()
    """
    clear_caches()
    release_idle()
