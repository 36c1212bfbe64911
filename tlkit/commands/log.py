"""What a command shows of the log: plain lines on standard error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tlkit.terminal import print_line
from tlkit.training.outputs.log import LOG, hide_passwords

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def show_log() -> Iterator[None]:
    """Print the log's lines, from INFO on, as they come, and keep them from other handlers."""
    from tlkit.data.progress import shared_console

    level, propagate = LOG.level, LOG.propagate
    with shared_console() as console:
        handler = _ConsoleHandler(console)
        handler.addFilter(hide_passwords)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
        LOG.addHandler(handler)
        try:
            yield
        finally:
            LOG.removeHandler(handler)
            LOG.setLevel(level)
            LOG.propagate = propagate


class _ConsoleHandler(logging.Handler):
    def __init__(self, console: "Console") -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "shown_otherwise", False):
            return
        style = "yellow" if record.levelno >= logging.WARNING else None
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print_line(self._console, prefix + record.getMessage(), style)
