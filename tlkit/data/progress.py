"""The progress bar: on a terminal a live line, elsewhere a plain one now and then. No torch, so that commands answer at once."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Thread

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tlkit.system import is_command_line

LOG = logging.getLogger("tlkit")

LINE_EVERY_S = 30
"""Shortest time between two lines without a terminal."""


_SHARED: ContextVar[Console | None] = ContextVar("tlkit_console", default=None)


@contextmanager
def shared_console() -> Iterator[Console]:
    """Yield a console on standard error, which is that of `progress_console` inside.

    Rich prints a line above what is live on the same console, and through the middle of what is live on another one.
    """
    console = Console(stderr=True, highlight=False)
    token = _SHARED.set(console)
    try:
        yield console
    finally:
        _SHARED.reset(token)


def progress_console(*, quiet: bool = False) -> Console:
    """Return the console for bars and live lines: standard error of a `tlkit` command; one that shows nothing in a library call."""
    shown = is_command_line() and not quiet
    if shown and (shared := _SHARED.get()):
        return shared
    return Console(stderr=True, highlight=False, quiet=not shown, force_terminal=None if shown else False)


@contextmanager
def progress(
    console: Console,
    what: str,
    total: int | Callable[[], int] | None,
    *,
    unit: str = "images",
    live: bool = True,
    write: Callable[[str], None] = LOG.info,
) -> Iterator[Callable[[int], None]]:
    """Show how far a long piece of work is; what is given is to be called with the number that each part of it did.

    Args:
        console: Whether it is a terminal decides between a bar and lines.
        what: The work, as `hashing images`.
        total: The number of units; None if it is unknown; a function is called in a thread of its own, because counting takes a while.
        unit: What is counted; of `bytes`, megabytes are shown.
        live: Whether there is a bar on a terminal.
        write: Takes a line where there is no terminal.
    """
    began = last_line = time.perf_counter()
    done = 0
    with Progress(
        *_columns(what, unit),
        console=console,
        transient=True,
        disable=not (live and console.is_terminal),
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(what, total=None if callable(total) else total, rate=0.0)
        if callable(total):
            Thread(target=lambda: bar.update(task, total=total()), daemon=True).start()

        def advance(number: int) -> None:
            nonlocal done, last_line
            done += number
            now = time.perf_counter()
            bar.update(task, advance=number, rate=done / (now - began))
            if not console.is_terminal and now - last_line > LINE_EVERY_S:
                last_line = now
                write(_line(what, done, bar.tasks[0].total, done / (now - began), unit))

        yield advance


def _columns(what: str, unit: str) -> tuple[ProgressColumn, ...]:
    bar = TextColumn(what), BarColumn(bar_width=30)
    if unit == "bytes":
        return *bar, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    return *bar, MofNCompleteColumn(), TextColumn(f"{{task.fields[rate]:.0f}} {unit}/s"), TimeRemainingColumn()


def _line(what: str, done: int, total: float | None, rate: float, unit: str) -> str:
    if unit == "bytes":
        done, total, rate, unit = done // 10**6, total and total // 10**6, rate / 1e6, "MB"
    if total is None:
        return f"{what}  {done}  {rate:.0f} {unit}/s"
    return f"{what}  {done}/{total:.0f}  {rate:.0f} {unit}/s, {max(0.0, total - done) / rate:.0f} s left"
