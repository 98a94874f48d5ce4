"""The engine for GPUs: its binding against the header, where that is installed, and its manners on a simulated GPU."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import simulated_gpu
import torch
from problems import grid, laplacian_places, laplacian_values, problem, rhs
from simulated_cudss import Csr, Cudss, Dense, Factored, _Data, _Handle
from simulated_gpu import DEVICE

import sparse_solver as ss
from sparse_solver._engines.cudss import library as native
from sparse_solver._engines.cudss import workspace as _workspace
from sparse_solver._engines.cudss.library import Phase
from sparse_solver._engines.registry import engine_named
from sparse_solver._factor import pending_errors
from sparse_solver._sparse.structure import structure_of
from sparse_solver._sparse.values import scaling_power

SPD = problem("spd", torch.float64).to(DEVICE)
GENERAL = problem("general", torch.float64).to(DEVICE)


def pattern(p: Any) -> ss.Pattern:
    return ss.Pattern(p.rows, p.cols, p.shape)


def vector(n: int, *columns: int) -> torch.Tensor:
    return rhs(n, *columns, dtype=torch.float64).to(DEVICE)


def headers() -> str:
    """The installed headers, without comments."""
    folders = [os.environ.get("SPARSE_SOLVER_CUDSS_INCLUDE", "")]
    for package in ("nvidia-cudss-cu12", "nvidia-cudss-cu13"):
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        folders += [
            str(Path(str(file.locate())).parent) for file in files if file.name == "cudss.h"
        ]
    found = next(
        (folder for folder in folders if folder and Path(folder, "cudss.h").exists()), None
    )
    if found is None:
        pytest.skip("no header of cuDSS here")
    text = "\n".join(path.read_text() for path in sorted(Path(found).glob("*.h")))
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def test_constants_are_those_of_the_header() -> None:
    known: dict[str, int] = {}
    for body in re.findall(r"enum[^{;]*\{([^}]*)\}", headers()):
        value = -1
        for name, expression in re.findall(r"(\w+)\s*(?:=([^,]*))?(?:,|$)", body.strip()):
            value = eval(expression, {}, known) if expression else value + 1
            known[name] = value
    for prefix, members in (("PHASE", Phase), ("CONFIG", native.Config), ("DATA", native.Data)):
        for member in members:
            assert known[f"CUDSS_{prefix}_{member.name}"] == member.value
    for number, name in enumerate(native.STATUSES):
        assert known[f"CUDSS_STATUS_{name}"] == number
    for name, number in native.MATRIX_TYPES.items():
        assert known[f"CUDSS_MTYPE_{name.upper()}"] == number
    assert (known["CUDSS_MVIEW_FULL"], known["CUDSS_MVIEW_UPPER"]) == (
        native.VIEW_FULL,
        native.VIEW_UPPER,
    )
    assert known["CUDSS_BASE_ZERO"] == native.BASE_ZERO
    assert known["CUDSS_LAYOUT_COL_MAJOR"] == native.COLUMN_MAJOR
    assert known["CUDSS_MATCHING_ALG_NONE"] == native.MATCHING_NONE
    assert known["CUDSS_MATCHING_ALG_MAX_DIAG_PRODUCT"] == native.MATCHING_MAX_DIAG_PRODUCT
    assert known["CUDSS_SOLVE_MODE_NORMAL"] == native.SOLVE_NORMAL
    assert known["CUDSS_SOLVE_MODE_TRANSPOSE"] == native.SOLVE_TRANSPOSE


def test_signatures_are_those_of_the_header() -> None:
    text = headers()
    sizes = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "size_t": ctypes.c_size_t}
    for name, arguments in native.SIGNATURES.items():
        declared = re.search(rf"\bcudss{name}\s*\(([^)]*)\)", text)
        assert declared is not None, name
        expected = []
        for argument in declared[1].split(","):
            words = argument.replace("const", "").replace("*", " * ").split()
            is_pointer = "*" in words or words[0] in (
                "cudssHandle_t", "cudssConfig_t", "cudssData_t", "cudssMatrix_t", "cudaStream_t"
            )  # fmt: skip
            expected.append(ctypes.c_void_p if is_pointer else sizes.get(words[0], ctypes.c_int))
        assert [ctypes.sizeof(a) for a in arguments] == [ctypes.sizeof(e) for e in expected], name
        assert [a in sizes.values() for a in arguments] == [
            e in sizes.values() for e in expected
        ], name
    assert re.search(r"ALLOCATOR_NAME_LEN\s+64", text)
    assert ctypes.sizeof(native.DeviceMemHandler) == 3 * 8 + 64


def test_statuses_are_named() -> None:
    error = native.error_of(6, "Execute")
    assert isinstance(error, ss.EngineError)
    assert str(error) == "cuDSS failed in cudssExecute with status 6 (INTERNAL_ERROR)"
    assert error.code == 6
    assert "unknown status" in str(native.error_of(99, "Execute"))
    assert isinstance(native.error_of(native.NOT_SUPPORTED, "ConfigSet"), ss.EngineUnsupportedError)


def test_another_major_version_is_refused() -> None:
    with pytest.raises(OSError, match=r"version 0\.8\.0, and 1\.x is needed"):
        native.Library(Cudss(version=(0, 8, 0)))


def test_what_is_missing_is_named() -> None:
    if torch.version.cuda is None:
        assert native.library() == "this torch was built without CUDA"
    library, problems = native.load(["/nowhere/libcudss.so.1"])
    assert library is None
    assert "cannot open" in problems[0]


def test_a_cpu_matrix_is_not_for_this_engine() -> None:
    p = problem("spd", torch.float64)
    with pytest.raises(ss.EngineUnsupportedError, match="solves on cuda, and the matrix is on cpu"):
        pattern(p).solve(p.values, rhs(p.n, dtype=torch.float64), engine="cudss")


def test_it_is_chosen_and_says_so(cudss: Cudss) -> None:
    info = pattern(SPD).factorize(SPD.values).info
    assert (info.engine, info.engine_reason, info.device) == (
        "cudss",
        "the matrix is on the GPU",
        "gpu:0",
    )
    assert info.assume == "spd"
    assert info.memory_bytes is not None
    assert info.memory_bytes > 0


def test_the_analysis_is_used_again(cudss: Cudss) -> None:
    P, b = pattern(SPD), vector(SPD.n)
    for factor in (1.0, 2.0, 3.0):
        values = (SPD.values * factor).requires_grad_()
        P.solve(values, b, assume="spd").sum().backward()
    phases = [phase for phase, _ in cudss.phases if phase != Phase.SOLVE]
    assert phases == [
        Phase.ANALYSIS,
        Phase.FACTORIZATION,
        Phase.REFACTORIZATION,
        Phase.REFACTORIZATION,
    ]


def test_two_live_factors_have_a_workspace_each(cudss: Cudss) -> None:
    P, b = pattern(SPD), vector(SPD.n)
    first, second = P.factorize(SPD.values), P.factorize(2 * SPD.values)
    torch.testing.assert_close(first.solve(b).cpu(), 2 * second.solve(b).cpu())
    torch.testing.assert_close(SPD.dense.cpu() @ first.solve(b).cpu(), b.cpu())
    assert cudss.live(_Data) == 2


def test_everything_is_given_back(cudss: Cudss) -> None:
    before = len(simulated_gpu.module.allocated)
    P = pattern(SPD)
    F = [P.factorize(SPD.values * k) for k in (1, 2, 3)]
    G = pattern(GENERAL).factorize(GENERAL.values)
    assert len(simulated_gpu.module.allocated) > before
    del F, G
    gc.collect()
    assert cudss.live(_Data) >= 2  # one a pattern waits for the next factorisation
    ss.clear_cache()
    del P
    gc.collect()
    ss.clear_cache()
    assert (cudss.live(_Data), cudss.live(Csr)) == (0, 0)
    assert len(simulated_gpu.module.allocated) == before


def test_a_factor_that_dies_inside_of_a_call_does_not_enter_it(
    cudss: Cudss, monkeypatch: pytest.MonkeyPatch
) -> None:
    P = pattern(SPD)
    doomed = [P.factorize(SPD.values), P.factorize(SPD.values)]
    allocate = simulated_gpu.module.caching_allocator_alloc

    def collecting(*arguments: Any) -> int:
        doomed.clear()
        return allocate(*arguments)

    monkeypatch.setattr(simulated_gpu.module, "caching_allocator_alloc", collecting)
    F = pattern(GENERAL).factorize(GENERAL.values)
    torch.testing.assert_close(
        GENERAL.dense.cpu() @ F.solve(vector(GENERAL.n)).cpu(), vector(GENERAL.n).cpu()
    )


def test_not_positive_definite_and_then_definite_again(cudss: Cudss) -> None:
    P, values = pattern(SPD), SPD.values.clone()
    indefinite = torch.where(SPD.rows == SPD.cols, values * 0.1, values)
    with pytest.raises(ss.NotPositiveDefiniteError) as caught:
        P.factorize(indefinite, assume="spd")
    assert caught.value.engine == "cudss"
    x = P.solve(values, vector(SPD.n), assume="spd")
    torch.testing.assert_close(SPD.dense.cpu() @ x.cpu(), vector(SPD.n).cpu())
    assert P.factorize(indefinite).info.assume == "symmetric"


def test_singular_matrices_are_recognised(cudss: Cudss) -> None:
    edges, n = grid(4)
    rows, cols = (index.to(DEVICE) for index in laplacian_places(edges, n))
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n, anchor=0.0).to(
        DEVICE
    )
    P = ss.Pattern(rows, cols, (n, n))
    for assume in ("auto", "symmetric", "general"):
        with pytest.raises(ss.SingularMatrixError):
            P.solve(values, vector(n), assume=assume)  # type: ignore[arg-type]


def test_matching_is_for_what_pivots_fail_on(cudss: Cudss) -> None:
    """Zeros on the diagonal: without exchanges of rows there is nothing to divide by."""
    F = pattern(GENERAL).factorize(GENERAL.values)
    assert (GENERAL.dense.cpu().diagonal() == 0).any()
    assert F.info.perturbed_pivots == 0
    torch.testing.assert_close(
        GENERAL.dense.cpu() @ F.solve(vector(GENERAL.n)).cpu(), vector(GENERAL.n).cpu()
    )


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
def test_the_factor_may_be_in_the_memory_of_the_host(cudss: Cudss, p: Any) -> None:
    P = pattern(p)
    F = P.factorize(p.values, engine="cudss_hybrid")
    assert F.info.engine == "cudss_hybrid"
    b = vector(p.n, 2)
    torch.testing.assert_close(F.solve(b).cpu(), torch.linalg.solve(p.dense.cpu(), b.cpu()))
    limits = [
        one[native.Config.HYBRID_DEVICE_MEMORY_LIMIT]
        for one in cudss.objects.values()
        if isinstance(one, dict)
    ]
    assert any(limit >= 4096 for limit in limits)


def test_streams_wait_for_each_other(cudss: Cudss) -> None:
    F = pattern(SPD).factorize(SPD.values)
    side = simulated_gpu.Stream(number=7)
    with simulated_gpu.module.stream(side):
        x = F.solve(vector(SPD.n))
    torch.testing.assert_close(SPD.dense.cpu() @ x.cpu(), vector(SPD.n).cpu())
    assert 0 in side.waited_for  # the stream to which the factor belongs


def test_no_memory_is_an_error_that_says_so(cudss: Cudss, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_gpu.Module, "out_of_memory", True)
    with pytest.raises(ss.EngineError, match=r"ALLOC_FAILED.*tried to allocate"):
        pattern(SPD).factorize(SPD.values)
    monkeypatch.setattr(simulated_gpu.Module, "out_of_memory", False)
    x = pattern(SPD).solve(SPD.values, vector(SPD.n))
    torch.testing.assert_close(SPD.dense.cpu() @ x.cpu(), vector(SPD.n).cpu())


def test_idle_memory_makes_room(cudss: Cudss) -> None:
    """Where there is no memory for a factor, that of dead ones is given back, and it is tried again."""
    kept = pattern(GENERAL).factorize(GENERAL.values)
    F = pattern(SPD).factorize(SPD.values, assume="spd")
    del F
    cudss.fail["Execute"] = native.ALLOC_FAILED
    x = pattern(SPD).solve(SPD.values, vector(SPD.n), assume="spd")
    torch.testing.assert_close(SPD.dense.cpu() @ x.cpu(), vector(SPD.n).cpu())
    assert [phase for phase, _ in cudss.phases].count(Phase.ANALYSIS) >= 3
    torch.testing.assert_close(
        GENERAL.dense.cpu() @ kept.solve(vector(GENERAL.n)).cpu(), vector(GENERAL.n).cpu()
    )


@pytest.mark.parametrize(
    "function", ["Create", "SetDeviceMemHandler", "ConfigCreate", "ConfigSet", "DataCreate", "MatrixCreateCsr",
                 "MatrixCreateDn", "SetStream", "Execute", "DataGet", "MatrixSetValues"],
)  # fmt: skip
def test_every_status_is_looked_at(cudss: Cudss, function: str) -> None:
    cudss.fail[function] = 6
    with pytest.raises(ss.EngineError, match=rf"cudss{function}\b.*INTERNAL_ERROR"):
        pattern(SPD).factorize(SPD.values, assume="spd")
    x = pattern(SPD).solve(SPD.values, vector(SPD.n))  # and no harm is done
    torch.testing.assert_close(SPD.dense.cpu() @ x.cpu(), vector(SPD.n).cpu())


def test_threads_take_turns(cudss: Cudss) -> None:
    P, wrong = pattern(SPD), []

    def work(k: int) -> None:
        for _ in range(5):
            x = P.solve(SPD.values * k, vector(SPD.n), assume="spd")
            if not torch.allclose(k * (SPD.dense.cpu() @ x.cpu()), vector(SPD.n).cpu()):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def deferred(
    p: Any, values: torch.Tensor, b: torch.Tensor, P: ss.Pattern | None = None, **options: Any
) -> torch.Tensor:
    return (P or pattern(p)).solve(values, b, assume=p.kind, non_blocking=True, **options)


@pytest.fixture
def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the device was given is ever finished by itself."""
    monkeypatch.setattr(simulated_gpu.Module, "finished", False)


