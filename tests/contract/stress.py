"""Judge random cases in several processes for some minutes, and print how many were wrong.

    python -m tests.contract.stress --minutes 10 --seed 1 --kinds queues,markov --engine superlu
    python -m tests.contract.stress --case "Case('queues', 43, 1194215870, 'float32')"

A case that ends its process, or takes too long, is a crash. Then the property tests make random
calls, unless --kinds or --engine are given. The exit status is 1 if there was any fault.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from tests.contract import package_kinds
from tests.contract.matrix_kinds import DTYPES, KINDS
from tests.contract.verdicts import FAULTS, VERDICTS, Case, Options, Verdict, draw_case, judge

__all__ = ["main", "package_kinds"]  # which registers its kinds

SECONDS_FOR_A_CASE = 120
SECONDS_BETWEEN_REPORTS = 60
SECONDS_FOR_A_CALL = 0.004
PROPERTIES = "tests/contract/test_properties.py"
SHOWN_OF_EACH = 3  # examples of each fault of a kind


def serve(connection: Connection) -> None:
    """Judge the cases that arrive, in a process of its own."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    while True:
        case = connection.recv()
        try:
            connection.send(judge(case))
        except Exception as error:  # of the bed itself
            connection.send([verdict_on_process("bed", case, f"{type(error).__name__}: {error}")])


def verdict_on_process(verdict: str, case: Case, why: str) -> Verdict:
    return Verdict(verdict, case, Options(case.engine), "?", False, why)


class Worker:
    """A process that judges one case at a time, and is replaced if it ends."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.case: Case | None = None

    def start(self, case: Case) -> None:
        self.case, self.started = case, time.monotonic()
        self.connection.send(case)

    def take(self) -> list[Verdict] | None:
        """The verdicts on the case, or None if they are not there."""
        assert self.case is not None
        if self.connection.poll():
            try:
                return list(self.connection.recv())
            except (EOFError, ConnectionResetError):
                self.process.join()
                why = f"the process ended with {self.process.exitcode}"
                return [verdict_on_process("crash", self.case, why)]
        if time.monotonic() - self.started > SECONDS_FOR_A_CASE:
            self.process.kill()
            self.process.join()
            return [verdict_on_process("crash", self.case, f"more than {SECONDS_FOR_A_CASE} s")]
        return None


def run(cases: Iterator[Case], seconds: float, jobs: int) -> Iterator[Verdict]:
    """The verdicts on the cases that can be judged in this time."""
    end = time.monotonic() + seconds
    workers = [Worker() for _ in range(jobs)]
    while True:
        for place, worker in enumerate(workers):
            if worker.case is not None and (verdicts := worker.take()) is not None:
                yield from verdicts
                worker.case = None
                if not worker.process.is_alive():
                    worker = workers[place] = Worker()
            if worker.case is None and time.monotonic() < end and (case := next(cases, None)):
                worker.start(case)
        busy = [worker.connection for worker in workers if worker.case is not None]
        if not busy:
            break
        wait(busy, timeout=1)
    for worker in workers:
        worker.process.kill()


def table(title: str, counts: dict[str, Counter[str]]) -> str:
    width = max(len(title), *(len(name) for name in counts))
    shown = [v for v in (*VERDICTS, "bed") if any(c[v] for c in counts.values())]
    lines = [f"{title:{width}s}" + "".join(f"{name:>15s}" for name in shown)]
    total: Counter[str] = Counter()
    for name, count in sorted(counts.items()):
        total += count
        lines.append(f"{name:{width}s}" + "".join(f"{count[v]:15d}" for v in shown))
    lines.append(f"{'all':{width}s}" + "".join(f"{total[v]:15d}" for v in shown))
    return "\n".join(lines)


def draw_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    kinds = arguments.kinds.split(",") if arguments.kinds else list(KINDS)
    rng = np.random.default_rng(arguments.seed)
    for _ in range(arguments.matrices):
        yield draw_case(rng, arguments.largest, kinds, arguments.engine)


def run_properties(calls: int, seed: int, jobs: int) -> bool:
    """Make random calls in several processes; print what failed, and return whether none did."""
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for job in range(jobs):
            place = Path(folder, str(job))
            place.write_text("before the first call")
            variables = {
                "SPARSE_SOLVER_CALLS": str(calls // jobs),
                "SPARSE_SOLVER_CALL_FILE": str(place),
            }
            options = ["-q", "-p", "no:cacheprovider", f"--hypothesis-seed={seed + job}"]
            command = [sys.executable, "-m", "pytest", *options, PROPERTIES]
            with Path(folder, f"{job}.txt").open("w") as output:
                environment = os.environ | variables
                running.append(subprocess.Popen(command, env=environment, stdout=output))
        statuses = [process.wait() for process in running]
        for job, status in enumerate(statuses):
            if status != 0:
                print(Path(folder, f"{job}.txt").read_text()[-4000:])
                print(f"ended with {status} at {Path(folder, str(job)).read_text()}", flush=True)
    return not any(statuses)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    today = int(date.today().strftime("%Y%m%d"))
    parser.add_argument("--minutes", type=float, default=10, help="for the whole run")
    parser.add_argument("--matrices", type=int, default=10**9, help="at most so many")
    parser.add_argument("--seed", type=int, default=today, help="by default, of the date")
    parser.add_argument("--largest", type=int, default=2000, help="the largest number of rows")
    parser.add_argument("--kinds", help="names of kinds, with commas")
    parser.add_argument("--engine", help="the name of an engine")
    parser.add_argument(
        "--case", help="judge one case, such as \"Case('queues', 9, 0, 'float32')\""
    )
    parser.add_argument("--calls", type=int, default=100_000, help="random calls after the cases")
    parser.add_argument("--jobs", type=int, default=2, help="the number of processes")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.case:
        verdicts = list(run(iter([eval(arguments.case, {"Case": Case})]), SECONDS_FOR_A_CASE, 1))
        print(*verdicts, sep="\n")
        return int(any(verdict.verdict in FAULTS for verdict in verdicts))
    print(f"seed {arguments.seed}", flush=True)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    by_dtype: dict[str, Counter[str]] = {dtype: Counter() for dtype in DTYPES}
    matrices: set[Case] = set()
    reported = time.monotonic()
    calls = 0 if arguments.kinds or arguments.engine else arguments.calls
    seconds = 60 * arguments.minutes - calls * SECONDS_FOR_A_CALL / arguments.jobs
    for verdict in run(draw_cases(arguments), max(seconds, 0), arguments.jobs):
        case, name = verdict.case, verdict.verdict
        matrices.add(case)
        by_kind[case.kind][name] += 1
        by_dtype[case.dtype][name] += 1
        if time.monotonic() > reported + SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            print(f"... {len(matrices)} matrices", flush=True)
        if name in (*FAULTS, "bed") and by_kind[case.kind][name] <= SHOWN_OF_EACH:
            print(verdict, flush=True)
    print(f"\n{len(matrices)} matrices, seed {arguments.seed}, engine {arguments.engine}\n")
    print(table("kind", by_kind), table("dtype", by_dtype), sep="\n\n", flush=True)
    is_good = not any(count[name] for count in by_dtype.values() for name in (*FAULTS, "bed"))
    if calls:
        is_right = run_properties(calls, arguments.seed, arguments.jobs)
        print(f"\n{calls} random calls: {'right' if is_right else 'FAILED'}")
        is_good = is_good and is_right
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main())
