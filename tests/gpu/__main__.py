"""All that is to be tested on a GPU, in less than ten minutes, and one summary.

    python -m tests.gpu [--log DIRECTORY] [--memcheck]

needs a GPU, torch for CUDA, cuDSS, pytest and hypothesis, and no network. The most basic tests come
first. Each group goes on after a failure, except the first one, and ends at its limit of time.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SECONDS = 590  # for all groups together
SHOWN = 30  # failures in the summary; the log has all
END_OF_OUTPUT = 4000  # characters, of a group that reports no tests


@dataclass(frozen=True)
class Group:
    """A command, which is a pytest if `tests` names some, and the seconds that it may take.

    simulates : whether the simulated GPU is used beside the real one
    """

    name: str
    seconds: int
    tests: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    workers: int = 0
    simulates: bool = False

    @property
    def file_name(self) -> str:
        return self.name.replace(" ", "_")

    def line(self, report: Path) -> list[str]:
        if not self.tests:
            return list(self.command)
        workers = ["-n", str(self.workers)] if self.workers and has_xdist() else []
        quiet = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        return [sys.executable, "-m", "pytest", *quiet, *workers, *self.tests]


def has_xdist() -> bool:
    return importlib.util.find_spec("xdist") is not None


GROUPS = (
    Group("basics", 150, ("-x", "tests/gpu/test_gpu_basics.py")),
    Group("solve and build", 150, ("tests/gpu", "--ignore=tests/gpu/test_gpu_basics.py")),
    Group("contract", 240, ("tests/contract/test_engines.py", "-k=-cuda-"), workers=8),
    Group(
        "simulation",
        120,
        ("tests/engines/cudss", "tests/contract/test_devices.py"),
        workers=4,
        simulates=True,
    ),
    Group("speed", 120, command=(sys.executable, "-m", "benchmarks.gpu", "--quick")),
)
MEMCHECK = Group(
    "memcheck", 300,
    command=("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9",
             sys.executable, "-m", "tests.gpu.twenty_solves"),
)  # fmt: skip


@dataclass
class Outcome:
    """What became of a group: its exit status, None where it ran out of time."""

    status: int | None
    seconds: float
    counts: str
    failures: list[str]


def read_report(report: Path) -> tuple[str, list[str]]:
    """The numbers of tests that passed, failed and were skipped, and a line for each failure."""
    if not report.exists():  # pytest writes it when it ends
        return "no report", []
    cases = list(xml.parse(report).getroot().iter("testcase"))
    failures, skipped = [], 0
    for case in cases:
        skipped += case.find("skipped") is not None
        for found in (*case.findall("failure"), *case.findall("error")):
            why = (found.get("message") or "").split("\n")[0]
            failures.append(f"{case.get('classname')}::{case.get('name')}: {why[:160]}")
    passed = len(cases) - skipped - len(failures)
    return f"{passed} passed, {len(failures)} failed, {skipped} skipped", failures


def run_group(group: Group, log: Path, seconds: float) -> Outcome:
    """Run a group; what it prints goes into a file of the log."""
    name = group.file_name
    report, start = log / f"{name}.xml", time.monotonic()
    report.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if not group.simulates:
        environment["SPARSE_SOLVER_REAL_GPU"] = "1"
    if group is MEMCHECK:
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    with (log / f"{name}.txt").open("w") as output:
        try:
            done = subprocess.run(
                group.line(report), cwd=ROOT, env=environment, timeout=min(group.seconds, seconds),
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
            status: int | None = done.returncode
        except subprocess.TimeoutExpired:
            status = None
    counts, failures = read_report(report) if group.tests else ("", [])
    return Outcome(status, time.monotonic() - start, counts, failures)


def summarize(outcomes: dict[str, Outcome], log: Path) -> str:
    lines = []
    for name, outcome in outcomes.items():
        end = "out of time" if outcome.status is None else f"exit status {outcome.status}"
        lines.append(f"{name:<16}{outcome.seconds:7.0f} s  {end:<16}{outcome.counts}")
    failures = [line for outcome in outcomes.values() for line in outcome.failures]
    lines += ["", *failures[:SHOWN]]
    if len(failures) > SHOWN:
        lines.append(f"and {len(failures) - SHOWN} more, in {log}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None, groups: tuple[Group, ...] = GROUPS) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.gpu", None, __doc__, formatter_class=raw)
    parser.add_argument(
        "--log", type=Path, default=Path("build/gpu"), help="the folder of the logs"
    )
    parser.add_argument("--memcheck", action="store_true", help="only compute-sanitizer's memcheck")
    options = parser.parse_args(arguments)
    if options.memcheck:
        if shutil.which("compute-sanitizer") is None:
            print("compute-sanitizer, which comes with CUDA, is not on the PATH")
            return 1
        groups = (MEMCHECK,)
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no CUDA device, without which nothing is tested")
        return 1
    print(torch.cuda.get_device_name(), "· torch", torch.__version__)
    return run_groups(groups, options.log.resolve())


def run_groups(groups: tuple[Group, ...], log: Path) -> int:
    """Run the groups one after the other, and print what happened; 1 if one of them failed."""
    log.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    end = time.monotonic() + SECONDS
    for group in groups:
        outcome = run_group(group, log, max(1.0, end - time.monotonic()))
        outcomes[group.name] = outcome
        if outcome.counts in ("", "no report"):
            print((log / f"{group.file_name}.txt").read_text()[-END_OF_OUTPUT:])
    print(summarize(outcomes, log))
    return int(any(outcome.status != 0 for outcome in outcomes.values()))


if __name__ == "__main__":
    raise SystemExit(main())