@pytest.mark.usefixtures("_late")
@pytest.mark.parametrize("kind", ["spd", "symmetric", "general"])
def test_a_deferred_solve_does_not_wait(cudss: Cudss, kind: str) -> None:
    p = problem(kind, torch.float64).to(DEVICE)
    b, P = vector(p.n, 2).requires_grad_(), pattern(p)
    torch.autograd.grad(deferred(p, p.values, b, P).sum(), b)  # after the analysis, and the maps
    before = simulated_gpu.synchronisations()
    values = (2 * p.values).requires_grad_()
    x = deferred(p, values, b, P)
    bars = torch.autograd.grad(x, (values, b), torch.ones_like(x))
    y = deferred(p, values.detach(), b.detach(), P, transpose=True)
    assert simulated_gpu.synchronisations() == before
    ss.synchronize()
    dense = 2 * p.dense.cpu()
    torch.testing.assert_close(x.detach().cpu(), torch.linalg.solve(dense, b.detach().cpu()))
    torch.testing.assert_close(y.cpu(), torch.linalg.solve(dense.mT, b.detach().cpu()))
    expected = pattern(p).solve(values, b, assume=p.kind, engine="superlu")  # type: ignore[arg-type]
    for mine, other in zip(
        bars, torch.autograd.grad(expected, (values, b), torch.ones_like(x)), strict=True
    ):
        torch.testing.assert_close(mine.cpu(), other.cpu())


