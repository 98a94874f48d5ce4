"""Every engine timed on patterns of 10² to 10⁶ unknowns, and the choice of `_engines/select.py`.

    python -m benchmarks.calibrate [--quick] [--kind spd|symmetric|general]

A row is one pattern: milliseconds of a numeric factorisation and two solves on an analysed pattern
(medians over fresh values), the engine that is chosen, and its time divided by that of the best
engine; first with all engines, and then without the first one, as on machines without MKL. Matrices
that are not positive definite are a negative multiple of the identity plus the same Laplacian.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_solver._engines.protocol import Kind
from sparse_solver._engines.registry import engine_named, installed_on, iterates
from sparse_solver._engines.select import Choice, envelope_flops, predicted_flops, select, settle
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import Structure

from .graphs import band, grid, random, ring, tree

# The time for one engine on one pattern, after which no further sample is taken.
MOST_SECONDS = 20.0
# Other engines than the first are left out beyond this, where they would take minutes.
MOST_FLOPS = 1e9
CPU = torch.device("cpu")
NEGATIVE_SHIFT = -0.3

PATTERNS: dict[str, Callable[[], tuple[Tensor, int]]] = {
    "ring 10²": lambda: ring(100),
    "ring 10³, chords": lambda: ring(1000, 500),
    "ring 10⁴, chords": lambda: ring(10_000, 5_000),
    "ring 10⁵, chords": lambda: ring(100_000, 50_000),
    "ring 10⁶": lambda: ring(1_000_000),
    "tree 10³": lambda: tree(1000),
    "tree 10⁵": lambda: tree(100_000),
    "band 10³, 5": lambda: band(1000, 5),
    "band 10³, 30": lambda: band(1000, 30),
    "band 10⁴, 20": lambda: band(10_000, 20),
    "band 10⁵, 5": lambda: band(100_000, 5),
    "grid 10²": lambda: grid(10, 10),
    "grid 20²": lambda: grid(20, 20),
    "grid 30²": lambda: grid(30, 30),
    "grid 40²": lambda: grid(40, 40),
    "grid 60²": lambda: grid(60, 60),
    "grid 100²": lambda: grid(100, 100),
    "grid 200²": lambda: grid(200, 200),
    "grid 500²": lambda: grid(500, 500),
    "grid 1000²": lambda: grid(1000, 1000),
    "grid 4×2500": lambda: grid(4, 2500),
    "grid 10×10⁴": lambda: grid(10, 10_000),
    "grid 5³": lambda: grid(5, 5, 5),
    "grid 8³": lambda: grid(8, 8, 8),
    "grid 12³": lambda: grid(12, 12, 12),
    "grid 20³": lambda: grid(20, 20, 20),
    "grid 40³": lambda: grid(40, 40, 40),
    "random 10², 6": lambda: random(100, 6),
    "random 200, 6": lambda: random(200, 6),
    "random 10³, 6": lambda: random(1000, 6),
    "random 2000, 2": lambda: random(2000, 2),
}
# Large enough to show the differences, small enough for the memory of a laptop.
QUICK = (
    "ring 10²",
    "ring 10⁴, chords",
    "tree 10³",
    "grid 20²",
    "grid 40²",
    "grid 100²",
    "grid 8³",
    "random 10³, 6",
)


def laplacian(edges: Tensor, n: int) -> Structure:
    i, j = edges
    nodes = torch.arange(n)
    entries = Structure(torch.cat((nodes, i, j)), torch.cat((nodes, j, i)), (n, n))
    return Structure(entries.canonical_rows, entries.col, (n, n))  # in order, without duplicates


def fresh_values(structure: Structure, shift: float = 1.0, jump: float = 0.0) -> Tensor:
    """Canonical values of I · shift + L, with a Laplacian L whose weights differ every time.

    Weights are in [1, 2] · 10^(jump · [0, 1]).
    """
    rows, cols = structure.canonical_rows, structure.col
    low, high = torch.minimum(rows, cols), torch.maximum(rows, cols)
    wave = torch.sin(low * 12.9898 + high * 78.233 + torch.rand(1).item())
    part = torch.frac(wave * 43758.5453).abs().double()
    values = -(1 + part) * 10 ** (jump * (1e3 * part).frac())
    values[structure.diagonal] = 0
    total = torch.zeros(structure.shape[0], dtype=torch.float64).index_add(0, rows, values)
    values[structure.diagonal] = shift - total
    return values


def milliseconds(symbolic: Any, structure: Structure, shift: float) -> float:
    """The median over at least three fresh factorisations with two solves each."""
    b = torch.ones(1, structure.shape[0], dtype=torch.float64)
    samples: list[float] = []
    began = time.perf_counter()
    while len(samples) < 3 or (time.perf_counter() - began < 0.3 and len(samples) < 50):
        values = fresh_values(structure, shift)
        start = time.perf_counter()
        factor = symbolic.factor(Matrix(structure, values))
        x, y = factor.substitute(b, False), factor.substitute(b, True)
        samples.append(1e3 * (time.perf_counter() - start))
        assert torch.allclose(shift * x, b)
        assert torch.allclose(shift * y, b)
        if samples[-1] > 1e3 * MOST_SECONDS / 3:
            break
    return statistics.median(samples)


class Row(NamedTuple):
    """What was measured on a pattern.

    predicted : by engine, the predicted entries of the factor
    envelope : the operations in the envelope
    times : by engine, milliseconds
    """

    name: str
    kind: Kind
    n: int
    predicted: dict[str, int | None]
    envelope: float
    times: dict[str, float]


def measure(name: str, engines: list[str], kind: Kind) -> Row:
    torch.manual_seed(0)
    edges, n = PATTERNS[name]()
    structure = laplacian(edges, n)
    shift = 1.0 if kind == "spd" else NEGATIVE_SHIFT
    matrix, times = Matrix(structure, fresh_values(structure, shift)), {}
    predicted: dict[str, int | None] = {}
    for engine in engines:
        if predicted and predicted_flops(n, predicted[engines[0]] or 0) > MOST_FLOPS:
            break
        symbolic = engine_named(engine).analyze(structure, kind, torch.float64, None)
        predicted[engine] = symbolic.factor_nnz(matrix)
        times[engine] = milliseconds(symbolic, structure, shift)
    return Row(name, kind, n, predicted, envelope_flops(structure), times)


def choose(row: Row, engines: Collection[str]) -> Choice | None:
    """The choice that `_engines.analysis` would make among these engines."""
    given = row.n, row.kind, torch.float64, engines
    choice = select(*given)
    return choice and settle(choice, *given, row.predicted.get, lambda: row.envelope)


def format_row(row: Row, engines: list[str], worst: dict[str, float]) -> str:
    """A line of the table; raises the ratios in `worst` where those of this row are larger."""
    factor_nnz = row.predicted[engines[0]] or 0
    flops = predicted_flops(row.n, factor_nnz)
    cells = [f"{row.name:<18}{row.n:>9}{factor_nnz:>11}{flops:>9.0e}{row.envelope:>10.0e}"]
    cells += [
        f"{row.times[name]:>11.2f}" if name in row.times else f"{'–':>11}" for name in engines
    ]
    for case, present in zip(worst, (engines, engines[1:]), strict=True):
        times = {engine: row.times[engine] for engine in present if engine in row.times}
        choice = choose(row, present)
        if choice is None or choice.engine not in times:
            cells.append(f"   {choice.engine if choice else '–'} (alone)")
            continue
        ratio = times[choice.engine] / min(times.values())
        worst[case] = max(worst[case], ratio)
        cells.append(f"   {choice.engine} {ratio:.2f}")
    return "".join(cells)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true", help="eight patterns instead of all")
    parser.add_argument("--kind", choices=("spd", "symmetric", "general"), default="spd")
    options = parser.parse_args()
    names, kind = list(QUICK if options.quick else PATTERNS), options.kind
    factoring = (name for name in installed_on(CPU) if name != "lapack" and not iterates(name))
    engines = [name for name in factoring if engine_named(name).supports(kind, torch.float64)]
    rows = [measure(name, engines, kind) for name in tqdm(names)]
    worst = {"all engines": 1.0, f"without {engines[0]}": 1.0}
    header = f"{'pattern':<18}{'n':>9}{'factor':>11}{'flops':>9}{'envelope':>10}"
    header += "".join(f"{name:>11}" for name in engines)
    print(header + "".join(f"   {case}: choice, over the best" for case in worst))
    print(*(format_row(row, engines, worst) for row in rows), sep="\n")
    ratios = ", ".join(f"{case} {ratio:.2f}" for case, ratio in worst.items())
    print(f"\nthe choice over the best, at worst: {ratios}")


if __name__ == "__main__":
    main()
