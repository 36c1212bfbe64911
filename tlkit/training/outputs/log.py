"""log.txt: the log of a run, besides the caller's own logging."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tlkit.errors import without_passwords

LOG = logging.getLogger("tlkit")
SHOWN_OTHERWISE = {"shown_otherwise": True}
"""Goes with a line as `extra`, for log.txt and the caller's own handlers: a command shows the same in its live table or its last panel."""


@contextmanager
def log_to_file(file: Path) -> Iterator[None]:
    """Append the run's lines, from INFO on, to `file`. Other handlers and loggers get what they would get without it."""
    to_file = _LogFile(file, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    to_file.addFilter(hide_passwords)
    level, propagate = LOG.level, LOG.propagate
    added: list[logging.Handler] = [to_file]
    if (before := LOG.getEffectiveLevel()) > logging.INFO:
        LOG.setLevel(logging.INFO)
        if propagate:
            added.append(_ToParents(before))
            LOG.propagate = False
    for handler in added:
        LOG.addHandler(handler)
    try:
        yield
    finally:
        for handler in added:
            LOG.removeHandler(handler)
        with suppress(OSError):  # what a full disk has no room for is lost
            to_file.close()
        LOG.setLevel(level)
        LOG.propagate = propagate


@contextmanager
def silent() -> Iterator[None]:
    """Report nothing: for the processes of other devices, whose lines would be those of the main process again."""
    LOG.addFilter(_nothing)
    try:
        yield
    finally:
        LOG.removeFilter(_nothing)


@contextmanager
def warnings_only() -> Iterator[None]:
    """Leave warnings alone of what is logged: for trials, of which a line each is enough, or none."""
    level = LOG.level
    LOG.setLevel(logging.WARNING)
    try:
        yield
    finally:
        LOG.setLevel(level)


def hide_passwords(record: logging.LogRecord) -> bool:
    """Filter a handler's records: addresses lose the passwords in them."""
    record.msg, record.args = without_passwords(record.getMessage()), None
    return True


def _nothing(record: logging.LogRecord) -> bool:
    return False


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Drop a line that a full disk has no room for, without a traceback: what must be written reports that itself."""


class _ToParents(logging.Handler):
    """Pass on to parent loggers what they would get if this logger's level hadn't been lowered."""

    def emit(self, record: logging.LogRecord) -> None:
        if LOG.parent is not None:
            LOG.parent.callHandlers(record)
