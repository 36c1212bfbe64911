"""The processes of one run, one for each device: started, introduced to each other, and watched, so that none waits for a dead one."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeVar

from tlkit.errors import DataError, DeviceError, Interrupted, RunError, TlkitError
from tlkit.recipe.load import recipe_yaml
from tlkit.recipe.schema import Recipe
from tlkit.training.run_folder import is_first_here, is_first_process

T = TypeVar("T")

STARTED_BY = "TLKIT_STARTED_BY"
"""Tells the processes that tlkit starts for other devices of this machine the number of the one that did."""
PATIENCE = timedelta(hours=2)
"""How long processes wait for one that works alone: it downloads, checks pictures, solves a head, or measures a fold."""
LOOK_EVERY_S = 0.5
GRACE_S = 3.0
"""What a process may say itself, after another one has ended, before it is ended for it."""
SAVING_S = 60.0
"""The same where a signal stops all of them: a checkpoint may be large."""
FAILED, STOPPED = (1, 2), (75, 130)
"""Exit codes of a process that has told its error, and after a signal."""
LOST = 3
"""That of a process which has lost the connection to another one, and leaves it to the first to say so."""
HOW_TO_GO_ON = "Go on from the last checkpoint by the same command, with --out and --resume."


def join_processes(recipe: Recipe) -> None:
    """Connects this process with the others where torchrun or SLURM have started all of them.

    Raises DeviceError where the recipe asks for another number, and DataError where the others read another recipe.
    """
    if STARTED_BY not in os.environ and ("TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ):
        _connect(recipe)


def start_processes(recipe: Recipe) -> None:
    """Starts a process for each further device of this machine, and connects them; nothing where they are there, or nothing trains on them.

    Each of them runs the same command up to here.
    """
    if recipe.gradient_phases:
        _connect(recipe)


def _connect(recipe: Recipe) -> None:
    if _together():
        return
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    from tlkit.training.trainer import lightning_trainer

    built = lightning_trainer(recipe.trainer, logger=False, enable_checkpointing=False)
    strategy: Any = built.strategy
    _check_number(built.num_devices, built.num_nodes)
    if built.world_size == 1:
        return
    launcher = strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        raise DeviceError(f"trainer.strategy = '{recipe.trainer.strategy}' copies this process.\n  Use ddp, which starts new ones.")
    if not strategy.cluster_environment.creates_processes_externally:
        os.environ[STARTED_BY] = str(os.getpid())
        # Not launch(): the observer that this would start kills all processes, the first one too, and says nothing.
        launcher._call_children_scripts()
        _watch(launcher.procs)
    strategy._timeout = PATIENCE  # an argument of DDPStrategy, which Lightning has made by its name
    strategy.setup_environment()
    check_same("The recipe is", recipe_yaml(recipe).splitlines())


def _check_number(devices: int, machines: int) -> None:
    """Raises DeviceError where torchrun or SLURM have started more or fewer processes than there are devices: each would train alone."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        there = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        there = int(os.environ["SLURM_STEP_NUM_TASKS"]) // int(os.environ["SLURM_STEP_NUM_NODES"]), int(os.environ["SLURM_STEP_NUM_NODES"])
    else:
        return
    if there != (devices, machines):
        raise DeviceError(
            f"Processes were started from outside, on {there[1]} machines {there[0]} each; the recipe is for {machines} machines with "
            f"{devices} devices each.\n  Set trainer.devices={there[0]} trainer.num_nodes={there[1]}, or start others."
        )


def end_with_the_first() -> None:
    """In a process that tlkit started: ends it when the one that started it has gone, however it went."""
    starter = os.environ.get(STARTED_BY)
    if not starter or int(starter) == os.getpid() or not hasattr(os, "getppid"):
        return

    def look() -> None:
        while os.getppid() == int(starter):
            time.sleep(LOOK_EVERY_S)
        told = f"The first process of this run (number {starter}) has gone, so the others end too.\n  {HOW_TO_GO_ON}"
        _end(told if os.environ["LOCAL_RANK"] == "1" else "", code=2)

    threading.Thread(target=look, name="tlkit-first-process", daemon=True).start()


