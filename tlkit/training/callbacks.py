"""Callbacks: the best weights, metrics.csv, and what a search is given."""

import time
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from tlkit.files import write_csv
from tlkit.models.classifier import Classifier
from tlkit.models.weights.state_files import write_tensors
from tlkit.recipe.fields.learning import Ema
from tlkit.training.checkpointing.files import put_back

METRICS_COLUMNS = ("phase", "epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "seconds")
SCORE = "val/score"
"""The primary metric on validation. It is in a row for the curves, but in no column of metrics.csv, whose columns are a contract."""


RATES_EVERY = 50
"""Steps, for TensorBoard: as often as Lightning logs by default."""


class BestWeights(Callback):
    """Keep the weights of the epoch with the highest validation score over all phases; of equals, of the lowest validation loss.

    An epoch whose validation loss is NaN or infinite doesn't count.

    Tensors that aren't in the file are as in the classifier: only what a phase may change is written, and is added to the file before
    the phase.
    Of vgg11's half a gigabyte a head is 20 kB, and its epochs on cached activations take 20 ms.
    """

    def __init__(self, file: Path, classifier: Classifier) -> None:
        self.file = file
        self.score, self.loss = float("-inf"), float("inf")
        self.current_phase = self.phase = self.epoch = 0
        self._classifier = classifier
        self._changing: frozenset[str] = frozenset(classifier.state_dict())

    def state(self) -> tuple[float, int, int, float]:
        """Return what a checkpoint needs to know, beside the file of the weights."""
        return self.score, self.phase, self.epoch, self.loss

    def load_state(self, state: Sequence[Any], weights: Path | None, *, keeps: bool) -> None:
        """Go on from a checkpoint. weights: those that were the best then, if any. keeps: whether this process writes the weights."""
        self.score, self.phase, self.epoch, *loss = state
        self.loss = loss[0] if loss else float("inf")  # not in checkpoints of earlier versions
        if not keeps:
            return
        if weights is not None:
            put_back(weights, self.file)
        else:
            self.file.unlink(missing_ok=True)

    def begin_phase(self, number: int) -> None:
        self.current_phase = number

    def set_trainable_names(self, names: frozenset[str], *, keeps: bool) -> None:
        """Set the names of the classifier's trained tensors; call it before a phase. keeps: whether this process writes the weights."""
        self._changing = names
        if not keeps or not self.file.is_file():
            return
        best = load_file(self.file)
        if names - best.keys():
            write_tensors({**_tensors(self._classifier, names), **best}, self.file)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The metric itself: the figures that are logged are ready only after this hook, when a moving average is swapped out again.
        score, loss = (float(metric.compute()) for metric in (pl_module.val_score, pl_module.val_loss))  # type: ignore[union-attr, operator]
        self.update(score, loss, trainer.current_epoch + 1, keeps=trainer.is_global_zero)

    def update(self, score: float, loss: float, epoch: int, *, keeps: bool) -> None:
        """Keep the weights if the epoch is the best. score, loss: on validation. keeps: whether this process writes the weights."""
        if not isfinite(loss) or (score, -loss) <= (self.score, -self.loss):
            return
        self.score, self.loss, self.phase, self.epoch = score, loss, self.current_phase, epoch
        if keeps:
            write_tensors(_tensors(self._classifier, self._changing), self.file)

    def restore(self) -> None:
        self._classifier.load_state_dict(load_file(self.file), strict=False)


def save_state(classifier: Classifier, file: Path) -> None:
    write_tensors(_tensors(classifier, frozenset(classifier.state_dict())), file)


def _tensors(classifier: Classifier, names: frozenset[str]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.plain_state().items() if name in names}


def moving_average(ema: Ema) -> WeightAveraging:
    """Validate with the exponential moving average of all weights and batch-norm statistics, and keep it at the end of a phase.

    After n steps the past has the weight min(decay, (1 + n) / (10 + n)), so that a short phase doesn't stay near its start.

    Source of the warm-up: TensorFlow's ExponentialMovingAverage with num_updates.
    """

    def average(averaged: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        decay = min(ema.decay, (1 + int(steps)) / (10 + int(steps)))
        # Not averaged * decay + current * (1 - decay), which moves what is frozen by a last digit.
        return averaged + (current - averaged) * (1 - decay)

    return WeightAveraging(avg_fn=average)


class MetricsTable(Callback):
    """Write metrics.csv: one row per epoch, phases and epochs counted from 1.

    `lr` is the head's, the highest, at the end of the epoch; a solved phase has one row and none.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = []
        self.phase = 0
        self._epoch_began = 0.0

    def begin_phase(self, number: int) -> None:
        self.phase = number

    def state(self) -> list[dict[str, Any]]:
        """Return what a checkpoint needs to know."""
        return self.rows

    def load_state(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = [dict(row) for row in rows]

    @property
    def epoch_seconds(self) -> float:
        return time.perf_counter() - self._epoch_began

    def resume_within_epoch(self, seconds: float) -> None:
        """Continue an interrupted epoch; call it when training starts. seconds: that the epoch took before."""
        self._epoch_began -= seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_began = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_began = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step % RATES_EVERY == 0:
            log_rates(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(trainer.callback_metrics[name]) for name in (*METRICS_COLUMNS, SCORE) if "/" in name}
        seconds = round(self.epoch_seconds, 3)
        log_rates(trainer)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.add({"epoch": trainer.current_epoch + 1, **metrics, "lr": lr, "seconds": seconds}, writes=trainer.is_global_zero)

    def add(self, row: Mapping[str, Any], *, writes: bool) -> None:
        """Add a row of metrics.csv. row: all columns but the phase."""
        self.rows.append({"phase": self.phase, **row})
        if writes:
            write_metrics_table(self.rows, self.file)


def log_rates(trainer: Trainer) -> None:
    """Log the rate of the next step: `lr`, the head's, and `lr/GROUP` of every parameter group."""
    groups = trainer.optimizers[0].param_groups
    rates = {"lr": groups[0]["lr"], **{f"lr/{group['name']}": group["lr"] for group in groups}}
    for logger in trainer.loggers:
        logger.log_metrics(rates, step=trainer.global_step)


def write_metrics_table(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write metrics.csv. Checkpoints have its rows too, so that none is lost with the power."""
    write_csv(file, METRICS_COLUMNS, ({name: row[name] for name in METRICS_COLUMNS} for row in rows), durable=False)


class ReportScore(Callback):
    """Calls `report` with the number of the epoch, counted from 1 over all phases of the run, and its validation score."""

    def __init__(self, report: Callable[[int, float], None]) -> None:
        self._report, self._epochs = report, 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._epochs += 1
            self._report(self._epochs, float(trainer.callback_metrics[SCORE]))
