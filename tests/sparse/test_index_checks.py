"""Shapes, indices and selections that are refused, and what the errors say."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

import sparse_solver as ss
from sparse_solver._sparse.index_checks import (
    check_compressed_structure,
    check_coo_structure,
    check_shape,
    describe_type,
    select_indices,
)


def test_types_are_described_with_their_conversion() -> None:
    assert describe_type([1]) == "a list"
    assert "torch.from_numpy" in describe_type(np.ones(2))
    csr = scipy.sparse.csr_array(np.eye(2))
    for A in (csr, csr.tocsc(), csr.tocoo(), csr.todia(), csr.tobsr(), csr.tolil(), csr.todok()):
        described = describe_type(A)
        assert "Pattern.from_scipy(A)" in described
        values = eval(re.findall(r"torch\.from_numpy\(.*?\.data\)", described)[0])
        assert ss.Pattern.from_scipy(A).solve(values, torch.ones(2).double()).tolist() == [1, 1]


def test_shapes() -> None:
    assert check_shape(torch.Size((2, 3))) == (2, 3)
    assert check_shape(np.array([2, 3])) == (2, 3)
    for wrong in ((2,), (2, 3, 4), 2, (2.0, 2.0), (-1, 2), "ab"):
        with pytest.raises(ss.ShapeError, match="two sizes"):
            check_shape(wrong)  # type: ignore[arg-type]


def test_an_index_outside_of_the_matrix_is_named_with_its_entry() -> None:
    with pytest.raises(ss.IndexRangeError, match=r"column index 4 \(entry 1\)") as caught:
        check_coo_structure(torch.tensor([0, 1]), torch.tensor([3, 4]), (3, 4))
    assert (caught.value.entry, caught.value.index) == (1, 4)
    for kind in ("csr", "csc"):
        pointers = torch.tensor([0, 1, 2])
        with pytest.raises(ss.IndexRangeError, match="index -1"):
            check_compressed_structure(kind, pointers, torch.tensor([0, -1]), (2, 2))


def test_pointers_and_indices_are_named_as_torch_names_them() -> None:
    pointers, indices = torch.tensor([0, 1, 2]), torch.tensor([0, 1])
    with pytest.raises(ss.IndexRangeError, match=r"ccol_indices is a NumPy array.*from_numpy"):
        check_compressed_structure("csc", pointers.numpy(), indices, (2, 2))  # type: ignore[arg-type]
    with pytest.raises(ss.IndexRangeError, match=r"col_indices is torch\.float32"):
        check_compressed_structure("csr", pointers, indices.float(), (2, 2))
    with pytest.raises(ss.IndexRangeError, match=r"col_indices has shape \(1, 2\)"):
        check_compressed_structure("csr", pointers, indices.unsqueeze(0), (2, 2))
    with pytest.raises(ss.IndexRangeError, match="2 row pointers for 2 rows"):
        check_compressed_structure("csr", pointers[1:], indices, (2, 2))


def test_valid_indices_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, cols = torch.tensor([0, 1]), torch.tensor([1, 0])
    first = check_coo_structure(rows, cols, (2, 2))
    monkeypatch.setattr("sparse_solver._sparse.index_checks.check_range", None)
    assert check_coo_structure(rows.clone(), cols.clone(), (2, 2)) is first


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (torch.tensor([3, 1]), [3, 1]),
        (torch.tensor([3, 1], dtype=torch.int32), [3, 1]),
        (torch.tensor([False, True, False, True]), [1, 3]),
        (torch.tensor([], dtype=torch.int64), []),
    ],
)
def test_selections_by_indices_or_a_mask(chosen: Tensor, expected: list[int]) -> None:
    found = select_indices("fixed", chosen, 4, "rows")
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    assert not found.numel() or found.data_ptr() != chosen.data_ptr()


@pytest.mark.parametrize(
    ("chosen", "error", "words"),
    [
        ([1, 2], ss.IndexRangeError, "fixed is a list"),
        (np.array([1]), ss.IndexRangeError, "torch.from_numpy"),
        (torch.tensor([1.0]), ss.IndexRangeError, "torch.float32"),
        (torch.tensor([[1]]), ss.IndexRangeError, r"of shape \(1, 1\)"),
        (torch.tensor([True]), ss.ShapeError, "a mask of 1 entries for a matrix with 4 rows"),
        (torch.tensor([4]), ss.IndexRangeError, r"fixed index 4 \(entry 0\)"),
        (torch.tensor([2, 1, 2]), ss.IndexRangeError, "fixed has the entry 2 twice"),
    ],
)
def test_selections_that_are_refused(chosen: Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        select_indices("fixed", chosen, 4, "rows")


class Elsewhere(Tensor):
    """A tensor that has no memory of its own, as a DTensor."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, layout=inner.layout
        )
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{operator} was called")


def test_tensors_without_memory_are_refused() -> None:
    """Native libraries would read from address zero."""
    i, ones = torch.arange(3), torch.ones(3, dtype=torch.float64)
    P = ss.Pattern(i, i, (3, 3))
    F, A = P.factorize(ones), P.tensor(ones)
    for call in (
        lambda: P.solve(Elsewhere(ones), ones),
        lambda: P.solve(ones, Elsewhere(ones)),
        lambda: P.factorize(Elsewhere(ones)),
        lambda: P.tensor(Elsewhere(ones)),
        lambda: P.logdet(Elsewhere(ones)),
        lambda: F.solve(Elsewhere(ones)),
        lambda: F.solve_factor(Elsewhere(ones)),
        lambda: ss.solve(A, Elsewhere(ones)),
        lambda: ss.solve(Elsewhere(A), ones),
        lambda: ss.Pattern(Elsewhere(i), i, (3, 3)),
        lambda: ss.Pattern.from_csr(torch.arange(4), Elsewhere(i), (3, 3)),
        lambda: ss.minimize_quadratic(A, Elsewhere(ones)),
    ):
        with pytest.raises(ss.LayoutError, match="Elsewhere, whose memory"):
            call()
