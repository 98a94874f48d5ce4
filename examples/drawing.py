"""Figures in the style of the examples, `style.mplstyle`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("style.mplstyle")
WIDTH = 8.0  # inches


@contextmanager
def new_figure(
    file: Path, rows: int, columns: int, height: float, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """Give a figure and its axes to draw in, then save it as a PNG file.

    The file has 256 colours at most, which makes it several times smaller.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    with plt.style.context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), **options)
        yield figure, axes
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        plt.close(figure)
    image = Image.open(buffer).convert("RGB")
    file.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(256, dither=Image.Dither.NONE).save(file, format="png", optimize=True)
