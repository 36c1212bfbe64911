"""gradients.png: where on the way from the head to the first layer gradients vanish or blow up."""

import csv
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tlkit.errors import RunError
from tlkit.explain.sheet import figure_file
from tlkit.models.adapters import is_adapters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

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

    runs: a title and the rows of each. Layers are in forward order: the first is on the left, the head on the right. Phases with adapters
    are beside those without, because they train other matrices.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    panels = [panel for title, rows in runs for panel in _panels(title, rows)]
    scale = ScalarMappable(Normalize(1, max(2, *(number for _, epochs in panels for number in epochs))), "viridis")
    with figure_file(file, 1.2 + 5.6 * len(panels), 7.4) as figure:
        axes = figure.subplots(2, len(panels), sharey="row", sharex="col", squeeze=False)
        for column, (title, epochs) in enumerate(panels):
            _draw_panel(list(axes[:, column]), epochs, scale)
            axes[0, column].set_title(title, fontweight="bold", pad=24)
        axes[0, 0].set_ylabel("norm of the gradient")
        axes[1, 0].set_ylabel("gradient / weights")
        inch = 1 / figure.get_figwidth()
        figure.subplots_adjust(left=1.0 * inch, right=1 - 0.9 * inch, bottom=0.14, top=0.88, hspace=0.12, wspace=0.06)
        bar = figure.colorbar(scale, cax=figure.add_axes((1 - 0.7 * inch, 0.14, 0.12 * inch, 0.74)))
        bar.set_label("epoch, over all phases")
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def _panels(title: str, rows: Sequence[Row]) -> list[tuple[str, dict[int, list[Row]]]]:
    """Return titles and epochs, counted from 1 over all phases, the one with the most layers first.

    Epochs share a panel where one has all layers of the others: each phase trains some of the next one's, unless only one has adapters.
    """
    epochs = [list(group) for _, group in groupby(rows, key=lambda row: (row.phase, row.epoch))]
    panels: list[dict[int, list[Row]]] = []
    for number, epoch in sorted(enumerate(epochs, start=1), key=lambda numbered: -len(numbered[1])):
        layers = {row.layer for row in epoch}
        fitting = (panel for panel in panels if layers <= {row.layer for row in next(iter(panel.values()))})
        if (panel := next(fitting, None)) is None:
            panels.append(panel := {})
        panel[number] = epoch
    if len(panels) == 1:
        return [(title, panels[0])]
    phases = [sorted({epoch[0].phase for epoch in panel.values()}) for panel in panels]
    titles = [f"{title}, phase{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}" for numbers in phases]
    return list(zip(titles, panels, strict=True))


def _draw_panel(axes: "Sequence[Axes]", epochs: Mapping[int, Sequence[Row]], scale: "ScalarMappable") -> None:
    """Draw a line for every epoch, from violet to yellow, and a band for every other stage."""
    layers = [(row.stage, row.layer) for row in max(epochs.values(), key=len)]
    place = {layer: position for position, (_, layer) in enumerate(layers)}
    for number, epoch in epochs.items():
        x = [place[row.layer] for row in epoch]
        # A logarithm has no place for a gradient of zero: the line is broken there.
        gradients = [row.gradient_norm or nan for row in epoch]
        relative = [gradient / (row.weight_norm or nan) for gradient, row in zip(gradients, epoch, strict=True)]
        for axis, values in zip(axes, (gradients, relative), strict=True):
            axis.plot(x, values, "o-", ms=2.5, lw=1, color=scale.to_rgba(np.array(number)))
    for axis in axes:
        axis.set_yscale("log")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(-0.5, len(layers) - 0.5)
    _mark_stages(axes, [stage for stage, _ in layers])
    what = "matrices, two in each adapter" if any(is_adapters(layer) for _, layer in layers) else "layers"
    axes[1].set_xlabel(f"{len(layers)} {what}, from the image to the loss")


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