@pytest.mark.usefixtures("_late")
def test_deferred_errors_are_raised_later_and_solutions_are_nan(cudss: Cudss) -> None:
    n, good, b = SPD.n, SPD.values, vector(SPD.n)
    asymmetric = good.clone()
    asymmetric[1] += 1.0
    is_diagonal = SPD.rows == SPD.cols
    nan_b = torch.where(torch.arange(n).to(DEVICE) == 3, torch.nan, b)
    cases = [
        (ss.NonFiniteError, "values are not finite", good * torch.nan, b),
        (ss.NotSymmetricError, "not symmetric", asymmetric, b),
        (ss.NotPositiveDefiniteError, "a diagonal entry is not positive", -good, b),
        (
            ss.NotPositiveDefiniteError,
            "or it is singular",
            torch.where(is_diagonal, 0.1 * good, good),
            b,
        ),
        (ss.NonFiniteError, "b is not finite", good, nan_b),
    ]
    for error, words, values, right in cases:
        x = deferred(SPD, values, right)
        assert x.cpu().isnan().all()
        with pytest.raises(error, match=words):
            ss.synchronize()
        ss.synchronize()  # each is raised once
    zeros = torch.zeros_like(GENERAL.values)
    assert deferred(GENERAL, zeros, vector(GENERAL.n)).cpu().isnan().all()
    with pytest.raises(ss.SingularMatrixError, match="singular to working precision"):
        ss.synchronize()


