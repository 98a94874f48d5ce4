"""A progress bar on a terminal, and about ten plain lines in a log."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

LINES = 10  # in a log


@contextmanager
def show_progress(name: str, steps: int) -> Iterator[Callable[[str], None]]:
    """Give a function to be called with a text after each of at most `steps` steps."""
    done = 0
    columns, rows = shutil.get_terminal_size()  # (80, 24) where the terminal has no size
    with tqdm(total=steps, desc=name, disable=None, ncols=columns, nrows=rows) as bar:

        def report(text: str) -> None:
            nonlocal done
            done += 1
            bar.set_postfix_str(text, refresh=False)
            bar.update()
            if bar.disable and done * LINES // steps > (done - 1) * LINES // steps:
                print(f"{name}: step {done} of {steps}, {text}", flush=True)

        yield report
