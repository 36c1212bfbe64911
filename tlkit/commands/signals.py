"""The signal handlers of the command line: Ctrl-C, and what schedulers send before they take a machine away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tlkit.errors import Interrupted
from tlkit.training.distributed.signals import Stop, stopped_by

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""SLURM sends SIGTERM at a job's end or when it is pre-empted, and with `--signal` SIGUSR1 some time before."""


@contextmanager
def handle_signals() -> Iterator[Stop]:
    """Raise KeyboardInterrupt inside, at once or between batches, when a signal comes; raise Interrupted with the exit code outside."""
    stop = Stop()
    main = threading.current_thread() is threading.main_thread()  # only there can handlers be installed
    before = {number: signal.signal(number, stop.on_signal) for number in STOPPING if main}
    try:
        with stopped_by(stop):
            yield stop
    except KeyboardInterrupt as error:
        words = str(stop)
        raise Interrupted(f"{words[0].upper()}{words[1:]}.", stop.exit_code) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