def test_a_deferred_error_is_raised_by_the_next_deferred_solve(cudss: Cudss) -> None:
    deferred(SPD, -SPD.values, vector(SPD.n))
    with pytest.raises(ss.NotPositiveDefiniteError):
        deferred(SPD, SPD.values, vector(SPD.n))
    ss.synchronize()


def test_in_a_deferred_batch_the_others_are_solved(cudss: Cudss) -> None:
    values = torch.stack((SPD.values, -SPD.values, 3 * SPD.values))
    x = deferred(SPD, values, vector(3, SPD.n, 2)).cpu()
    assert x[1].isnan().all()
    torch.testing.assert_close(
        x[2], torch.linalg.solve(3 * SPD.dense.cpu(), vector(3, SPD.n, 2).cpu()[2])
    )
    assert x[0].isfinite().all()
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.synchronize()


def test_what_deferred_solves_cannot_do() -> None:
    p = problem("spd", torch.float64)
    b = rhs(p.n, dtype=torch.float64)
    with pytest.raises(ss.OptionError, match="say assume="):
        pattern(p).solve(p.values, b, non_blocking=True)
    with pytest.raises(ss.OptionError, match="check='later'"):
        pattern(p).solve(p.values, b, check="later")  # type: ignore[arg-type]
    with pytest.raises(ss.NotPositiveDefiniteError):  # on the CPU nothing is deferred
        pattern(p).solve(-p.values, b, assume="spd", non_blocking=True)


