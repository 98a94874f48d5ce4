"""Quadratic energies with known entries and linear constraints: `minimize_quadratic` and `QuadraticProgram`.

x is where the Lagrangian ½ xᴴ Q x − Re bᴴ x + Re νᴴ (x_known − y) + Re μᴴ (C x − d) is stationary. The known entries are
moved to the right-hand side, and what is left is a solve with the rows and columns of the others. All of it is made of
differentiable operations: x and the multipliers have derivatives in everything, to any order.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal, NamedTuple, TypeVar, overload

import torch
from torch import Tensor

from .._factor.options import Assume, Options, Triangle
from .._factor.problem import Problem
from .._solve.pattern import Pattern
from .._solve.shapes import check_rhs, check_values, is_vector, solve_values
from .._sparse.index_checks import check_device, select_indices
from .._sparse.kernels import Places, apply
from .._sparse.structure import Structure, structure_of
from .._sparse.submatrix import Submatrix, remove_rows
from .._sparse.torch_tensors import split_tensor
from .._sparse.values import CPU, largest_modulus, raise_non_finite, to_double
from .._torch.dynamo import disable_dynamo
from .._torch.modes import is_transformed, outside_transforms
from .._torch.tensor_cache import TensorCache
from ..errors import (
    IndexRangeError,
    InfeasibleConstraintsError,
    OptionError,
    RedundantConstraintsError,
    ShapeError,
)
from .dependent_constraints import conflicting_rows
from .kkt import list_constraints, method_name

T = TypeVar("T")


class Multipliers(NamedTuple):
    """The Lagrange multipliers of a minimisation, of the shapes of y and d.

    known : ν = (b − Q x − Cᴴ μ) at the known entries: the forces that hold them; the minimum changes by −νᴴ dy with y
    constraints : μ with Q x + Cᴴ μ = b at the others; the minimum changes by −μᴴ dd with d
    """

    known: Tensor
    constraints: Tensor


class _Entries(NamedTuple):
    """Some entries of a matrix: which they are, and where."""

    which: Tensor
    rows: Tensor
    cols: Tensor

    @classmethod
    def where(cls, chosen: Tensor, structure: Structure) -> _Entries:
        which = torch.nonzero(chosen).squeeze(-1)
        return cls(which, structure.rows[which], structure.cols[which])

    def times(self, values: Tensor, x: Tensor, mirror: str | None) -> Tensor:
        """Their product, of the matrix with these values, with the rows of x."""
        return apply(values.index_select(-1, self.which), x, Places(self.rows, self.cols, mirror))


class QuadraticProgram:
    """Minimises ½ xᵀ Q x − bᵀ x subject to x[known] = y and C x = d, for one pattern and many values.

    Q : (n, n) `Pattern` of a symmetric (complex: Hermitian) matrix
    known : (p,) int64 or int32 indices, or (n,) bool: which entries of x are known; None: none
    C : (m, n) `Pattern` of the constraints; None: there are none
    triangle : "lower" or "upper" if Q stores one triangle only

    What depends on the places alone is done once. Without C, the unknown part of Q is factored by Cholesky; with C, the
    matrix [[Q, Cᴴ], [C, 0]] as an indefinite one, and Q need be positive definite on the null space of C only.

    Raises `ShapeError`, `IndexRangeError` (known indices that are none or are there twice), `DeviceError`, `OptionError`.

    >>> import torch, sparse_solver as ss
    >>> i = torch.arange(4)
    >>> Q = ss.Pattern(torch.cat([i, i[:-1], i[1:]]), torch.cat([i, i[1:], i[:-1]]), (4, 4))  # a chain of springs
    >>> program = ss.QuadraticProgram(Q, known=torch.tensor([0, 3]))
    >>> program.solve(torch.tensor([1.0, 2, 2, 1, -1, -1, -1, -1, -1, -1]), y=torch.tensor([0.0, 3]))
    tensor([0., 1., 2., 3.])
    """

    def __init__(
        self,
        Q: Pattern,
        known: Tensor | None = None,
        C: Pattern | None = None,
        *,
        triangle: Triangle | None = None,
    ):
        for name, pattern in (("Q", Q), ("C", C)):
            if not isinstance(pattern, Pattern) and not (name == "C" and pattern is None):
                raise OptionError(f"{name} is a {type(pattern).__name__}; expected a Pattern")
        n = Q.shape[0]
        if Q.shape[1] != n:
            raise ShapeError(f"Q has shape {Q.shape}; expected a square one, (n, n)")
        if C is not None and C.shape[1] != n:
            raise ShapeError(f"C has shape {C.shape}, Q has {Q.shape}; expected (m, {n})")
        self._n, self._m = n, 0 if C is None else C.shape[0]
        self._Q, self._C, self._triangle = (
            Q._structure,
            None if C is None else C._structure,
            triangle,
        )
        Options("spd", triangle).check(torch.float64)
        self._submatrix: Submatrix | None = None
        if isinstance(known, Tensor):
            check_device(Q.rows, known)
        if C is not None:
            check_device(Q.rows, C.rows)
        with outside_transforms():
            self._known = None if known is None else select_indices("known", known, n, "rows")
            self._structure = self._joined()
            self._find_neighbours()

    def _joined(self) -> Structure:
        """The structure of [[Q, Cᴴ], [C, 0]]; its entries are those of Q, of C, and if both triangles are stored, of Cᴴ."""
        Q, C = self._Q, self._C
        if C is None:
            return Q
        n, N = self._n, self._n + self._m
        below = C.rows + n, C.cols
        parts = self._stored(below, below[::-1])
        rows = torch.cat((Q.rows, *(part[0] for part in parts)))
        cols = torch.cat((Q.cols, *(part[1] for part in parts)))
        return structure_of(rows, cols, (N, N))

    def _stored(self, below: T, right: T) -> list[T]:
        """What there is of C, below Q, and of Cᴴ, to its right."""
        return [
            part for part, other in ((below, "upper"), (right, "lower")) if self._triangle != other
        ]

    def _find_neighbours(self) -> None:
        """Which entries lead from known entries to unknown ones, and which lead to known ones."""
        if self._known is None:
            return
        structure = self._structure
        self._submatrix = remove_rows(structure, self._known.sort()[0])
        is_known = torch.zeros(structure.shape[0], dtype=torch.bool, device=structure.device)
        is_known[self._known] = True
        from_known, to_known = is_known[structure.cols], is_known[structure.rows]
        if self._triangle is None:
            coupling, reaction = from_known & ~to_known, to_known
        else:
            coupling, reaction = from_known ^ to_known, from_known | to_known
        self._coupling, self._reaction = (
            _Entries.where(coupling, structure),
            _Entries.where(reaction, structure),
        )

    @overload
    def solve(
        self, Q_values: Tensor, b: Tensor | None = None, y: Tensor | None = None, C_values: Tensor | None = None,
        d: Tensor | None = None, *, return_multipliers: Literal[False] = False, engine: str | None = None,
    ) -> Tensor: ...  # fmt: skip

    @overload
    def solve(
        self, Q_values: Tensor, b: Tensor | None = None, y: Tensor | None = None, C_values: Tensor | None = None,
        d: Tensor | None = None, *, return_multipliers: Literal[True], engine: str | None = None,
    ) -> tuple[Tensor, Multipliers]: ...  # fmt: skip

    def solve(
        self, Q_values: Tensor, b: Tensor | None = None, y: Tensor | None = None, C_values: Tensor | None = None,
        d: Tensor | None = None, *, return_multipliers: bool = False, engine: str | None = None,
    ) -> Tensor | tuple[Tensor, Multipliers]:  # fmt: skip
        """The minimiser x, and on request the `Multipliers`; differentiable in all five tensors, to any order.

        Q_values, C_values : (nnz,) in the order of the patterns, or (..., nnz) for a batch
        b, y, d : (n,), (p,), (m,), or with columns (n, k), (p, k), (m, k), or batched; None: zeros
        returns : x of shape (n,), or with columns (n, k), or batched; as for `torch.linalg.solve`. Vectors beside others
            with columns are the same for all columns; what may be a batch of vectors or columns is, beside others with
            columns, columns.

        The stored entries of Q are independent variables of Q x = …, as in `solve`: −λ_i conj(x_j) is the gradient of one.
        Costs one factorisation and one substitution a column, and the backward one substitution. With C, the engine's count
        of negative eigenvalues tells whether there is a minimum; where it does not count them (complex numbers, SuperLU, and
        PARDISO where pivots are bad) that costs ten substitutions and a Cholesky factorisation of Q more, or, if Q is not
        semidefinite, one by SuperLU.

        Raises `NotPositiveDefiniteError` where there is no minimum, `SingularMatrixError` where it is not unique,
        `RedundantConstraintsError` and `InfeasibleConstraintsError` with the `rows` of C that depend on or contradict each
        other, `NotSymmetricError`, and what `Pattern.solve` raises. Inside of `torch.compile` and the transforms of
        `torch.func`, where b, y and d cannot be looked at, infeasible constraints raise `RedundantConstraintsError`, too.

        >>> import torch, sparse_solver as ss
        >>> i = torch.arange(3)
        >>> program = ss.QuadraticProgram(ss.Pattern(i, i, (3, 3)), C=ss.Pattern(0 * i, i, (1, 3)))  # Σ x = 6
        >>> ones = torch.ones(3)
        >>> x, multipliers = program.solve(ones, None, None, ones, torch.tensor([6.0]), return_multipliers=True)
        >>> x, multipliers.constraints
        (tensor([2., 2., 2.]), tensor([-2.]))
        """
        n, m = self._n, self._m
        values, given = self._values(Q_values, C_values), {"b": b, "y": y, "d": d}
        right, flat = self._right_hand_sides(values, given)
        indefinite: Assume = "hermitian" if values.is_complex() else "symmetric"
        options = Options(indefinite if m else "spd", self._triangle, engine)
        problem = Problem(self._structure, options, self._submatrix, method_name(m))
        options.check(values.dtype)
        mirror = options.mirror(values.dtype)

        both, known = torch.cat((right["b"], right["d"]), -1), self._known
        rhs, held = both, None
        if known is not None:
            held = torch.zeros_like(both).index_add(-1, known, right["y"])
            rhs = both - self._coupling.times(values, held, mirror)
        try:
            z = solve_values(problem, values, rhs.mT).mT
        except RedundantConstraintsError as error:
            self._refuse_infeasible(error, C_values, right)
            raise
        z = z if held is None else z + held
        x = _shaped(z[..., :n], flat)
        if not return_multipliers:
            return x
        forces = z[..., :0]
        if known is not None:
            forces = both - self._reaction.times(values, z, mirror)
            forces = forces.index_select(-1, known)
        return x, Multipliers(_shaped(forces, flat), _shaped(z[..., n:], flat))

    def __repr__(self) -> str:
        known = 0 if self._known is None else self._known.numel()
        return f"QuadraticProgram(n={self._n}, known={known}, constraints={self._m})"

    def __reduce__(self) -> tuple[Any, ...]:
        C = None if self._C is None else Pattern._of(self._C)
        return (_restored, (Pattern._of(self._Q), self._known, C, self._triangle))

    def __copy__(self) -> QuadraticProgram:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> QuadraticProgram:
        return self  # nothing about a program can change

    def _values(self, Q_values: Tensor, C_values: Tensor | None) -> Tensor:
        check_values(Q_values, self._Q.nnz, "Q_values")
        if self._C is None:
            if C_values is not None:
                raise OptionError(
                    "there are values of C, but no C: the program was made without constraints"
                )
            return Q_values
        if C_values is None:
            raise OptionError("the program has constraints: pass C_values")
        check_values(C_values, self._C.nnz, "C_values")
        check_rhs("C_values", C_values, Q_values)
        batch = _broadcast({"Q_values": Q_values.shape[:-1], "C_values": C_values.shape[:-1]})
        Q_values, C_values = Q_values.expand(*batch, -1), C_values.expand(*batch, -1)
        return torch.cat((Q_values, *self._stored(C_values, C_values.conj().resolve_conj())), -1)

    def _right_hand_sides(
        self, values: Tensor, given: dict[str, Tensor | None]
    ) -> tuple[dict[str, Tensor], bool]:
        """b, y and d as rows (..., k, size), with equal leading dimensions, and whether all of them were vectors."""
        n, m = self._n, self._m
        sizes = {"b": n, "y": 0 if self._known is None else self._known.numel(), "d": m}
        for name, what in (("y", "known"), ("d", "C")):
            if given[name] is not None and (self._known if name == "y" else self._C) is None:
                raise OptionError(f"there is {name}, but no {what}=")
        batch, flat = values.shape[:-1], True
        rows: dict[str, Tensor] = {}
        for name, tensor in given.items():
            if tensor is not None:
                check_rhs(name, tensor, values)

        def has_columns(name: str) -> bool:
            """Whether it cannot be a vector, or a batch of them."""
            tensor = given[name]
            return (
                tensor is not None
                and tensor.dim() > 1
                and not is_vector(tensor, batch, sizes[name])
            )

        columns = any(map(has_columns, sizes))
        for name, tensor in given.items():
            if tensor is None:
                continue
            # What may be a batch of vectors as well as columns is what torch.linalg.solve takes it for, or the others are.
            vector = is_vector(tensor, batch, sizes[name])
            if columns and tensor.dim() > 1 and tensor.shape[-2] == sizes[name]:
                vector = False
            row = tensor.unsqueeze(-2) if vector else tensor.mT if tensor.dim() >= 2 else tensor
            if tensor.dim() == 0 or row.shape[-1] != sizes[name]:
                raise ShapeError(
                    f"{name} has shape {tuple(tensor.shape)}; expected (..., {sizes[name]}) or (..., {sizes[name]}, k)"
                )
            looked_at = not torch.compiler.is_compiling() and not is_transformed(tensor)
            if looked_at and row.numel() and not largest_modulus(row.detach()) < math.inf:
                raise_non_finite(name, row.detach())
            rows[name], flat = row, flat and vector
        lead = _broadcast(
            {name: row.shape[:-1] for name, row in rows.items()} | {"the values": (*batch, 1)}
        )
        zeros = values.new_zeros(())
        return {
            name: rows.get(name, zeros).expand(*lead, size) for name, size in sizes.items()
        }, flat

    @disable_dynamo
    def _refuse_infeasible(
        self, error: RedundantConstraintsError, C_values: Tensor | None, right: dict[str, Tensor]
    ) -> None:
        """Raises InfeasibleConstraintsError if the constraints, some of which are known to be dependent, contradict each
        other."""
        C = self._C
        if C is None or C_values is None or is_transformed(C_values, *right.values()):
            return
        eps = torch.finfo(C_values.dtype).eps
        known = torch.empty(0, dtype=torch.int64) if self._known is None else self._known.cpu()
        y, d = (to_double(right[name].detach().resolve_conj().cpu()) for name in ("y", "d"))
        values, C = to_double(C_values.detach().resolve_conj().cpu()), C.on(CPU)
        lead = d.shape[:-2] if values.dim() > 1 else ()
        if not lead:  # all right-hand sides are columns for one C
            count = math.prod(d.shape[:-1])
            y, d = y.reshape(count, known.numel()), d.reshape(count, self._m)
        values = values.expand(*lead, -1)
        for at in itertools.product(*map(range, lead)):
            rows = conflicting_rows(C, values[at], known, y[at], d[at], eps)
            if rows:
                clash = (
                    "asks of known entries, or of none, what they are not"
                    if len(rows) == 1
                    else "contradict each other"
                )
                raise InfeasibleConstraintsError(
                    f"{list_constraints(rows)} of C {clash}: no x satisfies all of them", rows=rows
                ) from error


def _restored(
    Q: Pattern, known: Tensor | None, C: Pattern | None, triangle: Triangle | None
) -> QuadraticProgram:
    return QuadraticProgram(Q, known, C, triangle=triangle)


@overload
def minimize_quadratic(
    Q: Tensor, b: Tensor | None = None, known: Tensor | None = None, y: Tensor | None = None, C: Tensor | None = None,
    d: Tensor | None = None, *, triangle: Triangle | None = None, return_multipliers: Literal[False] = False,
    engine: str | None = None,
) -> Tensor: ...  # fmt: skip


@overload
def minimize_quadratic(
    Q: Tensor, b: Tensor | None = None, known: Tensor | None = None, y: Tensor | None = None, C: Tensor | None = None,
    d: Tensor | None = None, *, triangle: Triangle | None = None, return_multipliers: Literal[True],
    engine: str | None = None,
) -> tuple[Tensor, Multipliers]: ...  # fmt: skip


def minimize_quadratic(
    Q: Tensor, b: Tensor | None = None, known: Tensor | None = None, y: Tensor | None = None, C: Tensor | None = None,
    d: Tensor | None = None, *, triangle: Triangle | None = None, return_multipliers: bool = False,
    engine: str | None = None,
) -> Tensor | tuple[Tensor, Multipliers]:  # fmt: skip
    """The minimiser x of ½ xᵀ Q x − bᵀ x subject to x[known] = y and C x = d; differentiable in all of them.

    Q : (n, n) torch sparse COO, CSR or CSC tensor, symmetric (complex: Hermitian), positive definite on the null space of
        the constraints; or a batch of CSR or CSC matrices; float32, float64, complex64 or complex128
    b : (n,), (n, k), or batched; None: zero
    known : (p,) int64 or int32 indices, or (n,) bool: which entries of x are known
    y : (p,), (p, k), or batched: their values; None: zero
    C : (m, n) sparse tensor of independent constraints
    d : (m,), (m, k), or batched; None: zero
    triangle, engine : as for `solve`, for Q
    return_multipliers : return (x, `Multipliers`)

    For complex numbers the energy is ½ xᴴ Q x − Re bᴴ x. The index work is remembered for the places that were used last;
    a `QuadraticProgram` has it done once, takes values instead of sparse tensors, works with `torch.func` and
    `torch.compile`, and says more about shapes, gradients, costs and errors.

    >>> import torch, sparse_solver as ss
    >>> Q = torch.tensor([[1.0, -1, 0, 0], [-1, 2, -1, 0], [0, -1, 2, -1], [0, 0, -1, 1]]).to_sparse()  # a chain of springs
    >>> ss.minimize_quadratic(Q, known=torch.tensor([0]), C=torch.tensor([[0.0, 0, 0, 1]]).to_sparse(), d=torch.tensor([3.0]))
    tensor([0., 1., 2., 3.])
    """
    program, Q_values, C_values = _program(Q, known, C, triangle)
    if return_multipliers:
        return program.solve(Q_values, b, y, C_values, d, return_multipliers=True, engine=engine)
    return program.solve(Q_values, b, y, C_values, d, engine=engine)


# As many as there are structures to be remembered.
programs: TensorCache[QuadraticProgram] = TensorCache(capacity=16)


@disable_dynamo
def _program(
    Q: Tensor, known: Tensor | None, C: Tensor | None, triangle: Triangle | None
) -> tuple[QuadraticProgram, Tensor, Tensor | None]:
    """The program for these places, and the values there."""
    Q_places, Q_values = split_tensor(Q, "Q")
    C_places, C_values = (None, None) if C is None else split_tensor(C, "C")

    def build(*known: Tensor) -> QuadraticProgram:
        C_pattern = None if C_places is None else Pattern._of(C_places)
        return QuadraticProgram(
            Pattern._of(Q_places), known[0] if known else None, C_pattern, triangle=triangle
        )

    if known is not None and not (isinstance(known, Tensor) and known.layout == torch.strided):
        raise IndexRangeError(
            f"known is a {type(known).__name__}; expected a dense tensor of indices, or a mask"
        )
    indices = () if known is None else (known,)
    program = programs.find((Q_places, C_places, triangle), indices, build)
    return program, Q_values, C_values


def _broadcast(shapes: dict[str, torch.Size | tuple[int, ...]]) -> torch.Size:
    try:
        shape: torch.Size = torch.broadcast_shapes(*shapes.values())
        return shape
    except RuntimeError:
        listed = ", ".join(f"{tuple(shape)} of {name}" for name, shape in shapes.items())
        raise ShapeError(
            f"the leading dimensions (and number of columns) do not broadcast: {listed}"
        ) from None


def _shaped(rows: Tensor, flat: bool) -> Tensor:
    return rows.squeeze(-2) if flat else rows.mT
