"""What every step of a run needs besides the recipe's sections."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tlkit.training.distributed.signals import Stop

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from rich.console import Console

    from tlkit.training.checkpointing.resume import Resumed


@dataclass(frozen=True)
class RunContext:
    """The folder of a run, its console, its stop request, and its start.

    began: when the run did, or would have without a break, by time.perf_counter. resumed: the state from which it is resumed, if it is.
    callbacks: further ones of every phase.
    """

    folder: Path
    console: "Console"
    stop: Stop
    began: float
    resumed: "Resumed | None" = None
    callbacks: "tuple[Callback, ...]" = ()

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began
