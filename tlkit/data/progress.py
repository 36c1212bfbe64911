"""A long pass over pictures, as a person sees it. No torch, so that commands answer at once."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from tlkit.system import is_command_line

LOG = logging.getLogger("tlkit")

LINE_EVERY_S = 30
"""Without a terminal, a line at most this often."""


def progress_console(*, quiet: bool = False) -> Console:
    """Return the console for bars and live lines: standard error of a `tlkit` command; one that shows nothing in a library call."""
    shown = is_command_line() and not quiet
    return Console(stderr=True, highlight=False, quiet=not shown, force_terminal=None if shown else False)


def bar_columns(what: str) -> tuple[ProgressColumn, ...]:
    """Pictures so far, pictures a second (the task's field `speed`) and the time left."""
    speed = TextColumn("{task.fields[speed]:.0f} pictures/s")
    return TextColumn(what), BarColumn(bar_width=30), MofNCompleteColumn(), speed, TimeRemainingColumn()


@contextmanager
def images_progress(console: Console, what: str, images: int) -> Iterator[Callable[[int], None]]:
    """Shows a pass over pictures outside of the phases. Gives what is to be called with the number of pictures after each batch."""
    began = last_line = time.perf_counter()
    done = 0
    with Progress(*bar_columns(what), console=console, transient=True, disable=not console.is_terminal) as live:
        task = live.add_task(what, total=images, speed=0.0)  # rich's own speed is None at first

        def advance(batch: int) -> None:
            nonlocal done, last_line
            done += batch
            now = time.perf_counter()
            live.update(task, advance=batch, speed=done / (now - began))
            if not console.is_terminal and now - last_line > LINE_EVERY_S:
                last_line = now
                speed = done / (now - began)
                LOG.info("%s  %d/%d  %.0f pictures/s, %.0f s left", what, done, images, speed, (images - done) / speed)

        yield advance
