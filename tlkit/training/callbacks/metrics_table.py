"""metrics.csv and the figures of an epoch: written as they come, and given to a search."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tlkit.evaluation.primary_metric import PrimaryMetric
from tlkit.files import write_csv

METRICS_COLUMNS = ("phase", "epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr", "seconds")
SCORE = "val/score"
"""The primary metric on validation, as a phase logs it. metrics.csv has it under its own name, see `named_score`."""

RATES_EVERY = 50
"""Steps, for TensorBoard: as often as Lightning logs by default."""


class MetricsTable(Callback):
    """Write metrics.csv: one row per epoch, phases and epochs counted from 1.

    `lr` is the head's, the highest, at the epoch's last step; a solved phase has one row and none. After the columns of METRICS_COLUMNS
    comes the primary metric on validation, `val/balanced_accuracy` for one, where that isn't the accuracy.
    """

    def __init__(self, file: Path, primary_metric: PrimaryMetric) -> None:
        self.file, self._primary_metric = file, primary_metric
        self.rows: list[dict[str, Any]] = []
        self.phase = 0
        self._epoch_began = 0.0

    def begin_phase(self, number: int) -> None:
        self.phase = number

    def state(self) -> list[dict[str, Any]]:
        """Return what a checkpoint needs to know."""
        return self.rows

    def load_state(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows = [named_score(row, self._primary_metric) for row in rows]  # of an earlier version, without the name

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
        row = {"epoch": trainer.current_epoch + 1, **metrics, "lr": last_rate(trainer), "seconds": seconds}
        self.add(row, writes=trainer.is_global_zero)

    def add(self, row: Mapping[str, Any], *, writes: bool) -> None:
        """Add a row of metrics.csv. row: all columns but the phase, and SCORE."""
        self.rows.append(named_score({"phase": self.phase, **row}, self._primary_metric))
        if writes:
            write_metrics_table(self.rows, self.file)


def named_score(row: Mapping[str, Any], primary_metric: PrimaryMetric) -> dict[str, Any]:
    """Return the row with `val/balanced_accuracy`, or what the primary metric is, in place of SCORE."""
    named = {name: value for name, value in row.items() if name != SCORE}
    return {f"val/{primary_metric}": row[SCORE], **named} if SCORE in row else named


def last_rate(trainer: Trainer) -> float:
    """Return the head's rate at the last step. The optimizer has that of the next one: after the last step of a cosine, 0."""
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    if isinstance(scheduler, LambdaLR):
        return float(scheduler.base_lrs[0] * scheduler.lr_lambdas[0](scheduler.last_epoch - 1))
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def log_rates(trainer: Trainer) -> None:
    """Log the rate of the next step: `lr`, the head's, and `lr/GROUP` of every parameter group."""
    groups = trainer.optimizers[0].param_groups
    rates = {"lr": groups[0]["lr"], **{f"lr/{group['name']}": group["lr"] for group in groups}}
    for logger in trainer.loggers:
        logger.log_metrics(rates, step=trainer.global_step)


def write_metrics_table(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write metrics.csv. Checkpoints have its rows too, so that none is lost with the power."""
    columns = dict.fromkeys([*METRICS_COLUMNS, *(name for row in rows for name in row)])
    write_csv(file, tuple(columns), ({name: row.get(name, "") for name in columns} for row in rows), durable=False)


class ReportScore(Callback):
    """Calls `report` with the number of the epoch, counted from 1 over all phases of the run, and its validation score."""

    def __init__(self, report: Callable[[int, float], None]) -> None:
        self._report, self._epochs = report, 0

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._epochs += 1
            self._report(self._epochs, float(trainer.callback_metrics[SCORE]))
