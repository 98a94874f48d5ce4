"""Figures and movies in the style of the examples, `style.mplstyle`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("style.mplstyle")
WIDTH = 8.0  # inches
LARGE = 150_000  # bytes of a PNG file, from which on it gets fewer colours


@contextmanager
def new_figure(
    file: Path, rows: int, columns: int, height: float, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """Give a figure and its axes to draw in, then save it as a PNG file."""
    plt = _pyplot()
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), **options)
        yield figure, axes
        image = _render(figure)
        plt.close(figure)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, format="png", optimize=True)
    if file.stat().st_size > LARGE:
        _reduce(image, colors=256).save(file, format="png", optimize=True)


@contextmanager
def new_movie(file: Path, height: float) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Give axes and a function that adds them as they are to a movie, then save it as a GIF."""
    plt, frames = _pyplot(), []
    with plt.style.context((STYLE, {"savefig.dpi": 70})):
        figure, axis = plt.subplots(figsize=(WIDTH, height))
        yield axis, lambda: frames.append(_reduce(_render(figure), colors=32))
        plt.close(figure)
    first, *others = frames
    first.save(file, append_images=others, duration=120, loop=0, optimize=True)


def label(axis: Any, line: Any, text: str, down: float = 10.0) -> None:
    """Write a text so many points below the right end of a line, in its colour."""
    end, color = (line.get_xdata()[-1], line.get_ydata()[-1]), line.get_color()
    where = {"xytext": (0, -down), "textcoords": "offset points", "ha": "right", "va": "top"}
    axis.annotate(text, [float(number) for number in end], color=color, **where)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _render(figure: Any) -> Any:
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _reduce(image: Any, colors: int) -> Any:
    """The image with so few colours; rare ones, as at the end of a colour bar, are kept."""
    from PIL import Image

    return image.quantize(colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
