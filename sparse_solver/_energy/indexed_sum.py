"""`IndexedSum`: an energy that is a sum of small terms, with its gradient and its sparse Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from .._solve.pattern import Pattern
from .._sparse.index_checks import check_range
from ..errors import DeviceError, DtypeError, IndexRangeError, LayoutError, OptionError, ShapeError
from .element_derivatives import gradients, hessians, values
from .element_terms import Derivative, Terms, check_constants, is_parameter
from .hessian_assembly import Stencil, stencil_of
from .psd_projection import Projection, projected, projection_of
from .restricted_energy import RestrictedEnergy


class IndexedSum:
    """The energy E(X) = Σ_i summand(X[e_i], per_variable[e_i], per_term_i), with e_i the rows of `indices`.

    summand : one term, written for one element with torch operations: from x (locals,) or (locals, dim), and the
        constants that there are, to a scalar tensor
    indices : (terms, locals) int64 or int32: the vertices that each term reads
    per_variable : constants of the vertices, a tensor (vertices, ...) or a (nested) tuple, list or dict of such tensors; the
        summand receives (locals, ...)
    per_term : constants of the terms, (terms, ...), likewise; the summand receives (...)
    shape : of the variables X, (vertices,) or (vertices, dim); by default that of the first X
    chunk_size : how many terms are computed at once, which bounds the memory; by default some ten thousand

    X is float32 or float64, and may require gradients, as may the constants: the energy, its gradient and its Hessian are
    differentiable in all of them. Tensors that the summand uses without being given them are constants, too, and
    differentiable, but `minimize` has to be told of them, and if they require gradients, chunks do not bound the memory that
    a graph takes. Indices are copied; constants are not, so that parameters of a model may be updated in place. Under the
    transforms of `torch.func`, derivatives of determinants beyond the second are as wrong as torch's (NaN with torch 2.13).

    Sums (`+`, `-`, `sum`), products with numbers or scalar tensors, and quotients by them are energies; they share one
    pattern. What depends on the indices alone is done once, and found again for equal indices: an energy with new constants
    may as well be made anew.

    Raises `IndexRangeError`, `ShapeError`, `DtypeError`, `DeviceError`, `LayoutError`, `OptionError`.

    >>> import torch, sparse_solver as ss
    >>> def spring(x, c):
    ...     stiffness, length = c
    ...     return stiffness / 2 * ((x[1] - x[0]).norm() - length) ** 2
    >>> edges = torch.tensor([[0, 1], [1, 2]])
    >>> energy = ss.IndexedSum(spring, edges, per_term=(torch.tensor([1.0, 2.0]), torch.ones(2)))
    >>> X = torch.tensor([[0.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    >>> energy(X), energy.gradient(X)[0], energy.pattern
    (tensor(0.5000), tensor([-1.,  0.]), Pattern(shape=(6, 6), nnz=28))

    The form of the sum, and of the constants, is that of A. Jacobson's indexed_sum and of TinyAD (P. Schmidt et al.,
    "TinyAD: automatic differentiation in geometry processing made simple", 2022).
    """

    def __init__(
        self,
        summand: Callable[..., Tensor],
        indices: Tensor,
        per_variable: Any = None,
        per_term: Any = None,
        *,
        shape: tuple[int, ...] | None = None,
        chunk_size: int | None = None,
    ):
        if not callable(summand):
            raise OptionError(f"summand is a {type(summand).__name__}; expected a function")
        if not isinstance(indices, Tensor) or indices.layout != torch.strided or indices.dim() != 2:
            what = (
                f"of shape {tuple(indices.shape)}"
                if isinstance(indices, Tensor)
                else f"a {type(indices).__name__}"
            )
            raise ShapeError(f"indices are {what}; expected a tensor (terms, locals)")
        if indices.dtype not in (torch.int32, torch.int64):
            raise IndexRangeError(
                f"indices are {indices.dtype}; expected torch.int64 or torch.int32"
            )
        if indices.shape[1] == 0:
            raise ShapeError("indices have shape (terms, 0): a term must read a vertex at least")
        if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
            raise OptionError(
                f"chunk_size={chunk_size!r}: expected a positive number of terms, or None"
            )
        check_constants("per_term", per_term, indices.shape[0], indices.device)
        indices = indices.detach().to(torch.int64, copy=True)
        constants = {"per_variable": per_variable, "per_term": per_term, "weight": 1.0}
        terms = Terms(summand, indices, constants, chunk_size)
        self._set((terms,), None if shape is None else torch.Size(shape))

    def _set(self, terms: tuple[Terms, ...], shape: torch.Size | None) -> None:
        self._terms = terms
        self._shape: torch.Size | None = None
        self._found: Stencil | None = None
        if shape is not None:
            self._bind(shape)

    def __call__(self, X: Tensor) -> Tensor:
        """E(X), a scalar tensor; the same as `value`."""
        return self.value(X)

    def value(self, X: Tensor) -> Tensor:
        """E(X), a scalar tensor; differentiable in X and the constants."""
        self._check(X)
        total = X.reshape(-1)[:0].sum()  # even an empty sum is a function of X
        for _, _, each in self._evaluate(values, X):
            total = total + each.sum()
        return total

    def gradient(self, X: Tensor) -> Tensor:
        """∂E/∂X, of the shape of X; differentiable in X and the constants, and there whether or not X requires gradients.

        >>> import torch, sparse_solver as ss
        >>> ss.IndexedSum(lambda x: x[0] * x[1], torch.tensor([[0, 1], [1, 2]])).gradient(torch.tensor([1.0, 2.0, 3.0]))
        tensor([2., 4., 2.])
        """
        self._check(X)
        total = torch.zeros_like(X)
        for group, part, each in self._evaluate(gradients, X):
            vertices = self._terms[group].indices[part].reshape(-1)
            total = total.index_add(0, vertices, each.reshape(-1, *X.shape[1:]))
        return total

    def hessian_values(self, X: Tensor, project: bool | Projection = False) -> Tensor:
        """(nnz,) the values of the Hessian ∂²E/∂X² on `pattern`; differentiable in X and the constants.

        project : True or "zero": each term's Hessian is replaced by the nearest positive semidefinite matrix; "absolute": its
            negative eigenvalues by their modulus. Then it is differentiable once, and not inside of `torch.func` transforms.

        The matrix is symmetric to the last bit. Nothing is sorted or coalesced after the first call.

        >>> import torch, sparse_solver as ss
        >>> energy = ss.IndexedSum(lambda x: x[0] * x[1], torch.tensor([[0, 1]]))
        >>> x = torch.tensor([1.0, 2.0])
        >>> energy.hessian_values(x), energy.hessian_values(x, project=True)
        (tensor([0., 1., 1., 0.]), tensor([0.5000, 0.5000, 0.5000, 0.5000]))
        """
        how = projection_of(project)
        self._check(X)
        stencil = self._stencil
        total = X.new_zeros(stencil.halves.numel())
        for group, part, each in self._evaluate(hessians, X):
            each = each if how is None else projected(each, how)
            total = stencil.add(group, part.start, each, total)
        return stencil.values(total)

    def hessian(self, X: Tensor, project: bool | Projection = False) -> Tensor:
        """∂²E/∂X² as a sparse CSR tensor (n, n), for the n variables X.reshape(-1); see `hessian_values`.

        >>> import torch, sparse_solver as ss
        >>> energy = ss.IndexedSum(lambda x: x[0] * x[1], torch.tensor([[0, 1], [1, 2]]))
        >>> energy.hessian(torch.tensor([1.0, 2.0, 3.0])).to_dense()
        tensor([[0., 1., 0.],
                [1., 0., 1.],
                [0., 1., 0.]])
        """
        values = self.hessian_values(X, project)
        return self.pattern.tensor(values, layout=torch.sparse_csr)

    @property
    def pattern(self) -> Pattern:
        """The places of the Hessian: both triangles, sorted, each once, with the whole diagonal.

        Raises `OptionError` where the shape of the variables is not known yet.
        """
        return self._stencil.pattern

    def parameters(self) -> tuple[Tensor, ...]:
        """The constants that are floating-point tensors, each once: what the energy depends on besides X."""
        leaves = (leaf for terms in self._terms for leaf in tree_leaves(terms.constants))
        return tuple({id(leaf): leaf for leaf in leaves if is_parameter(leaf)}.values())

    def with_parameters(self, *tensors: Tensor) -> IndexedSum:
        """The same energy with these in place of its `parameters()`.

        >>> import torch, sparse_solver as ss
        >>> energy = ss.IndexedSum(lambda x, c: c * x[0] ** 2, torch.tensor([[0], [1]]), per_term=torch.ones(2))
        >>> energy.with_parameters(torch.tensor([1.0, 2.0])).gradient(torch.ones(2))
        tensor([2., 4.])
        """
        new = dict(zip(map(id, self.parameters()), tensors, strict=True))

        def replaced(terms: Terms) -> Terms:
            constants = tree_map(lambda leaf: new.get(id(leaf), leaf), terms.constants)
            return replace(terms, constants=constants)

        return self._with(tuple(map(replaced, self._terms)))

    def restrict(self, fixed: Tensor, X: Tensor) -> RestrictedEnergy:
        """The energy as a function of those variables that are not fixed.

        fixed : (p,) int64 or int32 vertices, or a bool mask: (vertices,), or of X's shape
        X : holds the fixed values, which may require gradients; what else it holds does not matter

        >>> import torch, sparse_solver as ss
        >>> spring = ss.IndexedSum(lambda x: (x[1] - x[0]) ** 2 / 2, torch.tensor([[0, 1], [1, 2]]))
        >>> free = spring.restrict(torch.tensor([0, 2]), torch.tensor([0.0, 0.0, 2.0]))
        >>> free(torch.tensor([1.0])), free.gradient(torch.tensor([1.0])), free.extend(torch.tensor([1.0]))
        (tensor(1.), tensor([0.]), tensor([0., 1., 2.]))
        """
        self._check(X)
        return RestrictedEnergy(self, fixed, X)

    def __add__(self, other: IndexedSum | float) -> IndexedSum:
        if isinstance(other, (int, float)) and other == 0:  # where `sum` begins
            return self
        if not isinstance(other, IndexedSum):
            return NotImplemented
        total = IndexedSum.__new__(IndexedSum)
        total._set(
            (*self._terms, *other._terms), self._shape if other._shape is None else other._shape
        )
        if self._shape is not None:
            total._bind(self._shape)
        return total

    __radd__ = __add__

    def __mul__(self, factor: float | Tensor) -> IndexedSum:
        if isinstance(factor, Tensor):
            if factor.dim() != 0 or not factor.is_floating_point():
                raise ShapeError(
                    f"an energy times a tensor of {factor.dtype} and shape {tuple(factor.shape)}; expected a floating-point scalar"
                )
        elif isinstance(factor, (int, float)):
            factor = float(factor)
        else:
            return NotImplemented
        return self._with(
            tuple(
                replace(terms, constants=terms.constants | {"weight": factor * terms.weight})
                for terms in self._terms
            )
        )

    __rmul__ = __mul__

    def __neg__(self) -> IndexedSum:
        return self * -1.0

    def __sub__(self, other: IndexedSum | float) -> IndexedSum:
        return self + -other if isinstance(other, (IndexedSum, int, float)) else NotImplemented

    def __rsub__(self, other: float) -> IndexedSum:
        return -self + other if isinstance(other, (int, float)) and other == 0 else NotImplemented

    def __truediv__(self, divisor: float | Tensor) -> IndexedSum:
        return self * (1 / divisor) if isinstance(divisor, (int, float, Tensor)) else NotImplemented

    def __repr__(self) -> str:
        shape = "not known yet" if self._shape is None else tuple(self._shape)
        return (
            f"IndexedSum(terms={sum(len(terms.indices) for terms in self._terms)}, shape={shape})"
        )

    def _with(self, terms: tuple[Terms, ...]) -> IndexedSum:
        """The energy with the same indices, and other constants of the same sizes."""
        energy = IndexedSum.__new__(IndexedSum)
        energy._terms, energy._shape, energy._found = terms, self._shape, self._found
        return energy

    def _evaluate(self, derivative: Derivative, X: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
        """The values of all terms, or derivatives, chunk by chunk: of which group, and which of its terms, they are."""
        for group, terms in enumerate(self._terms):
            for part in terms.parts(X):
                yield group, part, terms.evaluate(derivative, X, part)

    @property
    def _stencil(self) -> Stencil:
        if self._shape is None:
            raise OptionError(
                "the shape of the variables is not known before the first X; pass shape= for the pattern"
            )
        if self._found is None:
            self._found = stencil_of(tuple(terms.indices for terms in self._terms), self._shape)
        return self._found

    def _check(self, X: Tensor) -> None:
        if not isinstance(X, Tensor) or X.layout != torch.strided:
            raise LayoutError(f"X is a {type(X).__name__}; expected a dense torch tensor")
        if X.dtype not in (torch.float32, torch.float64):
            raise DtypeError(f"X has dtype {X.dtype}; expected float32 or float64")
        for terms in self._terms:
            if terms.indices.device != X.device:
                raise DeviceError(f"X is on {X.device}, the indices are on {terms.indices.device}")
        self._bind(X.shape)

    def _bind(self, shape: torch.Size) -> None:
        """From now on, X has this shape."""
        if self._shape is not None:
            if shape != self._shape:
                raise ShapeError(
                    f"X has shape {tuple(shape)}; the energy is one of variables {tuple(self._shape)}"
                )
            return
        if len(shape) not in (1, 2):
            raise ShapeError(f"X has shape {tuple(shape)}; expected (vertices,) or (vertices, dim)")
        for terms in self._terms:
            check_range("vertex", terms.indices.reshape(-1), shape[0], "vertices", "variables")
            check_constants(
                "per_variable", terms.constants["per_variable"], shape[0], terms.indices.device
            )
        self._shape = shape