@pytest.mark.parametrize("kind", ["spd", "symmetric", "general"])
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scales_beyond_single_precision(cudss: Cudss, kind: str, scale: float) -> None:
    p = problem(kind, torch.float64).to(DEVICE)
    x = pattern(p).solve(p.values * scale, vector(p.n) * scale, assume=kind)  # type: ignore[arg-type]
    torch.testing.assert_close(x.cpu(), torch.linalg.solve(p.dense.cpu(), vector(p.n).cpu()))


def solved(p: Any, x: torch.Tensor, factor: float = 1.0) -> None:
    """Checks that x solves p's system, its values times a factor, with `vector` on the right."""
    torch.testing.assert_close(factor * (p.dense.cpu() @ x.cpu()), vector(p.n).cpu())


@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_bad_values_are_not_those_that_rows_are_matched_by(cudss: Cudss, bad: float) -> None:
    P = pattern(GENERAL)
    deferred(GENERAL, GENERAL.values * bad, vector(GENERAL.n), P)
    with pytest.raises((ss.NonFiniteError, ss.SingularMatrixError)):
        ss.synchronize()
    assert not cudss.matched
    for factor in (1.0, 3.0):
        solved(GENERAL, deferred(GENERAL, GENERAL.values * factor, vector(GENERAL.n), P), factor)
    ss.synchronize()
    assert len(cudss.matched) == 1


def test_a_matching_that_fails_is_tried_again_by_the_next_deferred_solve(cudss: Cudss) -> None:
    cudss.refuse = lambda phase, number: 5 if (phase, number) == (Phase.ANALYSIS, 2) else 0
    P = pattern(GENERAL)
    deferred(GENERAL, GENERAL.values, vector(GENERAL.n), P)
    with pytest.raises(
        ss.SingularMatrixError, match="or too badly scaled"
    ):  # without exchanges of rows
        ss.synchronize()
    solved(GENERAL, deferred(GENERAL, GENERAL.values, vector(GENERAL.n), P))
    ss.synchronize()


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_rows_are_matched_by_the_values_that_are_factored(cudss: Cudss, scale: float) -> None:
    pattern(GENERAL).factorize(GENERAL.values * scale)
    for values in (*cudss.matched, *(values for values, _ in cudss.factored)):
        assert 0.5 <= abs(values).max() < 1


def test_a_better_analysis_that_fails_leaves_singular_matrices_singular(cudss: Cudss) -> None:
    cudss.refuse = lambda phase, number: 4 if phase == Phase.ANALYSIS and number > 1 else 0
    edges, n = grid(4)
    rows, cols = (index.to(DEVICE) for index in laplacian_places(edges, n))
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n, anchor=0.0).to(
        DEVICE
    )
    with pytest.raises(ss.SingularMatrixError):
        ss.Pattern(rows, cols, (n, n)).solve(values, vector(n), assume="symmetric")
    ss.clear_cache()
    cudss.phases.clear()
    at = torch.stack((torch.arange(9), torch.arange(9).roll(1))).to(
        DEVICE
    )  # a cycle, of which no pivot is there
    with pytest.raises(
        ss.EngineUnsupportedError, match="NOT_SUPPORTED"
    ):  # what it failed on, where it is needed
        ss.Pattern(*at, (9, 9)).factorize(
            torch.ones(9, dtype=torch.float64).to(DEVICE), assume="general"
        )


