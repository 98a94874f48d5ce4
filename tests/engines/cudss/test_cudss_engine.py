"""The engine for GPUs on a simulated GPU: scaling, matching, batches, and its errors."""

from __future__ import annotations

import pytest
import simulated_gpu
import torch
from cudss_cases import (
    DEVICE,
    GENERAL,
    SPD,
    check_solution,
    cycle,
    indefinite,
    laplacian,
    pattern,
    vector,
)
from problems import Problem, problem
from simulated_cudss import Cudss, Factored

import sparse_solver as ss
from sparse_solver._engines.cudss import library as native
from sparse_solver._engines.cudss.library import Phase
from sparse_solver._factor.options import Assume
from sparse_solver._sparse.values import scaling_power


def test_it_is_chosen_on_a_gpu(cudss: Cudss) -> None:
    info = pattern(SPD).factorize(SPD.values).info
    assert (info.engine, info.device) == ("cudss", "gpu:0")
    assert info.engine_reason == "the matrix is on the GPU"
    assert info.assume == "spd"
    assert info.memory_bytes is not None
    assert info.memory_bytes > 0


def test_not_positive_definite_and_then_definite_again(cudss: Cudss) -> None:
    P = pattern(SPD)
    with pytest.raises(ss.NotPositiveDefiniteError) as caught:
        P.factorize(indefinite(0.1), assume="spd")
    assert caught.value.engine == "cudss"
    check_solution(SPD, P.solve(SPD.values, vector(SPD.n), assume="spd"))
    assert P.factorize(indefinite(0.1)).info.assume == "symmetric"


def test_a_status_may_report_that_a_matrix_is_not_positive_definite(cudss: Cudss) -> None:
    cudss.fails_early = True
    assert pattern(SPD).factorize(indefinite(0.3)).info.assume == "symmetric"
    with pytest.raises(ss.NotPositiveDefiniteError):
        pattern(SPD).factorize(indefinite(0.3), assume="spd")


