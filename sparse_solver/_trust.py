"""Whether the solutions that a factor gives may be trusted: residuals, refinement, and singular matrices.

Everything is measured entry by entry: the backward error of x is the smallest ω such that (A + E) x = b + f holds
for some |E| ≤ ω|A|, |f| ≤ ω|b|, and that is max_i |b − A x|_i / (|A||x| + |b|)_i. Unlike norms it does not depend on
the scales of rows and columns. (W. Oettli and W. Prager, Numer. Math. 6, 1964; N. J. Higham, "Accuracy and Stability
of Numerical Algorithms", 2nd ed., sections 7.2 and 12.2.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._engines import Factor, Kind, is_hermitian, scattered
from ._matrix import largest_modulus
from ._products import Products
from ._structure import Structure
from .errors import EngineError, NonFiniteError, SingularMatrixError

_INFINITY = float("inf")


class Trusted:
    """A factor of a matrix of this kind, whose largest entry is `largest`, and the checks on it.

    `stored` : the triangle that the structure holds, if it is one only
    `blocks` : the number of equal blocks on the diagonal of the matrix, each a system of its own
    """

    _advice = "try another engine="

    def __init__(
        self,
        factor: Factor,
        structure: Structure,
        stored: str | None,
        kind: Kind,
        largest: float,
        engine: str,
        blocks: int,
    ):
        self.factor, self._structure, self._stored = factor, structure, stored
        self._n, self._kind, self._largest, self._engine = structure.shape[0], kind, largest, engine
        self._dtype = factor.values.dtype
        self._eps = torch.finfo(self._dtype).eps
        self._made: Products | None = None
        self._blocks = blocks
        self._singular: str | None = None  # the verdict of `refuse_singular`, once it was asked: "" or a message
        self._growth: float | None = None  # that of `is_accurate`

    def solve(self, rhs: Tensor, size: float, transpose: bool, strict: bool) -> Tensor:
        """A⁻¹ or A⁻ᵀ applied to the rows of `rhs`, whose largest entry, which is finite, is `size`.

        A backward stable method leaves a residual of ε‖A‖‖x‖, which is small beside ‖b‖ unless A is nearly singular:
        then, and for methods that are not stable, the residual is formed.
        """
        x, eps = self.factor.solve(rhs, transpose), self._eps
        x_size = self._largest_of(x)
        if not x_size < _INFINITY:
            self.refuse_singular()
            if not strict:  # a derivative that overflows is passed on as what it is
                return x
            raise NonFiniteError(f"the solution is too large for {self._dtype}", argument="x", index=None)
        if self.factor.stable:
            growth, most = eps * self._largest, eps**0.4
            if rhs.shape[0] * self._blocks == 1 and growth * x_size <= most * size:  # quickly, for small systems
                return x
            sizes = self._sizes(rhs)
            if bool((growth * self._sizes(x) <= most * sizes).all()):
                return x
            residual = self._sizes(rhs - self._products.apply(x, transpose))
            if not bool((residual <= eps**0.5 * sizes).all()):
                self.refuse_singular()
            return x
        x, error = self._refined(x, rhs, transpose, 64 * eps)
        # Entry by entry is too strict where x has zeros; then as small as a stable method would leave it will do.
        if error > 1e4 * eps:
            residual = self._sizes(rhs - self._products.apply(x, transpose))
            if bool((residual > 64 * eps * (self._scales(rhs.shape[0]) * self._sizes(x) + self._sizes(rhs))).any()):
                self.refuse_singular()
                raise EngineError(
                    f"{self._engine} could not factor this {self._kind} matrix accurately (backward error {error:.0e}); "
                    f"{self._advice}, or scale the rows and columns of the matrix",
                    engine=self._engine,
                    code=None,
                )
        return x

    def solve_ahead(self, rhs: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
        """A⁻¹ or A⁻ᵀ applied to the rows of `rhs`, and (k · blocks,) whether each solution may be trusted, as tensors, so that
        nobody waits: one step of refinement, whether it helps or not.

        A singular matrix gives residuals that are not small beside the right-hand side, however large the solution.
        """
        x = self.factor.solve(rhs, transpose)
        x = x + self.factor.solve(rhs - self._products.apply(x, transpose), transpose)
        residual, eps = rhs - self._products.apply(x, transpose), self._eps
        error = self._ratios(residual, self._products.magnitude(x, transpose) + rhs.abs())
        sizes, left, x_sizes = (self._sizes(vectors) for vectors in (rhs, residual, x))
        backward = (error <= 1e4 * eps) | (left <= 64 * eps * (self._scales(rhs.shape[0]) * x_sizes + sizes))
        return x, backward & (left <= eps**0.25 * sizes) & (x_sizes < _INFINITY)

    def is_accurate(self) -> bool:
        """Whether the factor solves a system with scattered numbers on the right to a small backward error, refinement allowed."""
        rhs = self._scattered()
        x = self.factor.solve(rhs, False)
        self._growth = self._largest_of(x) * self._largest
        if self._growth == _INFINITY or self._growth != self._growth:
            return False
        enough = 1e3 * self._eps
        return self._refined(x, rhs, False, enough)[1] <= enough

    def is_beyond_doubt(self) -> bool:
        """Whether nothing at all suggests that the matrix, or a block of it, may be singular, or is factored badly.

        Measured on the whole, which is stricter than on any block.
        """
        if self.factor.stable:
            return not self.factor.doubtful
        accurate = self.is_accurate()
        return accurate and not self.factor.perturbed_pivots and self._is_far_from_singular()

    def _is_far_from_singular(self) -> bool:
        """Whether a vector of scattered numbers hardly grew; asked after `is_accurate`."""
        return self._growth is not None and self._growth < self._eps**-0.6

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

        A null vector that belongs to a part of A that nothing else depends on is zero elsewhere, where inverse iteration
        leaves noise, of which the relative residual is not small. So v is tried without its small entries, too: small in
        themselves, and small beside the columns that they multiply.
        """
        if not self.factor.perturbed_pivots and self._is_far_from_singular():
            return 1.0
        best = torch.full((self._blocks,), _INFINITY, dtype=torch.float64, device=self.factor.values.device)
        v, columns = self._scattered(), self._products.column_sizes()
        Av = v
        for step in range(8):
            v = self.factor.solve(v, False) if step < 2 else v - self.factor.solve(Av, False)
            size = self._sizes(v)
            if not bool(((size > 0) & (size < _INFINITY)).all()):
                return 0.0 if step < 2 else float(best.min())
            v = (v.view(self._blocks, -1) / size.unsqueeze(1)).view_as(v)
            Av = self._products.apply(v, False)
            distance = self._ratios(Av, self._products.magnitude(v, False))
            for moduli in (v.abs(), v.abs() * columns):
                small = moduli.view(self._blocks, -1) < self._eps**0.5 * self._sizes(moduli).unsqueeze(1)
                large = v.masked_fill(small.view_as(v), 0)
                ratios = self._ratios(self._products.apply(large, False), self._products.magnitude(large, False))
                distance = torch.minimum(distance, ratios)
            stagnates = step > 2 and not bool((distance < best / 2).any())
            best = torch.minimum(best, distance)
            if stagnates:
                break
        return float(best.min())

    def _refined(self, x: Tensor, rhs: Tensor, transpose: bool, enough: float) -> tuple[Tensor, float]:
        """`x` and its backward error, after as many steps of iterative refinement as help, at most three, if that is
        more than `enough`."""
        best, error = x, _INFINITY
        for step in range(4):
            residual = rhs - self._products.apply(x, transpose)
            found = float(self._ratios(residual, self._products.magnitude(x, transpose) + rhs.abs()).max())
            helped = found < error / 2
            if found < error:
                best, error = x, found
            if not helped or error <= enough or step == 3:
                break
            x = x + self.factor.solve(residual, transpose)
        return best, error

    def _scattered(self) -> Tensor:
        # Of a mean that is not zero, since the vectors that singular matrices annihilate are often constant.
        return scattered(self._n, self._dtype, 0.25, self.factor.values.device)

    def _largest_of(self, vectors: Tensor) -> float:
        return largest_modulus(vectors)

    def _sizes(self, vectors: Tensor) -> Tensor:
        """(k · blocks,) the largest modulus in what belongs to one system."""
        return row_sizes(vectors.reshape(-1, self._n // self._blocks))

    def _scales(self, k: int) -> Tensor:
        """(k · blocks,) the largest entry of the matrix of each system: the entries of a block lie together."""
        return row_sizes(self.factor.values.view(self._blocks, -1)).repeat(k)

    def _ratios(self, numerator: Tensor, denominator: Tensor) -> Tensor:
        """(k · blocks,) max_i |numerator_i| / denominator_i of each system, with 0 / 0 = 0; infinite where something
        overflowed."""
        ratio = (numerator.abs() / denominator).reshape(-1, self._n // self._blocks)
        largest = ratio.amax(-1).double()
        if largest.device.type != "cpu" or bool(largest.isnan().any()):  # asking a GPU takes longer
            ratio = ratio.masked_fill(denominator.view_as(ratio) == 0, 0).nan_to_num(nan=_INFINITY, posinf=_INFINITY)
            largest = ratio.amax(-1).double()
        return largest

    @property
    def _products(self) -> Products:
        if self._made is None:
            factor, hermitian = self.factor, is_hermitian(self._kind, self._dtype)
            self._made = Products(self._structure, self._stored, factor.layout, factor.values, hermitian)
        return self._made

    def _describe_singular(self, distance: float) -> str:
        rank = self._structural_rank()
        if rank is not None and rank < self._n:
            return f"the matrix is structurally singular: its pattern has rank {rank} of {self._n}, whatever the values"
        return (
            f"the matrix is singular to working precision: changing its entries by {distance:.0e} of themselves makes it "
            f"singular (a graph or mesh Laplacian needs an anchor: a fixed vertex, or a multiple of the identity or of "
            f"the mass matrix added)"
        )

    def _structural_rank(self) -> int | None:
        from scipy.sparse import csr_matrix
        from scipy.sparse.csgraph import structural_rank

        layout = self.factor.layout
        if layout.part != "full":
            return None
        ones = torch.ones(layout.nnz, dtype=torch.int8, device="cpu").numpy()
        matrix = csr_matrix((ones, layout.col.cpu().numpy(), layout.crow.cpu().numpy()), shape=(self._n, self._n))
        return int(structural_rank(matrix))


def row_sizes(vectors: Tensor) -> Tensor:
    """(k,) the largest modulus in each row of (k, n) numbers, NaN where there is one."""
    if vectors.is_complex():
        largest: Tensor = torch.linalg.vector_norm(vectors, _INFINITY, dim=-1)
        return largest
    largest = torch.maximum(-vectors.amin(-1), vectors.amax(-1))
    return largest
