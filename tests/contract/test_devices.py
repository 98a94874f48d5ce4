"""Tensors on other devices than the CPU, tested on a simulated GPU."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator

import pytest
import simulated_gpu
import torch
from problems import problem, rhs
from simulated_gpu import DEVICE, synchronisations

import sparse_solver as ss
from sparse_solver._factor import factors as _factors
from sparse_solver._factor.options import Options
from sparse_solver._factor.problem import Problem
from sparse_solver._solve.shapes import solve_values
from sparse_solver._sparse.structure import Structure
from sparse_solver._sparse.torch_tensors import split_tensor

simulated_gpu.require()

P5 = problem("spd", torch.float64, n=5)
HERE, THERE = ss.Pattern(P5.rows, P5.cols, P5.shape), P5.to(DEVICE)


@pytest.fixture(autouse=True)
def _warned() -> Iterator[None]:
    """Each test starts as if no warning had been given in this process."""
    _factors._warn_of_host.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def on_device() -> ss.Pattern:
    return ss.Pattern(THERE.rows, THERE.cols, P5.shape)


def test_there_is_one_warning_that_the_cpu_solves() -> None:
    b = rhs(5, dtype=torch.float64).to(DEVICE)
    with pytest.warns(UserWarning, match="solved by the CPU"):
        on_device().solve(THERE.values, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_device().solve(THERE.values, b)


def test_an_engine_for_the_cpu_solves_without_a_warning_if_it_was_asked_for() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F = on_device().factorize(THERE.values, engine="superlu")
    assert F.info.device == "cpu"
    b = rhs(5, dtype=torch.float64)
    x = F.solve(b.to(DEVICE))
    assert x.device == DEVICE
    torch.testing.assert_close(x.cpu(), torch.linalg.solve(P5.dense, b))


def test_values_and_right_hand_sides_must_be_on_one_device() -> None:
    b = rhs(5, dtype=torch.float64)
    with pytest.raises(ss.DeviceError, match="indices are on gpu:0 and on cpu"):
        ss.Pattern(THERE.rows, P5.cols, P5.shape)
    with pytest.raises(ss.DeviceError, match="the matrix is on gpu:0, b is on cpu"):
        on_device().solve(THERE.values, b)
    with pytest.raises(ss.DeviceError, match="the matrix is on gpu:0, b is on cpu"):
        HERE.factorize(THERE.values).solve(b)


@pytest.mark.parametrize("made_on", ["cpu", "gpu"])
@pytest.mark.parametrize("values_on", ["cpu", "gpu"])
def test_a_pattern_is_solved_where_the_values_are(made_on: str, values_on: str) -> None:
    P = HERE if made_on == "cpu" else on_device()
    b, x_bar = rhs(5, 2, dtype=torch.float64), rhs(5, 2, dtype=torch.float64, seed=3)
    device = torch.device("cpu") if values_on == "cpu" else DEVICE
    values, b_there = P5.values.to(device).requires_grad_(), b.to(device)
    x = P.solve(values, b_there)
    (values_bar,) = torch.autograd.grad(x, values, x_bar.to(device))
    assert x.device == values_bar.device == P.tensor(values).device == device
    here = P5.values.clone().requires_grad_()
    expected = HERE.solve(here, b)
    torch.testing.assert_close(x.cpu(), expected)
    (expected_bar,) = torch.autograd.grad(expected, here, x_bar)
    torch.testing.assert_close(values_bar.cpu(), expected_bar)
    torch.testing.assert_close(P.factorize(values.detach()).solve(b_there).cpu(), expected)


def test_a_pattern_has_one_structure_per_device() -> None:
    structure = on_device()._structure
    assert on_device()._structure is structure
    assert HERE._structure is not structure
    assert HERE._structure.on(DEVICE) is HERE._structure.on(DEVICE)
    assert HERE._structure.on(HERE._structure.device) is HERE._structure


def test_values_are_copied_to_the_host_once() -> None:
    F = on_device().factorize(THERE.values, engine="superlu")
    b = rhs(5, dtype=torch.float64).to(DEVICE)
    before = synchronisations()
    x = F.solve(b)
    assert synchronisations() == before + 2  # for b, and for x
    torch.testing.assert_close(x.cpu(), torch.linalg.solve(P5.dense, b.cpu()))


def test_singular_and_indefinite_matrices_raise_the_same_errors_as_on_the_cpu() -> None:
    b = rhs(5, dtype=torch.float64).to(DEVICE)
    with pytest.raises(ss.SingularMatrixError):
        on_device().solve(0 * THERE.values, b)
    with pytest.raises(ss.NotPositiveDefiniteError):
        on_device().solve(-THERE.values, b, assume="spd")
    with pytest.raises(ss.NonFiniteError, match=r"values\[0\] is nan"):
        on_device().solve(THERE.values * torch.nan, b)


def test_a_batch_and_its_gradients() -> None:
    values = torch.stack((P5.values, 3 * P5.values))
    b = rhs(2, 5, 3, dtype=torch.float64)
    here, there = (v.requires_grad_() for v in (values, values.detach().to(DEVICE)))
    x = on_device().solve(there, b.to(DEVICE))
    expected = HERE.solve(here, b)
    torch.testing.assert_close(x.cpu(), expected)
    x_bar = rhs(2, 5, 3, dtype=torch.float64, seed=3)
    (bar,) = torch.autograd.grad(x, there, x_bar.to(DEVICE))
    torch.testing.assert_close(bar.cpu(), torch.autograd.grad(expected, here, x_bar)[0])


@pytest.mark.parametrize("has_fixed", [False, True])
def test_quadratic_programs(has_fixed: bool) -> None:
    C = ss.Pattern(torch.tensor([0, 0]), torch.tensor([1, 2]), (1, 5))
    C_values, d = torch.ones(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    fixed, y = (torch.tensor([4]), torch.tensor([2.0]).double()) if has_fixed else (None, None)
    program = ss.QuadraticProgram(HERE, fixed=fixed, C=C)
    expected = program.solve(P5.values, fixed_values=y, C_values=C_values, d=d)
    C_there = ss.Pattern(C.rows.to(DEVICE), C.cols.to(DEVICE), (1, 5))
    fixed, y = (None if one is None else one.to(DEVICE) for one in (fixed, y))
    program = ss.QuadraticProgram(on_device(), fixed=fixed, C=C_there)
    given = {"C_values": C_values.to(DEVICE), "d": d.to(DEVICE)}
    x = program.solve(THERE.values, fixed_values=y, **given)
    assert x.device == DEVICE
    torch.testing.assert_close(x.cpu(), expected)


def test_the_error_names_constraints_that_contradict_each_other() -> None:
    rows, cols = torch.tensor([0, 1]).to(DEVICE), torch.tensor([1, 1]).to(DEVICE)
    program = ss.QuadraticProgram(on_device(), C=ss.Pattern(rows, cols, (2, 5)))
    d = torch.tensor([1.0, 2.0]).double().to(DEVICE)
    with pytest.raises(ss.InfeasibleConstraintsError) as caught:
        program.solve(THERE.values, C_values=torch.ones_like(d), d=d)
    assert caught.value.rows == (0, 1)


def test_newtons_method() -> None:
    def spring(x: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        return ((x[1] - x[0]).square().sum() - length) ** 2

    indices, length = torch.tensor([[0, 1], [1, 2]]), torch.tensor([1.0, 2.0]).double()
    x0, fixed = torch.tensor([[0.0, 0.0], [1.0, 0.2], [2.5, 0.0]]).double(), torch.tensor([0, 2])
    here, _ = ss.minimize(ss.IndexedSum(spring, indices, per_term=length), x0, fixed=fixed)
    energy = ss.IndexedSum(spring, indices.to(DEVICE), per_term=length.to(DEVICE))
    there, report = ss.minimize(energy, x0.to(DEVICE), fixed=fixed.to(DEVICE))
    assert report.converged
    torch.testing.assert_close(there.cpu(), here)


def test_the_backward_pass_of_a_device_runs_in_a_thread_of_its_own() -> None:
    """There torch's legacy vmap, which is_grads_batched uses, does not set its level."""
    threads = set()
    b = rhs(5, dtype=torch.float64).to(DEVICE).requires_grad_()
    b.register_hook(lambda g: threads.add(threading.current_thread().ident))
    x = on_device().solve(THERE.values, b)
    (bars,) = torch.autograd.grad(
        x, b, torch.eye(5, dtype=torch.float64).to(DEVICE), is_grads_batched=True
    )
    assert threads != {threading.current_thread().ident}
    torch.testing.assert_close(bars.cpu(), torch.linalg.inv(P5.dense).mT)