def test_each_stream_has_a_handle(cudss: Cudss) -> None:
    P = pattern(SPD)
    kept = []
    for number in (0, 7, 0, 9):
        with simulated_gpu.module.stream(simulated_gpu.Stream(number=number)):
            kept += [P.factorize(SPD.values), P.factorize(SPD.values)]
            solved(SPD, kept[-1].solve(vector(SPD.n)))
    handles = [one for one in cudss.objects.values() if isinstance(one, _Handle)]
    assert sorted(one.stream or 0 for one in handles) == [0, 7, 9]
    kept.clear()
    ss.clear_cache()
    assert cudss.live(_Handle) == 0


def test_a_factor_that_another_stream_made_is_waited_for_and_kept(
    cudss: Cudss, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[int, int]] = []
    record = lambda self, stream: kept.append((id(self), stream.cuda_stream))  # noqa: E731
    monkeypatch.setattr(simulated_gpu.SimulatedTensor, "record_stream", record)
    structure, side = structure_of(SPD.rows, SPD.cols, SPD.shape), simulated_gpu.Stream(number=7)
    symbolic = engine_named("cudss").analyze(structure, "spd", torch.float64, None)
    symbolic.factor(pending_errors.Matrix(structure, SPD.values))  # leaves an idle workspace on stream 0
    with simulated_gpu.module.stream(side):
        factor: Any = symbolic.factor_ahead(pending_errors.Matrix(structure, SPD.values))  # type: ignore[attr-defined]
    assert (id(factor._workspace._values), 0) in kept
    x = factor.solve(vector(1, SPD.n), False)
    solved(SPD, x[0])
    assert {(id(factor.values), 0), (id(factor._scales), 0)} <= set(kept)


def test_nothing_idle_is_forgotten(cudss: Cudss) -> None:
    """Of the patterns used last a few keep memory; a factor that outlived that of its pattern leaves none."""
    patterns = [
        ss.Pattern(*(index.to(DEVICE) for index in laplacian_places(*grid(k))), (k * k, k * k))
        for k in range(3, 10)
    ]

    def factorized(P: ss.Pattern, k: int) -> ss.Factorization:
        edges, n = grid(k)
        return P.factorize(
            laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n).to(DEVICE),
            assume="spd",
        )

    oldest = factorized(patterns[0], 3)
    for k, P in enumerate(patterns[1:], 4):
        factorized(P, k)
    assert cudss.live(_Data) == 5
    del oldest
    assert cudss.live(_Data) == 4
    ss.clear_cache()
    assert cudss.live(_Data) == 0


@pytest.mark.parametrize("check", ["sync", "deferred"])
@pytest.mark.parametrize("phase", [Phase.ANALYSIS, Phase.FACTORIZATION, Phase.SOLVE])
def test_idle_memory_makes_room_for_every_phase(cudss: Cudss, check: Any, phase: Phase) -> None:
    pattern(GENERAL).factorize(GENERAL.values)
    refused = []

    def refuse(now: Phase, number: int) -> int:
        if now != phase or refused:
            return 0
        refused.append(cudss.live(_Data))
        return native.ALLOC_FAILED

    cudss.refuse = refuse
    solved(SPD, pattern(SPD).solve(SPD.values, vector(SPD.n), assume="spd", check=check))
    ss.synchronize()
    assert len(refused) == 1
    assert cudss.live(_Data) < refused[0] + (phase != Phase.SOLVE)


def test_a_factorisation_does_not_rest_on_one_that_failed(cudss: Cudss) -> None:
    P, is_diagonal = pattern(SPD), SPD.rows == SPD.cols
    indefinite = torch.where(is_diagonal, 0.3 * SPD.values, SPD.values)
    deferred(SPD, indefinite, vector(SPD.n), P)
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.synchronize()
    solved(SPD, deferred(SPD, SPD.values, vector(SPD.n), P))
    assert Phase.REFACTORIZATION not in [phase for phase, _ in cudss.phases]


