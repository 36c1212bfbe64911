"""One `trainer.fit`: signals heeded between batches, and Lightning's advice that doesn't apply left out."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from tlkit.training.module import PhaseModule
from tlkit.training.signals import Stop, heeding_signals


class StopBetweenBatches(Callback):
    """Raises KeyboardInterrupt at the end of the batch in which a signal came."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def on_train_batch_end(self, *arguments: Any) -> None:
        self._stop.obey()

    def on_validation_batch_end(self, *arguments: Any, **named: Any) -> None:
        self._stop.obey()


def fit(
    trainer: lightning.Trainer, module: PhaseModule, data: lightning.LightningDataModule, stop: Stop, *, checkpoint: Path | None = None
) -> None:
    """Raises KeyboardInterrupt after a signal, if a callback of the trainer looks for it.

    checkpoint: where to go on from.
    """
    with stop.between_batches(), _quiet():
        try:
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as error:
            # Lightning 2.6 makes it out of KeyboardInterrupt, and leaves SIGINT ignored.
            raise KeyboardInterrupt from error


def fit_unsaved(trainer: lightning.Trainer, module: PhaseModule, data: lightning.LightningDataModule) -> None:
    """A trial: a signal ends it, and nothing of it is to be kept."""
    with heeding_signals() as stop:
        trainer.callbacks.append(StopBetweenBatches(stop))  # type: ignore[attr-defined]
        fit(trainer, module, data, stop)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning 2.6's advice that doesn't apply: workers and log interval are decided, frozen parts are in eval mode on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message=".*overridden `on_after_batch_transfer` in `LightningModule`.*")
        warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
        # A moving average isn't had with weights that are split: the recipe is refused.
        warnings.filterwarnings("ignore", message=".*WeightAveraging callback with a model that overrides.*")
        # Classes without a validation picture were told when the pictures were split.
        warnings.filterwarnings("ignore", message="No positive samples found in target.*")
        yield
