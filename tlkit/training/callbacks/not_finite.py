"""A loss that is NaN or infinite: training stops, or continues without the batch; either way its images are listed."""

import csv
import logging
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tlkit.data.samples import Sample
from tlkit.errors import TrainingError
from tlkit.models.weights.state_files import not_finite
from tlkit.recipe.fields.trainer import OnNan
from tlkit.training.distributed.launch import all_gather_objects
from tlkit.training.private_api import batch_index

LOG = logging.getLogger("tlkit")

COLUMNS = ("phase", "epoch", "batch", "loss", "id")
LOOK_EVERY = 50
"""Batches between two checks on an asynchronous device: a check waits for it."""


class NotFinite(Callback):
    """Check each batch's loss before it reaches the weights.

    on_nan: `stop` raises TrainingError; on a GPU up to fifty batches later, with the weights already lost. `skip` undoes what the batch
    did: its gradients, and what batch-norm took from it. samples: of the training split, in the order of the loader's indices.
    file: gets a row for each image of such a batch; phases, epochs and batches count from 1. phase: this one's number.
    """

    def __init__(self, on_nan: OnNan, samples: Sequence[Sample], file: Path, *, phase: int) -> None:
        self._on_nan, self._samples, self._file, self._phase = on_nan, samples, file, phase
        self._first = torch.tensor(-1)
        self._first_loss = torch.tensor(0.0)
        self._skip = False
        self._buffers: dict[str, Tensor] = {}
        self.skipped = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which has been, where a run goes on within an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first = torch.tensor(-1, device=pl_module.device)
        self._first_loss = torch.tensor(0.0, device=pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._on_nan == "skip":
            self._buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        batch, loss = batch_index(trainer), loss.detach().float()
        bad = ~loss.isfinite()
        if self._on_nan == "skip":
            self._skip = bool(_on_any_rank(trainer, bad))
            if self._skip:
                parts = all_gather_objects((float(loss), self._images(trainer, batch)))
                if trainer.is_global_zero:
                    for part_loss, ids in parts:
                        self._write(trainer, batch, part_loss, ids)
                self.skipped += 1
                where = f"batch {batch + 1} of epoch {trainer.current_epoch + 1}"
                reported = next(part_loss for part_loss, _ in parts if not isfinite(part_loss))
                LOG.warning("%s left out: its loss is %s; its images are in %s", where, reported, self._file)
            return
        is_first = bad & (self._first < 0)
        self._first = torch.where(is_first, batch, self._first)
        self._first_loss = torch.where(is_first, loss, self._first_loss)
        if pl_module.device.type == "cpu" or batch % LOOK_EVERY == LOOK_EVERY - 1:
            self._stop_if_found(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self._skip:
            # Of all batches that were accumulated: their sum holds this one's.
            optimizer.zero_grad()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._skip:
            # Where the step is still to come, with the gradients of later batches.
            pl_module.zero_grad()
            for name, buffer in pl_module.named_buffers():
                buffer.copy_(self._buffers[name])
            self._skip = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_found(trainer, pl_module)

    def _stop_if_found(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batch = int(self._first)
        if batch < 0:
            return
        self._write(trainer, batch, float(self._first_loss), self._images(trainer, batch))
        stepped = trainer.current_epoch > 0 or batch >= trainer.accumulate_grad_batches
        raise TrainingError(
            f"The loss became {float(self._first_loss)} in batch {batch + 1} of epoch {trainer.current_epoch + 1}, phase {self._phase}.\n"
            f"  Its images are in {self._file}.\n"
            f"  {_likely_cause(trainer, pl_module, stepped=stepped)}\n"
            "  trainer.on_nan=skip continues without such batches."
        )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_found(trainer, pl_module)
        loss = float(pl_module.val_loss.compute())  # type: ignore[union-attr, operator]
        if isfinite(loss):
            return
        found = f"The validation loss became {loss} in epoch {trainer.current_epoch + 1}, phase {self._phase}"
        if self._on_nan == "skip":
            LOG.warning("%s: this epoch can't be the best one", found)
            return
        raise TrainingError(f"{found}, and the training loss did not.\n  {_likely_cause(trainer, pl_module, stepped=True)}")

    def _images(self, trainer: Trainer, batch: int) -> list[str]:
        """Return the ids of the images that this process had in the batch."""
        loader: Any = trainer.train_dataloader
        size = loader.batch_size
        return [self._samples[index].id for _, index in list(loader.sampler)[batch * size : (batch + 1) * size]]

    def _write(self, trainer: Trainer, batch: int, loss: float, ids: Sequence[str]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)  # other machines may not have it
        is_new = not self._file.exists()
        with self._file.open("a", encoding="utf-8", errors="surrogateescape", newline="") as opened:
            writer = csv.writer(opened)
            if is_new:
                writer.writerow(COLUMNS)
            writer.writerows((self._phase, trainer.current_epoch + 1, batch + 1, loss, id_) for id_ in ids)


def _likely_cause(trainer: Trainer, pl_module: LightningModule, *, stepped: bool) -> str:
    """Return what can have made a loss NaN or infinite, and what to do. stepped: whether the phase has changed the weights before."""
    state = pl_module.classifier.state_dict()  # type: ignore[union-attr]
    statistics = {name: tensor for name, tensor in state.items() if "running_" in name}
    if (found := not_finite(statistics)) and not not_finite({name: state[name] for name in state.keys() - statistics.keys()}):
        return (
            f"Batch-norm's running statistics, which validation uses and training doesn't, overflowed: {found}.\n"
            "  Activations grow without bound: lower the phase's lr (tlkit lr RECIPE finds one), or use batchnorm: frozen."
        )
    overflows = (
        " Or 16 bits are too few for the activations: use precision bf16-mixed or 32-true." if "16-" in str(trainer.precision) else ""
    )
    if not stepped:
        return f"No step was taken before, so it isn't the learning rate: the network's activations overflow on these images.{overflows}"
    return (
        "Mostly the learning rate is too high: lower the phase's lr (tlkit lr RECIPE finds one), or set optimizer.gradient_clip=1."
        f"{overflows}"
    )


def _on_any_rank(trainer: Trainer, bad: Tensor) -> Tensor:
    """Return whether any rank has a bad loss: all skip the batch together, since their gradients are averaged."""
    return trainer.strategy.reduce(bad.float(), reduce_op="sum") > 0