def test_a_status_may_tell_that_a_matrix_is_not_positive_definite(cudss: Cudss) -> None:
    cudss.fails_early = True
    indefinite = torch.where(SPD.rows == SPD.cols, 0.3 * SPD.values, SPD.values)
    assert pattern(SPD).factorize(indefinite).info.assume == "symmetric"
    with pytest.raises(ss.NotPositiveDefiniteError):
        pattern(SPD).factorize(indefinite, assume="spd")


def test_what_cannot_be_positive_definite_is_not_scaled_to_infinity(cudss: Cudss) -> None:
    at = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]).to(DEVICE)
    values = torch.tensor([1e-38, 1.0, 1.0, 1e-38]).to(DEVICE)
    F = ss.Pattern(*at, (2, 2)).factorize(values)
    assert F.info.assume == "symmetric"
    torch.testing.assert_close(
        F.solve(torch.tensor([2.0, 3.0]).to(DEVICE)).cpu(), torch.tensor([3.0, 2.0])
    )
    assert all(abs(seen).max() <= 1 for seen, _ in cudss.factored)


def test_a_handle_that_cannot_be_set_up_is_destroyed(cudss: Cudss) -> None:
    cudss.fail["SetDeviceMemHandler"] = 6
    with pytest.raises(ss.EngineError):
        pattern(SPD).factorize(SPD.values)
    assert cudss.live(_Handle) == 0


def test_cores_of_the_host_are_not_needed(cudss: Cudss) -> None:
    library: Any = engine_named("cudss").analyze.__globals__["cudss_library"]()
    library.threading_layer = "/somewhere/libcudss_mtlayer_gomp.so.1"
    cudss.fail["SetThreadingLayer"] = 6
    solved(SPD, pattern(SPD).solve(SPD.values, vector(SPD.n)))
    assert not cudss.fail


def test_what_cannot_be_destroyed_is_not_the_next_ones_problem(cudss: Cudss) -> None:
    def destroy() -> None:
        raise RuntimeError("the device is gone")

    _workspace._dead.append(destroy)
    solved(SPD, pattern(SPD).solve(SPD.values, vector(SPD.n)))
    assert not _workspace._dead


def test_each_workspace_has_a_limit_of_its_own(
    cudss: Cudss, monkeypatch: pytest.MonkeyPatch
) -> None:
    P, kept = pattern(SPD), []
    for gigabytes in (1, 2):
        monkeypatch.setattr(
            simulated_gpu.Module, "mem_get_info", lambda *_, free=gigabytes: (free * 2**30, 2**40)
        )
        kept.append(P.factorize(SPD.values, engine="cudss_hybrid", assume="spd"))
    del kept[0]
    P.factorize(SPD.values, engine="cudss_hybrid", assume="spd")  # in the memory of the first
    first, second, third = (limit for _, limit in cudss.factored)
    assert first == third < second


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_of_two(dtype: torch.dtype) -> None:
    tiny, largest = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    sizes = torch.tensor(
        [0.0, -1.0, 1.0, 0.75, 3.0, tiny, 4 * tiny, largest / 4, 1e30, float("inf")], dtype=dtype
    )
    powers = scaling_power(sizes)
    assert powers[:2].tolist() == [1, 1]
    product = powers[2:-1] * sizes[2:-1]
    assert ((product >= 0.5) & (product <= 1)).all()
    assert (torch.frexp(powers)[0] == 0.5).all()


