"""What Newton's method reports: afterwards to its caller, and while it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Literal

from torch import Tensor

from ..errors import OptionError

# The matrix of a step: the true one, the Hessian projected term by term, or one of these two plus a
# multiple of the identity. "curvature" marks a step along a negative curvature of the true one.
MatrixKind = Literal["true", "projected", "shifted", "curvature"]


@dataclass(frozen=True)
class Iteration:
    """One iteration of Newton's method.

    Attributes
    ----------
    objective : float
        The energy E, or the norm ‖r‖₂ of a residual, before the step.
    decrement : float
        For an energy ½ λ² = ½ gᵀ H⁻¹ g, by which the energy would fall if it were quadratic; for a
        residual ‖r‖₂, by which the norm would fall if the residual were linear.
    step : float
        The fraction of the Newton step that was taken; 0 in the last iteration, which takes none.
        For a step along negative curvature, the distance that the variable which moves farthest
        covers, in units of the size of X.
    matrix : {"true", "projected", "shifted", "curvature"}
        "true" for the Jacobian or the Hessian itself; "projected" or "shifted" if the Hessian was
        not positive definite and was changed; "curvature" if a saddle point was left along a
        direction of negative curvature.
    shift : float
        The multiple of the identity that was added to the Hessian.
    factorizations : int
        How many factorisations were made, failed ones included.

    Examples
    --------
    >>> import sparse_solver as ss
    >>> print(ss.Iteration(1.5, 0.25, 1.0, "shifted", 1e-3, 2))
     1.5000000e+00   2.50e-01   1.00e+00  shifted by 1.0e-03
    """

    objective: float
    decrement: float
    step: float
    matrix: MatrixKind
    shift: float
    factorizations: int

    def __str__(self) -> str:
        shift = f" by {self.shift:.1e}" if self.matrix == "shifted" else ""
        matrix = "" if self.matrix == "true" else f"  {self.matrix}{shift}"
        return f"{self.objective:14.7e}  {self.decrement:9.2e}  {self.step:9.2e}{matrix}"


@dataclass(frozen=True, repr=False)
class Report:
    """How a solution was found, or why none was found; prints as a table of the iterations.

    Attributes
    ----------
    converged : bool
        Whether a solution was found.
    reason : str
        Why the iterations ended, as a message.
    iterations : tuple of Iteration
        All iterations; the last one describes the result, or the last iterate, and took no step.
    unique : bool or None
        Whether the matrix at the result is regular, so that no other solution is arbitrarily
        close; None if no solution was found.

    Examples
    --------
    >>> import sparse_solver as ss
    >>> first = ss.Iteration(2.0, 1.5, 1.0, "true", 0.0, 1)
    >>> last = ss.Iteration(0.5, 0.0, 0.0, "true", 0.0, 1)
    >>> report = ss.Report(True, "the decrement is small enough", (first, last), True)
    >>> report
    Report(converged=True, unique=True, steps=1, factorizations=2, objective=0.5)
    >>> print(report)
    converged after 1 steps, 2 factorisations: the decrement is small enough
         objective  decrement       step
     2.0000000e+00   1.50e+00   1.00e+00
     5.0000000e-01   0.00e+00   0.00e+00
    """

    converged: bool
    reason: str
    iterations: tuple[Iteration, ...]
    unique: bool | None

    @property
    def objective(self) -> float:
        """The energy, or ‖r‖₂, of the result; NaN without an iteration."""
        return self.iterations[-1].objective if self.iterations else float("nan")

    @property
    def steps(self) -> int:
        """The number of steps that were taken."""
        return sum(iteration.step > 0 for iteration in self.iterations)

    @property
    def factorizations(self) -> int:
        """The number of factorisations in all iterations together."""
        return sum(iteration.factorizations for iteration in self.iterations)

    @property
    def fallbacks(self) -> int:
        """The number of iterations whose Hessian was not positive definite."""
        return sum(iteration.matrix != "true" for iteration in self.iterations)

    def __repr__(self) -> str:
        names = ("converged", "unique", "steps", "factorizations")
        known = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"Report({known}, objective={self.objective:.6g})"

    def __str__(self) -> str:
        ended = "converged" if self.converged else "did not converge"
        counts = f"{self.steps} steps, {self.factorizations} factorisations"
        head = f"{ended} after {counts}: {self.reason}"
        return "\n".join((head, "     objective  decrement       step", *map(str, self.iterations)))


@contextmanager
def report_progress(
    callback: Callable[[Tensor, Iteration], object] | None, progress: bool, name: str
) -> Iterator[Callable[[Tensor, Iteration], None]]:
    """Yield the function that passes each iteration of `name`, and a copy of X, to the callback.

    With `progress`, it also shows the iteration on stderr.
    """
    display = _open_display(name) if progress else nullcontext()
    with display as show:

        def report(X: Tensor, iteration: Iteration) -> None:
            if show is not None:
                show(f"objective {iteration.objective:.6g}, decrement {iteration.decrement:.1e}")
            if callback is not None:
                callback(X.clone(), iteration)

        yield report


@contextmanager
def _open_display(name: str) -> Iterator[Callable[[str], None]]:
    """Yield the function that shows the text of an iteration: in a bar, or as a line of a log."""
    if sys.stderr is None or not sys.stderr.isatty():
        numbers = count(1)
        yield lambda text: print(f"{name}: iteration {next(numbers)}, {text}", file=sys.stderr)
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        hint = "python -m pip install tqdm, or sparse-solver[progress]"
        raise OptionError(f"progress=True needs tqdm on a terminal: {hint}") from None
    with tqdm(desc=name, unit="step") as bar:

        def show(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update()

        yield show
