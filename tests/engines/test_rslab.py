"""rslab: what its factors tell, and forked children, for which its threads are lost."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from problems import grid, laplacian_places, laplacian_values
from torch import Tensor

import sparse_solver as ss
from sparse_solver._engines import rslab
from sparse_solver._engines.equilibrated_lu import ROBUST_ENGINE
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import Structure

pytestmark = pytest.mark.skipif(
    not ss.engines()["rslab"].installed, reason=str(ss.engines()["rslab"].missing)
)
F64 = torch.float64


def pattern_of(m: int) -> tuple[ss.Pattern, Tensor]:
    """A grid of m by m nodes, and values of an indefinite matrix."""
    edges, n = grid(m)
    P = ss.Pattern(*laplacian_places(edges, n), (n, n))
    return P, laplacian_values(torch.rand(edges.shape[1], dtype=F64) + 0.1, n, anchor=-0.7)


def factor_of(D: Tensor, kind: str) -> rslab.RslabFactor:
    """The factor of a dense matrix of which all entries are stored."""
    rows, cols = torch.cartesian_prod(torch.arange(len(D)), torch.arange(len(D))).unbind(1)
    structure = Structure(rows, cols, D.shape)
    symbolic = rslab.ENGINE.analyze(structure, kind, D.dtype, None)  # type: ignore[arg-type] # str
    factor = symbolic.factor(Matrix(structure, D.reshape(-1)))
    assert isinstance(factor, rslab.RslabFactor)
    return factor


def test_it_counts_negative_eigenvalues_of_real_symmetric_matrices() -> None:
    D = torch.randn(30, 30, dtype=F64)
    D = D + D.mT
    expected = int((torch.linalg.eigvalsh(D) < 0).sum())
    factor = factor_of(D, "symmetric")
    assert (factor.negative_eigenvalues, factor.perturbed_pivots) == (expected, 0)
    assert factor.memory_bytes == 8 * (factor.nnz or 0) > 0
    assert factor_of(D, "general").negative_eigenvalues is None
    assert factor_of(D.to(torch.complex128), "symmetric").negative_eigenvalues is None


def test_a_matrix_that_is_not_positive_definite_is_refused() -> None:
    D = torch.tensor([[2.0, 1.0], [1.0, 0.4]], dtype=F64).to_sparse()
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.factorize(D, assume="spd", engine="rslab")
    F = ss.factorize(D, engine="rslab")
    assert (F.info.assume, F.info.engine) == ("symmetric", "rslab")
    # Pivots that are too small to tell do not refuse a matrix that is positive definite.
    small = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-12]], dtype=F64)
    b = torch.tensor([1.0, 2.0], dtype=F64)
    x = ss.solve(small.to_sparse(), b, assume="spd", engine="rslab")
    torch.testing.assert_close(x, torch.linalg.solve(small, b))


def test_perturbed_pivots_are_told_and_do_not_count() -> None:
    D = torch.zeros(4, 4, dtype=F64)
    D[0, 0] = 1
    factor = factor_of(D, "symmetric")
    assert factor.perturbed_pivots == 3
    assert factor.negative_eigenvalues is None
    with pytest.raises(ss.SingularMatrixError):
        ss.solve(D.to_sparse(), torch.ones(4, dtype=F64), engine="rslab")


def test_a_saddle_point_matrix_with_perturbed_pivots_is_solved() -> None:
    n, m = 40, 15
    H, C = torch.eye(n, dtype=F64), torch.randn(m, n, dtype=F64)
    H[:10] = 0
    K = torch.cat((torch.cat((H, C.mT), 1), torch.cat((C, torch.zeros(m, m)), 1)))
    b = torch.randn(n + m, 3, dtype=F64)
    x = ss.solve(K.to_sparse(), b, assume="symmetric", engine="rslab")
    torch.testing.assert_close(x, torch.linalg.solve(K, b))


def test_rows_are_matched_where_the_pattern_alone_does_not_do() -> None:
    """The diagonal is stored, but zero, so that pivots within blocks are small."""
    n = 300
    i = torch.arange(n)
    P = ss.Pattern(torch.cat((i, i)), torch.cat((i, (i + 1) % n)), (n, n))
    values = torch.cat((torch.zeros(n, dtype=F64), 1 + torch.rand(n, dtype=F64)))
    F = P.factorize(values, assume="general", engine="rslab")
    assert F.info.engine == "rslab"
    assert F.info.method == "LU with matching"
    b = torch.randn(n, 2, dtype=F64)
    for transpose in (False, True):
        dense = P.tensor(values).to_dense()
        expected = torch.linalg.solve(dense.mT if transpose else dense, b)
        torch.testing.assert_close(F.solve(b, transpose=transpose), expected)


@pytest.mark.parametrize("value", [1e-320, 1e300])
def test_values_near_the_ends_of_the_range_are_judged(value: float) -> None:
    D = torch.tensor([[value, value / 4], [value / 4, -value]], dtype=F64)
    F = ss.factorize(D.to_sparse(), assume="symmetric", engine="rslab")
    b = torch.tensor([value, 0.0], dtype=F64)
    torch.testing.assert_close(F.solve(b), torch.tensor([16.0, 4.0], dtype=F64) / 17)
    assert F.info.engine in ("rslab", ROBUST_ENGINE)


class PanicException(BaseException):
    """As rslab raises a failure of its own."""


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("rank-deficient"), ss.SingularMatrixError),
        (MemoryError(), ss.EngineError),
        (PanicException("index out of bounds"), ss.EngineError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_errors_are_typed(raised: BaseException, expected: type[BaseException]) -> None:
    def fail() -> None:
        raise raised

    with pytest.raises(expected) as caught:
        rslab._call(fail)
    if isinstance(caught.value, ss.EngineError):
        assert caught.value.out_of_memory == isinstance(raised, MemoryError)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_uses_another_engine(run_python: Callable[..., str]) -> None:
    script = "import test_rslab as test; test.solve_in_child(); print('done')"
    assert run_python(script).strip() == "done"


def solve_in_child() -> None:
    P, values = pattern_of(60)
    b = torch.randn(P.shape[0], 2, dtype=F64)
    kinds = ("symmetric", "general")
    inherited = [P.factorize(values, assume=kind, engine="rslab") for kind in kinds]  # type: ignore[arg-type] # str
    expected = inherited[0].solve(b)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            for F in inherited:
                torch.testing.assert_close(F.solve(b), expected)
            new, _ = pattern_of(50)
            for pattern, weights in ((P, values), (new, pattern_of(50)[1])):
                rhs = torch.ones(pattern.shape[0], dtype=F64)
                for kind in kinds:
                    x = pattern.solve(weights, rhs, assume=kind, engine="rslab")  # type: ignore[arg-type] # str
                    torch.testing.assert_close(pattern.tensor(weights) @ x, rhs)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    torch.testing.assert_close(inherited[1].solve(b), expected)
