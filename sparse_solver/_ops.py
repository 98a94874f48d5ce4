"""The compile door: the same solve as a `torch.library` operator, which `torch.compile` can put into a graph.

Dynamo refuses an autograd Function that has a forward-mode rule, and an operator's own autograd silently drops
forward-mode tangents; hence two doors to one set of formulas, and a check here that refuses forward mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._factors import Problem, factors_of, no_token, token_of
from ._function import fold
from ._kinds import Options
from ._rules import Places, adjoint
from ._structure import structure_at
from .errors import TransformError


def _options(assume: str, triangle: str, engine: str, constraints: int, reporting: str) -> Options:
    number = None if constraints < 0 else constraints
    return Options(assume, triangle or None, engine or None, number, reporting)  # type: ignore[arg-type]


@torch.library.custom_op("sparse_solver::solve", mutates_args=())
def _solve(
    values: Tensor, rhs: Tensor, rows: Tensor, cols: Tensor, known: Tensor | None, assume: str, triangle: str,
    engine: str, constraints: int, reporting: str, transpose: bool, strict: bool, token: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n = rhs.shape[-1]
    structure = structure_at(rows, cols, (n, n))
    part = None if known is None else structure.without(known)
    problem = Problem(structure, _options(assume, triangle, engine, constraints, reporting), part)
    factors = factors_of(token, problem)
    return factors.solve(values, rhs, transpose, strict), token_of(factors)


@_solve.register_fake
def _(values: Tensor, rhs: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rhs, memory_format=torch.contiguous_format), torch.empty(1, dtype=torch.int64, device="cpu")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    values, _, rows, cols, known, *ctx.options, ctx.transpose, _, _ = inputs
    x, token = output
    ctx.save_for_backward(values, x, rows, cols, known, token)


def _backward(ctx: Any, x_bar: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    values, x, rows, cols, known, token = ctx.saved_tensors
    values_bar, rhs_bar = adjoint(
        lambda g: _solve(values, g.resolve_conj(), rows, cols, known, *ctx.options, not ctx.transpose, False, token)[0],
        x_bar,
        x,
        Places(rows, cols, _options(*ctx.options).mirror(values.dtype)).of(ctx.transpose),
        ctx.needs_input_grad[0],
    )
    return values_bar, rhs_bar, *[None] * 11


torch.library.register_autograd("sparse_solver::solve", _backward, setup_context=_setup_context)


@torch.library.register_vmap("sparse_solver::solve")
def _vmap(info: Any, in_dims: tuple[int | None, ...], values: Tensor, rhs: Tensor, *rest: Any) -> Any:
    values, rhs, unfold = fold(info.batch_size, values, in_dims[0], rhs, in_dims[1])
    x, token = _solve(values, rhs, *rest)
    return (unfold(x), token), (0, None)


def solve_compiled(values: Tensor, rhs: Tensor, problem: Problem, transpose: bool) -> Tensor:
    if forward_ad._current_level >= 0:
        raise TransformError(
            "forward-mode derivatives (torch.func.jvp, jacfwd, forward_ad.dual_level) of a sparse solve cannot be compiled; "
            "call it outside of torch.compile"
        )
    structure, options, part = problem.structure, problem.options, problem.part
    x: Tensor = _solve(
        values, rhs, structure.rows, structure.cols, None if part is None else part.removed, options.assume, options.triangle or "",
        options.engine or "", -1 if options.constraints is None else options.constraints, options.reporting, transpose, True, no_token(),
    )[0]  # fmt: skip
    return x
