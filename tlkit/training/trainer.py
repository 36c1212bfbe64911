"""recipe.trainer -> Lightning's Trainer, one for each phase."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from tlkit.errors import DeviceError
from tlkit.recipe.fields.learning import Optimizer
from tlkit.recipe.fields.trainer import Trainer
from tlkit.training.distributed.signals import Stop, current_stop
from tlkit.training.module import PhaseModule
from tlkit.training.private_api import keyboard_interrupt_kept


class Devices(NamedTuple):
    """All devices of a run, counted, and the one of this process."""

    total: int
    here: torch.device


class Writes(NamedTuple):
    """Where a Trainer writes to. folder: of the run. files: writes checkpoints."""

    folder: Path
    files: CheckpointIO
    loggers: list[Logger]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, here and in worker processes."""
    lightning.seed_everything(seed, workers=True, verbose=False)


def check_devices(trainer: Trainer) -> Devices:
    """Raise DeviceError if this machine doesn't have what the recipe asks for: found before anything is written."""
    built = lightning_trainer(trainer, logger=False, enable_checkpointing=False)
    if trainer.strategy == "fsdp" and built.num_devices < 2:
        raise DeviceError(
            "trainer.strategy = 'fsdp' splits a network over the devices of a machine, and there is one.\n"
            "  Set it to auto, or use more devices."
        )
    return Devices(int(built.world_size), built.strategy.root_device)


def build_trainer(
    trainer: Trainer,
    *,
    epochs: int,
    optimizer: Optimizer,
    callbacks: list[Callback],
    writes: Writes,
    profiler: Profiler,
) -> LightningTrainer:
    """Build Lightning's Trainer for a phase."""
    return lightning_trainer(
        trainer,
        max_epochs=epochs,
        gradient_clip_val=optimizer.gradient_clip,
        accumulate_grad_batches=optimizer.accumulate,
        callbacks=callbacks,
        plugins=[writes.files],
        profiler=profiler,
        logger=writes.loggers,
        default_root_dir=writes.folder,
        # The sanity pass costs more than it tells: validation comes after the first epoch anyway.
        num_sanity_val_steps=0,
        # tlkit's own sampler splits over ranks, and seeds every image's augmentation.
        use_distributed_sampler=False,
    )


def build_trial_trainer(trainer: Trainer, *, optimizer: Optimizer, callbacks: list[Callback], **limits: int) -> LightningTrainer:
    """Build a Trainer on one device that writes nothing. limits: Lightning's own `max_steps`, `limit_train_batches` and the like."""
    devices = trainer.devices[:1] if isinstance(trainer.devices, list) else 1
    return lightning_trainer(
        trainer.model_copy(update={"devices": devices, "num_nodes": 1, "strategy": "auto"}),
        gradient_clip_val=optimizer.gradient_clip,
        accumulate_grad_batches=optimizer.accumulate,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **limits,
    )


def lightning_trainer(trainer: Trainer, **settings: Any) -> LightningTrainer:
    """Create the Trainer. settings: Lightning's own. Raises DeviceError if this machine doesn't have what the recipe asks for."""
    try:
        with lightning_quiet(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*AMP with fp16 is not supported on CPU.*")  # see precision_warning
            return LightningTrainer(
                accelerator=trainer.accelerator,
                devices=trainer.devices,
                num_nodes=trainer.num_nodes,
                strategy=_strategy(trainer.strategy),
                precision=trainer.precision,
                # "warn": where a GPU has no deterministic way, the run goes on and says so.
                deterministic="warn" if trainer.deterministic else False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **settings,
            )
    except (MisconfigurationException, ImportError, ValueError, RuntimeError, TypeError) as error:
        asked = (
            f"accelerator: {trainer.accelerator}, devices: {trainer.devices}, strategy: {trainer.strategy}, precision: {trainer.precision}"
        )
        raise DeviceError(
            f"trainer = {{{asked}}} is not available on this machine.\n  Lightning says: {error}\n  `auto` uses what is available."
        ) from error


def _strategy(name: str) -> str | Strategy:
    """Return the strategy: Lightning 2.6's own "fsdp" takes only CUDA and can't be tested elsewhere; torch's newer one works on gloo."""
    return ModelParallelStrategy(save_distributed_checkpoint=False) if name == "fsdp" else name


class StopBetweenBatches(Callback):
    """Raises KeyboardInterrupt at the end of the batch in which a signal came."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def on_train_batch_end(self, *arguments: Any) -> None:
        self._stop.raise_if_requested()

    def on_validation_batch_end(self, *arguments: Any, **named: Any) -> None:
        self._stop.raise_if_requested()


def fit(
    trainer: lightning.Trainer, module: PhaseModule, data: lightning.LightningDataModule, stop: Stop, *, checkpoint: Path | None = None
) -> None:
    """Fit the module. Raises KeyboardInterrupt after a signal, if a callback of the trainer checks for it.

    checkpoint: to resume from.
    """
    with stop.between_batches(), lightning_quiet(), _advice_ignored(), keyboard_interrupt_kept():
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def fit_unsaved(trainer: lightning.Trainer, module: PhaseModule, data: lightning.LightningDataModule) -> None:
    """Fit a trial: a signal ends it, and nothing of it is saved."""
    stop = current_stop()
    trainer.callbacks.append(StopBetweenBatches(stop))  # type: ignore[attr-defined]
    fit(trainer, module, data, stop)


@contextmanager
def lightning_quiet() -> Iterator[None]:
    """Keep Lightning from logging which devices it doesn't use and what it advertises; what matters reaches the user by tlkit's own log."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _advice_ignored() -> Iterator[None]:
    """Ignore Lightning 2.6's advice that doesn't apply: workers and log interval are decided, frozen parts are in eval mode on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message=".*overridden `on_after_batch_transfer` in `LightningModule`.*")
        warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
        # A moving average isn't had with weights that are split: the recipe is refused.
        warnings.filterwarnings("ignore", message=".*WeightAveraging callback with a model that overrides.*")
        # Classes without a validation image were reported when the images were split.
        warnings.filterwarnings("ignore", message="No positive samples found in target.*")
        yield
