"""Log the time shares of a phase at its end, and the one setting that would save most."""

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler

from tlkit.data.dataset import MAX_WORKERS, ImageLoader
from tlkit.recipe.fields.trainer import Cache

LOG = logging.getLogger("tlkit")

REPORTED = 0.03
"""Smaller shares are counted in `other`."""
WORTH = 0.15
"""A switch is named if what it saves has at least this share,"""
WORTH_S = 1.0
"""and is at least this long."""
STEPS = {
    "train_dataloader_next": "loading",
    "batch_to_device": "transfer",
    "training_step": "forward",
    "backward": "backward",
    "optimizer_step": "step",
    "save_checkpoint": "checkpoints",
}
"""Lightning's name of a step, after its last dot -> the name here. `optimizer_step` has forward and backward inside."""


@dataclass(frozen=True)
class Setting:
    """The settings of a phase that a switch could change.

    runs_frozen: whether a frozen part ran in every epoch. decodes: whether images were decoded in every epoch.
    processors: of this machine.
    """

    device: str
    precision: str
    epochs: int
    workers: int
    processors: int
    runs_frozen: bool
    decodes: bool
    augments: bool
    mixes: bool
    cache: Cache


class Clock(Profiler):
    """Seconds of each of STEPS, on the host: nothing is synchronised, so a GPU's work shows where the host waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.paused = False
        self._began: dict[str, float] = {}

    def start(self, action_name: str) -> None:
        step = STEPS.get(action_name.rpartition(".")[2])
        if step is not None:
            self._began[step] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        step = STEPS.get(action_name.rpartition(".")[2])
        if step is not None and not self.paused:
            self.seconds[step] += time.perf_counter() - self._began[step]


class TimeShares(Callback):
    """Log the line. clock: the trainer's profiler."""

    def __init__(self, clock: Clock, *, title: str, setting: Setting) -> None:
        self._clock, self._title, self._setting = clock, title, setting
        self._began = self._validation_began = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()
        self._clock.seconds.clear()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_began = time.perf_counter()
        self._clock.paused = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.paused = False
        self._clock.seconds["validation"] += time.perf_counter() - self._validation_began

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = time.perf_counter() - self._began
        shares = shares_of(self._clock.seconds, trainer.train_dataloader, total)
        where = "time of the host" if self._setting.device != "cpu" else "time"
        LOG.info("%s  %s: %s%s", self._title, where, in_percent(shares), quicker_with(shares, total, self._setting))


def shares_of(seconds: Mapping[str, float], loader: Any, total: float) -> dict[str, float]:
    """Return the share of each part in `total` seconds. loader: of the training images, or of their cached activations."""
    parts = defaultdict(float, seconds)
    loading = parts.pop("loading", 0.0)
    if isinstance(loader, ImageLoader) and not loader.num_workers:
        # Decoded and augmented in this process.
        parts["decode"], parts["augment"] = loader.images.decode_s, loader.images.augment_s
        parts["batches"] = loading - loader.images.decode_s - loader.images.augment_s
    else:
        parts["waiting for workers" if isinstance(loader, ImageLoader) else "reading the cache"] = loading
    parts["optimizer step"] = parts.pop("step", 0.0) - parts["forward"] - parts["backward"]
    return {part: taken / total for part, taken in parts.items()}


def in_percent(shares: Mapping[str, float]) -> str:
    """Format `backward 55 %, forward 27 %, other 18 %`: the largest first."""
    reported = sorted(((share, part) for part, share in shares.items() if share >= REPORTED), reverse=True)
    other = 1 - sum(share for share, _ in reported)
    return ", ".join(f"{part} {100 * share:.0f} %" for share, part in [*reported, (other, "other")] if share >= 0.005)


def quicker_with(shares: Mapping[str, float], total: float, setting: Setting) -> str:
    """Return `; quicker with data.workers: 2`, the switch that would save the largest share of `total` seconds, if any saves much."""
    images = sum(shares.get(part, 0.0) for part in ("decode", "augment", "batches"))
    network = sum(shares.get(part, 0.0) for part in ("forward", "backward"))
    workers = min(MAX_WORKERS, setting.processors - 1)
    savings: list[tuple[float, str]] = []
    if setting.runs_frozen and not setting.cache.use:
        savings.append((images + shares.get("forward", 0.0), "the frozen part runs in every epoch: cache.use: true would run it once"))
    elif setting.runs_frozen and setting.augments and not setting.mixes and not setting.cache.views and setting.epochs >= 4:
        views = min(8, setting.epochs // 2)
        reported = (
            f"the frozen part runs in every epoch: cache.views: {views} would keep {views} augmented views of each image in its place"
        )
        savings.append((images + shares.get("forward", 0.0), reported))
    if setting.decodes:
        key = "a larger cache.budget_gb" if setting.cache.use else "cache.use: true"
        savings.append((shares.get("decode", 0.0), f"quicker with {key}, so that images are decoded once"))
    # On a CPU, workers take the processors from the network: with two of them nothing is won.
    if setting.workers == 0 and workers > (1 if setting.device == "cpu" else 0):
        savings.append((images, f"quicker with data.workers: {workers}"))
    if 0 < setting.workers < workers:
        savings.append((shares.get("waiting for workers", 0.0), f"quicker with data.workers: {workers}"))
    if setting.device == "cuda" and setting.precision == "32-true":
        savings.append((network / 2, "quicker with trainer.precision: bf16-mixed"))
    saved, reported = max(savings, default=(0.0, ""))
    return f"; {reported}" if saved >= max(WORTH, WORTH_S / total) else ""
