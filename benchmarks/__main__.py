"""Time the solves by this package, by its engines alone, and by other libraries.

    python -m benchmarks [WORKLOAD ...] [--quick] [--peers] [--json FILE] [--plot FILE]
    python -m benchmarks --saved FILE --plot FILE

Every gradient is checked before anything is timed; contenders with a wrong gradient are excluded. A
figure is the median over fresh values, in milliseconds; contenders take turns. "step" is a training
step from the parameters to their gradient, "bare engine" one factorisation and two solves on
prepared arrays. The number in parentheses after a time is its ratio to the bare engine, and after
the time of the fastest other library the ratio of our step to it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

from tqdm import tqdm

import sparse_solver.__main__

from . import contenders, peers, repeat
from .plot import plot
from .problems import table as workloads
from .processes import import_seconds, peak_memory
from .targets import Row, Target, others, table, targets
from .timing import Timed, measure

SECONDS = 3.0  # of samples for one problem, after at least three rounds


def run(names: list[str], quick: bool, with_peers: bool) -> list[Row]:
    """Measure all problems of the named workloads."""
    makers = workloads(quick)
    hopeless: set[tuple[str, str]] = set()
    rows, seconds = [], 0.1 if quick else SECONDS
    with tqdm(total=sum(len(makers[name]) for name in names), disable=None) as bar:
        for name in names:
            module: Any = repeat if name == "repeat" else contenders
            other: Any = repeat.PEERS if name == "repeat" else peers.PEERS
            groups = (module.BARE, module.OURS, other if with_peers else ())
            for make in makers[name]:
                problem = make()
                times = measure(problem, *groups, hopeless, seconds, bar.set_description)
                rows.append(Row(name, problem.name, problem.n, times))
                bar.update()
    return rows


def memory_ratio(sides: tuple[int, ...]) -> float | None:
    """The ratio of the peak memory of `Pattern.solve` to that of the bare engine."""
    ours, bare = (peak_memory(name, sides) for name in ("Pattern.solve", "bare PARDISO"))
    return ours / bare if ours and bare else None


def wrong(rows: list[Row]) -> list[str]:
    """Describe the wrong gradients of our own contenders."""
    mine = {make.name for make in (*contenders.OURS, *repeat.OURS)}
    return [
        f"{row.name}: {name} is wrong by {timed.error:.1e}"
        for row in rows
        for name, timed in row.times.items()
        if name in mine and timed.absent is None and not timed.is_right
    ]


def as_json(rows: list[Row], reached: list[Target]) -> dict[str, Any]:
    def samples(row: Row) -> dict[str, Any]:
        return {
            name: {"milliseconds": t.milliseconds, "absent": t.absent, "error": t.error}
            for name, t in row.times.items()
        }

    return {
        "versions": sparse_solver.__main__.describe_machine().splitlines(),
        "rows": [
            {"workload": r.workload, "problem": r.name, "n": r.n, "contenders": samples(r)}
            for r in rows
        ],
        "targets": [{"what": t.what, "limit": t.limit, "values": t.values} for t in reached],
    }


def read_rows(file: Path) -> list[Row]:
    """The samples that `--json` wrote."""
    return [
        Row(
            row["workload"],
            row["problem"],
            row["n"],
            {name: Timed(**samples) for name, samples in row["contenders"].items()},
        )
        for row in json.loads(file.read_text())["rows"]
    ]


def print_tables(rows: list[Row], peer_names: list[str]) -> None:
    print(sparse_solver.__main__.describe_machine(), "", sep="\n")
    print(*table(rows, set(peer_names)), sep="\n")
    if peer_names:
        print("\nmilliseconds of a step by the others", *others(rows, peer_names), sep="\n")
    for name in peer_names:
        reasons = {row.times[name].absent for row in rows if name in row.times}
        for reason in sorted(filter(None, reasons - {"too slow"})):
            print(f"{name}, where it is absent: {reason}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    makers = workloads(quick=False)
    raw = argparse.RawDescriptionHelpFormatter
    name = "python -m benchmarks"
    parser = argparse.ArgumentParser(name, description=__doc__, formatter_class=raw)
    all_names = f"of {', '.join(makers)}; all by default"
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=all_names)
    small = "small problems and few samples, for the tests"
    parser.add_argument("--quick", action="store_true", help=small)
    other = "also time other libraries (requirements-peers.txt)"
    parser.add_argument("--peers", action="store_true", help=other)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the chain")
    again = "measure nothing, and draw the samples that --json wrote to this file"
    parser.add_argument("--saved", type=Path, metavar="FILE", help=again)
    given = parser.parse_args(arguments)
    if unknown := set(given.workloads) - set(makers):
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    if given.saved is not None and given.plot is None:
        parser.error("--saved needs --plot, the file to draw")
    if given.plot is not None:
        if given.workloads and "chain" not in given.workloads:
            parser.error("--plot draws the chain, which is not among the workloads")
        if importlib.util.find_spec("matplotlib") is None:
            parser.error("--plot needs matplotlib: pip install matplotlib")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if given.saved is not None:
        plot(read_rows(given.saved), given.plot)
        return 0
    warnings.filterwarnings("ignore", "Sparse", UserWarning)  # of torch, about sparse tensors
    rows = run(given.workloads or list(workloads(quick=False)), given.quick, given.peers)
    everything = not given.quick and not given.workloads
    seconds = import_seconds()[1] if everything else None
    memory = memory_ratio((60, 60, 60)) if everything else None
    makers = (*peers.PEERS, *repeat.PEERS) if given.peers else ()
    peer_names = list(dict.fromkeys(make.name for make in makers))
    reached = targets(rows, set(peer_names), seconds, memory)

    print_tables(rows, peer_names)
    if not given.quick:
        print("\n| target | at most | worst | |", "|---|---|---|---|", *map(str, reached), sep="\n")
    if given.json is not None:
        given.json.write_text(json.dumps(as_json(rows, reached), indent=1) + "\n")
    if given.plot is not None:
        plot(rows, given.plot)
    mistakes = wrong(rows)
    print(*mistakes, sep="\n", end="")
    return 1 if mistakes else 0


if __name__ == "__main__":
    raise SystemExit(main())
