"""Times the solves, and what else there is.

    python -m benchmarks [WORKLOAD ...] [--quick] [--peers] [--json FILE] [--plot FILE]

Every gradient is checked before anything is timed, and one that is wrong disqualifies. A figure is the median over
fresh values, in milliseconds; contenders take turns. "step" is a training step from the parameters to their gradient,
the bare engine one factorisation and two solves on prepared arrays. Behind a time, in parentheses, is its ratio to the
bare engine; behind that of the fastest other, the ratio of our step to it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import sparse_solver.__main__

from . import contenders, peers, repeat
from .plot import plot
from .problems import table as workloads
from .processes import import_seconds, peak_memory
from .targets import Row, Target, others, table, targets
from .timing import measure

SECONDS = 3.0  # for the samples of one problem, unless three rounds take longer


def run(names: list[str], quick: bool, with_peers: bool) -> list[Row]:
    makers = workloads(quick)
    hopeless: set[tuple[str, str]] = set()
    rows = []
    with tqdm(total=sum(len(makers[name]) for name in names)) as bar:
        for name in names:
            for make in makers[name]:
                problem = make()
                module: Any = repeat if name == "repeat" else contenders
                others_too: Any = (
                    () if not with_peers else repeat.PEERS if name == "repeat" else peers.PEERS
                )
                seconds = 0.1 if quick else SECONDS
                times = measure(
                    problem,
                    module.BARE,
                    module.OURS,
                    others_too,
                    hopeless,
                    seconds,
                    bar.set_description,
                )
                rows.append(Row(name, problem.name, problem.n, times))
                bar.update()
    return rows


def memory_ratio(sides: tuple[int, ...]) -> float | None:
    """The peak memory of `Pattern.solve` over that of the bare engine, beyond that of the problem."""
    ours, bare = (peak_memory(name, sides) for name in ("Pattern.solve", "bare PARDISO"))
    return ours / bare if ours and bare else None


def wrong(rows: list[Row]) -> list[str]:
    """Those of our own answers that were wrong."""
    mine = {make.name for make in (*contenders.OURS, *repeat.OURS)}
    return [
        f"{row.name}: {name} is wrong by {timed.error:.1e}"
        for row in rows
        for name, timed in row.times.items()
        if name in mine and timed.absent is None and not timed.is_right
    ]


def as_json(rows: list[Row], reached: list[Target]) -> dict[str, Any]:
    return {
        "versions": sparse_solver.__main__.describe_machine().splitlines(),
        "rows": [
            {
                "workload": row.workload,
                "problem": row.name,
                "n": row.n,
                "contenders": {
                    name: {"milliseconds": t.milliseconds, "absent": t.absent, "error": t.error}
                    for name, t in row.times.items()
                },
            }
            for row in rows
        ],
        "targets": [{"what": t.what, "limit": t.limit, "values": t.values} for t in reached],
    }


def main(arguments: list[str] | None = None) -> int:
    makers = workloads(quick=False)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(makers)}; all by default"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small problems and few samples, for the checks"
    )
    parser.add_argument(
        "--peers", action="store_true", help="time other libraries, too (requirements-peers.txt)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the chain")
    given = parser.parse_args(arguments)
    if unknown := set(given.workloads) - set(makers):
        parser.error(f"no workload {', '.join(sorted(unknown))}; there are {', '.join(makers)}")
    names = given.workloads or list(makers)
    if given.plot is not None:
        if "chain" not in names:
            parser.error("--plot draws the chain, which is not among the workloads")
        if importlib.util.find_spec("matplotlib") is None:
            parser.error("--plot needs matplotlib: pip install matplotlib")

    warnings.filterwarnings(
        "ignore", "Sparse", UserWarning
    )  # torch's notices about its sparse tensors
    rows = run(names, given.quick, given.peers)
    everything = not given.quick and not given.workloads
    seconds = import_seconds()[1] if everything else None
    memory = memory_ratio((60, 60, 60)) if everything else None
    peer_names = (
        list(dict.fromkeys(make.name for make in (*peers.PEERS, *repeat.PEERS)))
        if given.peers
        else []
    )
    reached = targets(rows, set(peer_names), seconds, memory)

    print(sparse_solver.__main__.describe_machine(), f"{torch.get_num_threads()} threads\n", sep="\n")
    print(*table(rows, set(peer_names)), sep="\n")
    if peer_names:
        print("\nmilliseconds of a step by the others", *others(rows, peer_names), sep="\n")
        for name in peer_names:
            reasons = {row.times[name].absent for row in rows if name in row.times} - {
                None,
                "too slow",
            }
            for reason in sorted(filter(None, reasons)):
                print(f"{name}, where it is absent: {reason}")
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
