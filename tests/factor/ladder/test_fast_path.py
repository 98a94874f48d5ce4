"""The fast path: it must show everything that the ladder of methods would show."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from problems import REAL, generator, grid
from torch import Tensor

import sparse_solver as ss
from sparse_solver import _testing
from sparse_solver._factor.ladder.fast_path import is_well_scaled
from sparse_solver._factor.ladder.ladder import _fast_paths_of
from sparse_solver._factor.options import Options

ENGINES = [name for name in _testing.installed_engines("spd") if name in ("pardiso", "qdldl")]
EDGES, N = grid(6)
NODES, (I, J) = torch.arange(N), EDGES
ROWS, COLS = torch.cat((NODES, I, J)), torch.cat((NODES, J, I))
P = ss.Pattern(ROWS, COLS, (N, N))
DIAGONAL = torch.nonzero(ROWS == COLS).squeeze(-1)
# An entry off the diagonal, and the opposite one.
AT = int(torch.nonzero(ROWS != COLS)[3])
OPPOSITE = int(torch.nonzero((COLS[AT] == ROWS) & (ROWS[AT] == COLS)))


def anchored(dtype: torch.dtype = torch.float64, shift: float = 0.5) -> Tensor:
    """Values of a Laplacian plus a multiple of the identity, in the order of ROWS and COLS."""
    values = torch.zeros(P.nnz, dtype=dtype)
    values[ROWS != COLS] = -1.0
    degree = torch.zeros(N, dtype=dtype).index_add_(0, ROWS, -values)
    values[DIAGONAL] = degree[ROWS[DIAGONAL]] + shift
    return values


def is_open(values: Tensor, assume: str, engine: str) -> bool:
    options = Options(assume, None, engine)  # type: ignore[arg-type] # tests pass plain strings
    return _fast_paths_of(P._structure, options, values.dtype).path is not None


def close(values: Tensor, assume: str, engine: str) -> None:
    options = Options(assume, None, engine)  # type: ignore[arg-type] # tests pass plain strings
    _fast_paths_of(P._structure, options, values.dtype).path = None


def change(**places: float) -> Callable[[Tensor], Tensor]:
    def changed(values: Tensor) -> Tensor:
        for name, value in places.items():
            at = {"diagonal": int(DIAGONAL[7]), "entry": AT, "opposite": OPPOSITE}[name]
            values[at] = value
        return values

    return changed


def scaled(power: float) -> Callable[[Tensor], Tensor]:
    def rescaled(values: Tensor) -> Tensor:
        scale = 10 ** (power * (torch.rand(N, generator=generator(1)).double() - 0.5))
        return (values * scale[ROWS] * scale[COLS]).to(values.dtype)

    return rescaled


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN on the diagonal": change(diagonal=math.nan),
    "NaN in one triangle": change(entry=math.nan),
    "NaN in both triangles": change(entry=math.nan, opposite=math.nan),
    "infinite diagonal": change(diagonal=math.inf),
    "negative infinite diagonal": change(diagonal=-math.inf),
    "infinite entries": change(entry=math.inf, opposite=math.inf),
    "infinite entries of both signs": change(entry=math.inf, opposite=-math.inf),
    "zero on the diagonal": change(diagonal=0.0),
    "negative diagonal": change(diagonal=-2.0),
    "indefinite": change(entry=9.0, opposite=9.0),
    "not symmetric": change(entry=-0.5),
    "symmetric up to rounding": change(entry=-1.0 + 1e-15),
    "singular": lambda values: anchored(values.dtype, 0.0),
    "nearly singular": lambda values: anchored(values.dtype, 1e-14),
    "barely anchored": lambda values: anchored(values.dtype, 1e-4),
    "graded": scaled(3),
    "badly scaled": scaled(30),
    "zeros": torch.zeros_like,
    "tiny": lambda values: values * 1e-30,
    "huge": lambda values: values * 1e30,
}


def outcome(values: Tensor, b: Tensor, assume: str, engine: str) -> Tensor | str:
    try:
        return P.solve(values, b, assume=assume, engine=engine)  # type: ignore[arg-type] # as above
    except ss.SparseSolverError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize("assume", ["spd", "auto"])
@pytest.mark.parametrize("what", CHANGES)
def test_the_fast_path_ends_as_the_ladder_does(
    engine: str, dtype: torch.dtype, assume: str, what: str
) -> None:
    if assume == "auto" and engine == "qdldl":
        pytest.skip("QDLDL takes no other kind")
    b, good = torch.ones(N, dtype=dtype), anchored(dtype)
    values = CHANGES[what](good.clone())
    close(good, assume, engine)
    expected = outcome(values, b, assume, engine)
    close(good, assume, engine)
    P.solve(good, b, assume=assume, engine=engine)  # type: ignore[arg-type] # a plain string
    assert is_open(good, assume, engine)
    found = outcome(values, b, assume, engine)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, expected)
    again = P.solve(good, b, assume=assume, engine=engine)  # type: ignore[arg-type] # a plain string
    torch.testing.assert_close(again, torch.linalg.solve(P.tensor(good).to_dense(), b))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e308])
def test_right_hand_sides_that_are_no_numbers(engine: str, number: float) -> None:
    for _ in range(2):
        F = P.factorize(anchored() * 1e-3, assume="spd", engine=engine)
    assert "SoundFactor" in type(_testing.checked_factors(F)[0]).__name__
    b = torch.ones(3, N, dtype=torch.float64)
    b[1, 5] = number
    with pytest.raises(ss.NonFiniteError) as caught:
        F.solve(b.mT)
    assert caught.value.argument == ("x" if number == 1e308 else "b")
    # In a backward pass, a gradient that is not finite comes through as NaN, in its row only.
    values = anchored().requires_grad_()
    rhs = torch.ones(N, 3, dtype=torch.float64, requires_grad=True)
    P.solve(values, rhs, assume="spd", engine=engine).backward(b.mT)
    assert rhs.grad is not None
    finite = torch.isfinite(rhs.grad).all(0)
    assert finite.tolist() == [True, number == 1e308, True]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_hermitian_matrices(dtype: torch.dtype) -> None:
    upper = ROWS < COLS
    phase = torch.polar(torch.ones(N, dtype=torch.float64), torch.arange(N).double())
    values = (anchored() * phase[ROWS] * phase[COLS].conj()).to(dtype)
    values[DIAGONAL] = values[DIAGONAL].real.to(dtype)
    opposite = {(int(i), int(j)): k for k, (i, j) in enumerate(zip(ROWS, COLS, strict=True))}
    for k in torch.nonzero(upper).squeeze(-1).tolist():
        values[opposite[int(COLS[k]), int(ROWS[k])]] = values[k].conj()
    b = torch.ones(N, dtype=dtype)
    dense = P.tensor(values).to_dense()
    for _ in range(3):
        x = P.solve(values, b, assume="spd")
        torch.testing.assert_close(x, torch.linalg.solve(dense, b))
    values[DIAGONAL[3]] += 0.25j
    with pytest.raises(ss.NotSymmetricError):
        P.solve(values, b, assume="spd")


@pytest.mark.parametrize("engine", ENGINES)
def test_duplicates_and_diagonal_entries_that_are_not_stored(engine: str) -> None:
    g = generator(3)
    rows, cols = torch.cat((ROWS, ROWS)), torch.cat((COLS, COLS))
    order = torch.randperm(len(rows), generator=g)
    doubled = ss.Pattern(rows[order], cols[order], (N, N))
    for _ in range(3):
        values = anchored() * (1 + torch.rand((), generator=g).double())
        share = torch.rand(P.nnz, generator=g).double()
        share[OPPOSITE] = share[AT]
        share = P.tensor(share).to_dense()
        share = (share + share.mT)[ROWS, COLS] / 2
        parts = torch.cat((share * values, (1 - share) * values))[order]
        x = doubled.solve(parts, torch.ones(N, dtype=torch.float64), assume="spd", engine=engine)
        exact = torch.linalg.solve(P.tensor(values).to_dense(), torch.ones(N).double())
        torch.testing.assert_close(x, exact)


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_and_what_follows_them(engine: str) -> None:
    batch = torch.stack([anchored(shift=0.1 * k) for k in range(1, 5)])
    b = torch.ones(N, dtype=torch.float64)
    for _ in range(3):
        x = P.solve(batch, b, assume="spd", engine=engine)
        for values, found in zip(batch, x, strict=True):
            torch.testing.assert_close(P.solve(values, b, assume="spd", engine=engine), found)
    batch[2, AT] = 9.0
    with pytest.raises(ss.NotSymmetricError):
        P.solve(batch, b, assume="spd", engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_caller_may_overwrite_the_values(engine: str) -> None:
    values = anchored()
    b = torch.ones(N, dtype=torch.float64)
    expected = P.solve(values, b, assume="spd", engine=engine)
    F = P.factorize(values, assume="spd", engine=engine)
    values.zero_()
    torch.testing.assert_close(F.solve(b), expected)
    factor = _testing.engine_factors(F)[0]
    upper = torch.zeros(N, N, dtype=torch.float64)
    upper[factor.arrangement.rows, factor.arrangement.col] = factor.values
    torch.testing.assert_close(upper, P.tensor(anchored()).to_dense().triu())
    info = F.info
    assert info.assume == "spd"
    assert info.engine == engine
    assert info.analysis_seconds == 0
    assert info.factorization_seconds > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_share_the_fast_path(engine: str) -> None:
    b = torch.ones(N, dtype=torch.float64)

    def solve(k: int) -> bool:
        values = anchored(shift=0.5 + k)
        if k % 5 == 0:  # closes the way for all
            values[AT] = math.nan
        found = outcome(values, b, "spd", engine)
        if k % 5 == 0:
            return isinstance(found, str) and "NonFiniteError" in found
        exact = torch.linalg.solve(P.tensor(values).to_dense(), b)
        return isinstance(found, Tensor) and torch.allclose(found, exact)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(solve, range(60)))


def test_diagonals_are_compared_block_by_block() -> None:
    diagonal = torch.tensor([1.0, 2.0, 1e-9, 2e-9])
    assert not is_well_scaled(diagonal)
    assert is_well_scaled(diagonal, blocks=2)
    assert is_well_scaled(torch.tensor([3.0 + 0j, 1.0 + 0j]))
    assert not is_well_scaled(torch.tensor([1.0, math.nan]))
