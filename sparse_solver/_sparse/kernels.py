"""The product A(v) x and its adjoint in v, written once for all derivatives.

A(v) is the matrix with stored values v at (r_e, c_e), duplicates summed; vectors are the *rows* of
(..., k, n) arrays. `apply` is the bilinear map

    apply(v, x) = A(v) x,         y_i = Σ_{e: r_e = i} v_e x_{c_e},

and `apply_adjoint` its adjoint in v under torch's complex inner product <a, b> = Re Σ conj(a) b:

    <λ, A(v) x> = <apply_adjoint(λ, x), v>,   apply_adjoint(λ, x)_e = Σ_k λ_{k,r_e} conj(x_{k,c_e}),

since Re Σ conj(λ_r) v x_c = Re Σ conj(λ_r conj(x_c)) v. Where one triangle is stored, an entry off
the diagonal also stands at (c_e, r_e): with the same value ("symmetric"), which adds λ_c conj(x_r),
or with the conjugate one ("hermitian"), which adds the conjugate of that:
Re conj(λ_c) conj(v) x_r = Re λ_c v conj(x_r), whose gradient is conj(λ_c) x_r.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from .._torch.modes import is_unrecorded, silence_beta_warning
from .block_diagonal import join_batch, split_batch
from .structure import Structure
from .values import new_numbers, select_numbers

# Below this many entries, a sampled product of one vector is not worth torch's sparse kernel.
_SMALL = 2**17
# At most this many numbers are gathered at once on a GPU.
_LARGE = 2**26
# Numbers in one contiguous copy of a block of vectors. Larger new arrays take the operating system
# longer to provide than the product takes.
_BLOCK = 2**22


@dataclass(frozen=True)
class Places:
    """Where the entries of A(v) stand.

    mirror : what an off-diagonal entry also stands for at the opposite place: None (nothing),
        "symmetric" or "hermitian"
    structure : the structure that has these entries, or the opposite ones if `is_transposed`
    """

    rows: Tensor
    cols: Tensor
    mirror: str | None = None
    structure: Structure | None = None
    is_transposed: bool = False

    def of(self, transpose: bool) -> Places:
        """The places of A, or of Aᵀ if `transpose`.

        A Hermitian triangle stays one: its transpose has the stored value v at (c, r) and conj(v)
        at (r, c).
        """
        if not transpose:
            return self
        return Places(self.cols, self.rows, self.mirror, self.structure, not self.is_transposed)


def apply(values: Tensor, x: Tensor, places: Places, count: int | None = None) -> Tensor:
    """A(v) x for `values` (..., nnz) and the rows of `x` (..., k, n).

    A has `count` rows; by default it is square.
    """
    rows, cols = places.rows, places.cols
    products = values.unsqueeze(-2) * x.index_select(-1, cols)
    y = products.new_zeros((*products.shape[:-1], x.shape[-1] if count is None else count))
    y = y.index_add(-1, rows, products)
    if places.mirror is not None:
        mirrored = values.masked_fill(rows == cols, 0)
        # Resolved at once: compiled graphs run operators without the handling of lazy conjugates.
        mirrored = mirrored.conj().resolve_conj() if places.mirror == "hermitian" else mirrored
        y = y.index_add(-1, cols, mirrored.unsqueeze(-2) * x.index_select(-1, rows))
    return y


def apply_adjoint(lam: Tensor, x: Tensor, places: Places, scale: float = 1.0) -> Tensor:
    """(..., nnz) `scale` times the adjoint of `apply` in the values."""
    values_bar = _sample_product(lam, x, places, scale)
    if places.mirror is not None:
        opposite = _sample_product(lam, x, places.of(True), scale)
        opposite = opposite.masked_fill(places.rows == places.cols, 0)
        values_bar = values_bar + (opposite.conj() if places.mirror == "hermitian" else opposite)
    return values_bar


def _sample_product(lam: Tensor, x: Tensor, places: Places, scale: float) -> Tensor:
    """scale · Σ_k λ_{k,r} conj(x_{k,c}): the entries (r, c) of an outer product."""
    structure, right, on_cpu = places.structure, x.conj(), lam.device.type == "cpu"
    is_single = lam.dim() == 2 and lam.shape[0] == 1 and places.rows.numel() < _SMALL
    has_kernel = structure is not None and on_cpu and not is_single and lam.numel() > 0
    if has_kernel and is_unrecorded(lam, x):
        assert structure is not None
        if lam.dim() == 3:
            return _sample_batch(lam, x, places, scale)
        if lam.dim() == 2:
            sides = (right, lam) if places.is_transposed else (lam, right)
            return _sample_by_kernel(structure, *sides, scale)
    scaled = scale * lam if scale != 1 else lam
    if lam.shape[-2] == 1:
        left = scaled.squeeze(-2).index_select(-1, places.rows)
        return left * right.squeeze(-2).index_select(-1, places.cols)
    if on_cpu:
        return _gather_and_sum(scaled, right, places)
    width = max(1, _LARGE // max(1, places.rows.numel() * lam.shape[:-2].numel()))
    pairs = zip(scaled.split(width, -2), right.split(width, -2), strict=True)
    return reduce(torch.add, (_gather_and_sum(u, v, places) for u, v in pairs))


def _sample_batch(lam: Tensor, x: Tensor, places: Places, scale: float) -> Tensor:
    """The sampled products of a batch (batch, k, n), block-diagonal matrix by matrix."""
    assert places.structure is not None
    product = lam.new_empty(lam.shape[0], places.rows.numel())
    for chosen, block in split_batch(places.structure, lam.shape[0]):
        of_block = Places(block.rows, block.cols, None, block).of(places.is_transposed)
        joined = join_batch(lam[chosen]), join_batch(x[chosen])
        product[chosen] = _sample_product(*joined, of_block, scale).view_as(product[chosen])
    return product


def _sample_by_kernel(structure: Structure, left: Tensor, right: Tensor, scale: float) -> Tensor:
    """(nnz,) scale · Σ_k left_{k,r} right_{k,c} at the places of a structure, each computed once.

    torch's kernel reads (n, k) arrays, which are copied block by block.
    """
    silence_beta_warning()
    entries = new_numbers(left, structure.canonical_nnz).zero_()
    indices = structure.crow, structure.col
    product = torch.sparse_csr_tensor(
        *indices, entries, structure.shape, device=structure.device, check_invariants=False
    )
    width = max(1, _BLOCK // structure.shape[0])
    for u, v in zip(left.split(width), right.split(width), strict=True):
        u, v = (side.resolve_conj().mT.contiguous() for side in (u, v))
        torch.sparse.sampled_addmm(product, u, v.mT, beta=1.0, alpha=scale, out=product)
    return entries if structure.position is None else select_numbers(entries, structure.position)


def _gather_and_sum(left: Tensor, right: Tensor, places: Places) -> Tensor:
    return (left.index_select(-1, places.rows) * right.index_select(-1, places.cols)).sum(-2)
