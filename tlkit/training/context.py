"""What every step of a run needs beside the recipe's sections."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tlkit.training.distributed.signals import Stop

if TYPE_CHECKING:
    from rich.console import Console

    from tlkit.training.checkpointing.resume import Resumed


@dataclass(frozen=True)
class RunContext:
    """Where a run writes, where it draws its progress, what can stop it, and since when it runs.

    began: when the run did, or would have without a break, by time.perf_counter. resumed: the state that it goes on from, if it does.
    """

    folder: Path
    console: "Console"
    stop: Stop
    began: float
    resumed: "Resumed | None" = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began
