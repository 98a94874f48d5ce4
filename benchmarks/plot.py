"""A log-log plot of the chain, with the slopes of linear, quadratic and cubic growth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .targets import Row

COLORS = {
    "sparse_solver": "#0b6e4f",
    "bare engine": "#7fb69e",
    "dense torch": "#c1292e",
    "SciPy splu": "#e3a018",
    "cholespy": "#8e6c8a",
    "torch-sla": "#3a7ca5",
    "torch-sla, CG": "#7fc4e8",
    "pypardiso": "#8a8a8a",
}


def plot(rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row.workload == "chain"]
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    axes.set(xscale="log", yscale="log")
    for name, color in COLORS.items():
        times = [(row.n, row.bare if name == "bare engine" else row.of(name)) for row in rows]
        points = [(n, t) for n, t in times if t is not None]
        if points:
            ours = name == "sparse_solver"
            width, order = (2.5, 3) if ours else (1.5, 2)
            style = f"{'--' if name == 'bare engine' else '-'}o"
            look: Any = {"color": color, "linewidth": width, "zorder": order, "markersize": 4}
            axes.plot(*zip(*points, strict=True), style, label=name, **look)
    low, high = axes.get_ylim()
    largest, smallest = rows[-1].n, rows[0].n
    for power, label in ((1, "O(n)"), (2, "O(n²)"), (3, "O(n³)")):
        # Each line starts at the same point at the lower left, and ends below the measured times.
        end = min(largest, smallest * (high / low) ** (1 / power))
        top = low * (end / smallest) ** power
        axes.plot([smallest, end], [low, top], color="black", linewidth=0.7, linestyle=":")
        axes.annotate(label, (end, top), fontsize=8, ha="right", va="bottom")
    title = "A step on the ring: x = (I + L(θ))⁻¹ b, and the gradient of ‖x‖² in θ"
    axes.set(xlabel="n", ylabel="milliseconds", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)
