"""Fixed entries, masks, duplicates, and programs whose values are on another device."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from counting import count
from problems import grid, laplacian_places, laplacian_values
from quadratic_cases import FIXED, Case, M, N
from simulated_gpu import DEVICE

import sparse_solver as ss
from sparse_solver._sparse.values import CPU


def test_nothing_and_everything_fixed() -> None:
    i = torch.arange(3)
    Q = ss.Pattern(i, i, (3, 3))
    ones, y = torch.ones(3), torch.tensor([1.0, 2.0, 3.0])
    x, multipliers = ss.QuadraticProgram(Q, fixed=i).solve(
        ones, ones, fixed_values=y, return_multipliers=True
    )
    assert torch.equal(x, y)
    assert torch.equal(multipliers.fixed, ones - y)
    nothing = ss.QuadraticProgram(Q, fixed=i[:0], C=ss.Pattern(i[:0], i[:0], (0, 3)))
    assert torch.equal(
        nothing.solve(ones, y, fixed_values=ones[:0], C_values=ones[:0], d=ones[:0]), y
    )
    empty = ss.QuadraticProgram(ss.Pattern(i[:0], i[:0], (0, 0)))
    assert empty.solve(ones[:0]).shape == (0,)
    one = ss.QuadraticProgram(ss.Pattern(i[:1], i[:1], (1, 1)), C=ss.Pattern(i[:1], i[:1], (1, 1)))
    assert one.solve(ones[:1], C_values=ones[:1], d=ones[:1]).tolist() == [1.0]


def test_fixed_entries_that_a_row_of_Q_does_not_store() -> None:
    i = torch.tensor([0, 2])
    program = ss.QuadraticProgram(ss.Pattern(i, i, (3, 3)), fixed=torch.tensor([1]))
    assert program.solve(
        torch.ones(2), torch.ones(3), fixed_values=torch.tensor([5.0])
    ).tolist() == [1.0, 5.0, 1.0]


def test_duplicates_int32_and_masks() -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    expected = case.minimize(case.Q_values, b, y, case.C_values, d)
    doubled = ss.QuadraticProgram(
        ss.Pattern(case.rows.repeat(2).int(), case.cols.repeat(2).int(), (N, N)),
        fixed=FIXED.int(),
        C=ss.Pattern(case.C_rows.repeat(2), case.C_cols.repeat(2), (M, N)),
    )
    x = doubled.solve(
        (case.Q_values / 2).repeat(2),
        b,
        fixed_values=y,
        C_values=(case.C_values / 2).repeat(2),
        d=d,
    )
    torch.testing.assert_close(x, expected)
    mask = torch.zeros(N, dtype=torch.bool).index_fill(0, FIXED, True)
    masked = ss.QuadraticProgram(
        ss.Pattern(case.rows, case.cols, (N, N)),
        fixed=mask,
        C=ss.Pattern(case.C_rows, case.C_cols, (M, N)),
    )
    x = masked.solve(case.Q_values, b, fixed_values=y[FIXED.argsort()], C_values=case.C_values, d=d)
    torch.testing.assert_close(x, expected)


def test_many_programs_on_one_pattern_analyse_once(monkeypatch: pytest.MonkeyPatch) -> None:
    edges, n = grid(6)
    rows, cols = laplacian_places(edges, n)
    values = laplacian_values(torch.ones(edges.shape[1], dtype=torch.float64), n)
    Q = ss.Pattern(rows, cols, (n, n))
    programs = [ss.QuadraticProgram(Q, fixed=torch.tensor([k, 0])) for k in range(1, 25)]
    for program in programs:
        program.solve(values)
    counts = count(monkeypatch)
    for program in programs:
        program.solve(values)
    assert counts["analyze"] == 0


@pytest.mark.parametrize("triangle", [None, "lower"])
@pytest.mark.parametrize("devices", list(itertools.product((CPU, DEVICE), repeat=4)), ids=str)
@pytest.mark.filterwarnings("ignore:systems on gpu are solved by the CPU:UserWarning")
def test_values_may_be_on_other_devices_than_the_indices(
    devices: tuple[torch.device, ...], triangle: Any
) -> None:
    case = Case(torch.float64, triangle)
    b, y, d = case.right()
    expected = case.solve(case.Q_values, b, y, case.C_values, d)
    for_Q, for_C, for_fixed, for_values = devices
    case.program = ss.QuadraticProgram(
        ss.Pattern(case.rows.to(for_Q), case.cols.to(for_Q), (N, N)),
        fixed=FIXED.to(for_fixed),
        C=ss.Pattern(case.C_rows.to(for_C), case.C_cols.to(for_C), (M, N)),
        triangle=triangle,
    )
    values = (t.to(for_values) for t in (case.Q_values, b, y, case.C_values, d))
    x, (forces, multipliers) = case.minimize(*values, return_multipliers=True)
    for mine, theirs in zip((x, forces, multipliers), expected, strict=True):
        assert mine.device == for_values
        torch.testing.assert_close(mine.cpu(), theirs)


def test_indices_are_copied_to_a_device_once() -> None:
    indices = Case(torch.float64).program._indices
    assert indices.on(CPU) is indices
    assert indices.on(DEVICE) is indices.on(DEVICE)


def test_values_and_right_hand_sides_must_be_on_one_device() -> None:
    case = Case(torch.float64)
    b, y, d = case.right()
    given = {"b": b, "fixed_values": y, "C_values": case.C_values, "d": d}
    for name in given:
        moved = given | {name: given[name].to(DEVICE)}
        with pytest.raises(ss.DeviceError, match=f"the matrix is on cpu, {name} is on gpu:0"):
            case.program.solve(case.Q_values, **moved)
    with pytest.raises(ss.DeviceError, match="meta"):
        ss.QuadraticProgram(ss.Pattern(case.rows, case.cols, (N, N)), fixed=FIXED.to("meta"))