def test_an_error_number_is_not_a_status(cudss: Cudss, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two is the status for a lack of memory."""
    monkeypatch.setattr(Factored, "problem", 2)
    with pytest.raises(ss.EngineError, match="error 2 of the factorisation") as caught:
        pattern(GENERAL).factorize(GENERAL.values, assume="general")
    assert not caught.value.out_of_memory
    assert [phase for phase, _ in cudss.phases] == [Phase.ANALYSIS, Phase.FACTORIZATION]


@pytest.mark.parametrize("assume", ["auto", "symmetric", "general"])
def test_singular_matrices_are_recognised(cudss: Cudss, assume: Assume) -> None:
    P, values = laplacian(4, anchor=0.0)
    with pytest.raises(ss.SingularMatrixError):
        P.solve(values, vector(16), assume=assume)


def test_rows_are_matched_where_pivots_fail(cudss: Cudss) -> None:
    """With zeros on the diagonal and without exchanges of rows, pivots are zero."""
    F = pattern(GENERAL).factorize(GENERAL.values)
    assert (GENERAL.dense.cpu().diagonal() == 0).any()
    assert F.info.perturbed_pivots == 0
    check_solution(GENERAL, F.solve(vector(GENERAL.n)))


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_rows_are_matched_by_the_values_that_are_factored(cudss: Cudss, scale: float) -> None:
    pattern(GENERAL).factorize(GENERAL.values * scale)
    for values in (*cudss.matched, *(values for values, _ in cudss.factored)):
        assert 0.5 <= abs(values).max() < 1


def test_a_matching_that_fails_leaves_singular_matrices_singular(cudss: Cudss) -> None:
    cudss.refuse = lambda phase, number: 4 if phase == Phase.ANALYSIS and number > 1 else 0
    P, values = laplacian(4, anchor=0.0)
    with pytest.raises(ss.SingularMatrixError):
        P.solve(values, vector(16), assume="symmetric")


def test_where_a_matching_that_is_needed_fails_the_host_factors(cudss: Cudss) -> None:
    cudss.refuse = lambda phase, number: 4 if phase == Phase.ANALYSIS and number > 1 else 0
    P, values = cycle()
    F = P.factorize(values, assume="general")
    assert (F.info.engine, F.info.device) == ("superlu", "cpu")
    dense, b = P.tensor(values).to_dense().cpu(), torch.arange(1.0, P.shape[0] + 1).double()
    x = F.solve(b.to(values.device))
    assert x.device == values.device
    torch.testing.assert_close(x.cpu(), torch.linalg.solve(dense, b))


def test_a_batch_is_one_factorisation(cudss: Cudss) -> None:
    P, b = pattern(SPD), vector(4, SPD.n, 3)
    values = torch.stack([SPD.values * k for k in (1.0, 0.5, 3.0, 4.0)])
    x = P.solve(values, b, assume="spd")
    dense = torch.stack([SPD.dense.cpu() * k for k in (1.0, 0.5, 3.0, 4.0)])
    torch.testing.assert_close(x.cpu(), torch.linalg.solve(dense, b.cpu()), rtol=1e-9, atol=0)
    assert sum(phase == Phase.FACTORIZATION for phase, _ in cudss.phases) == 1
    assert {columns for phase, columns in cudss.phases if phase == Phase.SOLVE} == {1}


def test_deterministic_algorithms(cudss: Cudss) -> None:
    """cuDSS then takes one right-hand side at a time, and no batches."""
    P, b = pattern(SPD), vector(2, SPD.n, 3)
    torch.use_deterministic_algorithms(True)
    try:
        x = P.solve(torch.stack((SPD.values, 2 * SPD.values)), b, assume="spd")
        with pytest.raises(ss.EngineUnsupportedError, match="no deterministic algorithm"):
            P.solve(SPD.values, vector(SPD.n), engine="cudss_hybrid")
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(x[1].cpu(), torch.linalg.solve(2 * SPD.dense.cpu(), b[1].cpu()))


@pytest.mark.parametrize("p", [SPD, GENERAL], ids=["spd", "general"])
def test_the_factor_may_be_in_the_memory_of_the_host(cudss: Cudss, p: Problem) -> None:
    F = pattern(p).factorize(p.values, engine="cudss_hybrid")
    assert F.info.engine == "cudss_hybrid"
    b = vector(p.n, 2)
    torch.testing.assert_close(F.solve(b).cpu(), torch.linalg.solve(p.dense.cpu(), b.cpu()))
    configurations = [one for one in cudss.objects.values() if isinstance(one, dict)]
    limits = [one[native.Config.HYBRID_DEVICE_MEMORY_LIMIT] for one in configurations]
    assert any(limit >= 4096 for limit in limits)


def test_streams_wait_for_each_other(cudss: Cudss) -> None:
    F = pattern(SPD).factorize(SPD.values)
    side = simulated_gpu.Stream(number=7)
    with simulated_gpu.module.stream(side):
        x = F.solve(vector(SPD.n))
    check_solution(SPD, x)
    assert 0 in side.waited_for  # the stream of the factor


@pytest.mark.parametrize("kind", ["spd", "symmetric", "general"])
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scales_beyond_single_precision(cudss: Cudss, kind: str, scale: float) -> None:
    p = problem(kind, torch.float64).to(DEVICE)
    x = pattern(p).solve(p.values * scale, vector(p.n) * scale, assume=kind)  # type: ignore[arg-type] # a str
    torch.testing.assert_close(x.cpu(), torch.linalg.solve(p.dense.cpu(), vector(p.n).cpu()))


def test_values_far_beyond_the_diagonal_are_not_scaled_to_infinity(cudss: Cudss) -> None:
    indices = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]).to(DEVICE)
    values = torch.tensor([1e-38, 1.0, 1.0, 1e-38]).to(DEVICE)
    F = ss.Pattern(*indices, (2, 2)).factorize(values)
    assert F.info.assume == "symmetric"
    x = F.solve(torch.tensor([2.0, 3.0]).to(DEVICE))
    torch.testing.assert_close(x.cpu(), torch.tensor([3.0, 2.0]))
    assert all(abs(seen).max() <= 1 for seen, _ in cudss.factored)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_of_two(dtype: torch.dtype) -> None:
    tiny, largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    sizes = [0.0, -1.0, 1.0, 0.75, 3.0, tiny, 4 * tiny, largest / 4, 1e30, float("inf")]
    moduli = torch.tensor(sizes, dtype=dtype)
    powers = scaling_power(moduli)
    assert powers[:2].tolist() == [1, 1]
    product = powers[2:-1] * moduli[2:-1]
    assert ((product >= 0.5) & (product <= 1)).all()
    assert (torch.frexp(powers)[0] == 0.5).all()
