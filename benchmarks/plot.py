"""A log-log plot of the chain, with the slopes of linear, quadratic and cubic growth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .targets import Row

STYLE = Path(__file__).parent.parent / "examples" / "style.mplstyle"
COLORS = {
    "sparse_solver": "#0072b2",
    "bare engine": "#6aaed6",
    "dense torch": "#c1292e",
    "SciPy splu": "#c98a00",
    "cholespy": "#8e5a8a",
    "torch-sla": "#00795a",
    "torch-sla, CG": "#5fae6e",
    "pypardiso": "#707070",
}
WIDTH, HEIGHT = 8.0, 5.0  # inches
LINE = 12.0  # points between the labels of two lines


def plot(rows: list[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row.workload == "chain"]
    lines = {name: _measured(rows, name) for name in COLORS}
    lines = {name: points for name, points in lines.items() if points}
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
        axes.set(xscale="log", yscale="log", xlabel="n", ylabel="milliseconds")
        axes.set_title("A step on the ring: x = (I + L(θ))⁻¹ b, and the gradient of ‖x‖² in θ")
        axes.grid()
        for name, points in lines.items():
            look: Any = {"linewidth": 3, "zorder": 3} if name == "sparse_solver" else {}
            style = f"{'--' if name == 'bare engine' else '-'}o"
            axes.plot(*zip(*points, strict=True), style, color=COLORS[name], **look)
        _draw_growth(axes, rows[0].n, rows[-1].n)
        _label_ends(axes, lines)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)
        plt.close(figure)


def _measured(rows: list[Row], name: str) -> list[tuple[int, float]]:
    times = [(row.n, row.bare if name == "bare engine" else row.of(name)) for row in rows]
    return [(n, t) for n, t in times if t is not None]


def _draw_growth(axes: Any, smallest: int, largest: int) -> None:
    """Draw lines that start at the same point at the lower left, and end below the upper rim."""
    low, high = axes.get_ylim()
    for power, name in ((1, "O(n)"), (2, "O(n²)"), (3, "O(n³)")):
        end = min(largest, smallest * (high / low) ** (1 / power))
        top = low * (end / smallest) ** power
        axes.plot([smallest, end], [low, top], color="0.5", linewidth=0.8, linestyle=":")
        axes.annotate(name, (end, top), color="0.4", ha="right", va="bottom")


def _label_ends(axes: Any, lines: dict[str, list[tuple[int, float]]]) -> None:
    """Write the names of the lines beside their right ends, one below the other."""
    low, high = (math.log(limit) for limit in axes.get_ylim())
    gap = LINE / (72 * 0.8 * HEIGHT) * (high - low)  # the axes have about 0.8 of the height
    for n in {points[-1][0] for points in lines.values()}:
        ends = {
            name: math.log(points[-1][1]) for name, points in lines.items() if points[-1][0] == n
        }
        for name, height in spread(ends, gap).items():
            place = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
            look = {"color": COLORS[name], "bbox": {"color": "white", "pad": 1}}
            look["weight"] = "bold" if name == "sparse_solver" else "normal"
            axes.annotate(name, (n, math.exp(height)), **place, **look)


def spread(heights: dict[str, float], gap: float) -> dict[str, float]:
    """Move heights as little as possible for all distances to be at least `gap`."""
    blocks: list[list[tuple[str, float]]] = []
    for item in sorted(heights.items(), key=lambda pair: pair[1]):
        blocks.append([item])
        while len(blocks) > 1 and _bottom(blocks[-1], gap) < _top(blocks[-2], gap) + gap:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return {
        name: _bottom(block, gap) + number * gap
        for block in blocks
        for number, (name, _) in enumerate(block)
    }


def _bottom(block: list[tuple[str, float]], gap: float) -> float:
    """The height of the lowest label of a block that is as near as possible to its lines."""
    return sum(height for _, height in block) / len(block) - gap * (len(block) - 1) / 2


def _top(block: list[tuple[str, float]], gap: float) -> float:
    return _bottom(block, gap) + gap * (len(block) - 1)
