"""A progress bar on a terminal, if tqdm is installed, and about ten plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

LINES = 10  # in a log


@contextmanager
def show_progress(name: str, steps: int) -> Iterator[Callable[[str], None]]:
    """Give a function to be called with a text after each of at most `steps` steps."""
    done = 0
    with _open_bar(name, steps) as bar:

        def report(text: str) -> None:
            nonlocal done
            done += 1
            if bar is not None:
                bar.set_postfix_str(text, refresh=False)
                bar.update()
            is_shown = bar is not None and not bar.disable
            if not is_shown and done * LINES // steps > (done - 1) * LINES // steps:
                print(f"{name}: step {done} of {steps}, {text}", flush=True)

        yield report


def _open_bar(name: str, steps: int) -> AbstractContextManager[Any]:
    """A bar of tqdm, which disables itself in a log; None where there is no tqdm."""
    if importlib.util.find_spec("tqdm") is None:
        return nullcontext()
    from tqdm import tqdm

    columns, rows = shutil.get_terminal_size()  # (80, 24) where the terminal has no size
    bar: AbstractContextManager[Any]
    bar = tqdm(total=steps, desc=name, disable=None, ncols=columns, nrows=rows)
    return bar
