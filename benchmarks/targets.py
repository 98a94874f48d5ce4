"""What the solves are meant to cost: ratios to the bare engine and to others, in one run, with their limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .timing import Timed


@dataclass(frozen=True)
class Row:
    """One problem, its contenders, and which of them are ours, bare engines, and others."""

    workload: str
    name: str
    n: int
    times: dict[str, Timed]

    def of(self, contender: str) -> float | None:
        timed = self.times.get(contender)
        return None if timed is None else timed.median

    @property
    def bare(self) -> float | None:
        """The faster one of the bare engines."""
        found = [t.median for name, t in self.times.items() if name.startswith("bare")]
        return min((median for median in found if median is not None), default=None)

    def fastest_peer(self, peers: set[str]) -> tuple[str, float] | None:
        found = [
            (name, t.median)
            for name, t in self.times.items()
            if name in peers and t.median is not None
        ]
        return min(found, key=lambda pair: pair[1], default=None)


@dataclass(frozen=True)
class Target:
    """A limit, and the ratio (or number) for each problem that it is about."""

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
    points = [
        (math.log(r.n), math.log(t))
        for r in rows
        if r.n >= 2**10 and (t := r.of(contender)) is not None
    ]
    if len(points) < 3:
        return None
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope: float = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return slope


def targets(
    rows: list[Row], peers: set[str], import_seconds: float | None, memory: float | None
) -> list[Target]:
    def ratios(
        chosen: Callable[[Row], bool],
        ours: str,
        other: Callable[[Row], float | None],
        least: float = 0.0,
    ) -> dict[str, float]:
        found = {}
        for row in filter(chosen, rows):
            mine, theirs = row.of(ours), other(row)
            if mine is not None and theirs is not None:
                found[row.name] = mine / max(theirs, least)
        return found

    def large(row: Row) -> bool:
        return row.n >= {"grid2d": 300**2, "grid3d": 40**3, "mesh": 99_900}.get(
            row.workload, math.inf
        )

    def chain(low: float, high: float) -> Callable[[Row], bool]:
        return lambda row: row.workload == "chain" and low <= row.n <= high

    def bare(row: Row) -> float | None:
        return row.bare

    def fastest(row: Row) -> float | None:
        found = row.fastest_peer(peers)
        return None if found is None else found[1]

    def fastest_direct(row: Row) -> float | None:
        found = row.fastest_peer(peers - {"torch-sla, CG"})
        return None if found is None else found[1]

    def cholespy(row: Row) -> float | None:
        return row.of("cholespy")

    def only(name: str, value: float | None) -> dict[str, float]:
        return {} if value is None else {name: value}

    return [
        Target("`Pattern.solve` over the bare engine: grid2d ≥ 300², grid3d ≥ 40³, mesh ≥ 10⁵", 1.15,
               ratios(large, "Pattern.solve", bare)),
        Target("`solve(A, b)` with CSR over the bare engine, the same", 1.30, ratios(large, "solve(CSR)", bare)),
        Target("`solve(A, b)` with COO over the bare engine, the same", 1.30, ratios(large, "solve(COO)", bare)),
        Target("chain, n ≤ 4096: step over the bare engine, or over 250 µs if that is more", 2.0,
               ratios(chain(0, 4096), "sparse_solver", bare, least=0.25)),
        Target("chain, 2¹⁶ … 2²⁰: step over the bare engine", 1.5,
               ratios(chain(2**16, 2**20), "sparse_solver", bare)),
        Target("chain, 2¹⁰ … 2²⁰: growth exponent of the time of a step", 1.05,
               only("chain", exponent([row for row in rows if row.workload == "chain"], "sparse_solver"))),
        Target("all workloads: step over that of the fastest other with the right gradient", 0.5,
               ratios(lambda row: True, "sparse_solver", fastest)),
        Target("the same over the fastest other that is a direct solver", 0.5,
               ratios(lambda row: True, "sparse_solver", fastest_direct)),
        Target("grid2d 500²: step over that of the cholespy Function", 0.07,
               ratios(lambda row: row.name == "grid 500²", "sparse_solver", cholespy)),
        Target("grid3d 40³: step over that of the cholespy Function", 0.04,
               ratios(lambda row: row.name == "grid 40³", "sparse_solver", cholespy)),
        Target("first import: seconds more than `import torch`", 0.15, only("import", import_seconds)),
        Target("grid3d 60³: peak memory over that of the bare engine", 1.2, only("memory", memory)),
    ]  # fmt: skip


def table(rows: list[Row], peers: set[str]) -> Iterator[str]:
    """Milliseconds and ratios of each problem, in Markdown."""
    doors = ("Pattern.solve", "solve(CSR)", "solve(COO)")
    yield (
        "| problem | step | bare engine | "
        + " | ".join(f"`{door}`" for door in doors)
        + " | fastest other |"
    )
    yield "|---|---|---|" + "---|" * len(doors) + "---|"
    for row in rows:
        bare, peer, step = row.bare, row.fastest_peer(peers), row.of("sparse_solver")

        def cell(value: float | None, over: float | None) -> str:
            if value is None:
                return "–"
            return _number(value) + ("" if over is None else f" ({value / over:.2f})")

        last = (
            "–"
            if peer is None or step is None
            else f"{peer[0]} {_number(peer[1])} ({step / peer[1]:.2f})"
        )
        cells = [
            cell(step, bare),
            cell(bare, None),
            *(cell(row.of(door), bare) for door in doors),
            last,
        ]
        yield f"| {row.name} | " + " | ".join(cells) + " |"


def others(rows: list[Row], peers: list[str]) -> Iterator[str]:
    """Milliseconds of each of the others, and why there are none, in Markdown."""
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
                cells.append(_number(timed.median or 0.0))
        yield f"| {row.name} | " + " | ".join(cells) + " |"


def _number(milliseconds: float) -> str:
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:,.0f}"
