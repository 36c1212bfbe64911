"""A request to stop, as Ctrl-C and schedulers send it: training saves and stops at the end of the batch, all else at once.

The command line installs the handlers (`tlkit.commands.signals`); as a library tlkit installs none, and Ctrl-C is Python's own.
"""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

LOG = logging.getLogger("tlkit")

TRY_AGAIN = 75
"""The exit code after SIGTERM and SIGUSR1. EX_TEMPFAIL in BSD's sysexits.h: "the user is invited to retry". Not the shell's 143, which
is also what a process that died without saving leaves."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


class Stop:
    """What signals have requested. resume_hint: how to resume the run; empty if nothing has begun."""

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self.resume_hint = ""
        self._waits = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: raise KeyboardInterrupt, or leave that to the end of the batch."""
        again = self.requested is not None
        self.requested = self.requested or signal.Signals(number)
        # A scheduler may send its signal to every process of a job more than once: only a second Ctrl-C means "at once".
        if not self._waits or (again and number == signal.SIGINT):
            raise KeyboardInterrupt

    def handle(self, number: int) -> None:
        """Take over a signal that another process of the run was sent; 0 is none."""
        if number:
            self.requested = self.requested or signal.Signals(number)

    def raise_if_requested(self) -> None:
        """Raise KeyboardInterrupt if a signal came."""
        if self.requested is not None:
            raise KeyboardInterrupt

    @property
    def by_scheduler(self) -> bool:
        return self.requested not in (None, signal.SIGINT)

    @property
    def exit_code(self) -> int:
        return TRY_AGAIN if self.by_scheduler else INTERRUPTED

    def __str__(self) -> str:
        return f"stopped by {self.requested.name}" if self.requested and self.by_scheduler else "interrupted"

    @contextmanager
    def between_batches(self) -> Iterator[None]:
        """Delay signals: the code inside calls raise_if_requested after each batch.

        Raised wherever Python happens to be, KeyboardInterrupt was lost twice in seventeen times: once TensorBoard's writer waited for
        itself for ever, once training went on.
        """
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    @contextmanager
    def resume_hint_logged(self) -> Iterator[None]:
        """Log how the run goes on where KeyboardInterrupt ends what runs inside."""
        try:
            yield
        except KeyboardInterrupt:
            if self.resume_hint:
                LOG.warning("%s; %s", self, self.resume_hint)
            raise


_CURRENT: ContextVar[Stop | None] = ContextVar("tlkit_stop", default=None)


def current_stop() -> Stop:
    """Return the request that the caller's signal handlers fill in; one that nobody fills in where there are none."""
    return _CURRENT.get() or Stop()


@contextmanager
def stopped_by(stop: Stop) -> Iterator[None]:
    """Make `stop` the current one."""
    token = _CURRENT.set(stop)
    try:
        yield
    finally:
        _CURRENT.reset(token)
