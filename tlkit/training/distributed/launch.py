"""The processes of one run, one for each device: started, connected, and agreed on what they train on."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import sha256
from typing import Any, TypeVar

from tlkit.errors import DataError, DeviceError
from tlkit.recipe.fields.trainer import Trainer
from tlkit.system import is_command_line
from tlkit.training.distributed.ranks import are_connected, is_local_main_process, is_main_process
from tlkit.training.distributed.shutdown import STARTED_BY, was_started, watch
from tlkit.training.private_api import set_timeout, start_scripts, starts_scripts

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""How long processes wait for one that works alone: it downloads, checks images, solves a head, or measures a fold."""
TASKS = "SLURM_STEP_NUM_TASKS"
"""Number of processes that srun has started."""


def join_processes(trainer: Trainer, recipe_yaml: str) -> None:
    """Connect this process with the others if torchrun or SLURM have started all of them.

    Raises DeviceError if the recipe asks for another number, and DataError if the others read another recipe.
    """
    if not was_started() and ("TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ):
        start_processes(trainer, recipe_yaml)


def start_processes(trainer: Trainer, recipe_yaml: str) -> None:
    """Start a process for each further device of this machine, and connect them; nothing where they are there already.

    Each of them runs the same command up to here. recipe_yaml: what all of them have to have read.
    """
    if are_connected():
        return
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    from tlkit.training.trainer import lightning_quiet, lightning_trainer

    # The processes are the same with fsdp, which Lightning can't set up before there is a model.
    as_ddp = trainer.model_copy(update={"strategy": "ddp"}) if trainer.strategy == "fsdp" else trainer
    built = lightning_trainer(as_ddp, logger=False, enable_checkpointing=False)
    strategy: Any = built.strategy
    _check_number(built.num_devices, built.num_nodes)
    if built.world_size == 1:
        return
    if not starts_scripts(strategy):
        raise DeviceError(f"trainer.strategy = '{trainer.strategy}' copies this process.\n  Use ddp, which starts new ones.")
    environment = strategy.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.creates_processes_externally and TASKS not in os.environ:
        raise DeviceError("This is a SLURM job, and its processes are not started yet.\n  Put srun before the command.")
    if not environment.creates_processes_externally:
        os.environ[STARTED_BY] = str(os.getpid())
        watch(start_scripts(strategy))
    set_timeout(strategy, COLLECTIVE_TIMEOUT)
    with lightning_quiet():
        strategy.setup_environment()
    check_same("The recipe is", recipe_yaml.splitlines())


def _check_number(devices: int, machines: int) -> None:
    """Raise DeviceError if torchrun or SLURM have started more or fewer processes than there are devices: each would train alone."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        there = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["GROUP_WORLD_SIZE"])
    elif (tasks := int(os.environ.get(TASKS, "1"))) > 1:
        nodes = int(os.environ["SLURM_STEP_NUM_NODES"])
        there = tasks // nodes, nodes
    else:
        return
    if there != (devices, machines):
        raise DeviceError(
            f"Processes were started from outside, on {there[1]} machines {there[0]} each; the recipe is for {machines} machines with "
            f"{devices} devices each.\n  Set trainer.devices={there[0]} trainer.num_nodes={there[1]}, or start others."
        )


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """Run first in the main process of each machine, which downloads and checks; the others run afterwards and use its result."""
    from torch import distributed

    waits = are_connected()
    if waits and not is_local_main_process():
        distributed.barrier()
    yield
    if waits and is_local_main_process():
        distributed.barrier()


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Return in all processes what `make` returns in the main process."""
    if not are_connected():
        return make()
    made: list[Any] = [make() if is_main_process() else None]
    _broadcast(made, source=0)
    value: T = made[0]
    return value


def all_gather_objects(mine: T) -> list[T]:
    """Return each process's object, by rank."""
    if not are_connected():
        return [mine]
    from torch import distributed

    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, mine)
    return found


def check_same(what: str, lines: Iterable[str]) -> None:
    """Raise DataError, with the first difference, where a process has other lines than the first.

    Of a `tlkit` command the first process alone does, and the others end in silence.
    """
    if not are_connected():
        return
    lines = list(lines)
    mine = (socket.gethostname(), sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest())
    found = all_gather_objects(mine)
    other = next((rank for rank, (_, digest) in enumerate(found) if digest != found[0][1]), None)
    if other is None:
        return
    first, theirs = [lines], [lines]
    _broadcast(first, source=0)
    _broadcast(theirs, source=other)
    if not is_main_process() and (is_command_line() or was_started()):
        raise SystemExit(2)
    here, there = first_difference(first[0], theirs[0])
    raise DataError(
        f"{what} not the same in all processes of this run.\n"
        f"    process 0 ({found[0][0]}): {here}\n    process {other} ({found[other][0]}): {there}\n"
        "  Give every machine the same files, and start them with the same command."
    )


def first_difference(here: Sequence[str], there: Sequence[str]) -> tuple[str, str]:
    """Return the first line that differs, of both."""
    number = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), min(len(here), len(there)))
    return tuple(lines[number] if number < len(lines) else "(nothing more)" for lines in (here, there))  # type: ignore[return-value]


def _broadcast(values: list[Any], *, source: int) -> None:
    from torch import distributed

    distributed.broadcast_object_list(values, src=source)
