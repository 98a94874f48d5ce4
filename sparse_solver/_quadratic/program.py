"""Quadratic energies with fixed entries and linear constraints.

x is where the Lagrangian

    ½ xᴴ Q x − Re bᴴ x + Re νᴴ (x_fixed − fixed_values) + Re μᴴ (C x − d)

is stationary. The fixed entries are moved to the right-hand side, and the rest is a solve with the
rows and columns of the free ones. All steps are differentiable operations, so that x and the
multipliers have derivatives of any order in all values.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from .._factor.options import Options, Triangle
from .._factor.problem import Problem
from .._solve.pattern import Pattern
from .._solve.shapes import check_rhs, check_values, solve_values
from .._sparse.index_checks import describe_type
from .._sparse.torch_tensors import split_tensor
from .._torch.dynamo import disable_dynamo
from .._torch.tensor_cache import TensorCache
from ..errors import IndexRangeError, OptionError, RedundantConstraintsError, ShapeError
from .dependent_constraints import check_feasible
from .kkt import purpose_name
from .kkt_indices import find_indices, join_values
from .right_hand_sides import broadcast_shapes, stack_as_rows, unstack_rows


class Multipliers(NamedTuple):
    """The Lagrange multipliers of a minimisation.

    Attributes
    ----------
    fixed : Tensor
        ν = b − Q x − Cᴴ μ at the fixed entries, of the shape of their values: the forces that hold
        them. The minimum changes by −Re νᴴ δ if the values change by δ.
    constraints : Tensor
        μ with Q x + Cᴴ μ = b at the free entries, of the shape of d. The minimum changes by
        −Re μᴴ δ if d changes by δ.
    """

    fixed: Tensor
    constraints: Tensor


class QuadraticProgram:
    """Minimise ½ xᵀ Q x − bᵀ x subject to x[fixed] = fixed_values and C x = d, for many values.

    Everything that depends on the places of the entries alone is computed once. A program has no
    device: it is solved where the values are.

    Parameters
    ----------
    Q : Pattern
        (n, n), of a symmetric (complex: Hermitian) matrix.
    fixed : Tensor, optional
        (p,) int64 or int32 indices, or an (n,) bool mask: the entries of x with given values.
    C : Pattern, optional
        (m, n), of the constraints.
    triangle : {"lower", "upper"}, optional
        The triangle that Q stores, if it stores only one.

    Raises
    ------
    ShapeError
        If Q is not square, or C or a mask does not fit it.
    IndexRangeError
        For indices in `fixed` that are out of range, or listed twice.
    DeviceError
        For indices on a device without numbers.
    OptionError
        If Q or C is not a Pattern, or `triangle` does not exist.

    Notes
    -----
    Without C, the submatrix of Q for the free entries must be positive definite, and is factored by
    Cholesky. With C, the matrix [[Q, Cᴴ], [C, 0]] of the free entries is factored as an indefinite
    one, and Q need be positive definite on the null space of C only [1]_.

    References
    ----------
    .. [1] J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd ed., section 16.1, 2006.

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> i = torch.arange(4)  # a chain of springs
    >>> Q = ss.Pattern(torch.cat([i, i[:-1], i[1:]]), torch.cat([i, i[1:], i[:-1]]), (4, 4))
    >>> program = ss.QuadraticProgram(Q, fixed=torch.tensor([0, 3]))
    >>> values = torch.tensor([1.0, 2, 2, 1, -1, -1, -1, -1, -1, -1])
    >>> program.solve(values, fixed_values=torch.tensor([0.0, 3]))
    tensor([0., 1., 2., 3.])
    """

    def __init__(
        self,
        Q: Pattern,
        *,
        fixed: Tensor | None = None,
        C: Pattern | None = None,
        triangle: Triangle | None = None,
    ):
        for name, pattern in (("Q", Q), ("C", C)):
            if not isinstance(pattern, Pattern) and not (name == "C" and pattern is None):
                raise OptionError(f"{name} is {describe_type(pattern)}; expected a Pattern")
        n = Q.shape[0]
        if Q.shape[1] != n:
            raise ShapeError(f"Q has shape {Q.shape}; expected a square one, (n, n)")
        if C is not None and C.shape[1] != n:
            raise ShapeError(f"C has shape {C.shape}, Q has {Q.shape}; expected (m, {n})")
        Options("spd", triangle).check(torch.float64)
        self._n, self._m, self._triangle = n, 0 if C is None else C.shape[0], triangle
        self._Q, self._C = Q._structure, None if C is None else C._structure
        self._indices = find_indices(self._Q, self._C, fixed, triangle)

    @overload
    def solve(
        self, Q_values: Tensor, b: Tensor | None = None, *, fixed_values: Tensor | None = None,
        C_values: Tensor | None = None, d: Tensor | None = None,
        return_multipliers: Literal[False] = False, engine: str | None = None,
    ) -> Tensor: ...  # fmt: skip

    @overload
    def solve(
        self, Q_values: Tensor, b: Tensor | None = None, *, fixed_values: Tensor | None = None,
        C_values: Tensor | None = None, d: Tensor | None = None,
        return_multipliers: Literal[True], engine: str | None = None,
    ) -> tuple[Tensor, Multipliers]: ...  # fmt: skip

    def solve(
        self,
        Q_values: Tensor,
        b: Tensor | None = None,
        *,
        fixed_values: Tensor | None = None,
        C_values: Tensor | None = None,
        d: Tensor | None = None,
        return_multipliers: bool = False,
        engine: str | None = None,
    ) -> Tensor | tuple[Tensor, Multipliers]:
        """Return the minimiser x; differentiable in all five tensors, to any order.

        Parameters
        ----------
        Q_values : Tensor
            (nnz,) in the order of the pattern of Q, or (..., nnz) for a batch; float32, float64,
            complex64 or complex128.
        b : Tensor, optional
            (n,), (n, k) or batched; zeros by default.
        fixed_values : Tensor, optional
            (p,), (p, k) or batched: the values of the fixed entries, in the order of `fixed` (of a
            mask: in increasing order); zeros by default.
        C_values : Tensor, optional
            (nnz,) or (..., nnz), in the order of the pattern of C; required if there is one.
        d : Tensor, optional
            (m,), (m, k) or batched; zeros by default.
        return_multipliers : bool
            Whether to return the Lagrange multipliers, too.
        engine : str, optional
            As for `sparse_solver.solve`.

        Returns
        -------
        Tensor or (Tensor, Multipliers)
            x, of shape (n,), (n, k) or batched as for `torch.linalg.solve`, or x and the
            multipliers. A vector beside right-hand sides with columns is the same for all columns,
            and a tensor that may be a batch of vectors or columns is columns beside others with
            columns.

        Raises
        ------
        NotPositiveDefiniteError
            If there is no minimum.
        SingularMatrixError
            If the minimum is not unique.
        InfeasibleConstraintsError, RedundantConstraintsError
            If constraints contradict each other, or depend on each other; `rows` are those of C.
            Inside of `torch.compile` and the transforms of `torch.func`, which hide the numbers,
            constraints that contradict each other raise `RedundantConstraintsError`, too.
        NotSymmetricError
            If Q is not symmetric (complex: Hermitian).
        SparseSolverError
            As for `sparse_solver.solve`.

        Notes
        -----
        The stored entries of Q are independent variables, as in `sparse_solver.solve`: the gradient
        of one is −λ_i conj(x_j), λ being the adjoint solution.

        Costs one factorisation and one substitution a column, and the backward pass one
        substitution. With C, the number of negative eigenvalues of the factored matrix shows
        whether there is a minimum. If the engine does not count them (complex numbers, SuperLU, and
        PARDISO where pivots are bad), that costs ten more substitutions and a Cholesky
        factorisation of Q, or, if Q is not semidefinite, a factorisation by SuperLU.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> i, ones = torch.arange(3), torch.ones(3)
        >>> C = ss.Pattern(0 * i, i, (1, 3))  # Σ x = 6
        >>> program = ss.QuadraticProgram(ss.Pattern(i, i, (3, 3)), C=C)
        >>> d = torch.tensor([6.0])
        >>> x, multipliers = program.solve(ones, C_values=ones, d=d, return_multipliers=True)
        >>> x, multipliers.constraints
        (tensor([2., 2., 2.]), tensor([-2.]))
        """
        n, m = self._n, self._m
        values = self._join_values(Q_values, C_values)
        right, is_flat = self._stack_right_hand_sides(values, b, fixed_values, d)
        options = Options("hermitian" if m else "spd", self._triangle, engine)
        options.check(values.dtype)
        mirror, indices = options.mirror(values.dtype), self._indices.on(values.device)
        problem = Problem(indices.structure, options, indices.submatrix, purpose_name(m))
        fixed = indices.fixed

        both, given = torch.cat((right["b"], right["d"]), -1), None
        rhs = both
        if fixed is not None:
            given = torch.zeros_like(both).index_add(-1, fixed.indices, right["fixed_values"])
            rhs = both - fixed.coupling.apply(values, given, mirror)
        try:
            z = solve_values(problem, values, rhs.mT).mT
        except RedundantConstraintsError as error:
            if self._C is not None and C_values is not None:
                at = None if fixed is None else fixed.indices
                check_feasible(self._C, C_values, at, right, error)
            raise
        z = z if given is None else z + given
        x = unstack_rows(z[..., :n], is_flat)
        if not return_multipliers:
            return x
        forces = z[..., :0]
        if fixed is not None:
            forces = both - fixed.reaction.apply(values, z, mirror)
            forces = forces.index_select(-1, fixed.indices)
        return x, Multipliers(unstack_rows(forces, is_flat), unstack_rows(z[..., n:], is_flat))

    def __repr__(self) -> str:
        fixed = self._indices.fixed_count
        return f"QuadraticProgram(n={self._n}, fixed={fixed}, constraints={self._m})"

    def __reduce__(self) -> tuple[Any, ...]:
        fixed = None if self._indices.fixed is None else self._indices.fixed.indices
        C = None if self._C is None else Pattern._of(self._C)
        Q, triangle = Pattern._of(self._Q), self._triangle
        return partial(QuadraticProgram, Q, fixed=fixed, C=C, triangle=triangle), ()

    def __copy__(self) -> QuadraticProgram:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> QuadraticProgram:
        return self  # a program is immutable

    def _join_values(self, Q_values: Tensor, C_values: Tensor | None) -> Tensor:
        """The values of the KKT matrix; raises where they do not fit."""
        check_values(Q_values, self._Q.nnz, "Q_values")
        if self._C is None:
            if C_values is not None:
                raise OptionError("C_values were passed, but the program has no C=")
            return Q_values
        if C_values is None:
            raise OptionError("the program has constraints: pass C_values")
        check_values(C_values, self._C.nnz, "C_values")
        check_rhs("C_values", C_values, Q_values)
        batch = broadcast_shapes({"Q_values": Q_values.shape[:-1], "C_values": C_values.shape[:-1]})
        Q_values, C_values = Q_values.expand(*batch, -1), C_values.expand(*batch, -1)
        return join_values(Q_values, C_values, self._triangle)

    def _stack_right_hand_sides(
        self, values: Tensor, b: Tensor | None, fixed_values: Tensor | None, d: Tensor | None
    ) -> tuple[dict[str, Tensor], bool]:
        """b, fixed_values and d as rows, and whether all were vectors; see `stack_as_rows`."""
        if fixed_values is not None and self._indices.fixed is None:
            raise OptionError("fixed_values were passed, but no fixed=: pass both or neither")
        if d is not None and self._C is None:
            raise OptionError("d was passed, but no C=: pass both or neither")
        sizes = {"b": self._n, "fixed_values": self._indices.fixed_count, "d": self._m}
        return stack_as_rows({"b": b, "fixed_values": fixed_values, "d": d}, sizes, values)


@overload
def minimize_quadratic(
    Q: Tensor, b: Tensor | None = None, *, fixed: Tensor | None = None,
    fixed_values: Tensor | None = None, C: Tensor | None = None, d: Tensor | None = None,
    triangle: Triangle | None = None, return_multipliers: Literal[False] = False,
    engine: str | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def minimize_quadratic(
    Q: Tensor, b: Tensor | None = None, *, fixed: Tensor | None = None,
    fixed_values: Tensor | None = None, C: Tensor | None = None, d: Tensor | None = None,
    triangle: Triangle | None = None, return_multipliers: Literal[True],
    engine: str | None = None,
) -> tuple[Tensor, Multipliers]: ...  # fmt: skip


def minimize_quadratic(
    Q: Tensor,
    b: Tensor | None = None,
    *,
    fixed: Tensor | None = None,
    fixed_values: Tensor | None = None,
    C: Tensor | None = None,
    d: Tensor | None = None,
    triangle: Triangle | None = None,
    return_multipliers: bool = False,
    engine: str | None = None,
) -> Tensor | tuple[Tensor, Multipliers]:
    """Minimise ½ xᵀ Q x − bᵀ x subject to x[fixed] = fixed_values and C x = d.

    Differentiable in Q, b, fixed_values, C and d, to any order. For complex numbers, the energy is
    ½ xᴴ Q x − Re bᴴ x.

    Parameters
    ----------
    Q : Tensor
        (n, n) sparse COO, CSR or CSC tensor, symmetric (complex: Hermitian) and positive definite
        on the null space of the constraints; or a batch of CSR or CSC matrices that share one
        pattern; float32, float64, complex64 or complex128.
    b : Tensor, optional
        (n,), (n, k) or batched; zeros by default.
    fixed : Tensor, optional
        (p,) int64 or int32 indices, or an (n,) bool mask: the entries of x with given values.
    fixed_values : Tensor, optional
        (p,), (p, k) or batched: the values of the fixed entries; zeros by default.
    C : Tensor, optional
        (m, n) sparse tensor, or a batch, of independent constraints.
    d : Tensor, optional
        (m,), (m, k) or batched; zeros by default.
    triangle : {"lower", "upper"}, optional
        The triangle that Q stores, if it stores only one.
    return_multipliers : bool
        Whether to return the Lagrange multipliers, too.
    engine : str, optional
        As for `solve`.

    Returns
    -------
    Tensor or (Tensor, Multipliers)
        The minimiser x, or x and the multipliers.

    Raises
    ------
    LayoutError
        If Q or C is not a sparse tensor.
    SparseSolverError
        As for `QuadraticProgram` and its `solve`.

    Notes
    -----
    The index work is remembered for the places that were used last. A `QuadraticProgram` keeps it,
    takes values instead of sparse tensors, and works with `torch.func` and `torch.compile`; its
    documentation has shapes, gradients and costs.

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> Q = torch.tensor([[1.0, -1, 0, 0], [-1, 2, -1, 0], [0, -1, 2, -1], [0, 0, -1, 1]])
    >>> C, d = torch.tensor([[0.0, 0, 0, 1]]).to_sparse(), torch.tensor([3.0])  # springs
    >>> ss.minimize_quadratic(Q.to_sparse(), fixed=torch.tensor([0]), C=C, d=d).round(decimals=4)
    tensor([0., 1., 2., 3.])
    """
    program, Q_values, C_values = _find_program(Q, fixed, C, triangle)
    solve = partial(program.solve, fixed_values=fixed_values, C_values=C_values, d=d, engine=engine)
    if return_multipliers:
        return solve(Q_values, b, return_multipliers=True)
    return solve(Q_values, b)


_programs: TensorCache[QuadraticProgram] = TensorCache()


@disable_dynamo
def _find_program(
    Q: Tensor, fixed: Tensor | None, C: Tensor | None, triangle: Triangle | None
) -> tuple[QuadraticProgram, Tensor, Tensor | None]:
    """The program for the places of these tensors, and their values."""
    Q_places, Q_values = split_tensor(Q, "Q")
    C_places, C_values = (None, None) if C is None else split_tensor(C, "C")
    if fixed is not None and not (isinstance(fixed, Tensor) and fixed.layout == torch.strided):
        what = f"of layout {fixed.layout}" if isinstance(fixed, Tensor) else describe_type(fixed)
        raise IndexRangeError(f"fixed is {what}; expected a dense tensor of indices, or a mask")

    def build(*fixed: Tensor) -> QuadraticProgram:
        C_pattern = None if C_places is None else Pattern._of(C_places)
        chosen = fixed[0] if fixed else None
        return QuadraticProgram(Pattern._of(Q_places), fixed=chosen, C=C_pattern, triangle=triangle)

    indices = () if fixed is None else (fixed,)
    program = _programs.find((Q_places, C_places, triangle), indices, build)
    return program, Q_values, C_values
