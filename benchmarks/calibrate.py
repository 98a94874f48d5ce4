"""Times every engine on patterns from 10² to 10⁶ unknowns, and how far from the best the selection is.

    python -m benchmarks.calibrate [--quick]

A row is one pattern: milliseconds of a numeric factorisation and two solves on an analysed pattern (medians over
fresh values), the engine that `_engines/_select.py` picks, and its time over that of the best engine, first with all
engines and then without the first, as on machines that have no MKL.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sparse_solver._engines import registry as _engines
from sparse_solver._engines.select import Choice, envelope_flops, is_close, predicted_flops, select
from sparse_solver._sparse.matrix import Matrix
from sparse_solver._sparse.structure import Structure

from .graphs import band, grid, random, ring, tree

SECONDS_AT_MOST = 20.0  # for one engine on one pattern; the slow ones are not waited for


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
# Large enough to tell, and no larger than a laptop's memory allows.
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
    places = Structure(torch.cat((nodes, i, j)), torch.cat((nodes, j, i)), (n, n))
    return Structure(places.canonical_rows, places.col, (n, n))  # duplicates once, in order


def fresh_values(structure: Structure) -> Tensor:
    """Canonical values of a diagonally dominant matrix: symmetric, and different every time."""
    rows, cols = structure.canonical_rows, structure.col
    low, high = torch.minimum(rows, cols), torch.maximum(rows, cols)
    values = -(
        1
        + torch.frac(
            torch.sin(low * 12.9898 + high * 78.233 + torch.rand(1).item()) * 43758.5453
        ).abs()
    ).double()
    values[structure.diagonal] = 0
    total = torch.zeros(structure.shape[0], dtype=torch.float64).index_add(0, rows, values)
    values[structure.diagonal] = 1 - total
    return values


def milliseconds(symbolic: Any, structure: Structure) -> float:
    """The median over at least three fresh factorisations with two solves each."""
    b = torch.ones(1, structure.shape[0], dtype=torch.float64)
    samples: list[float] = []
    began = time.perf_counter()
    while len(samples) < 3 or (time.perf_counter() - began < 0.3 and len(samples) < 50):
        values = fresh_values(structure)
        start = time.perf_counter()
        factor = symbolic.factor(Matrix(structure, values))
        x, y = factor.solve(b, False), factor.solve(b, True)
        samples.append(1e3 * (time.perf_counter() - start))
        assert torch.allclose(x, b)
        assert torch.allclose(y, b)
        if samples[-1] > 1e3 * SECONDS_AT_MOST / 3:
            break
    return statistics.median(samples)


Row = tuple[str, int, dict[str, int | None], float, dict[str, float]]


def rows(names: list[str]) -> Iterator[Row]:
    """(name, n, predicted factor entries, operations in the envelope, milliseconds by engine) of each pattern."""
    engines = _engines.installed_on(torch.device("cpu"))
    for name in (bar := tqdm(names)):
        bar.set_description(name)
        torch.manual_seed(0)
        edges, n = PATTERNS[name]()
        structure = laplacian(edges, n)
        values, times = fresh_values(structure), {}
        predicted: dict[str, int | None] = {}  # by the engines that are asked for it
        for engine in engines:
            # The first one tells the fill; engines that would take minutes are left out.
            if (
                predicted
                and engine != engines[0]
                and predicted_flops(n, predicted[engines[0]] or 0) > 1e9
            ):
                continue
            symbolic = _engines.engine_named(engine).analyze(structure, "spd", torch.float64, None)
            predicted[engine] = symbolic.factor_nnz(Matrix(structure, values))
            times[engine] = milliseconds(symbolic, structure)
        yield name, n, predicted, envelope_flops(structure), times


def pick(
    n: int, present: set[str], predicted: dict[str, int | None], envelope: float
) -> Choice | None:
    """What `_engines.analyze` would take, step by step."""
    choice = select(n, "spd", torch.float64, present)
    if choice is not None and choice.provisional:
        nnz = predicted.get(choice.engine)
        if nnz is not None:
            choice = select(
                n, "spd", torch.float64, present, nnz, envelope if is_close(n, nnz) else None
            )
    return choice


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="eight patterns instead of all")
    names = list(QUICK if parser.parse_args().quick else PATTERNS)
    engines = _engines.installed_on(torch.device("cpu"))
    header = f"{'pattern':<18}{'n':>9}{'factor':>11}{'flops':>9}{'envelope':>10}" + "".join(
        f"{name:>10}" for name in engines
    )
    lines, worst = [], {"all engines": 1.0, f"without {engines[0]}": 1.0}
    table = list(rows(names))
    for name, n, predicted, envelope, times in table:
        factor_nnz = predicted[engines[0]]
        flops = predicted_flops(n, factor_nnz or 0)
        line = f"{name:<18}{n:>9}{factor_nnz or 0:>11}{flops:>9.0e}{envelope:>10.0e}"
        line += "".join(
            f"{times[engine]:>10.2f}" if engine in times else f"{'–':>10}" for engine in engines
        )
        for case, present in zip(worst, (engines, engines[1:]), strict=True):
            known = {engine: times[engine] for engine in present if engine in times}
            choice = pick(n, set(present), predicted, envelope)
            if choice is None or choice.engine not in known:
                line += f"   {choice.engine if choice else '–'} (alone)"
                continue
            ratio = known[choice.engine] / min(known.values())
            worst[case] = max(worst[case], ratio)
            line += f"   {choice.engine} {ratio:.2f}"
        lines.append(line)
    print(header + "".join(f"   {case}: pick, over the best" for case in worst), *lines, sep="\n")
    print(
        "\nthe pick over the best, at worst: "
        + ", ".join(f"{case} {ratio:.2f}" for case, ratio in worst.items())
    )


if __name__ == "__main__":
    main()
