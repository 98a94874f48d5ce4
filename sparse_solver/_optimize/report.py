"""What Newton's method has to tell: to its caller afterwards, and while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import OptionError

# What gave the step: the "true" matrix, the Hessian "projected" term by term, one of them plus a multiple of the identity,
# "shifted", or the negative "curvature" of the true one.
Matrix = Literal["true", "projected", "shifted", "curvature"]


@dataclass(frozen=True)
class Iteration:
    """One iteration of Newton's method.

    objective : the energy E, or ‖r‖ of a residual, before the step
    decrement : ½ λ², by how much the objective would fall if the energy were quadratic; ‖r‖, as if the residual were linear
    step : the fraction of the Newton step that was taken; 0 in the last iteration, which takes none. Along negative curvature:
        how far the variable that moves farthest does, in units of the size of X
    matrix : "true"; "projected", "shifted" or "curvature" if the Hessian was not positive definite, and was changed, or a
        saddle point was left along a direction of negative curvature
    shift : the multiple of the identity that was added
    factorizations : how many there were, failed ones included
    """

    objective: float
    decrement: float
    step: float
    matrix: Matrix
    shift: float
    factorizations: int

    def __str__(self) -> str:
        shift = f" by {self.shift:.1e}" if self.matrix == "shifted" else ""
        matrix = "" if self.matrix == "true" else f"  {self.matrix}{shift}"
        return f"{self.objective:14.7e}  {self.decrement:9.2e}  {self.step:9.2e}{matrix}"


@dataclass(frozen=True)
class Report:
    """How a solution was found, or why it was not.

    converged : whether it was
    reason : why the iteration ended, in words
    iterations : each `Iteration`; the last one belongs to the result, or to the last iterate, and took no step
    unique : whether the matrix at the result is regular, so that the solution is the only one nearby; None if not converged
    """

    converged: bool
    reason: str
    iterations: tuple[Iteration, ...]
    unique: bool | None

    @property
    def objective(self) -> float:
        """The energy, or ‖r‖, of the result."""
        return self.iterations[-1].objective if self.iterations else float("nan")

    @property
    def factorizations(self) -> int:
        """How many there were in all."""
        return sum(iteration.factorizations for iteration in self.iterations)

    @property
    def fallbacks(self) -> int:
        """In how many iterations the Hessian was not positive definite, and was projected or shifted."""
        return sum(iteration.matrix != "true" for iteration in self.iterations)

    def __str__(self) -> str:
        steps, each = (
            sum(iteration.step > 0 for iteration in self.iterations),
            "\n".join(map(str, self.iterations)),
        )
        ended = "converged" if self.converged else "did not converge"
        return (
            f"{ended} after {steps} steps, {self.factorizations} factorisations: {self.reason}\n"
            f"     objective  decrement       step\n{each}"
        )


@contextmanager
def telling(
    callback: Callable[[Tensor, Iteration], object] | None, progress: bool, what: str
) -> Iterator[Callable[[Tensor, Iteration], None]]:
    """The function that tells the caller of `what` about each iteration, with a copy of X, and moves the bar, if that is wanted."""

    def tell(X: Tensor, iteration: Iteration) -> None:
        if callback is not None:
            callback(X.clone(), iteration)

    if not progress:
        yield tell
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        raise OptionError(
            "progress=True needs tqdm: python -m pip install tqdm, or sparse-solver[progress]"
        ) from None
    with tqdm(desc=what, unit="step") as bar:

        def tell_and_show(X: Tensor, iteration: Iteration) -> None:
            bar.set_postfix_str(
                f"{iteration.objective:.6g}, decrement {iteration.decrement:.1e}", refresh=False
            )
            bar.update()
            tell(X, iteration)

        yield tell_and_show
