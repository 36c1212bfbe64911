"""The epochs of a phase as they run: on a terminal a table, whose last line is the epoch that runs; elsewhere plain lines."""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tlkit.data.progress import LINE_EVERY_S
from tlkit.evaluation.primary_metric import PrimaryMetric, metric_label
from tlkit.terminal import counted
from tlkit.training.callbacks.best_weights import BestWeights
from tlkit.training.callbacks.metrics_table import SCORE, last_rate
from tlkit.training.outputs.log import SHOWN_OTHERWISE
from tlkit.training.private_api import resumed_mid_epoch
from tlkit.training.specs import PhaseSpec

LOG = logging.getLogger("tlkit")

DRAWN_EVERY_S = 0.2
"""Shortest time between two drawings: a batch may take a millisecond."""
GAP = "  "
BEST = " *"
"""Behind the row of an epoch that is the best so far."""
MOST_DIGITS = {"lr": 7, "images/s": 8, "time": 7}
NEEDED_LEAST = ("lr", "images/s", "train acc", "time", "train loss", "val acc", "val loss")
"""Columns that a narrow terminal goes without, the first one first; never the primary metric."""


class ShowProgress(Callback):
    """Show epochs, figures, speed and time left. log.txt has a line an epoch either way.

    best: must be called before this one, so that it knows whether an epoch is the best.
    """

    def __init__(self, console: Console, spec: PhaseSpec, best: BestWeights, primary_metric: PrimaryMetric) -> None:
        self._console, self._spec, self._best, self._primary_metric = console, spec, best, primary_metric
        self._table: LiveTable | None = None
        self._phase_began = self._epoch_began = self._last_shown = self._training_s = 0.0
        self._images = self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._phase_began = time.perf_counter()
        if trainer.is_global_zero and can_redraw(self._console):
            self._table = LiveTable(self._console, self._spec, self._best, primary_metric=self._primary_metric)
        if resumed_mid_epoch(trainer):  # then the epoch's own start is in the past
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_began = time.perf_counter()
        self._images = 0
        if self._table is None:
            self._last_shown = self._epoch_began
        else:  # the first batch may take long
            self._advance(trainer, pl_module, "training", 0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._images += len(batch[1]) * trainer.world_size
        self._batches += 1
        self._advance(trainer, pl_module, "training", batch_idx + 1)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._batches += 1
        self._advance(trainer, pl_module, "validation", int(trainer.num_training_batches) + batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics, epoch = trainer.callback_metrics, trainer.current_epoch + 1
        seconds = time.perf_counter() - self._epoch_began
        speed = self._images / seconds
        LOG.info(
            "%s  epoch %d/%d  train loss %.4f accuracy %.4f  val loss %.4f accuracy %.4f%s  %.1f s, %.0f images/s",
            self._spec.title,
            epoch,
            self._spec.epochs,
            metrics["train/loss"],
            metrics["train/accuracy"],
            metrics["val/loss"],
            metrics["val/accuracy"],
            "" if self._primary_metric == "accuracy" else f" {metric_label(self._primary_metric)} {metrics[SCORE]:.4f}",
            seconds,
            speed,
            extra=SHOWN_OTHERWISE if self._table is not None else None,
        )
        if self._table is not None:
            self._table.add_row(epoch, metrics, lr=f"{last_rate(trainer):.2g}", speed=f"{speed:,.0f}", seconds=clock(seconds))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, below the rows; to be called however the phase ends."""
        if self._table is not None:
            self._table.close()
            self._table = None

    def _advance(self, trainer: Trainer, module: LightningModule, what: str, batch: int) -> None:
        """Show how far the epoch is, now and then. batch: how many of it are done, those of validation after those of training."""
        now = time.perf_counter()
        if what == "training":  # while validation runs, the speed stays
            self._training_s = now - self._epoch_began
        if now - self._last_shown < (LINE_EVERY_S if self._table is None else DRAWN_EVERY_S) or not trainer.is_global_zero:
            return
        self._last_shown = now
        training, validation = int(trainer.num_training_batches), int(sum(trainer.num_val_batches))
        batches = training + validation
        done = f"{batch}/{training}" if what == "training" else f"{batch - training}/{validation}"
        speed = f"{self._images / self._training_s:,.0f} images/s" if self._images else ""
        if self._table is None:
            left = (now - self._epoch_began) / batch * (batches - batch)
            where = f"{self._spec.title}  epoch {trainer.current_epoch + 1}/{self._spec.epochs}"
            LOG.info("%s  %s batch %s  %s, %.0f s left in this epoch", where, what, done, speed, left)
            return
        mean_loss: Any = module.train_loss  # of this process: the mean over all would wait for the others
        epochs_left = self._spec.epochs - trainer.current_epoch
        self._table.draw(
            trainer.current_epoch + 1,
            f"{what} {done}",
            done=batch / batches,
            loss=float(mean_loss.total / mean_loss.images),
            notes=[note for note in (speed, self._time_left(now, epochs_left * batches - batch, batches)) if note],
        )

    def _time_left(self, now: float, batches_left: int, batches: int) -> str:
        """Return the time left of the phase, and of the run if other phases come, as if their epochs took as long. batches: of an epoch."""
        if not self._batches:
            return ""
        batch_s = (now - self._phase_began) / self._batches
        later = (self._spec.epochs_left - self._spec.epochs) * batches
        return f"{clock(batch_s * batches_left)} left" + (f", about {clock(batch_s * (batches_left + later))} in the run" if later else "")


class LiveTable:
    """The rows of a phase, and the epoch that runs below them.

    Rows are printed once and stay. What is below them is drawn by the thread that trains, and by no other: worker processes are forked
    while it is there, and one that was forked as another thread held the console's lock would wait for it for ever.
    """

    def __init__(self, console: Console, spec: PhaseSpec, best: BestWeights, *, primary_metric: PrimaryMetric) -> None:
        self._console, self._spec, self._best = console, spec, best
        self._score = f"val {metric_label(primary_metric).replace('accuracy', 'acc')}"
        self._columns: dict[str, int] = {}
        self._has_rows = LOG.isEnabledFor(logging.INFO)  # not in the trials of a search
        self._live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty())
        if self._has_rows:
            self._print(f"{spec.title}, {counted(spec.epochs, 'epoch')}", "bold")
            self._print_header()
        self._live.start()

    def add_row(self, epoch: int, metrics: Mapping[str, Any], *, lr: str, speed: str, seconds: str) -> None:
        """Print the row of an epoch, counted from 1, with an asterisk if it is the best of all phases so far."""
        self._live.update("", refresh=True)
        if not self._has_rows:
            return
        if self._columns != self._fitting_columns():  # the terminal has another width now
            self._print_header()
        figures = {name.replace("accuracy", "acc").replace("/", " "): f"{value:.4f}" for name, value in metrics.items() if "/" in name}
        cells = {**figures, self._score: f"{metrics[SCORE]:.4f}", "epoch": self._place(epoch), "lr": lr, "images/s": speed, "time": seconds}
        is_best = (self._best.phase, self._best.epoch) == (self._spec.number, epoch)
        self._print(in_columns(cells, self._columns) + (BEST if is_best else ""), "bold" if is_best else "")

    def draw(self, epoch: int, what: str, *, done: float, loss: float, notes: Sequence[str]) -> None:
        """Draw the epoch that runs. what: `training 3/29`. done: a share of it. loss: the mean over training images so far."""
        if self._has_rows:
            columns = {name: width for name, width in self._columns.items() if name in ("epoch", "train loss")}
            where = in_columns({"epoch": self._place(epoch), "train loss": f"{loss:.4f}" if isfinite(loss) else ""}, columns)
        else:
            where = f"{self._spec.title}  epoch {self._place(epoch)}"
        row = Table.grid(padding=(0, len(GAP)), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        row.add_row(Text(where), ProgressBar(1, done), what)
        best = [f"best {self._score} {self._best.score:.4f}, phase {self._best.phase} epoch {self._best.epoch}"] if self._best.epoch else []
        lines = [Text(line, no_wrap=True, overflow="crop") for line in packed([*notes, *best], self._console.width)]
        self._live.update(Group(row, *lines), refresh=True)

    def close(self) -> None:
        """Remove what is below the rows, and show the cursor again."""
        self._live.stop()

    def _place(self, epoch: int) -> str:
        return f"{epoch}/{self._spec.epochs}"

    def _fitting_columns(self) -> dict[str, int]:
        """Return the names of the columns that fit, and their widths."""
        names = dict.fromkeys(("epoch", "train loss", "train acc", "val loss", "val acc", self._score, "lr", "images/s", "time"))
        widths = {name: len(GAP) + max(len(name), MOST_DIGITS.get(name, 6)) for name in names}
        widths["epoch"] = len(GAP) + max(len("epoch"), len(self._place(self._spec.epochs)))
        for name in NEEDED_LEAST:
            if name != self._score and sum(widths.values()) + len(BEST) > self._console.width:
                del widths[name]
        return widths

    def _print_header(self) -> None:
        self._columns = self._fitting_columns()
        self._print(in_columns({name: name for name in self._columns}, self._columns), "dim")

    def _print(self, line: str, style: str) -> None:
        self._console.print(Text(line, style), no_wrap=True, overflow="crop")


def can_redraw(console: Console) -> bool:
    """Return whether what is on the console can be drawn again: rich takes a pipe for a terminal too where FORCE_COLOR is set."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def in_columns(cells: Mapping[str, str], widths: Mapping[str, int]) -> str:
    return "".join(f"{cells[name]:>{width}}" for name, width in widths.items())


def packed(parts: Sequence[str], width: int) -> list[str]:
    """Return lines of whole parts, as many in each as the width takes."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(GAP) + len(part) <= width:
            lines[-1] += GAP + part
        else:
            lines.append(GAP + part)
    return lines


def clock(seconds: float) -> str:
    """Return `0.7 s`, `12:34`, `1:23:45`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{whole:02d}" if minutes >= 60 else f"{minutes}:{whole:02d}"
