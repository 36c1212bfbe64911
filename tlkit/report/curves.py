"""curves.png: the primary metric, accuracy and loss by epoch, training against validation, phases marked."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlkit.errors import RunError
from tlkit.evaluation.run_metrics import epoch_rows
from tlkit.explain.sheet import figure_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAINING, VALIDATION = "#9a6a00", "#0b5cad"  # colour-blind readers see the difference, and the line style
LEGEND_LETTERS, LEGEND_ROW = 150, 0.2
"""Letters in a row of the legend of several runs, and its height in inches."""
MARKERS = ("o-", "s--", "^:", "D-.")


def draw_curves(rows: Sequence[Mapping[str, Any]], phase_names: Sequence[str], file: Path, *, primary_metric: str = "accuracy") -> None:
    """Draw the primary metric, accuracy where that is another, and loss. rows: of metrics.csv, all phases in order."""
    metrics = dict.fromkeys((primary_metric, "accuracy", "loss"))
    with figure_file(file, 5.5 * len(metrics), 4.2) as figure:
        axes = figure.subplots(1, len(metrics))
        epochs = range(1, len(rows) + 1)
        for axis, metric in zip(axes, metrics, strict=True):
            if metric in ("accuracy", "loss"):
                axis.plot(epochs, [row[f"train/{metric}"] for row in rows], "o--", ms=4, color=TRAINING, label="training")
            axis.plot(epochs, [row.get(f"val/{metric}", nan) for row in rows], "o-", ms=4, color=VALIDATION, label="validation")
            axis.set(xlabel="epoch", title=metric.replace("_", " "), xlim=(0.5, len(rows) + 0.5))
            axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            _mark_phases(axis, rows, phase_names)
        # Above the last plot, whose title is short: within one a curve could run under it.
        where: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1.07), "ncols": 2, "borderaxespad": 0}
        shape: dict[str, Any] = {"frameon": False, "fontsize": 9, "handlelength": 1.5, "columnspacing": 1.2}
        axes[-1].legend(*axes[-2].get_legend_handles_labels(), **where, **shape)
        axes[-1].set_ylim(bottom=0)
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
    plain = ("val/accuracy", "val/loss")
    shared = [name for name in tables[0][0] if name.startswith("val/") and all(name in rows[0] for rows in tables)]
    columns = [*(name for name in shared if name not in plain), *plain]
    longest = max(map(len, tables))
    with figure_file(file, 5.5 * len(columns), 4.2) as figure:
        axes = figure.subplots(1, len(columns))
        for axis, column in zip(axes, columns, strict=True):
            for number, (run, rows) in enumerate(zip(runs, tables, strict=True)):
                values = [row.get(column, nan) for row in rows]
                axis.plot(range(1, len(rows) + 1), values, MARKERS[number % len(MARKERS)], ms=4, label=str(run))
            axis.set(xlabel="epoch", xlim=(0.5, longest + 0.5))
            axis.set_title(f"validation {column.removeprefix('val/').replace('_', ' ')}", fontweight="bold")
            axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        columns_of_names = max(1, min(len(runs), LEGEND_LETTERS // (max(len(str(run)) for run in runs) + 6)))
        height = 4.2 + LEGEND_ROW * -(-len(runs) // columns_of_names)
        figure.set_figheight(height)
        named = axes[0].get_legend_handles_labels()
        # Below the plots, where no curve is.
        figure.legend(*named, frameon=False, fontsize=8.5, loc="lower center", ncols=columns_of_names, borderaxespad=0.2)
        # By hand: matplotlib's constrained layout would take as long as drawing does.
        figure.subplots_adjust(left=0.055, right=0.985, bottom=(height - 4.2 + 0.5) / height, top=1 - 0.4 / height, wspace=0.14)


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
