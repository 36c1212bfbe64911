"""curves.png: the primary metric, accuracy and loss by epoch, training against validation, phases marked."""

import csv
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAINING, VALIDATION = "#9a6a00", "#0b5cad"  # colour-blind readers see the difference, and the line style
MARKERS = ("o-", "s--", "^:", "D-.")


def draw_curves(rows: Sequence[Mapping[str, Any]], phase_names: Sequence[str], file: Path, *, primary_metric: str = "accuracy") -> None:
    """Draw the primary metric, accuracy where that is another, and loss. rows: of metrics.csv, all phases in order, with `val/score`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    metrics = dict.fromkeys((primary_metric, "accuracy", "loss"))
    figure, axes = plt.subplots(1, len(metrics), figsize=(5.5 * len(metrics), 4.2))
    epochs = range(1, len(rows) + 1)
    for axis, metric in zip(axes, metrics, strict=True):
        if metric in ("accuracy", "loss"):
            axis.plot(epochs, [row[f"train/{metric}"] for row in rows], "o--", ms=4, color=TRAINING, label="training")
        column = f"val/{metric}" if metric in ("accuracy", "loss") else "val/score"
        axis.plot(epochs, [row.get(column, nan) for row in rows], "o-", ms=4, color=VALIDATION, label="validation")
        axis.set(xlabel="epoch", title=metric.replace("_", " "), xlim=(0.5, len(rows) + 0.5))
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        _mark_phases(axis, rows, phase_names)
    axes[-2].legend(frameon=False, loc="best")
    axes[-1].set_ylim(bottom=0)
    # By hand: matplotlib's constrained layout would take as long as drawing does.
    figure.subplots_adjust(left=0.055, right=0.985, bottom=0.12, top=0.86, wspace=0.14)
    with atomic_file(file) as writing:
        figure.savefig(writing, format="png", dpi=100)
    plt.close(figure)


def draw_runs(runs: Sequence[Path], file: Path) -> None:
    """Draw validation accuracy and loss of several runs by epoch, over each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    longest = 1
    for number, run in enumerate(runs):
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        longest = max(longest, len(rows))
        for axis, column in zip(axes, ("val/accuracy", "val/loss"), strict=True):
            values = [float(row.get(column) or nan) for row in rows]
            axis.plot(range(1, len(rows) + 1), values, MARKERS[number % len(MARKERS)], ms=4, label=str(run))
    for axis, title in zip(axes, ("validation accuracy", "validation loss"), strict=True):
        axis.set(xlabel="epoch", xlim=(0.5, longest + 0.5))
        axis.set_title(title, fontweight="bold")
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8.5, loc="best")
    # By hand: matplotlib's constrained layout would take as long as drawing does.
    figure.subplots_adjust(left=0.055, right=0.985, bottom=0.12, top=0.86, wspace=0.14)
    with atomic_file(file) as writing:
        figure.savefig(writing, format="png", dpi=100)
    plt.close(figure)


def _mark_phases(axis: "Axes", rows: Sequence[Mapping[str, Any]], phase_names: Sequence[str]) -> None:
    """Draw alternating bands, with the phase's name above the plot, where no curve can cross it."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row["phase"] != rows[i - 1]["phase"]]
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        number = int(rows[start]["phase"])  # counted from 1
        if number % 2 == 0:
            axis.axvspan(start + 0.5, end + 0.5, color="#000000", alpha=0.05, lw=0)
        above: dict[str, Any] = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        axis.text((start + end + 1) / 2, 1.0, phase_names[number - 1], fontsize=8.5, color="#444444", **above)
    # y: where it is anyway; without, matplotlib looks for ticks in its way, which takes a fifth of the drawing.
    axis.set_title(axis.get_title(), y=1.0, pad=18, fontweight="bold")
