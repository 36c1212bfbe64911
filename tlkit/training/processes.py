"""The processes of one run, one for each device: started, introduced to each other, and watched, so that none waits for a dead one."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, TypeVar

from tlkit.errors import DataError, DeviceError, RunError
from tlkit.recipe.load import recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.training.run_folder import is_first_process

T = TypeVar("T")

STARTED_BY = "TLKIT_STARTED_BY"
"""Tells the processes that tlkit starts for other devices of this machine the number of the one that did."""
LOOK_EVERY_S = 0.5
GRACE_S = 3.0
"""What a process may say itself, after another one has ended, before it is ended for it."""
SAVING_S = 60.0
"""The same where a signal stops all of them: a checkpoint may be large."""
STOPPED = (75, 130)
"""Exit codes after a signal."""
HOW_TO_GO_ON = "Go on from the last checkpoint by the same command, with --out and --resume."


def start_processes(recipe: Recipe) -> None:
    """Starts a process for each further device of this machine, unless torchrun or SLURM did, and connects all of them.

    Returns when all have come here. Without a second device, or without a phase that would use it, it does nothing.
    Raises DeviceError for strategies whose processes are copies of this one, and DataError where the others read another recipe.
    """
    if not recipe.gradient_phases:
        return
    from tlkit.training.trainer import lightning_trainer

    built = lightning_trainer(recipe.trainer, logger=False, enable_checkpointing=False)
    launcher, strategy = built.strategy.launcher, built.strategy
    if built.world_size == 1:
        return
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    if not isinstance(launcher, _SubprocessScriptLauncher):
        raise DeviceError(
            f"trainer.strategy = {recipe.trainer.strategy!r} starts copies of this process.\n  Use ddp, which starts new ones."
        )
    environment = launcher.cluster_environment
    environment.validate_settings(num_devices=launcher.num_processes, num_nodes=launcher.num_nodes)
    if not environment.creates_processes_externally:
        os.environ[STARTED_BY] = str(os.getpid())
        # Not launch(): the observer that this would start kills all processes, the first one too, and says nothing.
        launcher._call_children_scripts()
        _watch(launcher.procs)
    strategy.setup_environment()
    check_same("The recipe is", recipe_yaml(recipe).splitlines())


def end_with_the_first() -> None:
    """In a process that tlkit started: ends it when the one that started it has gone, however it went."""
    starter = os.environ.get(STARTED_BY)
    if not starter or int(starter) == os.getpid():
        return

    def look() -> None:
        while os.getppid() == int(starter):
            time.sleep(LOOK_EVERY_S)
        _end(f"The first process of this run (number {starter}) has gone, so the others end too.\n  {HOW_TO_GO_ON}")

    if hasattr(os, "getppid"):
        threading.Thread(target=look, name="tlkit-first-process", daemon=True).start()


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, in all of them. Where it raises TlkitError there, the others end in silence."""
    if not _together():
        return make()
    said: list[Any] = [None, False]
    try:
        if is_first_process():
            said = [make(), True]
    finally:
        _broadcast(said, source=0)
    if not said[1]:
        raise SystemExit(2)
    value: T = said[0]
    return value


def check_same(what: str, lines: Sequence[str]) -> None:
    """Raises DataError in the first process where another one has other lines, with the first difference; the others end in silence."""
    if not _together():
        return
    from torch import distributed

    mine = (socket.gethostname(), sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest())
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, mine)
    other = next((rank for rank, (_, digest) in enumerate(found) if digest != found[0][1]), None)
    if other is None:
        return
    theirs = [list(lines)]
    _broadcast(theirs, source=other)
    if not is_first_process():
        raise SystemExit(2)
    here, there = first_difference(lines, theirs[0])
    raise DataError(
        f"{what} not the same in all processes of this run.\n"
        f"    process 0 ({found[0][0]}): {here}\n    process {other} ({found[other][0]}): {there}\n"
        "  Give every machine the same files, and start them with the same command."
    )


def first_difference(here: Sequence[str], there: Sequence[str]) -> tuple[str, str]:
    """The first line that differs, of both."""
    number = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), min(len(here), len(there)))
    return tuple(lines[number] if number < len(lines) else "(nothing more)" for lines in (here, there))  # type: ignore[return-value]


@contextmanager
def ending_together() -> Iterator[None]:
    """Ends the processes that this one has started, where it ends itself by an error.

    Raises RunError in place of the account that torch gives of a connection to a process that has ended.
    """
    try:
        yield
    except KeyboardInterrupt:
        _dead(wait_s=GRACE_S)  # the others were asked to stop as well
        _end_others()
        raise
    except Exception as error:
        told = _explained(error)
        _end_others()
        raise told from error


def _explained(error: Exception) -> BaseException:
    if not (_together() and isinstance(error, RuntimeError) and is_lost_connection(error)):
        return error
    if not is_first_process() and STARTED_BY in os.environ:
        time.sleep(GRACE_S)  # the first process says it, and if it is the one that has gone, the watch does
        return SystemExit(2)
    return RunError(_account(_dead(wait_s=GRACE_S / 2)))


def is_lost_connection(error: BaseException) -> bool:
    from torch import distributed

    words = ("connection closed by peer", "connection reset by peer", "gloo/transport", "broken pipe", "remote process exited")
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


_STARTED: list[subprocess.Popen[bytes]] = []


def _watch(started: list[subprocess.Popen[bytes]]) -> None:
    _STARTED[:] = started

    def look() -> None:
        while not (dead := _dead()):
            if all(process.returncode == 0 for process in started):
                return
            time.sleep(LOOK_EVERY_S)
        # By then this process has mostly found out by itself: it has more to say, or a checkpoint to save.
        time.sleep(SAVING_S if all(process.returncode in STOPPED for process in dead) else GRACE_S)
        _end(_account(dead))

    threading.Thread(target=look, name="tlkit-processes", daemon=True).start()


def _dead(*, wait_s: float = 0.0) -> list[subprocess.Popen[bytes]]:
    """Processes that this one started and that have ended badly. wait_s: a closed connection may be noticed before a process has ended."""
    until = time.monotonic() + wait_s
    while True:
        dead = [process for process in _STARTED if process.poll() not in (None, 0)]
        if dead or time.monotonic() >= until:
            return dead
        time.sleep(0.05)


def _account(dead: Sequence[subprocess.Popen[bytes]]) -> str:
    if not dead:
        return f"A process of this run has ended, or its machine can't be reached, so the run ends.\n  {HOW_TO_GO_ON}"
    rank, process = _STARTED.index(dead[0]) + 1, dead[0]
    code = process.returncode
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    why = " (signal 9 is often the system's, out of memory)" if code == -9 else ""
    return f"Process {rank} of this run (number {process.pid}) {how}{why}, so the run ends.\n  {HOW_TO_GO_ON}"


def _end(message: str) -> None:
    """From a thread, while the main one may wait for ever."""
    print(message, file=sys.stderr, flush=True)
    _end_others()
    os._exit(2)


def _end_others() -> None:
    for process in _STARTED:
        process.kill()


def _together() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def _broadcast(values: list[Any], *, source: int) -> None:
    from torch import distributed

    distributed.broadcast_object_list(values, src=source)
