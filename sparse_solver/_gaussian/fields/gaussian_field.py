"""`GaussianField`: a normal distribution with a sparse precision matrix, and its conditionals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ..._solve.pattern import Pattern
from ..._solve.shapes import check_rhs, check_values
from ..._sparse.index_checks import check_square, describe_type
from ..._sparse.values import to_double
from ..._torch.modes import (
    copy_to_keep,
    is_recorded,
    is_transformed,
    outlast_inference,
    outside_inference,
)
from ...errors import DtypeError, OptionError, ShapeError
from .conditional_field import LOG_2_PI, ConditionalField, broadcast_batches
from .constrained_covariance import ConstrainedCovariance
from .covariance import Covariance, FreeCovariance, multiply, sum_squares
from .linear_constraints import LinearConstraints, read_constraints

# With more rows, the covariance matrix, which is dense, is not formed.
_MOST_ROWS = 4096
_NO_SHAPE = torch.Size()

if TYPE_CHECKING:
    from typing_extensions import Self


class GaussianField(ConditionalField):
    """A normal distribution with a sparse precision matrix Q: a Gaussian Markov random field.

    Its density is proportional to exp(−½ (x − loc)ᵀ Q (x − loc)) or, with `information`, to
    exp(−½ xᵀ Q x + informationᵀ x); with constraints, on the subspace of the x with C x = d.
    Everything is computed when it is asked for, and differentiable in all tensors, to the order
    that `Pattern.logdet` and `Pattern.selected_inverse` are.

    Parameters
    ----------
    pattern : Pattern
        (n, n), where the entries of Q are; both triangles.
    values : Tensor
        (nnz,) the entries of Q in the order of the pattern, or (..., nnz) for a batch; float32 or
        float64. Q must be symmetric, and positive definite for the x with C x = 0; elsewhere it may
        be singular, but not negative.
    loc : Tensor, optional
        (n,) or (..., n), the mean where there are no constraints; zeros by default.
    information : Tensor, optional
        (n,) or (..., n), Q times the mean, instead of `loc`.
    constraints : Tensor or (Tensor, Tensor), optional
        C of shape (m, n), dense or sparse, or C and d of shape (m,) or (..., m), which is zero by
        default. m solves are made, and C is used as a dense matrix.
    validate_args : bool, optional
        As for all distributions of torch.

    Raises
    ------
    ShapeError, DtypeError, DeviceError, LayoutError, OptionError
        If arguments do not fit each other.
    InfeasibleConstraintsError, RedundantConstraintsError
        If constraints contradict each other, or depend on each other; `rows` are those of C.
    NotSymmetricError, NotPositiveDefiniteError, SingularMatrixError
        At the first use of the precision, if it is not what it must be.
    EngineUnavailableError
        At the first use of a log-determinant or a variance, if Numba is not installed:
        ``pip install "sparse-solver[gaussian]"``.

    Notes
    -----
    Densities under constraints are those in the (n − m)-dimensional subspace [1]_. Where Q is
    singular, `constrained_covariance` describes how it is made regular; that is exact.

    References
    ----------
    .. [1] H. Rue and L. Held, "Gaussian Markov Random Fields", 2005.

    Examples
    --------
    >>> import torch, sparse_solver as ss
    >>> i = torch.arange(3)  # a chain
    >>> P = ss.Pattern(torch.cat([i, i[1:], i[:-1]]), torch.cat([i, i[:-1], i[1:]]), (3, 3))
    >>> values = torch.tensor([2.0, 2, 2, -1, -1, -1, -1], requires_grad=True)
    >>> field = ss.GaussianField(P, values)
    >>> field.variance
    tensor([0.7500, 1.0000, 0.7500], grad_fn=<ExpandBackward0>)
    >>> field.log_prob(torch.zeros(3)).backward()
    >>> values.grad  # half of the inverse
    tensor([0.3750, 0.5000, 0.3750, 0.2500, 0.2500, 0.2500, 0.2500])
    """

    has_rsample = True

    def __init__(
        self,
        pattern: Pattern,
        values: Tensor,
        loc: Tensor | None = None,
        *,
        information: Tensor | None = None,
        constraints: Any = None,
        validate_args: bool | None = None,
    ):
        if not isinstance(pattern, Pattern):
            raise OptionError(f"pattern is {describe_type(pattern)}; expected a Pattern")
        check_square(pattern.shape)
        check_values(values, pattern.nnz)
        if values.is_complex():
            raise DtypeError(f"the precision has dtype {values.dtype}; expected a real one")
        n = pattern.shape[0]
        for name, vector in (("loc", loc), ("information", information)):
            if vector is not None:
                check_rhs(name, vector, values)
                if vector.dim() == 0 or vector.shape[-1] != n:
                    raise ShapeError(f"{name} has shape {tuple(vector.shape)}; expected (..., {n})")
        if loc is not None and information is not None:
            raise OptionError("loc and information both determine the mean; pass one of them")
        self._given = read_constraints(constraints, values, n)
        self.pattern, self.values = pattern, copy_to_keep(values)
        if information is not None:
            self.information = outlast_inference(information)
        else:
            self.loc = outlast_inference(values.new_zeros(n) if loc is None else loc)
        shapes = [values.shape[:-1], self._center.shape[:-1]]
        if self._given is not None:
            shapes.append(self._given.d.shape[:-1])
        batch = broadcast_batches(*shapes)
        self._prepare()
        self._known: dict[str, Tensor] = {}
        super().__init__(batch, torch.Size((n,)), validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """What torch checks of the tensors that were passed."""
        center = "information" if self._has_information else "loc"
        return {"values": constraints.real_vector, center: constraints.real_vector}

    @property
    def _center(self) -> Tensor:
        """The location or the information, whichever was given."""
        center: Tensor = self.__dict__["information" if self._has_information else "loc"]
        return center

    @property
    def _has_information(self) -> bool:
        return "information" in self.__dict__

    @property
    def support(self) -> Any:
        """All vectors, or those with C x = d."""
        return constraints.real_vector if self._given is None else self._given.support

    @property
    def precision_matrix(self) -> Tensor:
        """The sparse matrix Q, in COO layout, or the batch in CSR layout."""
        layout = torch.sparse_coo if self.values.dim() == 1 else torch.sparse_csr
        return self.pattern.tensor(self.values, layout=layout)

    @property
    def covariance_matrix(self) -> Tensor:
        """(..., n, n), dense; n solves.

        Raises
        ------
        OptionError
            Above 4,096 rows.
        """
        n = self.event_shape[0]
        if n > _MOST_ROWS:
            raise OptionError(
                f"the covariance matrix has {n}² entries, more than {_MOST_ROWS}²; use variance, "
                f"or pattern.selected_inverse(values) for the entries at the places of Q"
            )
        identity = torch.eye(n, dtype=self.values.dtype, device=self.values.device)
        batch = (1,) * (self.values.dim() - 1)
        columns = self._covariance.apply(identity.reshape(n, *batch, n))
        return columns.movedim(0, -1).expand(*self.batch_shape, n, n)

    @property
    def mean(self) -> Tensor:
        """(..., n) the mean; one solve with `information` or constraints."""
        return self._remember("mean", self._find_mean)

    @property
    def mode(self) -> Tensor:
        """(..., n) the x of the largest density, which is the mean."""
        return self.mean

    @property
    def variance(self) -> Tensor:
        """(..., n) the marginal variances, by the selected inverse."""
        shape = self.batch_shape + self.event_shape
        return self._remember("variance", lambda: self._covariance.diagonal().expand(shape))

    def _remember(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` gives; a result with a graph, which only one backward pass takes, anew."""
        given = self._given or ()
        if name in self._known and not is_recorded(self.values, self._center, *given):
            return self._known[name]
        with outside_inference():
            result = compute()
        if not result.requires_grad and not is_transformed(result):
            self._known[name] = result
        return result

    def _find_mean(self) -> Tensor:
        """p + Σ (h − Q p) for any p of the subspace, with the information h."""
        is_information, given = self._has_information, self._given
        shape, center = self.batch_shape + self.event_shape, self._center
        if given is None:
            return (self._covariance.apply(center) if is_information else center).expand(shape)
        center, values = to_double(center), to_double(self.values)
        start = torch.zeros_like(center) if is_information else center
        point = given.find_nearest(start)
        force = multiply(self._structure, values, start - point)
        force = force + center if is_information else force
        mean = point + self._covariance.apply(force)
        return mean.to(self.values.dtype).expand(shape)

    def rsample(self, sample_shape: Any = _NO_SHAPE) -> Tensor:
        """Draw samples that are differentiable in all tensors of the field.

        The gradient in `values` is that of the Cholesky factor in a fixed order of elimination.

        Parameters
        ----------
        sample_shape : sequence of int
            The shape of the samples.

        Returns
        -------
        Tensor
            (sample_shape, batch_shape, n).

        Raises
        ------
        EngineUnavailableError
            If the gradient in `values` is asked for and Numba is not installed.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        white = torch.randn(
            (*shape, self._covariance.noise), dtype=self.values.dtype, device=self.values.device
        )
        return self.mean + self._covariance.color(white)

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the density.

        Parameters
        ----------
        value : Tensor
            (..., n).

        Returns
        -------
        Tensor
            (...), the sample and batch dimensions.

        Raises
        ------
        ValueError
            With `validate_args`, for values that are not in the support.
        """
        if self._validate_args:
            self._validate_sample(value)
        shift = value - self.mean
        distance = sum_squares(self._structure, self.values, shift.unsqueeze(-2))
        constant = self._covariance.dimension * LOG_2_PI
        return (self._covariance.logdet_precision() - distance - constant) / 2

    def entropy(self) -> Tensor:
        """Return the entropy, in the subspace of the x with C x = d.

        Returns
        -------
        Tensor
            (...) the entropies of the batch.
        """
        constant = self._covariance.dimension * (1 + LOG_2_PI)
        result = (constant - self._covariance.logdet_precision()) / 2
        return result.expand(self.batch_shape)

    def _find_information(self) -> Tensor:
        """(..., n) Q loc, or the information that was given."""
        if self._has_information:
            return self._center
        return multiply(self._structure, self.values, self._center)

    def _with(
        self, structure: Any, values: Tensor, information: Tensor, given: LinearConstraints | None
    ) -> Self:
        """A field with another precision, and the same validation."""
        field = type(self)(
            Pattern._of(structure),
            values,
            information=information,
            constraints=given,
            validate_args=self._validate_args,
        )
        batch = broadcast_batches(self.batch_shape, field.batch_shape)  # this one may be expanded
        return field if batch == field.batch_shape else field.expand(batch)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """Return the same field with a larger batch shape; the factors are shared.

        Parameters
        ----------
        batch_shape : sequence of int
            The new batch shape.
        _instance : GaussianField, optional
            For subclasses, as in torch.

        Returns
        -------
        GaussianField
            The expanded field.

        Raises
        ------
        ShapeError
            If the batch shape cannot be expanded to this one.
        """
        shape = torch.Size(batch_shape)
        if min(shape, default=0) < 0 or broadcast_batches(self.batch_shape, shape) != shape:
            raise ShapeError(
                f"a field with the batch shape {tuple(self.batch_shape)} cannot be expanded to "
                f"{tuple(shape)}; expected that shape, with more dimensions in front or other "
                f"sizes in place of 1"
            )
        new: Self = self._get_checked_instance(GaussianField, _instance)
        new.__dict__.update(self.__dict__)
        new._known = {}
        super(GaussianField, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __getstate__(self) -> dict[str, Any]:
        # Native factors are made again when they are needed.
        native = "_covariance", "_structure"
        return {name: value for name, value in self.__dict__.items() if name not in native}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def _prepare(self) -> None:
        self._structure = self.pattern._structure.on(self.values.device)
        self._covariance = _make_covariance(self._structure, self.values, self._given)

    def __repr__(self) -> str:
        parts = [f"n={self.event_shape[0]}", f"nnz={self.pattern.nnz}"]
        if self.batch_shape:
            parts.insert(0, f"batch_shape={tuple(self.batch_shape)}")
        if self._given is not None:
            parts.append(f"constraints={len(self._given.C)}")
        return f"GaussianField({', '.join(parts)})"


def _make_covariance(structure: Any, values: Tensor, given: LinearConstraints | None) -> Covariance:
    if given is None:
        return FreeCovariance(structure, values)
    return ConstrainedCovariance(structure, values, given)
