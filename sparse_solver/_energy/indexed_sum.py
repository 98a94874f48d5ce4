"""`IndexedSum`: an energy that is a sum of small terms, its gradient and its sparse Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .._solve.pattern import Pattern
from .._torch.dynamo import disable_dynamo
from ..errors import OptionError, ShapeError
from .argument_checks import (
    check_constants,
    check_indices,
    check_parameters,
    check_shape,
    check_variables,
)
from .hessian_assembly import HessianAssembly, find_assembly
from .psd_projection import Projection, project_matrices, projection_of
from .restricted_energy import RestrictedEnergy
from .terms.element_derivatives import compute_gradients, compute_hessians, compute_values
from .terms.element_terms import Derivative, Terms, is_parameter


class IndexedSum:
    """The energy E(X) = Σ_i summand(X[e_i], per_variable[e_i], per_term_i), e_i = indices[i].

    The energy, its gradient and its sparse Hessian are differentiable in X and the constants. Sums
    (`+`, `-`, `sum`) of energies, and their products with and quotients by numbers or scalar
    tensors, are energies with one common pattern.

    Parameters
    ----------
    summand : callable
        One term, written for one element with torch operations: a function from x (locals,) or
        (locals, dim), and the constants that are given, to a scalar tensor. It may change these in
        place, but nothing else, and it cannot branch on values or draw random numbers.
    indices : Tensor
        (terms, locals) int64 or int32: the vertices that each term reads. They are copied.
    per_variable : Tensor or nested tuple, list or dict of Tensor, optional
        (vertices, ...) constants of the vertices; the summand receives (locals, ...).
    per_term : Tensor or nested tuple, list or dict of Tensor, optional
        (terms, ...) constants of the terms; the summand receives (...).
    shape : tuple of int, optional
        The shape of X, (vertices,) or (vertices, dim); by default that of the first X.
    chunk_size : int, optional
        How many terms are computed at once, which bounds the memory; by default some ten thousand.

    Raises
    ------
    ShapeError, IndexRangeError, DtypeError, DeviceError, LayoutError, OptionError
        If an argument is not as described. What depends on X is checked at the first X.

    Notes
    -----
    X is float32 or float64. Constants and scalar factors are not copied: a model's parameters may
    be updated in place. Tensors that the summand uses without being passed them are differentiable,
    too, but they must be passed to `minimize` separately, and chunks do not bound the memory of
    their graph.

    Everything that depends on the indices alone is computed once, and found again for equal
    indices, also by another energy: Hessians after the first one sort and coalesce nothing.

    Under the transforms of `torch.func`, derivatives of determinants beyond the second are wrong,
    as torch's are (NaN in torch 2.13).

    The form of the sum and the constants follows A. Jacobson's indexed_sum and TinyAD [1]_.

    References
    ----------
    .. [1] P. Schmidt et al., "TinyAD: automatic differentiation in geometry processing made
       simple", Computer Graphics Forum 41, 2022.

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> def spring(x, c):
    ...     stiffness, length = c
    ...     return stiffness / 2 * ((x[1] - x[0]).norm() - length) ** 2
    >>> edges = torch.tensor([[0, 1], [1, 2]])
    >>> energy = ss.IndexedSum(spring, edges, per_term=(torch.tensor([1.0, 2.0]), torch.ones(2)))
    >>> X = torch.tensor([[0.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    >>> energy(X), energy.gradient(X)[0], energy.pattern
    (tensor(0.5000), tensor([-1.,  0.]), Pattern(shape=(6, 6), nnz=28))
    """

    def __init__(
        self,
        summand: Callable[..., Tensor],
        indices: Tensor,
        *,
        per_variable: Any = None,
        per_term: Any = None,
        shape: tuple[int, ...] | None = None,
        chunk_size: int | None = None,
    ):
        if not callable(summand):
            raise OptionError(f"summand is a {type(summand).__name__}; expected a function")
        check_indices(indices)
        if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
            expected = "expected a positive number of terms, or None"
            raise OptionError(f"chunk_size={chunk_size!r}: {expected}")
        check_constants("per_term", per_term, indices.shape[0], indices.device)
        indices = indices.detach().to(torch.int64, copy=True)
        given = {"per_variable": per_variable, "per_term": per_term, "factors": (), "divisors": ()}
        self._terms: tuple[Terms, ...] = (Terms(summand, indices, given, chunk_size),)
        self._shape: torch.Size | None = None
        self._found: HessianAssembly | None = None
        if shape is not None:
            self._bind(torch.Size(shape))

    def __call__(self, X: Tensor) -> Tensor:
        """Evaluate the energy; the same as `value`."""
        return self.value(X)

    @disable_dynamo
    def value(self, X: Tensor) -> Tensor:
        """Evaluate the energy; differentiable in X and the constants.

        Parameters
        ----------
        X : Tensor
            (vertices,) or (vertices, dim) variables; float32 or float64.

        Returns
        -------
        Tensor
            E(X), a scalar tensor.

        Raises
        ------
        SparseSolverError
            If X, the indices, the constants and the terms do not fit each other.
        """
        self._check(X)
        total = X.reshape(-1)[:0].sum()  # even an empty sum is a function of X
        for _, _, each in self._evaluate(compute_values, X):
            total = total + each.sum()
        return total

    @disable_dynamo
    def gradient(self, X: Tensor) -> Tensor:
        """Evaluate the gradient; differentiable in X and the constants.

        Parameters
        ----------
        X : Tensor
            As for `value`; need not require gradients.

        Returns
        -------
        Tensor
            ∂E/∂X, of the shape of X.

        Raises
        ------
        SparseSolverError
            As for `value`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> energy = ss.IndexedSum(lambda x: x[0] * x[1], torch.tensor([[0, 1], [1, 2]]))
        >>> energy.gradient(torch.tensor([1.0, 2.0, 3.0]))
        tensor([2., 4., 2.])
        """
        self._check(X)
        total = torch.zeros_like(X)
        for group, chunk, each in self._evaluate(compute_gradients, X):
            vertices = self._terms[group].indices[chunk].reshape(-1)
            total = total.index_add(0, vertices, each.reshape(-1, *X.shape[1:]))
        return total

    @disable_dynamo
    def hessian_values(self, X: Tensor, *, project: bool | Projection = False) -> Tensor:
        """Evaluate the Hessian; differentiable in X and the constants.

        Parameters
        ----------
        X : Tensor
            As for `value`.
        project : bool or {"zero", "absolute"}
            True or "zero": replace the Hessian of each term by the nearest positive semidefinite
            matrix. "absolute": replace its negative eigenvalues by their moduli. The result is then
            differentiable once, and not inside of the transforms of `torch.func`.

        Returns
        -------
        Tensor
            (nnz,) the values of ∂²E/∂X² on `pattern`, symmetric to the last bit.

        Raises
        ------
        OptionError
            If `project` is not one of these.
        TransformError
            If a projection is differentiated twice, or transformed by `torch.func`.
        SparseSolverError
            As for `value`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> energy = ss.IndexedSum(lambda x: x[0] * x[1], torch.tensor([[0, 1]]))
        >>> x = torch.tensor([1.0, 2.0])
        >>> energy.hessian_values(x), energy.hessian_values(x, project=True)
        (tensor([0., 1., 1., 0.]), tensor([0.5000, 0.5000, 0.5000, 0.5000]))
        """
        how = projection_of(project)
        self._check(X)
        assembly = self._assembly
        triangle = X.new_zeros(assembly.weights.numel())
        for group, chunk, each in self._evaluate(compute_hessians, X):
            each = each if how is None else project_matrices(each, how)
            triangle = assembly.add(group, chunk.start, each, triangle)
        return assembly.expand_triangle(triangle)

    @disable_dynamo
    def hessian(self, X: Tensor, *, project: bool | Projection = False) -> Tensor:
        """Evaluate the Hessian as a sparse tensor; see `hessian_values`.

        Parameters
        ----------
        X, project
            As for `hessian_values`, which lists the errors, too.

        Returns
        -------
        Tensor
            (n, n) ∂²E/∂X² for the n variables X.reshape(-1), a sparse CSR tensor.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> energy = ss.IndexedSum(lambda x: x[0] * x[1], torch.tensor([[0, 1], [1, 2]]))
        >>> energy.hessian(torch.tensor([1.0, 2.0, 3.0])).to_dense()
        tensor([[0., 1., 0.],
                [1., 0., 1.],
                [0., 1., 0.]])
        """
        values = self.hessian_values(X, project=project)
        return self.pattern.tensor(values, layout=torch.sparse_csr)

    @property
    def pattern(self) -> Pattern:
        """The places of the Hessian: both triangles, sorted, distinct, with the whole diagonal.

        Raises
        ------
        OptionError
            If the shape of the variables is not known yet.
        """
        return self._assembly.pattern

    def parameters(self) -> tuple[Tensor, ...]:
        """List the tensors that the energy depends on, besides X.

        Returns
        -------
        tuple of Tensor
            The constants that are floating-point tensors, without repetition.
        """
        leaves = (leaf for terms in self._terms for leaf in tree_leaves(terms.constants))
        return tuple({id(leaf): leaf for leaf in leaves if is_parameter(leaf)}.values())

    def with_parameters(self, *tensors: Tensor) -> IndexedSum:
        """Replace the tensors that the energy depends on.

        Parameters
        ----------
        *tensors : Tensor
            As many as `parameters` lists, of the same shapes; else ShapeError.

        Returns
        -------
        IndexedSum
            The same energy with these tensors.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> indices, c = torch.tensor([[0], [1]]), torch.ones(2)
        >>> energy = ss.IndexedSum(lambda x, c: c * x[0] ** 2, indices, per_term=c)
        >>> energy.with_parameters(torch.tensor([1.0, 2.0])).gradient(torch.ones(2))
        tensor([2., 4.])
        """
        parameters = self.parameters()
        check_parameters(tensors, parameters)
        new = dict(zip(map(id, parameters), tensors, strict=True))
        return self._with(tuple(terms.exchange(new) for terms in self._terms))

    def restrict(self, X: Tensor, *, fixed: Tensor | None) -> RestrictedEnergy:
        """Fix some of the variables.

        Parameters
        ----------
        X : Tensor
            Holds the values of the fixed variables, which may require gradients. Its other entries
            do not matter.
        fixed : Tensor
            (p,) int64 or int32 vertices, or a bool mask: (vertices,), or of the shape of X.

        Returns
        -------
        RestrictedEnergy
            The energy as a function of the free variables.

        Raises
        ------
        SparseSolverError
            As for `value` and `RestrictedEnergy`.

        Examples
        --------
        >>> import torch, sparse_solver as ss
        >>> edges = torch.tensor([[0, 1], [1, 2]])
        >>> springs = ss.IndexedSum(lambda x: (x[1] - x[0]) ** 2 / 2, edges)
        >>> free = springs.restrict(torch.tensor([0.0, 0.0, 2.0]), fixed=torch.tensor([0, 2]))
        >>> free(torch.tensor([1.0])), free.gradient(torch.tensor([1.0]))
        (tensor(1.), tensor([0.]))
        """
        self._check(X)
        return RestrictedEnergy(self, X, fixed=fixed)

    def __add__(self, other: IndexedSum | float) -> IndexedSum:
        if isinstance(other, (int, float)) and other == 0:  # where `sum` begins
            return self
        if not isinstance(other, IndexedSum):
            return NotImplemented
        total = self._with((*self._terms, *other._terms))
        total._shape = total._found = None
        for shape in (other._shape, self._shape):
            if shape is not None:
                total._bind(shape)
        return total

    __radd__ = __add__

    def __mul__(self, factor: float | Tensor) -> IndexedSum:
        if not isinstance(factor, (int, float, Tensor)):
            return NotImplemented
        return self._with(tuple(terms.scale("factors", factor) for terms in self._terms))

    __rmul__ = __mul__

    def __neg__(self) -> IndexedSum:
        return self * -1.0

    def __sub__(self, other: IndexedSum | float) -> IndexedSum:
        return self + -other if isinstance(other, (IndexedSum, int, float)) else NotImplemented

    def __rsub__(self, other: float) -> IndexedSum:
        return -self + other if isinstance(other, (int, float)) and other == 0 else NotImplemented

    def __truediv__(self, divisor: float | Tensor) -> IndexedSum:
        if isinstance(divisor, Tensor) and divisor.dim() == 0:
            return self._with(tuple(terms.scale("divisors", divisor) for terms in self._terms))
        return self * (1 / divisor) if isinstance(divisor, (int, float, Tensor)) else NotImplemented

    def __repr__(self) -> str:
        count = sum(len(terms.indices) for terms in self._terms)
        return f"IndexedSum(terms={count}, shape={self._shape and tuple(self._shape)})"

    def _with(self, terms: tuple[Terms, ...]) -> IndexedSum:
        """The energy of other terms; with the same indices unless the shape is reset."""
        energy = IndexedSum.__new__(IndexedSum)
        energy._terms, energy._shape, energy._found = terms, self._shape, self._found
        return energy

    def _evaluate(self, derivative: Derivative, X: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
        """A derivative of all terms, chunk by chunk, each with its group and slice of terms."""
        for group, terms in enumerate(self._terms):
            for chunk in terms.split(X):
                yield group, chunk, terms.evaluate(derivative, X, chunk)

    @property
    def _assembly(self) -> HessianAssembly:
        if self._shape is None:
            message = "the shape of the variables is not known before the first X"
            raise OptionError(f"{message}; pass shape= for the pattern")
        if self._found is None:
            self._found = find_assembly(tuple(terms.indices for terms in self._terms), self._shape)
        return self._found

    def _check(self, X: Tensor) -> None:
        check_variables(X, self._terms)
        self._bind(X.shape)

    def _bind(self, shape: torch.Size) -> None:
        """Fix the shape of X, which must fit the indices and constants."""
        if self._shape is None:
            check_shape(shape, self._terms)
            self._shape = shape
        elif shape != self._shape:
            expected = f"the energy is one of variables {tuple(self._shape)}"
            raise ShapeError(f"X has shape {tuple(shape)}; {expected}")