def test_remembered_tensors_are_finished() -> None:
    """Another thread, with a stream of its own, may use them at once."""

    def make_zeros(structure: Structure) -> torch.Tensor:
        return torch.zeros(3, device=DEVICE)

    structure = on_device()._structure
    before = synchronisations()
    structure.remember(make_zeros)
    assert synchronisations() == before + 1
    structure.remember(make_zeros)
    assert synchronisations() == before + 1


@pytest.mark.parametrize("made_on", [torch.device("cpu"), DEVICE], ids=str)
def test_batches_with_different_patterns(made_on: torch.device) -> None:
    A = torch.stack((P5.dense, P5.dense.flip(0) + torch.eye(5)))
    places, values = split_tensor(A.to_sparse(), different_patterns=True)
    problem, b = Problem(places.on(made_on), Options()), rhs(2, 5, 3, dtype=torch.float64)
    there = values.to(DEVICE).requires_grad_()
    x = solve_values(problem, there, b.to(DEVICE))
    torch.testing.assert_close(x.cpu(), torch.linalg.solve(A, b))
    (values_bar,) = torch.autograd.grad(x.sum(), there)
    dense = A.clone().requires_grad_()
    (dense_bar,) = torch.autograd.grad(torch.linalg.solve(dense, b).sum(), dense)
    torch.testing.assert_close(values_bar.cpu(), dense_bar[A != 0])
