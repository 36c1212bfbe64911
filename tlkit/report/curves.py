"""Curves by epoch, phases marked, as the report has them too; curves.png: the primary metric, accuracy and loss."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.errors import RunError
from tlkit.evaluation.run_metrics import epoch_rows
from tlkit.explain.sheet import figure_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAINING, VALIDATION = "#b87400", "#2b7bd1"  # both have 3:1 or more on white and on the dark page
LINES = tuple(zip(("#2b7bd1", "#b87400", "#1f9d73", "#d0508f", "#8f6ee0", "#7d8791"), "os^Dv*", strict=True))
"""Colour and mark of single runs in one chart, each with 3:1 or more on either page."""
DASHES = ("-", "--", ":", "-.")
LEGEND_LETTERS, LEGEND_ROW = 150, 0.2
"""Letters in a row of the legend of several runs, and its height in inches."""

Rows = Sequence[Mapping[str, Any]]
"""Of metrics.csv as numbers, all phases in order."""


def draw_metric(axis: "Axes", rows: Rows, phase_names: Sequence[str], metric: str) -> None:
    """Draw a metric on validation images, and accuracy and loss on training images too."""
    epochs = range(1, len(rows) + 1)
    if metric in ("accuracy", "loss"):
        axis.plot(epochs, [row.get(f"train/{metric}", nan) for row in rows], "o--", ms=3.5, lw=1.4, color=TRAINING, label="training")
    axis.plot(epochs, [row.get(f"val/{metric}", nan) for row in rows], "o-", ms=3.5, lw=1.6, color=VALIDATION, label="validation")
    if metric == "loss":
        axis.set_ylim(bottom=0)
    mark_phases(axis, rows, phase_names)


def draw_over(axis: "Axes", runs: Sequence[tuple[str, Rows]], metric: str, *, named: bool = True) -> None:
    """Draw a metric of several runs over each other. named: each has its own colour, mark and label."""
    for number, (name, rows) in enumerate(runs):
        (color, mark), dash = LINES[number % len(LINES)], DASHES[number // len(LINES) % len(DASHES)]
        own: Any = {"marker": mark, "ls": dash, "ms": 3.5, "lw": 1.4, "color": color, "label": name}
        style = own if named else {"marker": "o", "ms": 2, "lw": 1, "color": VALIDATION}
        axis.plot(range(1, len(rows) + 1), [row.get(f"val/{metric}", nan) for row in rows], **style)
    if metric == "loss":
        axis.set_ylim(bottom=0)
    _number_epochs(axis, max(len(rows) for _, rows in runs))


def mark_phases(axis: "Axes", rows: Rows, phase_names: Sequence[str]) -> None:
    """Draw a line where a phase begins, with its name above the plot, where no curve can cross it."""
    _number_epochs(axis, len(rows))
    starts = [i for i, row in enumerate(rows) if i == 0 or row["phase"] != rows[i - 1]["phase"]]
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        number = int(rows[start]["phase"])  # counted from 1
        if start:
            axis.axvline(start + 0.5, color=axis.xaxis.label.get_color(), lw=0.7, ls=":")
        if len(starts) <= 6 and number <= len(phase_names):
            where: dict[str, Any] = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 9}
            axis.text((start + end + 1) / 2, 1.01, phase_names[number - 1].replace("$", r"\$"), **where)


def _number_epochs(axis: "Axes", epochs: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set(xlabel="epoch", xlim=(0.5, epochs + 0.5))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _frame(axis: "Axes", title: str, *, pad: int) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    # y: where it is anyway; without, matplotlib looks for ticks in its way, which takes a fifth of the drawing.
    axis.set_title(title.replace("_", " "), y=1.0, pad=pad, fontweight="bold")


def draw_curves(rows: Rows, phase_names: Sequence[str], file: Path, *, primary_metric: str = "accuracy") -> None:
    """Draw the primary metric, accuracy where that is another, and loss."""
    metrics = dict.fromkeys((primary_metric, "accuracy", "loss"))
    with figure_file(file, 5.5 * len(metrics), 4.2) as figure:
        axes = figure.subplots(1, len(metrics))
        for axis, metric in zip(axes, metrics, strict=True):
            draw_metric(axis, rows, phase_names, metric)
            _frame(axis, metric, pad=18)
        # Above the last plot, whose title is short: within one a curve could run under it.
        where: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1.07), "ncols": 2, "borderaxespad": 0}
        shape: dict[str, Any] = {"frameon": False, "fontsize": 9, "handlelength": 1.5, "columnspacing": 1.2}
        axes[-1].legend(**where, **shape)
        # By hand: matplotlib's constrained layout would take as long as drawing does.
        figure.subplots_adjust(left=0.055, right=0.985, bottom=0.12, top=0.86, wspace=0.14)


def draw_runs(runs: Sequence[Path], file: Path) -> None:
    """Draw validation accuracy and loss of several runs by epoch, over each other; first the primary metric, where all have another.

    Raises RunError for a run without epochs.
    """
    tables = [epoch_rows(run) for run in runs]
    if without := next((run for run, rows in zip(runs, tables, strict=True) if not rows), None):
        fix = "Leave --curves out, or draw the runs that went in."
        raise RunError(f"{without} has no epochs, as a soup of runs, and so no curves.\n  {fix}")
    shared = [name.removeprefix("val/") for name in tables[0][0] if name.startswith("val/") and all(name in rows[0] for rows in tables)]
    plain = ("accuracy", "loss")
    metrics = [*(name for name in shared if name not in plain), *plain]
    with figure_file(file, 5.5 * len(metrics), 4.2) as figure:
        axes = figure.subplots(1, len(metrics))
        for axis, metric in zip(axes, metrics, strict=True):
            draw_over(axis, list(zip(map(str, runs), tables, strict=True)), metric)
            _frame(axis, f"validation {metric}", pad=6)
        columns_of_names = max(1, min(len(runs), LEGEND_LETTERS // (max(len(str(run)) for run in runs) + 6)))
        height = 4.2 + LEGEND_ROW * -(-len(runs) // columns_of_names)
        figure.set_figheight(height)
        named = axes[0].get_legend_handles_labels()
        # Below the plots, where no curve is.
        figure.legend(*named, frameon=False, fontsize=8.5, loc="lower center", ncols=columns_of_names, borderaxespad=0.2)
        # By hand: matplotlib's constrained layout would take as long as drawing does.
        figure.subplots_adjust(left=0.055, right=0.985, bottom=(height - 4.2 + 0.5) / height, top=1 - 0.4 / height, wspace=0.14)
