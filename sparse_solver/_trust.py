"""Whether the solutions that a factor gives may be trusted: residuals, refinement, and singular matrices.

Everything is measured entry by entry: the backward error of x is the smallest ω such that (A + E) x = b + f holds
for some |E| ≤ ω|A|, |f| ≤ ω|b|, and that is max_i |b − A x|_i / (|A||x| + |b|)_i. Unlike norms it does not depend on
the scales of rows and columns. (W. Oettli and W. Prager, Numer. Math. 6, 1964; N. J. Higham, "Accuracy and Stability
of Numerical Algorithms", 2nd ed., sections 7.2 and 12.2.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._engines import Factor, Kind, is_hermitian
from ._rules import Places, apply
from .errors import EngineError, NonFiniteError, SingularMatrixError

_INFINITY = float("inf")


class Trusted:
    """A factor of an n-by-n matrix of this kind, whose largest entry is `largest`, and the checks on it."""

    def __init__(self, factor: Factor, n: int, kind: Kind, largest: float, engine: str):
        self.factor, self._n, self._kind, self._largest, self._engine = factor, n, kind, largest, engine
        self._dtype = factor.values.dtype
        self._eps = torch.finfo(self._dtype).eps
        layout = factor.layout
        mirror = None
        if layout.part != "full":
            mirror = "hermitian" if is_hermitian(kind, self._dtype) else "symmetric"
        self._places = Places(layout.rows, layout.col, mirror)
        self._singular: str | None = None  # the verdict of `refuse_singular`, once it was asked: "" or a message
        self._growth: float | None = None  # that of `is_accurate`

    def solve(self, rhs: Tensor, size: Tensor, transpose: bool, strict: bool) -> Tensor:
        """A⁻¹ or A⁻ᵀ applied to the rows of `rhs`, which are finite and have the largest entries `size`.

        A backward stable method leaves a residual of ε‖A‖‖x‖, which is small beside ‖b‖ unless A is nearly singular:
        then, and for methods that are not stable, the residual is formed.
        """
        x, eps = self.factor.solve(rhs, transpose), self._eps
        x_size = torch.linalg.vector_norm(x, _INFINITY, dim=-1)
        if not bool(torch.isfinite(x_size).all()):
            self.refuse_singular()
            if not strict:  # a derivative that overflows is passed on as what it is
                return x
            raise NonFiniteError(f"the solution is too large for {self._dtype}", argument="x", index=None)
        if self.factor.stable:
            if bool((eps * self._largest * x_size <= eps**0.4 * size).all()):
                return x
            residual = torch.linalg.vector_norm(rhs - self._apply(x, transpose), _INFINITY, dim=-1)
            if not bool((residual <= eps**0.5 * size).all()):
                self.refuse_singular()
            return x
        x, error = self._refined(x, rhs, transpose)
        # Entry by entry is too strict where x has zeros; then as small as a stable method would leave it will do.
        if error > 1e4 * eps:
            residual = torch.linalg.vector_norm(rhs - self._apply(x, transpose), _INFINITY, dim=-1)
            if bool((residual > 64 * eps * (self._largest * x_size + size)).any()):
                self.refuse_singular()
                raise EngineError(
                    f"{self._engine} could not factor this {self._kind} matrix accurately (backward error {error:.0e}); "
                    f"try another engine=, or scale the rows and columns of the matrix",
                    engine=self._engine,
                    code=None,
                )
        return x

    def is_accurate(self) -> bool:
        """Whether the factor solves a system with scattered numbers on the right to a small backward error, refinement allowed."""
        rhs = self._scattered()
        x = self.factor.solve(rhs, False)
        self._growth = float(torch.linalg.vector_norm(x, _INFINITY)) * self._largest
        if self._growth == _INFINITY or self._growth != self._growth:
            return False
        return self._refined(x, rhs, False)[1] <= 1e3 * self._eps

    def refuse_singular(self) -> None:
        """Raises if the matrix is singular to working precision."""
        if self._singular is None:
            distance = self._distance_to_singularity()
            # With perturbed pivots the vectors found on singular matrices have been seen to stay 400 ε away.
            tolerance = max(64 * self._eps, self._eps**0.75 if self.factor.perturbed_pivots else 0.0)
            self._singular = "" if distance > tolerance else self._describe_singular(distance)
        if self._singular:
            raise SingularMatrixError(self._singular, engine=self._engine, row=None)

    def _distance_to_singularity(self) -> float:
        """An upper bound of the smallest ω with (A + E) v = 0 for some v ≠ 0 and |E| ≤ ω|A|; tight if it is tiny.

        Each v gives one, its backward error as a solution of A v = 0. Inverse iteration leads to a vector that A nearly
        annihilates, but only as nearly as the factor F is that of A: perturbed pivots put it off. Then v − F⁻¹ A v leads
        further: it maps null vectors of A to themselves, and shrinks the rest.
        """
        if self._growth is not None and not self.factor.perturbed_pivots and self._growth < self._eps**-0.6:
            return 1.0  # far from it: a scattered vector hardly grows
        best = _INFINITY
        v = self._scattered()
        Av = v
        for step in range(8):
            v = self.factor.solve(v, False) if step < 2 else v - self.factor.solve(Av, False)
            size = float(torch.linalg.vector_norm(v, _INFINITY))
            if size != size or size in (0.0, _INFINITY):
                return 0.0 if step < 2 else best
            v = v / size
            Av = self._apply(v, False)
            distance = _largest_ratio(Av, self._magnitude(v, False))
            if step > 2 and not distance < best / 2:
                return min(best, distance)
            best = min(best, distance)
        return best

    def _refined(self, x: Tensor, rhs: Tensor, transpose: bool) -> tuple[Tensor, float]:
        """`x` after as many steps of iterative refinement as help, at most three, and its backward error."""
        best, error = x, _INFINITY
        for step in range(4):
            residual = rhs - self._apply(x, transpose)
            found = _largest_ratio(residual, self._magnitude(x, transpose) + rhs.abs())
            helped = found < error / 2
            if found < error:
                best, error = x, found
            if not helped or error <= 8 * self._eps or step == 3:
                break
            x = x + self.factor.solve(residual, transpose)
        return best, error

    def _scattered(self) -> Tensor:
        """(1, n) scattered numbers, always the same ones; vmap forbids torch's generators where this may be called.

        Their mean is not zero, since the vectors that singular matrices annihilate are often constant.
        """
        i = torch.arange(1, self._n + 1, dtype=torch.float64, device="cpu")
        return (2 * torch.frac(i * i * 0.6180339887498949) - 0.75).unsqueeze(0).to(self._dtype)

    def _apply(self, x: Tensor, transpose: bool) -> Tensor:
        return apply(self.factor.values, x, self._places.of(transpose))

    def _magnitude(self, x: Tensor, transpose: bool) -> Tensor:
        """|A||x|."""
        return apply(self.factor.values.abs(), x.abs(), self._places.of(transpose))

    def _describe_singular(self, distance: float) -> str:
        from scipy.sparse import csr_matrix
        from scipy.sparse.csgraph import structural_rank

        layout = self.factor.layout
        if layout.part == "full":
            ones = torch.ones(layout.nnz, dtype=torch.int8, device="cpu").numpy()
            matrix = csr_matrix((ones, layout.col.numpy(), layout.crow.numpy()), shape=(self._n, self._n))
            rank = int(structural_rank(matrix))
            if rank < self._n:
                return f"the matrix is structurally singular: its pattern has rank {rank} of {self._n}, whatever the values"
        return (
            f"the matrix is singular to working precision: changing its entries by {distance:.0e} of themselves makes it "
            f"singular (a graph or mesh Laplacian needs an anchor: a fixed vertex, or a multiple of the identity or of "
            f"the mass matrix added)"
        )


def _largest_ratio(numerator: Tensor, denominator: Tensor) -> float:
    """max_i |numerator_i| / denominator_i with 0 / 0 = 0; infinite where something overflowed."""
    ratio = numerator.abs() / denominator
    return float(ratio.masked_fill(denominator == 0, 0).nan_to_num(nan=_INFINITY).max())
