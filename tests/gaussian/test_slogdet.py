"""`slogdet` of patterns and factorisations: values of all kinds, engines and shapes, and errors."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from gaussian.determinant_cases import DTYPES, KINDS, dense_of, double, matrix_of, stored
from gaussian.gaussian_cases import grid, pattern_of
from torch import Tensor

import sparse_solver as ss
from sparse_solver._engines.registry import direct_engines_on, engine_named

ENGINES = direct_engines_on(torch.device("cpu"))


def assert_is_determinant(found, D: Tensor, rtol: float = 1e-11) -> None:
    """Compare with dense torch in double precision."""
    sign, logabsdet = torch.linalg.slogdet(double(D))
    single = D.dtype in (torch.float32, torch.complex64)
    assert found.sign.dtype == D.dtype
    assert found.logabsdet.dtype == D.dtype.to_real()
    assert found.sign.shape == found.logabsdet.shape == D.shape[:-2]
    rtol = 1e-6 if single else rtol
    torch.testing.assert_close(double(found.sign), sign, rtol=0, atol=rtol)
    expected = logabsdet.to(found.logabsdet.dtype)
    torch.testing.assert_close(found.logabsdet, expected, rtol=rtol, atol=rtol)
    if not D.is_complex():
        assert torch.equal(double(found.sign), sign)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 7, 40, 200])
def test_all_kinds(kind: str, n: int, dtype: torch.dtype) -> None:
    D = matrix_of(kind, n, dtype)
    P, values, options = stored(D, kind)
    assert_is_determinant(P.slogdet(values, **options), D)
    assert_is_determinant(P.factorize(values, **options).slogdet(), D)
    P, values = pattern_of_dense(D)
    assert_is_determinant(P.slogdet(values), D)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_engines(kind: str, dtype: torch.dtype, engine: str) -> None:
    taken = "spd" if kind.startswith("spd") else "general"
    if not engine_named(engine).supports(taken, dtype):
        pytest.skip("the engine does not take this kind")
    D = matrix_of(kind, 30, dtype)
    P, values, options = stored(D, kind)
    F = P.factorize(values, engine=engine, **options)
    assert_is_determinant(F.slogdet(), D)
    assert F.slogdet().logabsdet == F.slogdet().logabsdet


@pytest.mark.parametrize("engine", [*ENGINES, None])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 50, 151, 600])
def test_permutation_matrices(n: int, engine: str | None) -> None:
    if engine is not None and not engine_named(engine).supports("general", torch.float64):
        pytest.skip("the engine does not take general matrices")
    generator = torch.Generator().manual_seed(n)
    seen = set()
    for _ in range(6):
        cols = torch.randperm(n, generator=generator)
        parity = 1 - 2 * ((n - sp.csgraph.connected_components(permutation(cols))[0]) % 2)
        P = ss.Pattern(torch.arange(n), cols, (n, n))
        values = torch.full((n,), 2.0, dtype=torch.float64)
        sign, logabsdet = P.factorize(values, assume="general", engine=engine).slogdet()
        assert sign == parity
        torch.testing.assert_close(logabsdet, torch.tensor(n * np.log(2.0)))
        seen.add(parity)
    assert n < 4 or seen == {1, -1}


def permutation(cols: Tensor) -> sp.csr_matrix:
    n = len(cols)
    return sp.csr_matrix((np.ones(n), (np.arange(n), cols.numpy())), shape=(n, n))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("upper", [False, True])
def test_triangular_matrices(upper: bool, dtype: torch.dtype) -> None:
    D = matrix_of("general", 25, dtype)
    D = D.triu() if upper else D.tril()
    P, values = pattern_of_dense(D)
    sign, logabsdet = P.slogdet(values)
    diagonal = D.diagonal()
    torch.testing.assert_close(sign, (diagonal / diagonal.abs()).prod())
    torch.testing.assert_close(logabsdet, diagonal.abs().log().sum())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("kind", ["general", "symmetric", "spd"])
def test_determinants_that_overflow(kind: str, dtype: torch.dtype) -> None:
    D = matrix_of(kind, 40, dtype)
    P, values = pattern_of_dense(D)
    sign, logabsdet = torch.linalg.slogdet(D)
    for power in (-200, 200):
        found = P.slogdet(10.0**power * values)
        expected = logabsdet + D.shape[0] * power * np.log(10)
        torch.testing.assert_close(found.sign, sign)
        torch.testing.assert_close(found.logabsdet, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("engine", [*ENGINES, None])
def test_rows_and_columns_in_different_units(engine: str | None, dtype: torch.dtype) -> None:
    if engine is not None and not engine_named(engine).supports("general", dtype):
        pytest.skip("the engine does not take general matrices")
    n = 150
    D = matrix_of("general", n, dtype)
    sign, logabsdet = torch.linalg.slogdet(D)
    powers = torch.linspace(-100, 100, n, dtype=torch.float64)[torch.randperm(n)]
    rows, cols = 2.0 ** powers.round(), 2.0 ** powers.flip(0).round()
    P, values = pattern_of_dense(D * rows[:, None] * cols)
    found = P.factorize(values, engine=engine).slogdet()
    torch.testing.assert_close(found.sign, sign)
    torch.testing.assert_close(found.logabsdet, logabsdet + (rows.log() + cols.log()).sum())


def test_entries_of_extreme_sizes() -> None:
    values = torch.tensor([1e200, -1e-200, 3e150, 2e-300], dtype=torch.float64)
    P = ss.Pattern(torch.arange(4), torch.tensor([1, 0, 3, 2]), (4, 4))
    sign, logabsdet = P.slogdet(values)
    assert sign == -1
    torch.testing.assert_close(logabsdet, values.abs().log().sum(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("batch", [(3,), (2, 2), (0,), (2, 0), (5, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_batches(batch: tuple[int, ...], dtype: torch.dtype) -> None:
    D = matrix_of("general", 12, dtype)
    P, values = pattern_of_dense(D)
    many = values + 0.1 * torch.randn(*batch, len(values), dtype=dtype)
    expected = D.new_zeros(*batch, 12, 12)
    expected[..., P.rows, P.cols] = many
    for found in (P.slogdet(many), P.factorize(many).slogdet()):
        assert_is_determinant(found, expected)


def test_a_batch_of_matrices_of_different_kinds() -> None:
    dense = [matrix_of(kind, 20, torch.float64) for kind in KINDS for _ in range(3)]
    P, _ = pattern_of_dense(torch.ones(20, 20, dtype=torch.float64))
    D = torch.stack(dense)
    assert_is_determinant(P.slogdet(D[:, P.rows, P.cols]), D)


@pytest.mark.parametrize("engine", ["superlu", None])
def test_a_batch_whose_signs_differ_is_factored_together(engine: str | None) -> None:
    n, count = 9, 40
    cols = torch.stack([torch.randperm(n) for _ in range(count)])
    P, _ = pattern_of_dense(torch.ones(n, n, dtype=torch.float64))
    D = torch.zeros(count, n, n, dtype=torch.float64).scatter_(2, cols.unsqueeze(-1), 3.0)
    D = D + 0.1 * torch.randn(count, n, n, dtype=torch.float64)
    found = P.factorize(D[:, P.rows, P.cols], engine=engine).slogdet()
    assert set(found.sign.tolist()) == {1.0, -1.0}
    assert_is_determinant(found, D)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_batches_with_different_patterns(dtype: torch.dtype) -> None:
    D = torch.stack([matrix_of("general", 11, dtype, seed) for seed in range(5)])
    sparse = D.to_sparse()
    F = ss.factorize(sparse)
    assert_is_determinant(F.slogdet(), D)
    mixed = torch.stack([matrix_of(kind, 11, dtype) for kind in ("spd", "general", "symmetric")])
    assert_is_determinant(ss.factorize(mixed.to_sparse()).slogdet(), mixed)


def test_views_duplicates_and_other_index_types() -> None:
    D = matrix_of("general", 15, torch.complex128)
    P, values = pattern_of_dense(D)
    narrow = ss.Pattern(P.rows.int(), P.cols.int(), P.shape)
    for given in (values.conj(), torch.stack((values, values), -1)[:, 0], (-values)._neg_view()):
        expected = D.conj() if given.is_conj() else D
        assert_is_determinant(narrow.slogdet(given), expected)
    twice = ss.Pattern(P.rows.repeat(2), P.cols.repeat(2), P.shape)
    assert_is_determinant(twice.slogdet(torch.cat((0.25 * values, 0.75 * values))), D)


def test_large_matrices() -> None:
    generator = np.random.default_rng(3)
    n = 2000
    A = sp.random(n, n, 0.002, random_state=generator, data_rvs=generator.standard_normal)
    A = (A + sp.diags(generator.standard_normal(n) * 2)).tocsr()
    P, values = pattern_of(A)
    sign, logabsdet = np.linalg.slogdet(A.toarray())
    for found in (P.slogdet(values), P.factorize(values).slogdet()):
        assert found.sign == sign
        torch.testing.assert_close(found.logabsdet.item(), logabsdet, rtol=1e-11, atol=0)
    shifted = (grid(50, 40) - 0.4 * sp.identity(n)).tocsr()
    P, values = pattern_of(shifted)
    found = P.slogdet(values)
    negative = (np.linalg.eigvalsh(shifted.toarray()) < 0).sum()
    assert negative > 0
    assert found.sign == 1 - 2 * (negative % 2)
    expected = np.linalg.slogdet(shifted.toarray())[1]
    torch.testing.assert_close(found.logabsdet.item(), expected, rtol=1e-11, atol=1e-9)


def test_positive_definite_matrices_have_the_log_determinant_of_logdet() -> None:
    for size in ((5, 4), (60, 50)):
        P, values = pattern_of(grid(*size))
        expected = torch.logdet(P.tensor(values).to_dense())
        for assume in ("auto", "spd", "symmetric", "general"):
            sign, logabsdet = P.slogdet(values, assume=assume)
            assert sign == 1
            torch.testing.assert_close(logabsdet, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{"precision": "mixed"}, {"engine": "cg"}])
def test_factorisations_that_do_not_tell_pivots(options: dict[str, str]) -> None:
    P, values = pattern_of(grid(8, 7))
    F = P.factorize(values, assume="spd", **options)
    assert_is_determinant(F.slogdet(), P.tensor(values).to_dense())
    D = matrix_of("general", 150, torch.complex128)
    P, values = pattern_of_dense(D)
    assert_is_determinant(P.factorize(values, precision="mixed").slogdet(), D)


def test_with_a_preconditioner() -> None:
    P, values = pattern_of(grid(8, 7))
    other = P.factorize(1.1 * values, assume="spd")
    F = P.factorize(values, assume="spd", preconditioner=other)
    assert_is_determinant(F.slogdet(), P.tensor(values).to_dense())


def test_matrices_without_rows() -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    P = ss.Pattern(empty, empty, (0, 0))
    for dtype in DTYPES:
        for shape in ((0,), (3, 0)):
            values = torch.zeros(shape, dtype=dtype, requires_grad=True)
            D = torch.zeros(*shape[:-1], 0, 0, dtype=dtype)
            for assume in ("auto", "spd", "general"):
                assert_is_determinant(P.slogdet(values, assume=assume), D)
            assert_is_determinant(P.factorize(values).slogdet(), D)
            (gradient,) = torch.autograd.grad(P.slogdet(values).logabsdet.sum(), values)
            assert gradient.shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_singular_matrices_are_refused(dtype: torch.dtype) -> None:
    P, _ = pattern_of_dense(torch.ones(3, 3))
    singular = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=dtype)
    with pytest.raises(ss.SingularMatrixError):
        P.slogdet(singular[P.rows, P.cols])
    with pytest.raises(ss.SingularMatrixError):
        P.slogdet(torch.zeros(9, dtype=dtype))
    regular = torch.eye(3, dtype=dtype)[P.rows, P.cols]
    with pytest.raises(ss.SingularMatrixError, match="matrix 1 of the batch"):
        P.slogdet(torch.stack((regular, singular[P.rows, P.cols])))
    missing = ss.Pattern(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]), (3, 3))
    with pytest.raises(ss.SingularMatrixError):
        missing.slogdet(torch.ones(3, dtype=dtype))


def test_a_singular_laplacian_is_refused() -> None:
    P, values = pattern_of(grid(40, 40))
    off = torch.where(P.rows == P.cols, 0, values)
    sums = torch.zeros(P.shape[0], dtype=torch.float64).index_add(0, P.rows, off)
    with pytest.raises(ss.SingularMatrixError):
        P.slogdet(torch.where(P.rows == P.cols, -sums[P.rows], off))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad: float) -> None:
    P, values = pattern_of(grid(4, 3))
    values[3] = bad
    for assume in ("auto", "spd"):
        with pytest.raises(ss.NonFiniteError):
            P.slogdet(values, assume=assume)


def test_wrong_arguments() -> None:
    P, values = pattern_of(grid(4, 3))
    with pytest.raises(ss.ShapeError):
        P.slogdet(values[1:])
    for number in (-1, 2.5, True, None):
        with pytest.raises(ss.OptionError, match="max_solves"):
            P.slogdet(values, max_solves=number)
        with pytest.raises(ss.OptionError, match="max_solves"):
            P.factorize(values).slogdet(max_solves=number)
    with pytest.raises(ss.DtypeError):
        P.slogdet(values.long())
    with pytest.raises(ss.TriangleError):
        P.slogdet(values, triangle="lower")
    with pytest.raises(ss.OptionError):
        P.slogdet(values, assume="positive")
    with pytest.raises(ss.OptionError):
        P.slogdet(values, assume="general", triangle="lower")
    with pytest.raises(ss.NotPositiveDefiniteError):
        P.slogdet(-values, assume="spd")
    unsymmetric = torch.where((P.rows == 1) & (P.cols == 0), 2 * values, values)
    with pytest.raises(ss.NotSymmetricError):
        P.slogdet(unsymmetric, assume="symmetric")
    with pytest.raises(ss.ShapeError):
        ss.Pattern(torch.tensor([0]), torch.tensor([0]), (1, 2)).slogdet(values[:1])


def test_what_is_written_later_does_not_matter() -> None:
    D = matrix_of("general", 12, torch.float64)
    P, values = pattern_of_dense(D)
    F = P.factorize(values)
    before = F.slogdet()
    values.mul_(2)
    assert F.slogdet() == before
    before.sign.zero_()
    before.logabsdet.zero_()
    assert_is_determinant(F.slogdet(), D)
    weights = values.clone().requires_grad_()
    moved = weights * 1
    found = P.slogdet(moved)
    moved.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.logabsdet.backward()


def test_copies_of_a_factorisation() -> None:
    D = matrix_of("symmetric", 150, torch.float64)
    P, values = pattern_of_dense(D)
    F = P.factorize(values)
    for copied in (F, pickle.loads(pickle.dumps(F)), copy.deepcopy(F), copy.copy(F)):
        assert_is_determinant(copied.slogdet(), D)


def test_a_factorisation_is_used_for_the_determinant_and_its_gradient(counts) -> None:
    P, values = pattern_of_dense(matrix_of("general", 30, torch.float64))
    F = P.factorize(values.requires_grad_())
    F.slogdet().logabsdet.backward()
    F.slogdet()
    assert counts["factor"] == 1


def test_threads_share_a_factorisation() -> None:
    D = matrix_of("general", 300, torch.float64)
    P, values = pattern_of_dense(D)
    F = P.factorize(values)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: F.slogdet(), range(32)))
    assert_is_determinant(found[0], D)
    assert all(other == found[0] for other in found)


def pattern_of_dense(D: Tensor) -> tuple[ss.Pattern, Tensor]:
    rows, cols = torch.nonzero(D, as_tuple=True)
    return ss.Pattern(rows, cols, D.shape), D[rows, cols].clone()


def test_the_cases_are_what_they_say() -> None:
    for kind in KINDS:
        P, values, options = stored(matrix_of(kind, 9, torch.complex128), kind)
        rebuilt = dense_of(P, values, options)
        torch.testing.assert_close(rebuilt, matrix_of(kind, 9, torch.complex128))
