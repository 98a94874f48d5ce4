"""Tensors that are not in the memory of the CPU, tried on a GPU that is simulated; `test_engines.py` has the contract."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator

import pytest
import torch
from problems import problem, rhs
from simulated_gpu import DEVICE, synchronisations

import sparse_solver as ss
from sparse_solver._factor import factors as _factors

P5 = problem("spd", torch.float64, n=5)
HERE, THERE = ss.Pattern(P5.rows, P5.cols, P5.shape), P5.to(DEVICE)


@pytest.fixture(autouse=True)
def _warned() -> Iterator[None]:
    """Each test starts as a process that has not been warned yet."""
    _factors._warn_of_host.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def on_device() -> ss.Pattern:
    return ss.Pattern(THERE.rows, THERE.cols, P5.shape)


def test_one_warning_names_the_package_that_is_missing() -> None:
    b = rhs(5, dtype=torch.float64).to(DEVICE)
    with pytest.warns(UserWarning, match="solved by the CPU"):
        on_device().solve(THERE.values, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_device().solve(THERE.values, b)


def test_an_engine_for_the_cpu_that_was_asked_for_serves_other_devices_silently() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F = on_device().factorize(THERE.values, engine="superlu")
    assert F.info.device == "cpu"
    b = rhs(5, dtype=torch.float64)
    x = F.solve(b.to(DEVICE))
    assert x.device == DEVICE
    torch.testing.assert_close(x.cpu(), torch.linalg.solve(P5.dense, b))


def test_indices_values_and_right_hand_sides_must_be_on_one_device() -> None:
    b = rhs(5, dtype=torch.float64)
    with pytest.raises(ss.DeviceError, match="indices are on gpu:0 and on cpu"):
        ss.Pattern(THERE.rows, P5.cols, P5.shape)
    with pytest.raises(ss.DeviceError, match="values are on cpu, the pattern is on gpu:0"):
        on_device().solve(P5.values, b)
    with pytest.raises(ss.DeviceError, match="the matrix is on gpu:0, b is on cpu"):
        on_device().solve(THERE.values, b)
    with pytest.raises(ss.DeviceError, match="indices are on cpu and on gpu:0"):
        ss.QuadraticProgram(HERE, torch.tensor([0]).to(DEVICE))


def test_patterns_of_two_devices_are_two() -> None:
    assert on_device()._structure is on_device()._structure
    assert on_device()._structure is not HERE._structure


def test_values_are_copied_to_the_host_once() -> None:
    F = on_device().factorize(THERE.values, engine="superlu")
    b = rhs(5, dtype=torch.float64).to(DEVICE)
    before = synchronisations()
    x = F.solve(b)
    assert synchronisations() == before + 1  # for b
    torch.testing.assert_close(x.cpu(), torch.linalg.solve(P5.dense, b.cpu()))


def test_singular_and_indefinite_matrices_raise_what_they_raise_on_the_cpu() -> None:
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


@pytest.mark.parametrize("known", [False, True])
def test_quadratic_programs(known: bool) -> None:
    C = ss.Pattern(torch.tensor([0, 0]), torch.tensor([1, 2]), (1, 5))
    C_there = ss.Pattern(C.rows.to(DEVICE), C.cols.to(DEVICE), (1, 5))
    fixed = torch.tensor([4]) if known else None
    y = torch.tensor([2.0]).double() if known else None
    C_values, d = torch.ones(2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    here = ss.QuadraticProgram(HERE, fixed, C).solve(P5.values, None, y, C_values, d)
    there = ss.QuadraticProgram(on_device(), None if fixed is None else fixed.to(DEVICE), C_there)
    x = there.solve(
        THERE.values, None, None if y is None else y.to(DEVICE), C_values.to(DEVICE), d.to(DEVICE)
    )
    assert x.device == DEVICE
    torch.testing.assert_close(x.cpu(), here)


def test_constraints_that_contradict_each_other_are_named() -> None:
    rows, cols = torch.tensor([0, 1]).to(DEVICE), torch.tensor([1, 1]).to(DEVICE)
    program = ss.QuadraticProgram(on_device(), None, ss.Pattern(rows, cols, (2, 5)))
    d = torch.tensor([1.0, 2.0]).double().to(DEVICE)
    with pytest.raises(ss.InfeasibleConstraintsError) as caught:
        program.solve(THERE.values, None, None, torch.ones_like(d), d)
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
    """Where the first vmap of torch, which is_grads_batched goes by, has not told at which level it is."""
    threads = set()
    b = rhs(5, dtype=torch.float64).to(DEVICE).requires_grad_()
    b.register_hook(lambda g: threads.add(threading.current_thread().ident))
    x = on_device().solve(THERE.values, b)
    (bars,) = torch.autograd.grad(
        x, b, torch.eye(5, dtype=torch.float64).to(DEVICE), is_grads_batched=True
    )
    assert threads != {threading.current_thread().ident}
    torch.testing.assert_close(bars.cpu(), torch.linalg.inv(P5.dense).mT)


def test_what_is_remembered_is_finished() -> None:
    """Another thread, with a stream of its own, may find it at once."""
    structure = on_device()._structure
    before = synchronisations()
    structure.remember("something", lambda: torch.zeros(3, device=DEVICE))
    assert synchronisations() == before + 1
    structure.remember("something", lambda: torch.zeros(3, device=DEVICE))
    assert synchronisations() == before + 1
