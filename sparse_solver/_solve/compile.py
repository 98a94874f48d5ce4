"""The solve as a `torch.library` operator, which `torch.compile` can put into a graph.

Dynamo refuses an autograd Function that has a forward-mode rule, and an operator's own autograd
silently drops forward-mode tangents. So torch gets the same formulas in two forms, and this one
refuses forward mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._factor.lifetime import empty_token, factors_of, token_of
from .._factor.options import Options
from .._factor.problem import Problem
from .._sparse.kernels import Places
from .._sparse.structure import structure_at
from .._sparse.submatrix import remove_rows
from ..errors import TransformError
from .adjoint import adjoint
from .autograd import fold

# A CUDA graph must not record a solve; older versions of torch cannot be told so.
_TAGS: dict[str, Any] = {}
if hasattr(torch.Tag, "cudagraph_unsafe"):
    _TAGS["tags"] = [torch.Tag.cudagraph_unsafe]


@torch.library.custom_op("sparse_solver::solve", mutates_args=(), **_TAGS)
def _solve(
    values: Tensor,
    rhs: Tensor,
    rows: Tensor,
    cols: Tensor,
    removed: Tensor | None,
    assume: str,
    triangle: str | None,
    engine: str | None,
    non_blocking: bool,
    precision: str,
    purpose: str,
    transpose: bool,
    strict: bool,
    token: Tensor,
) -> tuple[Tensor, Tensor]:
    n = rhs.shape[-1]
    structure = structure_at(rows, cols, (n, n)).on(values.device)
    submatrix = None if removed is None else remove_rows(structure, removed.to(values.device))
    options = Options(assume, triangle, engine, non_blocking, precision)  # type: ignore[arg-type] # operators take str, not Literal
    factors = factors_of(token, Problem(structure, options, submatrix, purpose))
    return factors.apply_inverse(values, rhs, transpose, strict), token_of(factors)


@_solve.register_fake
def _(values: Tensor, rhs: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    token = torch.empty(1, dtype=torch.int64, device="cpu")
    return torch.empty_like(rhs, memory_format=torch.contiguous_format), token


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, _, rows, cols, removed, *ctx.options, ctx.transpose, _, _ = inputs
    x, token = output
    ctx.save_for_backward(values, x, rows, cols, removed, token)


def _backward(ctx: Any, x_bar: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    values, x, rows, cols, removed, token = ctx.saved_tensors
    assume, triangle, *_ = ctx.options

    def apply_transposed(g: Tensor) -> Tensor:
        given = rows, cols, removed, *ctx.options, not ctx.transpose, False, token
        lam: Tensor = _solve(values, g.resolve_conj(), *given)[0]
        return lam

    mirror = Options(assume, triangle).mirror(values.dtype)
    places = Places(rows.to(values.device), cols.to(values.device), mirror).of(ctx.transpose)
    bars = adjoint(apply_transposed, x_bar, x, places, ctx.needs_input_grad[0])
    return *bars, *[None] * 12


torch.library.register_autograd("sparse_solver::solve", _backward, setup_context=_setup_context)


@torch.library.register_vmap("sparse_solver::solve")
def _vmap(
    info: Any, in_dims: tuple[int | None, ...], values: Tensor, rhs: Tensor, *rest: Any
) -> Any:
    values, rhs, unfold = fold(info.batch_size, values, in_dims[0], rhs, in_dims[1])
    x, token = _solve(values, rhs, *rest)
    return (unfold(x), token), (0, None)


def solve_compiled(values: Tensor, rhs: Tensor, problem: Problem, transpose: bool) -> Tensor:
    """Solve inside of a compiled graph."""
    if forward_ad._current_level >= 0:
        raise TransformError(
            "forward-mode derivatives (torch.func.jvp, jacfwd, forward_ad.dual_level) of a sparse "
            "solve cannot be compiled; call it outside of torch.compile"
        )
    structure, options, submatrix = problem.structure, problem.options, problem.submatrix
    removed = None if submatrix is None else submatrix.removed
    given = options.assume, options.triangle, options.engine, options.non_blocking
    more = options.precision, problem.purpose
    x: Tensor = _solve(
        *(values, rhs, structure.rows, structure.cols, removed, *given, *more),
        *(transpose, True, empty_token()),
    )[0]
    return x
