"""The probe is refined only where its solution is far from accurate, or shows doubt."""

from __future__ import annotations

import pytest
import torch
from problems import generator
from torch import Tensor

from sparse_solver._engines.analysis import analyze
from sparse_solver._factor.accuracy.judge import Judge, Outcome, Verdict
from sparse_solver._factor.accuracy.systems import Systems
from sparse_solver._factor.ladder.ladder import products_of
from sparse_solver._factor.options import Options
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import Structure

N = 30
EPS = torch.finfo(torch.float64).eps


def judge_of(dense: Tensor, error: float) -> tuple[Judge, list[Tensor]]:
    """The judge of a factor that adds an error of so many ε to solutions; and those solutions."""
    at = dense.nonzero().T
    matrix = Matrix(Structure(at[0], at[1], (N, N)), dense[at[0], at[1]])
    factor = analyze(matrix, "general", None, "superlu").symbolic.factor(matrix)
    signs = torch.ones(N, dtype=torch.float64)
    signs[::2] = -1
    original, solved = factor.substitute, list[Tensor]()

    def substitute(rhs: Tensor, transpose: bool) -> Tensor:
        solved.append(original(rhs, transpose) * (1 + error * EPS * signs))
        return solved[-1]

    factor.substitute = substitute  # type: ignore[method-assign] # of this factor alone
    products = products_of(factor, matrix, Options("general"), "general")
    return Judge(Systems(products, N, 1, torch.float64, torch.device("cpu")), factor), solved


def random_matrix() -> Tensor:
    dense = torch.randn(N, N, dtype=torch.float64, generator=generator(0))
    return dense + 8 * torch.eye(N, dtype=torch.float64)


@pytest.mark.parametrize(("error", "refines"), [(10.0, False), (1000.0, True)])
def test_the_probe(error: float, refines: bool) -> None:
    """A solution that is returned is accurate in both cases."""
    dense = random_matrix()
    judge, solved = judge_of(dense, error)
    assert judge.examine() is Verdict.SOUND
    assert (len(solved) > 1) == refines
    b = torch.randn(1, N, dtype=torch.float64, generator=generator(1))
    x, outcome = judge.solve(b, transpose=False)
    assert outcome is Outcome.GOOD
    bound = x.abs() @ dense.abs().mT + b.abs()
    assert float(((b - x @ dense.mT).abs() / bound).max()) <= 4 * EPS


def test_doubt_is_settled_by_a_refined_solution() -> None:
    """The last row is nearly a multiple of the first one."""
    dense = random_matrix()
    dense[-1] = dense[0] * (1 + 1e-10 * torch.rand(N, dtype=torch.float64, generator=generator(2)))
    judge, solved = judge_of(dense, 10.0)
    verdict = judge.examine()
    assert judge.in_doubt
    assert len(solved) > 1
    assert verdict is not Verdict.UNUSABLE