@contextmanager
def one_a_machine_first() -> Iterator[None]:
    """The first process of each machine downloads and checks; the others do the same after it, and find what it has kept."""
    from torch import distributed

    waits = _together()
    if waits and not is_first_here():
        distributed.barrier()
    yield
    if waits and is_first_here():
        distributed.barrier()


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, in all of them."""
    if not _together():
        return make()
    made: list[Any] = [make() if is_first_process() else None]
    _broadcast(made, source=0)
    value: T = made[0]
    return value


def of_all(mine: T) -> list[T]:
    """What each process has given, by rank."""
    if not _together():
        return [mine]
    from torch import distributed

    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, mine)
    return found


def check_same(what: str, lines: Sequence[str]) -> None:
    """Raises DataError in the first process where another one has other lines, with the first difference; the others end in silence."""
    mine = (socket.gethostname(), sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest())
    found = of_all(mine)
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
    """All processes of a run end where one does by an error or a signal. One of them raises what is to be told, the others SystemExit.

    Raises RunError in place of the account that torch gives of a connection to a process that has ended.
    """
    try:
        yield
    except (Exception, Interrupted) as error:
        _ENDING.set()
        told: BaseException = error
        if _together() and is_lost_connection(error):
            if STARTED_BY in os.environ and not _STARTED:
                raise SystemExit(LOST) from error  # the process that has started this one knows more
            told = RunError(_account(_dead(wait_s=GRACE_S)))
        tells = _is_first_to_tell()
        if not tells or isinstance(error, Interrupted):
            _all_end(within_s=GRACE_S)  # the one that tells may not be done with it; or all were asked to stop
        for process in _STARTED:
            process.kill()
        raise (told if tells else SystemExit(_exit_code(told))) from error


def _exit_code(error: BaseException) -> int:
    if isinstance(error, Interrupted):
        return error.code
    return 2 if isinstance(error, TlkitError) else 1


def _is_first_to_tell() -> bool:
    """What fails after the first error of a run, in whatever process, fails because of it, or alike."""
    if not _together():
        return is_first_here() or STARTED_BY in os.environ
    from torch import distributed

    try:
        return int(distributed.distributed_c10d._get_default_store().add("tlkit/told", 1)) == 1
    except RuntimeError:  # the process that keeps it has gone
        return is_first_here()


@contextmanager
def told_once_a_machine() -> Iterator[None]:
    """For errors before processes can know of each other."""
    try:
        yield
    except TlkitError as error:
        if is_first_here():
            raise
        raise SystemExit(2) from error


def is_lost_connection(error: BaseException) -> bool:
    from torch import distributed

    if not isinstance(error, RuntimeError):
        return False
    words = ("connection closed by peer", "connection reset by peer", "gloo/transport", "broken pipe", "remote process exited")
    return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


_STARTED: list[subprocess.Popen[bytes]] = []
_ENDING = threading.Event()
"""The main thread has found out."""


def _watch(started: list[subprocess.Popen[bytes]]) -> None:
    """Ends this process where another one has ended, even if the main thread waits for that one for ever."""
    _STARTED[:] = started

    def look() -> None:
        while not (dead := _dead()):
            if all(process.returncode == 0 for process in started):
                return
            time.sleep(LOOK_EVERY_S)
        # By then this process has mostly found out by itself: it has more to say, or a checkpoint to save.
        codes = {process.returncode for process in dead}
        if _ENDING.wait(SAVING_S if codes <= set(STOPPED) else GRACE_S):
            time.sleep(5 * GRACE_S)
        told = codes & {*FAILED, *STOPPED}
        _end("" if told or _ENDING.is_set() else _account(dead), code=max(told, default=2))

    threading.Thread(target=look, name="tlkit-processes", daemon=True).start()


def _dead(*, wait_s: float = 0.0) -> list[subprocess.Popen[bytes]]:
    """Processes that this one started and that have ended badly. wait_s: a closed connection may be noticed before a process has ended."""
    until = time.monotonic() + wait_s
    while True:
        dead = [process for process in _STARTED if process.poll() not in (None, 0, LOST)]
        if dead or not _STARTED or time.monotonic() >= until:
            return dead
        time.sleep(0.05)


def _all_end(*, within_s: float) -> None:
    until = time.monotonic() + within_s
    while any(process.poll() is None for process in _STARTED) and time.monotonic() < until:
        time.sleep(0.05)


def _account(dead: Sequence[subprocess.Popen[bytes]]) -> str:
    if not dead:
        return f"A process of this run has ended, or its machine can't be reached, so the run ends.\n  {HOW_TO_GO_ON}"
    device, process = _STARTED.index(dead[0]) + 1, dead[0]
    code = process.returncode
    how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    why = " (signal 9 is often the system's, out of memory)" if code == -9 else ""
    return f"The process of device {device} (number {process.pid}) {how}{why}, so the run ends.\n  {HOW_TO_GO_ON}"


def _end(message: str, *, code: int) -> None:
    """From a thread, while the main one may wait for ever."""
    if message:
        print(message, file=sys.stderr, flush=True)
    for process in _STARTED:
        process.kill()
    os._exit(code)


def _together() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def _broadcast(values: list[Any], *, source: int) -> None:
    from torch import distributed

    distributed.broadcast_object_list(values, src=source)
