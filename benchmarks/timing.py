"""Medians of interleaved samples: in every round, contenders run in a new order on one fresh θ."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .bare import reference
from .contenders import Contender
from .problems import Absent, Problem

SLOW = 5.0  # seconds: a contender that needs more for one sample is sampled once
GIVE_UP = 4.0  # seconds: another library that needs more is not run on larger problems


@dataclass
class Timed:
    """The samples of a contender, or the reason why it is absent."""

    milliseconds: list[float] = field(default_factory=list)
    absent: str | None = None
    error: float | None = None  # of the answer, relative to its largest entry

    @property
    def is_right(self) -> bool:
        return self.error is not None and self.error < 1e-5

    @property
    def median(self) -> float | None:
        """The median of the samples; None for contenders that are absent or wrong."""
        return statistics.median(self.milliseconds) if self.milliseconds and self.is_right else None


def measure(
    problem: Problem,
    bare: Sequence[type[Contender]],
    ours: Sequence[type[Contender]],
    others: Sequence[type[Contender]],
    hopeless: set[tuple[str, str]],
    seconds: float,
    tell: Callable[[str], object],
) -> dict[str, Timed]:
    """Time the contenders, and check their answers by a bare engine or, without one, by SciPy.

    `hopeless` collects the pairs (family of problems, other contender) that are not run on larger
    problems. Errors of other libraries count as absence; errors of ours are raised.
    """
    found: dict[str, Timed] = {}
    taking_part: dict[str, Contender] = {}
    is_repeat = problem.workload == "repeat"
    family = problem.name if is_repeat else problem.workload + problem.name.split()[0]
    torch.manual_seed(0)
    theta = problem.fresh()
    expected: Tensor | None = None
    for make in (*bare, *ours, *others):
        timed = found[make.name] = Timed()
        tell(f"{problem.name}: {make.name}")
        if (family, make.name) in hopeless:
            timed.absent = "too slow"
            continue
        try:
            contender = make(problem)
            elapsed, result = _run(contender, theta)
            answer = contender.answer(theta, result)
        except Exception as error:
            if make not in others and not isinstance(error, Absent):
                raise
            timed.absent = _explain(error)
            continue
        if expected is None:
            expected = answer if make in bare else reference(problem, theta)
        timed.error = float((answer - expected).abs().max() / expected.abs().max())
        # The first run warms up; it counts only for others that are too slow to run again.
        if make in others and elapsed > GIVE_UP:
            hopeless.add((family, make.name))
        if not timed.is_right or (make in others and elapsed > SLOW):
            timed.milliseconds = [1e3 * elapsed]
            contender.close()
        else:
            taking_part[make.name] = contender

    _sample(problem, taking_part, found, seconds)
    return found


def _explain(error: Exception) -> str:
    failure = f"failed: {type(error).__name__}: {error}"
    return str(error) if isinstance(error, Absent) else failure


def _sample(
    problem: Problem, contenders: dict[str, Contender], found: dict[str, Timed], seconds: float
) -> None:
    """Add samples of all contenders for at least three rounds, then close the contenders.

    Slow ones take part in the first round only, before the clock of the others starts.
    """
    rounds, order, names = 0, random.Random(0), list(contenders)
    began = time.perf_counter()
    while names and (rounds < 3 or (rounds < 200 and time.perf_counter() - began < seconds)):
        theta = problem.fresh()
        order.shuffle(names)
        for name in names:
            found[name].milliseconds.append(1e3 * _run(contenders[name], theta)[0])
        rounds += 1
        slow = {name for name in names if found[name].milliseconds[-1] > 1e3 * SLOW}
        if rounds == 1 and slow:
            names = [name for name in names if name not in slow]
            began = time.perf_counter()
    for contender in contenders.values():
        contender.close()


def _run(contender: Contender, theta: Tensor) -> tuple[float, object]:
    prepared = contender.fresh(theta)
    start = time.perf_counter()
    result = contender.run(prepared)
    return time.perf_counter() - start, result