def test_a_verdict_is_there_for_all_threads(cudss: Cudss, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread looks whether it is final, another one that waits for it does not miss it."""
    asked, here = threading.Event(), threading.get_ident()

    def query(self: object) -> bool:
        if threading.get_ident() != here:
            asked.set()
            threading.Event().wait(0.2)
            return False
        return True

    deferred(SPD, -SPD.values, vector(SPD.n))
    monkeypatch.setattr(simulated_gpu.Event, "query", query)
    thread = threading.Thread(target=pending_errors.raise_finished)
    thread.start()
    asked.wait()
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.synchronize()
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_leaves_verdicts_alone(cudss: Cudss) -> None:
    deferred(SPD, SPD.values, vector(SPD.n))
    child = os.fork()
    if child == 0:
        os._exit(0 if not pending_errors._pending and len(pending_errors._abandoned) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(pending_errors._pending) == 1
    ss.synchronize()


def test_zeros_in_a_batch_are_not_what_rows_are_matched_by(cudss: Cudss) -> None:
    P, v, b = pattern(GENERAL), GENERAL.values, vector(2, GENERAL.n, 1)
    deferred(GENERAL, torch.stack((v, 0 * v)), b, P)
    with pytest.raises(ss.SingularMatrixError):
        ss.synchronize()
    x = deferred(GENERAL, torch.stack((v, v)), b, P)
    ss.synchronize()
    torch.testing.assert_close(x[1].cpu(), torch.linalg.solve(GENERAL.dense.cpu(), b[1].cpu()))


@pytest.mark.parametrize("status", [4, 5])
def test_a_matching_that_always_fails_is_given_up(cudss: Cudss, status: int) -> None:
    p, b = SPD, vector(SPD.n)  # which needs none
    cudss.refuse = lambda phase, number: status if phase == Phase.ANALYSIS and number > 1 else 0
    P = pattern(p)
    for _ in range(2):
        P.solve(p.values, b, assume="general", non_blocking=True)
    phases, before = len(cudss.phases), simulated_gpu.synchronisations()
    P.solve(p.values, b, assume="general", non_blocking=True)
    assert Phase.ANALYSIS not in [phase for phase, _ in cudss.phases[phases:]]
    assert simulated_gpu.synchronisations() == before
    ss.synchronize()


def test_no_memory_for_a_matching_is_not_a_singular_matrix(cudss: Cudss) -> None:
    cudss.refuse = lambda phase, number: (
        native.ALLOC_FAILED if phase == Phase.ANALYSIS and number > 1 else 0
    )
    with pytest.raises(ss.EngineError, match="ALLOC_FAILED") as caught:
        deferred(GENERAL, GENERAL.values, vector(GENERAL.n))
    assert caught.value.out_of_memory


def test_a_failed_second_try_keeps_nothing(cudss: Cudss) -> None:
    cudss.refuse = lambda phase, number: 5 if phase == Phase.ANALYSIS and number > 1 else 0
    at = torch.stack((torch.arange(9), torch.arange(9).roll(1))).to(DEVICE)
    P = ss.Pattern(*at, (9, 9))
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ss.EngineError):
            P.factorize(torch.ones(9, dtype=torch.float64).to(DEVICE), assume="general")
        ss.clear_cache()
        assert cudss.live(_Data) == 0
    finally:
        gc.enable()


def test_a_status_for_a_pivot_is_deferred_too(cudss: Cudss) -> None:
    cudss.fails_early = True
    indefinite = torch.where(SPD.rows == SPD.cols, 0.3 * SPD.values, SPD.values)
    assert deferred(SPD, indefinite, vector(SPD.n)).cpu().isnan().all()
    with pytest.raises(ss.NotPositiveDefiniteError):
        ss.synchronize()


def test_an_error_number_is_not_a_status(cudss: Cudss, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two is the status for memory that is not there."""
    monkeypatch.setattr(Factored, "problem", 2)
    with pytest.raises(ss.EngineError, match="error 2 of the factorisation") as caught:
        pattern(GENERAL).factorize(GENERAL.values, assume="general")
    assert not caught.value.out_of_memory
    assert [phase for phase, _ in cudss.phases] == [Phase.ANALYSIS, Phase.FACTORIZATION]


def test_descriptors_are_kept_one_by_one(cudss: Cudss) -> None:
    made = cudss.made_before_failing = [1]
    with pytest.raises(ss.EngineError, match="cudssMatrixCreateDn"):
        pattern(SPD).factorize(SPD.values, assume="spd")
    assert made == [0]
    ss.clear_cache()
    assert cudss.live(Dense) == 0


def test_waiting_ends_with_what_was_there(cudss: Cudss, monkeypatch: pytest.MonkeyPatch) -> None:
    P = pattern(SPD)
    deferred(SPD, SPD.values, vector(SPD.n), P)
    error, more = pending_errors._Verdict.error, iter(range(3))

    def submitting(verdict: Any) -> Any:
        for _ in more:
            deferred(SPD, SPD.values, vector(SPD.n), P)
            break
        return error(verdict)

    monkeypatch.setattr(pending_errors._Verdict, "error", submitting)
    monkeypatch.setattr(simulated_gpu.Module, "finished", False)
    ss.synchronize()
    assert len(pending_errors._pending) == 1
    monkeypatch.undo()
    ss.synchronize()
