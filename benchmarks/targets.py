"""The targets of the benchmark: ratios to the bare engine and to others in one run, with limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .timing import Timed


@dataclass(frozen=True)
class Row:
    """One problem, and the times of its contenders by name."""

    workload: str
    name: str
    n: int
    times: dict[str, Timed]

    def of(self, contender: str) -> float | None:
        timed = self.times.get(contender)
        return None if timed is None else timed.median

    @property
    def bare(self) -> float | None:
        """The time of the faster bare engine."""
        found = [t.median for name, t in self.times.items() if name.startswith("bare")]
        return min((median for median in found if median is not None), default=None)

    def fastest_peer(self, peers: set[str]) -> tuple[str, float] | None:
        medians = {name: self.of(name) for name in self.times if name in peers}
        found = [(name, median) for name, median in medians.items() if median is not None]
        return min(found, key=lambda pair: pair[1], default=None)


@dataclass(frozen=True)
class Target:
    """A limit, and the ratio (or number) for each problem to which it applies."""

    what: str
    limit: float
    values: dict[str, float]

    @property
    def worst(self) -> tuple[str, float] | None:
        return max(self.values.items(), key=lambda pair: pair[1], default=None)

    def __str__(self) -> str:
        if self.worst is None:
            return f"| {self.what} | {self.limit:g} | – | not measured |"
        name, value = self.worst
        met = sum(v <= self.limit for v in self.values.values())
        verdict = "met" if met == len(self.values) else f"met by {met} of {len(self.values)}"
        where = f" ({name})" if len(self.values) > 1 else ""
        return f"| {self.what} | {self.limit:g} | {value:.2f}{where} | {verdict} |"


def exponent(rows: list[Row], contender: str) -> float | None:
    """The slope of log time over log n by least squares, from 2¹⁰ unknowns on."""
    medians = [(r.n, r.of(contender)) for r in rows if r.n >= 2**10]
    points = [(math.log(n), math.log(t)) for n, t in medians if t is not None]
    if len(points) < 3:
        return None
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope: float = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return slope


LARGE = {"grid2d": 300**2, "grid3d": 40**3, "mesh": 99_900}  # unknowns


def _is_large(row: Row) -> bool:
    return row.n >= LARGE.get(row.workload, math.inf)


def _is_chain(low: float, high: float) -> Callable[[Row], bool]:
    return lambda row: row.workload == "chain" and low <= row.n <= high


def _only(name: str, value: float | None) -> dict[str, float]:
    return {} if value is None else {name: value}


def targets(
    rows: list[Row], peers: set[str], import_seconds: float | None, memory: float | None
) -> list[Target]:
    """All targets, with the values that were reached."""

    def ratios(
        chosen: Callable[[Row], bool], ours: str, other: Callable[[Row], float | None]
    ) -> dict[str, float]:
        pairs = {row.name: (row.of(ours), other(row)) for row in rows if chosen(row)}
        return {name: a / b for name, (a, b) in pairs.items() if a is not None and b is not None}

    def bare(row: Row) -> float | None:
        return row.bare

    def bare_or_250_us(row: Row) -> float | None:
        return None if row.bare is None else max(row.bare, 0.25)

    def fastest(row: Row, direct: bool = False) -> float | None:
        found = row.fastest_peer(peers - {"torch-sla, CG"} if direct else peers)
        return None if found is None else found[1]

    def over_cholespy(problem: str) -> dict[str, float]:
        return ratios(lambda row: row.name == problem, step, lambda row: row.of("cholespy"))

    step = "sparse_solver"
    growth = exponent([row for row in rows if row.workload == "chain"], step)
    found: list[tuple[str, float, dict[str, float]]] = [
        ("`Pattern.solve` over the bare engine: grid2d ≥ 300², grid3d ≥ 40³, mesh ≥ 10⁵", 1.15,
         ratios(_is_large, "Pattern.solve", bare)),
        ("`solve(A, b)` with CSR over the bare engine, the same", 1.30,
         ratios(_is_large, "solve(CSR)", bare)),
        ("`solve(A, b)` with COO over the bare engine, the same", 1.30,
         ratios(_is_large, "solve(COO)", bare)),
        ("chain, n ≤ 4096: step over the bare engine, or over 250 µs if that is more", 2.0,
         ratios(_is_chain(0, 4096), step, bare_or_250_us)),
        ("chain, 2¹⁶ … 2²⁰: step over the bare engine", 1.5,
         ratios(_is_chain(2**16, 2**20), step, bare)),
        ("chain, 2¹⁰ … 2²⁰: growth exponent of the time of a step", 1.05, _only("chain", growth)),
        ("all workloads: step over that of the fastest other with the right gradient", 0.5,
         ratios(lambda row: True, step, fastest)),
        ("the same over the fastest other that is a direct solver", 0.5,
         ratios(lambda row: True, step, lambda row: fastest(row, direct=True))),
        ("grid2d 500²: step over that of the cholespy Function", 0.07, over_cholespy("grid 500²")),
        ("grid3d 40³: step over that of the cholespy Function", 0.04, over_cholespy("grid 40³")),
        ("first import: seconds more than `import torch`", 0.15, _only("import", import_seconds)),
        ("grid3d 60³: peak memory over that of the bare engine", 1.2, _only("memory", memory)),
    ]  # fmt: skip
    return [Target(*one) for one in found]


def table(rows: list[Row], peers: set[str]) -> Iterator[str]:
    """Milliseconds and ratios of each problem, in Markdown."""
    calls = ("Pattern.solve", "solve(CSR)", "solve(COO)")
    names = " | ".join(f"`{call}`" for call in calls)
    yield f"| problem | step | bare engine | {names} | fastest other |"
    yield "|---|---|---|" + "---|" * len(calls) + "---|"
    for row in rows:
        bare, peer, step = row.bare, row.fastest_peer(peers), row.of("sparse_solver")

        def cell(value: float | None, over: float | None) -> str:
            if value is None:
                return "–"
            return format_milliseconds(value) + ("" if over is None else f" ({value / over:.2f})")

        last = "–"
        if peer is not None and step is not None:
            last = f"{peer[0]} {format_milliseconds(peer[1])} ({step / peer[1]:.2f})"
        cells = [cell(step, bare), cell(bare, None), *(cell(row.of(call), bare) for call in calls)]
        yield f"| {row.name} | {' | '.join(cells)} | {last} |"


def others(rows: list[Row], peers: list[str]) -> Iterator[str]:
    """Milliseconds of each other contender, or the reason why there are none, in Markdown."""
    yield "| problem | " + " | ".join(peers) + " |"
    yield "|---|" + "---|" * len(peers)
    for row in rows:
        cells = []
        for name in peers:
            timed = row.times.get(name)
            if timed is None or timed.absent is not None:
                cells.append("–" if timed is None or timed.absent != "too slow" else "too slow")
            elif not timed.is_right:
                cells.append(f"wrong by {timed.error:.0e}")
            else:
                cells.append(format_milliseconds(timed.median or 0.0))
        yield f"| {row.name} | " + " | ".join(cells) + " |"


def format_milliseconds(milliseconds: float) -> str:
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:,.0f}"
