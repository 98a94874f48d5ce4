"""Patterns: their constructors, copies, and the tensors that they make."""

from __future__ import annotations

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from problems import problem, rhs
from torch import Tensor

import sparse_solver as ss

P = problem("general", torch.float64)
ORDER = torch.randperm(P.values.numel(), generator=torch.Generator().manual_seed(0))
PATTERN = ss.Pattern(P.rows[ORDER], P.cols[ORDER], P.shape)
VALUES = P.values[ORDER]
LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc]


def test_it_shows_what_it_was_made_of() -> None:
    assert torch.equal(PATTERN.rows, P.rows[ORDER])
    assert torch.equal(PATTERN.cols, P.cols[ORDER])
    assert PATTERN.shape == P.shape
    assert PATTERN.nnz == VALUES.numel()
    assert repr(PATTERN) == f"Pattern(shape=(12, 12), nnz={VALUES.numel()})"
    assert ss.Pattern(P.rows, P.cols, torch.Size(P.shape)).shape == (12, 12)


def saved_and_loaded(item: Any) -> Any:
    file = io.BytesIO()
    torch.save(item, file)
    file.seek(0)
    return torch.load(file)  # weights_only=True is the default


DUPLICATES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda p: pickle.loads(pickle.dumps(p)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("how", DUPLICATES)
def test_copies_and_pickles(how: str) -> None:
    twin = DUPLICATES[how](PATTERN)
    assert isinstance(twin, ss.Pattern)
    assert (twin.shape, twin.nnz, repr(twin)) == (PATTERN.shape, PATTERN.nnz, repr(PATTERN))
    assert torch.equal(twin.cols, PATTERN.cols)
    b = rhs(P.n, dtype=torch.float64)
    assert torch.equal(twin.rows, PATTERN.rows)
    torch.testing.assert_close(twin.solve(VALUES, b), torch.linalg.solve(P.dense, b))


def test_a_pickle_finds_the_analysis_again() -> None:
    PATTERN.solve(VALUES, rhs(P.n, dtype=torch.float64))
    twin = pickle.loads(pickle.dumps(PATTERN))
    other = pickle.loads(pickle.dumps(PATTERN))
    assert twin._structure is other._structure


def test_a_pattern_in_a_state_dict_is_loaded_with_the_defaults_of_torch() -> None:
    loaded = saved_and_loaded({"pattern": PATTERN, "values": VALUES})
    b = rhs(P.n, dtype=torch.float64)
    x = loaded["pattern"].solve(loaded["values"], b)
    torch.testing.assert_close(x, torch.linalg.solve(P.dense, b))


def test_a_module_with_a_pattern_can_be_copied() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pattern = PATTERN
            self.values = torch.nn.Parameter(VALUES.clone())

        def forward(self, b: Tensor) -> Tensor:
            return self.pattern.solve(self.values, b)

    layer, b = Layer(), rhs(P.n, dtype=torch.float64)
    torch.testing.assert_close(copy.deepcopy(layer)(b), layer(b))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_tensor(layout: torch.layout) -> None:
    values = VALUES.clone().requires_grad_()
    A = PATTERN.tensor(values, layout=layout)
    assert A.layout == layout
    with torch.sparse.check_sparse_tensor_invariants():
        A.detach().clone()
    torch.testing.assert_close(A.to_dense(), P.dense)
    weights = rhs(*P.shape, dtype=torch.float64)
    (values_bar,) = torch.autograd.grad((A.to_dense() * weights).sum(), values)
    torch.testing.assert_close(values_bar, weights[PATTERN.rows, PATTERN.cols])
    assert torch.equal(
        ss.Pattern.from_tensor(A).tensor(torch.ones(A._nnz()), layout=layout).to_dense() != 0,
        P.dense != 0,
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_from_values_to_tensor_to_solution_and_back(layout: torch.layout) -> None:
    doubled = ss.Pattern(P.rows.repeat(2), P.cols.repeat(2), P.shape)
    values = (P.values / 2).repeat(2).requires_grad_()
    b = rhs(P.n, dtype=torch.float64)
    by_tensor = torch.autograd.grad(
        ss.solve(doubled.tensor(values, layout=layout), b).square().sum(), values, create_graph=True
    )[0]
    directly = torch.autograd.grad(
        doubled.solve(values, b).square().sum(), values, create_graph=True
    )[0]
    torch.testing.assert_close(by_tensor, directly)
    torch.testing.assert_close(
        torch.autograd.grad(by_tensor.square().sum(), values)[0],
        torch.autograd.grad(directly.square().sum(), values)[0],
    )


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_batches_of_tensors(layout: torch.layout) -> None:
    values = torch.stack((VALUES, 2 * VALUES))
    torch.testing.assert_close(
        PATTERN.tensor(values, layout=layout).to_dense(), torch.stack((P.dense, 2 * P.dense))
    )
    with pytest.raises(ss.LayoutError, match="sparse_csr"):
        PATTERN.tensor(values)


def test_compressed_constructors() -> None:
    A = P.dense.to_sparse_csr()
    from_csr = ss.Pattern.from_csr(A.crow_indices().int(), A.col_indices().int(), P.shape)
    torch.testing.assert_close(from_csr.tensor(A.values()).to_dense(), P.dense)
    A = P.dense.to_sparse_csc()
    from_csc = ss.Pattern.from_csc(A.ccol_indices(), A.row_indices(), P.shape)
    torch.testing.assert_close(from_csc.tensor(A.values()).to_dense(), P.dense)
    assert ss.Pattern.from_tensor(A)._structure is from_csc._structure


def test_tensors_do_not_share_memory_with_the_pattern() -> None:
    b = rhs(P.n, dtype=torch.float64)
    for layout in LAYOUTS:
        A = PATTERN.tensor(VALUES, layout=layout)
        indices = (
            A._indices()
            if layout == torch.sparse_coo
            else (A.col_indices() if layout == torch.sparse_csr else A.row_indices())
        )
        indices.zero_()
        torch.testing.assert_close(PATTERN.tensor(VALUES, layout=layout).to_dense(), P.dense)
        torch.testing.assert_close(PATTERN.solve(VALUES, b), torch.linalg.solve(P.dense, b))


SCIPY = P.dense.numpy()


def duplicated_coo(index: type) -> scipy.sparse.coo_array:
    """Each entry in two halves."""
    rows, cols = (np.tile(i.numpy(), 2).astype(index) for i in (P.rows, P.cols))
    return scipy.sparse.coo_array((np.tile(P.values.numpy() / 2, 2), (rows, cols)), shape=P.shape)


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("format", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
def test_from_scipy(format: str, kind: str, index: type) -> None:
    A = getattr(scipy.sparse, f"{format}_{kind}")(SCIPY)
    for name in ("indices", "indptr", "row", "col"):  # those that the format has
        if isinstance(getattr(A, name, None), np.ndarray):
            setattr(A, name, getattr(A, name).astype(index))
    pattern = ss.Pattern.from_scipy(A)
    assert pattern.shape == P.shape
    stored = A if format in ("csr", "csc", "coo") else A.tocsr()
    values = torch.from_numpy(stored.data).requires_grad_()
    torch.testing.assert_close(pattern.tensor(values.detach()).to_dense(), P.dense)
    b = rhs(P.n, dtype=torch.float64)
    x = pattern.solve(values, b)
    torch.testing.assert_close(x, torch.linalg.solve(P.dense, b))
    x.sum().backward()
    assert values.grad is not None


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_from_scipy_with_duplicates(index: type) -> None:
    A = duplicated_coo(index)
    pattern = ss.Pattern.from_scipy(A)
    assert pattern.nnz == 2 * P.values.numel()
    b = rhs(P.n, dtype=torch.float64)
    x = pattern.solve(torch.from_numpy(A.data), b)
    torch.testing.assert_close(x, torch.linalg.solve(P.dense, b))


def test_from_scipy_copies_the_indices() -> None:
    A, b = scipy.sparse.csr_array(SCIPY), rhs(P.n, dtype=torch.float64)
    pattern, values = ss.Pattern.from_scipy(A), torch.from_numpy(A.data.copy())
    A.indices[:], A.indptr[:] = 0, 0
    torch.testing.assert_close(pattern.solve(values, b), torch.linalg.solve(P.dense, b))
    read_only = scipy.sparse.csr_array(SCIPY)
    for array in (read_only.indices, read_only.indptr):
        array.flags.writeable = False
    assert ss.Pattern.from_scipy(read_only).nnz == P.values.numel()


@pytest.mark.parametrize(
    ("A", "words"),
    [
        (SCIPY, "NumPy array"),
        ([[1.0]], "a list"),
        (P.dense, "a Tensor"),
        (scipy.sparse.coo_array(np.ones(3)), "SciPy"),
    ],
    ids=["dense", "list", "tensor", "vector"],
)
def test_from_scipy_refuses_what_is_not_a_sparse_matrix(A: Any, words: str) -> None:
    with pytest.raises(ss.LayoutError, match=f"{words}.*; expected a SciPy sparse matrix"):
        ss.Pattern.from_scipy(A)


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_scipy_matrices_under_another_default_device(layout: str) -> None:
    A = scipy.sparse.coo_array(P.dense.numpy()).asformat(layout)
    torch.set_default_device("meta")
    try:
        made = ss.Pattern.from_scipy(A)
    finally:
        torch.set_default_device(None)
    expected = ss.Pattern.from_scipy(A)
    assert torch.equal(made.rows, expected.rows)
    assert torch.equal(made.cols, expected.cols)


def test_other_processes_get_copies_of_the_indices() -> None:
    """Engines keep the addresses of the indices, which shared memory would change."""
    one = ss.Pattern(P.rows, P.cols, P.shape)
    F, structure = one.factorize(P.values), one._structure
    before = [index.data_ptr() for index in (structure.rows, structure.cols)]
    for item in (one, F):
        ForkingPickler.dumps(item)
    assert not structure.rows.is_shared()
    assert [index.data_ptr() for index in (structure.rows, structure.cols)] == before
