"""`slogdet` for values of any device, dtype, batch and structure."""

from __future__ import annotations

from torch import Tensor

from .._factor.factors import Factors
from .._factor.options import Options
from .._factor.problem import Problem
from .._solve.autograd import refuse_nested_forward_mode, refuse_tracing
from .._solve.determinant import SignAndLogdet, register_determinant
from .._solve.shapes import check_values
from .._sparse.values import CPU, is_single, to_double
from .determinant import SignAndLogarithm
from .determinant_factors import DeterminantFactors
from .symmetric_inverse import check_max_solves


class GeneralDeterminant:
    """The determinants of matrices of any kind; see `_solve.determinant.Determinant`.

    They are computed on the CPU and in double precision.

    factors : those that solve with the values, if they exist already
    """

    def __init__(
        self, problem: Problem, values: Tensor, max_solves: int, factors: Factors | None = None
    ):
        check_values(values, problem.structure.nnz)
        problem.check(values.dtype)
        self.max_solves = check_max_solves(max_solves)
        self._values = values
        structure, options = problem.structure, problem.options
        self._shape = (structure.batch_shape or (*values.shape[:-1], *structure.shape))[:-2]
        on_host = problem.structure.device == CPU
        if factors is None or not on_host or is_single(values.dtype):
            engine = options.engine if on_host else None
            problem = Problem(structure.on(CPU), Options(options.assume, options.triangle, engine))
            factors = Factors(problem)
        self._factors = DeterminantFactors(problem, self.max_solves, factors)

    def slogdet(self) -> SignAndLogdet:
        """(...) the phases and the logarithms of the moduli."""
        refuse_tracing("use torch.compile")
        given = self._values
        values = to_double(given.to(CPU))
        refuse_nested_forward_mode(values)
        if values.dim() > 2:
            values = values.reshape(values.shape[:-1].numel(), values.shape[-1])
        sign, logarithm = SignAndLogarithm.apply(values, self._factors)
        sign = sign.reshape(self._shape).to(given.device, given.dtype)
        return SignAndLogdet(
            sign, logarithm.reshape(self._shape).to(given.device, given.dtype.to_real())
        )


register_determinant(GeneralDeterminant)
