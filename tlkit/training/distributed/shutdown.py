"""How the processes of one run end: together, none waiting for a dead one, and with one message."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

from tlkit.errors import RunError, TlkitError
from tlkit.system import is_command_line
from tlkit.training.distributed.ranks import are_connected, is_local_main_process, is_main_process
from tlkit.training.distributed.signals import Stop
from tlkit.training.private_api import add_to_store

STARTED_BY = "TLKIT_STARTED_BY"
"""Environment variable with the process id of the parent, for processes that tlkit starts for other devices of this machine."""
LOOK_EVERY_S = 0.5
GRACE_S = 3.0
"""Seconds that a process has to report its own error after another one has ended, before it is ended."""
SAVING_S = 60.0
"""The same after a signal stops all of them: a checkpoint may be large."""
FAILED, STOPPED = (1, 2), (75, 130)
"""Exit codes of a process that has reported its error, and after a signal."""
LOST = 3
"""Exit code of a process that has lost the connection to another one and leaves the message to the main process."""
RESUME_HINT = "Resume from the last checkpoint with the same command, --out and --resume."


@contextmanager
def ending_together(stop: Stop) -> Iterator[None]:
    """End the run in all its processes where it ends in one by an error or a signal.

    Of a `tlkit` command one process raises what is to be reported, the others SystemExit; in a library call each raises its own.
    Raises RunError in place of the account that torch gives of a connection to a process that has ended.
    """
    run = next(_RUNS)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        _ENDING.set()
        reported: BaseException = error
        if are_connected() and is_lost_connection(error):
            if was_started():
                time.sleep(GRACE_S)  # the process that has started this one knows more; where that has gone, end_with_the_first says so
                raise SystemExit(LOST) from error
            reported = RunError(_account(_dead(wait_s=GRACE_S)))
        # After a signal all say the same: the main process says it, since another one would write into what that draws on the terminal.
        tells = is_main_process() if isinstance(error, KeyboardInterrupt) and are_connected() else _is_first_to_report(run)
        if not tells or isinstance(error, KeyboardInterrupt):
            _all_end()  # the one that tells may not be done with it; or all were asked to stop
        for process in _STARTED:
            process.kill()
        tells = tells or not (is_command_line() or was_started())
        if tells and reported is error:
            raise
        raise (reported if tells else SystemExit(_exit_code(reported, stop))) from error


def _exit_code(error: BaseException, stop: Stop) -> int:
    if isinstance(error, KeyboardInterrupt):
        return stop.exit_code
    return 2 if isinstance(error, TlkitError) else 1


def _is_first_to_report(run: int) -> bool:
    """Check for the first error of a run: later failures, in any process, follow from it or are the same. run: counted alike by all."""
    if not are_connected():
        return is_local_main_process() or was_started()
    try:
        return add_to_store(f"tlkit/reported/{run}") == 1
    except RuntimeError:  # the process that keeps it has gone
        return is_local_main_process()


@contextmanager
def reported_once_per_machine() -> Iterator[None]:
    """Report an error once per machine, before processes know of each other."""
    try:
        yield
    except TlkitError as error:
        if is_local_main_process():
            raise
        raise SystemExit(2) from error


def was_started() -> bool:
    """Check whether tlkit started this process for another device."""
    return int(os.environ.get(STARTED_BY, os.getpid())) != os.getpid()


def end_with_the_first() -> None:
    """End a process that tlkit started when its parent has ended, for whatever reason."""
    if not was_started() or not hasattr(os, "getppid"):
        return
    starter = int(os.environ[STARTED_BY])

    def look() -> None:
        while os.getppid() == starter:
            time.sleep(LOOK_EVERY_S)
        reported = f"The first process of this run (number {starter}) has ended, so the others end too.\n  {RESUME_HINT}"
        _end(reported if os.environ["LOCAL_RANK"] == "1" else "", code=2)

    threading.Thread(target=look, name="tlkit-first-process", daemon=True).start()


def is_lost_connection(error: BaseException) -> bool:
    from torch import distributed

    if not isinstance(error, RuntimeError):
        return False
    words = ("connection closed by peer", "connection reset by peer", "gloo/transport", "broken pipe", "remote process exited")
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


_STARTED: list[subprocess.Popen[bytes]] = []
_ENDING = threading.Event()
"""Set when the main thread has noticed."""
_RUNS = count()


def watch(started: list[subprocess.Popen[bytes]]) -> None:
    """End the run where a process has ended, even if the main thread waits for that one for ever.

    A `tlkit` command is ended. In a library call the other processes are, so that what the main thread waits for fails.
    """
    _STARTED[:] = started
    end = _end if is_command_line() else _end_others

    def look() -> None:
        while not (dead := _dead()):
            if all(process.returncode == 0 for process in started):
                return
            time.sleep(LOOK_EVERY_S)
        # By then this process has mostly found out by itself: it has more to say, or a checkpoint to save.
        codes = {process.returncode for process in dead}
        if _ENDING.wait(SAVING_S if codes <= set(STOPPED) else GRACE_S):
            time.sleep(5 * GRACE_S)
        reported = codes & {*FAILED, *STOPPED}
        end("" if reported or _ENDING.is_set() else _account(dead), code=max(reported, default=2))

    threading.Thread(target=look, name="tlkit-processes", daemon=True).start()


def _dead(*, wait_s: float = 0.0) -> list[subprocess.Popen[bytes]]:
    """Return the child processes that ended with an error. wait_s: a closed connection may be noticed before a process has ended."""
    until = time.monotonic() + wait_s
    while True:
        dead = [process for process in _STARTED if process.poll() not in (None, 0, LOST)]
        if dead or not _STARTED or time.monotonic() >= until:
            return dead
        time.sleep(0.05)


def _all_end() -> None:
    until = time.monotonic() + GRACE_S
    while any(process.poll() is None for process in _STARTED) and time.monotonic() < until:
        time.sleep(0.05)


def _account(dead: Sequence[subprocess.Popen[bytes]]) -> str:
    if not dead:
        return f"A process of this run has ended, or its machine can't be reached, so the run ends.\n  {RESUME_HINT}"
    device, process = _STARTED.index(dead[0]) + 1, dead[0]
    code = process.returncode
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    why = " (signal 9 is often the system's, out of memory)" if code == -9 else ""
    return f"The process of device {device} (number {process.pid}) {how}{why}, so the run ends.\n  {RESUME_HINT}"


def _end(message: str, *, code: int) -> None:
    """End this process from a thread, while the main one may wait for ever."""
    if message:
        print(message, file=sys.stderr, flush=True)
    for process in _STARTED:
        process.kill()
    os._exit(code)


def _end_others(message: str, *, code: int) -> None:
    for process in _STARTED:
        process.kill()
