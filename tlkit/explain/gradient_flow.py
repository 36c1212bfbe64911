"""gradients.png: where on the way from the head to the first layer gradients vanish or blow up."""

import csv
from collections.abc import Sequence
from itertools import groupby
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tlkit.errors import RunError
from tlkit.explain.sheet import figure_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GRADIENTS = "gradients.csv"
COLUMNS = ("phase", "epoch", "stage", "layer", "gradient_norm", "weight_norm")


class Row(NamedTuple):
    """One layer in one epoch. gradient_norm: the mean over the epoch's steps; weight_norm: at its end. Euclidean both."""

    phase: int
    epoch: int
    stage: str
    layer: str
    gradient_norm: float
    weight_norm: float


def read_gradients(file: Path) -> list[Row]:
    """Read gradients.csv. Raises RunError where there is none, or another table."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise RunError(f"{file}: the columns are {reader.fieldnames}.\n  Expected {','.join(COLUMNS)}, as `tlkit finetune` writes.")
            return [Row(int(a), int(b), stage, layer, float(g), float(w)) for a, b, stage, layer, g, w in map(dict.values, reader)]
    except FileNotFoundError as error:
        raise RunError(
            f"{file.parent} has no {file.name}: its gradients were not recorded.\n  Train it again with trainer.log_gradients=true."
        ) from error
    except (TypeError, ValueError, csv.Error) as error:
        raise RunError(f"{file} can't be read ({error}).\n  Copy the run folder again.") from error


def draw_gradients(runs: Sequence[tuple[str, Sequence[Row]]], file: Path) -> None:
    """Draw runs side by side, on the same logarithmic scales: above the gradients' norms, below relative to those of the weights.

    runs: a title and the rows of each. Layers are in forward order: the first is on the left, the head on the right.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    with figure_file(file, 1.2 + 5.6 * len(runs), 7.4) as figure:
        axes = figure.subplots(2, len(runs), sharey="row", sharex="col", squeeze=False)
        for column, (title, rows) in enumerate(runs):
            _draw_run(list(axes[:, column]), rows)
            axes[0, column].set_title(title, fontweight="bold", pad=24)
        axes[0, 0].set_ylabel("norm of the gradient")
        axes[1, 0].set_ylabel("gradient / weights")
        inch = 1 / figure.get_figwidth()
        figure.subplots_adjust(left=1.0 * inch, right=1 - 0.9 * inch, bottom=0.14, top=0.88, hspace=0.12, wspace=0.06)
        most = max(len(_epochs(rows)) for _, rows in runs)
        scale = ScalarMappable(Normalize(1, max(2, most)), "viridis")
        bar = figure.colorbar(scale, cax=figure.add_axes((1 - 0.7 * inch, 0.14, 0.12 * inch, 0.74)))
        bar.set_label("epoch, over all phases")
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def _epochs(rows: Sequence[Row]) -> list[list[Row]]:
    return [list(group) for _, group in groupby(rows, key=lambda row: (row.phase, row.epoch))]


def _draw_run(axes: "Sequence[Axes]", rows: Sequence[Row]) -> None:
    """Draw a line for every epoch, from violet to yellow, and a band for every other stage."""
    from matplotlib import colormaps

    epochs = _epochs(rows)
    layers = [(row.stage, row.layer) for row in max(epochs, key=len)]
    place = {layer: position for position, (_, layer) in enumerate(layers)}
    for number, epoch in enumerate(epochs):
        color = colormaps["viridis"](number / max(1, len(epochs) - 1))
        shown = [row for row in epoch if row.layer in place]
        x = [place[row.layer] for row in shown]
        # A logarithm has no place for a gradient of zero: the line is broken there.
        gradients = [row.gradient_norm or nan for row in shown]
        relative = [gradient / (row.weight_norm or nan) for gradient, row in zip(gradients, shown, strict=True)]
        for axis, values in zip(axes, (gradients, relative), strict=True):
            axis.plot(x, values, "o-", ms=2.5, lw=1, color=color)
    for axis in axes:
        axis.set_yscale("log")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(-0.5, len(layers) - 0.5)
    _mark_stages(axes, [stage for stage, _ in layers])
    axes[1].set_xlabel(f"{len(layers)} layers: the image is on the left, the loss on the right")


def _mark_stages(axes: "Sequence[Axes]", stages: Sequence[str]) -> None:
    start = 0
    spans = [(name, len(list(group))) for name, group in groupby(stages)]
    for number, (name, count) in enumerate(spans):
        for axis in axes:
            if number % 2:
                axis.axvspan(start - 0.5, start + count - 0.5, color="#000000", alpha=0.06, lw=0)
        rotated = len(spans) > 8
        axes[0].text(
            start + count / 2 - 0.5, 1.01, name, transform=axes[0].get_xaxis_transform(), fontsize=7 if rotated else 8.5,
            ha="left" if rotated else "center", va="bottom", rotation=35 if rotated else 0, color="#444444",
        )  # fmt: skip
        start += count
