"""Ctrl-C, and what schedulers send before they take a machine away: training saves and stops at the end of the batch, all else at once."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tlkit.errors import Interrupted

LOG = logging.getLogger("tlkit")

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""SLURM sends SIGTERM at a job's end or when it is pre-empted, and with `--signal` SIGUSR1 some time before."""

TRY_AGAIN = 75
"""The exit code after SIGTERM and SIGUSR1. EX_TEMPFAIL in BSD's sysexits.h: "the user is invited to retry". Not the shell's 143, which
is also what a process that died without saving leaves."""


class Stop:
    """What the signals have asked for. hint: what to tell of how to go on; empty where nothing was begun."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.hint = ""
        self._waits = False

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.asked is not None
        self.asked = self.asked or signal.Signals(number)
        # A scheduler may send its signal to every process of a job more than once: only a second Ctrl-C means "at once".
        if not self._waits or (again and number == signal.SIGINT):
            raise KeyboardInterrupt

    def handle(self, number: int) -> None:
        """A signal that another process of the run was sent; 0 is none."""
        if number:
            self.asked = self.asked or signal.Signals(number)

    def raise_if_requested(self) -> None:
        """Raises KeyboardInterrupt if a signal came."""
        if self.asked is not None:
            raise KeyboardInterrupt

    @contextmanager
    def between_batches(self) -> Iterator[None]:
        """What runs inside looks for itself, after each batch, whether it is asked to stop.

        Raised wherever Python happens to be, KeyboardInterrupt was lost twice in seventeen times: once TensorBoard's writer waited for
        itself for ever, once training went on.
        """
        self._waits = True
        try:
            yield
        finally:
            self._waits = False


@contextmanager
def handle_signals() -> Iterator[Stop]:
    """Inside, the signals raise KeyboardInterrupt, at once or between batches; it comes out as Interrupted."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only the main thread is told of signals
        yield stop
        return
    before = {number: signal.signal(number, stop.on_signal) for number in STOPPING}
    try:
        yield stop
    except KeyboardInterrupt as error:
        by_hand = stop.asked in (None, signal.SIGINT)
        words = "interrupted" if by_hand or stop.asked is None else f"stopped by {stop.asked.name}"
        if stop.hint:
            LOG.warning("%s; %s", words, stop.hint)
        raise Interrupted(f"{words[0].upper()}{words[1:]}.", 130 if by_hand else TRY_AGAIN) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
