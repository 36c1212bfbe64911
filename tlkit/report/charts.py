"""Charts as inline SVG. Their text is text in the page's colour: readable in dark mode, on paper and by a screen reader."""

import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from math import isfinite, nan
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from tlkit.report.curves import LINES, TRAINING, VALIDATION, Rows, draw_metric, draw_over, mark_phases

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the page's own colour of text."""
WIDTH, HEIGHT = 3.7, 2.6
"""In inches of 72 px in SVG: narrow enough for a telephone without shrinking."""
LEGEND_HEIGHT, LEGEND_LETTERS = 0.22, 44
"""Of a row of the legend, which is below the plot, where no curve can run under it."""

WIDE_RATES = 50
"""Times between the highest and the lowest rate from which a linear axis would show some as 0."""


def svg(draw: Callable[["Axes"], None], *, title: str, description: str) -> Markup:
    """Return one chart. title, description: for those who don't see it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colours: Any = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK)
    sizes: Any = {"font.size": 10, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.linewidth": 0.6, "grid.alpha": 0.15}
    drawn: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with rc_context({**colours, **sizes, **drawn}):
        figure = Figure(figsize=(WIDTH, HEIGHT))  # as in figure_file
        axis = figure.subplots()
        axis.grid(visible=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(title, loc="left", y=1.0, pad=18)  # y: as in curves.py
        draw(axis)
        below = _add_legend(figure, axis)
        height = HEIGHT + below
        figure.set_figheight(height)
        figure.subplots_adjust(left=0.17, right=0.97, bottom=(0.18 * HEIGHT + below) / height, top=1 - 0.2 * HEIGHT / height)
        written = StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(written.getvalue(), title, description)


def _add_legend(figure: "Figure", axis: "Axes") -> float:
    """Write the legend of what has a label at the lower edge, and return its height in inches."""
    drawn, labels = axis.get_legend_handles_labels()
    if not labels:
        return 0.0
    in_one_row = sum(map(len, labels)) + 4 * len(labels) <= LEGEND_LETTERS
    columns = len(labels) if in_one_row else max(1, LEGEND_LETTERS // (max(map(len, labels)) + 4))
    place: Any = {"loc": "lower center", "bbox_to_anchor": (0.57, 0), "ncols": columns}
    figure.legend(drawn, labels, frameon=False, fontsize=9, borderaxespad=0.1, columnspacing=1.2, handletextpad=0.5, **place)
    return LEGEND_HEIGHT * -(-len(labels) // columns)


def _inline(text: str, title: str, description: str) -> Markup:
    """Return the drawing without prolog, size, style and names that several drawings share."""
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9]+_[0-9]+"', "", text)  # axes_1, text_3: in every drawing
    head = text[: text.index(">") + 1]
    box = re.search(r'viewBox="[^"]*"', head)
    start = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""} role="img"'
    label = f' aria-label="{escape(f"{title}: {description}")}">'
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text.replace(INK, "currentColor"))
    text = re.sub(r"font: (bold|\d+) ([\d.]+px) [^;\"]*", r"font-weight: \1; font-size: \2", text)
    return Markup(start + label + text[len(head) :])  # noqa: S704  # matplotlib escapes what it writes, and the label is escaped above


def curves(rows: Rows, phase_names: Sequence[str], best: Mapping[str, Any], *, primary_metric: str) -> list[Markup]:
    """Return the primary metric, accuracy with the gap, loss, and the learning rate by epoch.

    rows: of metrics.csv as numbers, phases in order; those of earlier versions have no other primary metric than accuracy.
    """
    if not rows:
        return []
    place = next((i for i, row in enumerate(rows) if (row["phase"], row["epoch"]) == (best["phase"], best["epoch"])), None)
    metrics = [metric for metric in (primary_metric, "accuracy", "loss") if f"val/{metric}" in rows[0]]
    drawings = [_metric(rows, phase_names, metric, best=place) for metric in dict.fromkeys(metrics)]
    if any(isfinite(row.get("lr") or nan) and row["lr"] > 0 for row in rows):
        drawings.append(_rates(rows, phase_names))
    return drawings


def _metric(rows: Rows, phase_names: Sequence[str], metric: str, *, best: int | None) -> Markup:
    validation = [row.get(f"val/{metric}", nan) for row in rows]
    training = [row.get(f"train/{metric}", nan) for row in rows] if metric in ("accuracy", "loss") else []

    def draw(axis: "Axes") -> None:
        draw_metric(axis, rows, phase_names, metric)
        if best is not None:
            axis.plot([best + 1], [validation[best]], "o", ms=9, mfc="none", mew=1.4, color=VALIDATION, clip_on=False)
        if best is not None and training and metric == "accuracy" and abs(training[best] - validation[best]) > 0.005:
            low, high = sorted((training[best], validation[best]))
            axis.annotate("", (best + 1, low), (best + 1, high), arrowprops={"arrowstyle": "<->", "color": INK, "lw": 0.8, "shrinkA": 3})
            axis.set_title(
                f"gap {100 * (training[best] - validation[best]):z.0f} points", loc="right", fontsize=9, fontweight="normal", y=1.0, pad=18
            )

    training_part = [f"training {training[-1]:.3f}, "] if training else []
    last = f"in the last of {len(rows)} epochs {''.join(training_part)}validation {validation[-1]:.3f}"
    return svg(draw, title=metric.replace("_", " "), description=f"by epoch; {last}. A ring marks the epoch that ships.")


def repeat_curves(runs: Sequence[tuple[str, Rows]], *, primary_metric: str) -> list[Markup]:
    """Return validation figures by epoch, of several runs over each other. runs: name and rows of metrics.csv, as for `curves`."""
    runs = [(name, rows) for name, rows in runs if rows]
    metrics = [metric for metric in (primary_metric, "accuracy", "loss") if all(f"val/{metric}" in rows[0] for _, rows in runs)]
    return [_overlaid(runs, metric) for metric in dict.fromkeys(metrics)] if runs else []


def _overlaid(runs: Sequence[tuple[str, Rows]], metric: str) -> Markup:
    def draw(axis: "Axes") -> None:
        draw_over(axis, runs, metric, named=len(runs) <= len(LINES))
        mark_phases(axis, max((rows for _, rows in runs), key=len), ())

    last = [rows[-1].get(f"val/{metric}", nan) for _, rows in runs]
    described = f"by epoch, a line for each of {len(runs)} runs; in the last epoch from {min(last):.3f} to {max(last):.3f}"
    return svg(draw, title=f"validation {metric.replace('_', ' ')}", description=described)


def _rates(rows: Rows, phase_names: Sequence[str]) -> Markup:
    rates = [row.get("lr", nan) for row in rows]
    positive = [rate for rate in rates if rate > 0]

    def draw(axis: "Axes") -> None:
        if max(positive) > WIDE_RATES * min(positive):
            axis.set_yscale("log", nonpositive="mask")
        else:
            axis.set_ylim(0, 1.1 * max(positive))
            axis.yaxis.set_major_formatter("{x:.2g}")  # matplotlib would write a common factor where the phase's name is
            axis.locator_params(axis="y", nbins=6, steps=(1, 2, 5, 10))  # one digit each: 0.00075 is cut off
        axis.plot(range(1, len(rows) + 1), rates, "s-", ms=3.5, lw=1.4, color=VALIDATION)
        mark_phases(axis, rows, phase_names)

    return svg(draw, title="learning rate", description=f"of the head at the end of each epoch, at most {max(positive):.2g}")


def reliability(calibration: Mapping[str, Any]) -> Markup:
    """Return confidence against accuracy, before and after a temperature; on the diagonal, 80 % sure is right in 80 of 100."""

    def draw(axis: "Axes") -> None:
        axis.plot([0, 1], [0, 1], ":", lw=1, color=INK)
        for key, style, colour in sides:
            bins = calibration.get(f"bins_{key}") or []
            label = key if len(sides) > 1 else None
            axis.plot(
                [row["confidence"] for row in bins], [row["accuracy"] for row in bins], style, ms=4, lw=1.4, color=colour, label=label
            )
        axis.set(xlabel="confidence", ylabel="share right", xlim=(0, 1.02), ylim=(0, 1.02))

    sides = [("before", "o--", TRAINING), ("after", "o-", VALIDATION)]
    error = f"error before {calibration['ece_before']:.3f}, after {calibration['ece_after']:.3f}"
    if calibration.get("reason"):  # no temperature was fitted: both are the same
        sides, error = sides[1:], f"error {calibration['ece_before']:.3f}"
    described = f"share of right answers by confidence; {error}"
    return svg(draw, title="reliability", description=described)


def risk_coverage(points: Sequence[Mapping[str, float]]) -> Markup:
    """Return the error among the images that are answered, by the share of images that are answered."""
    from matplotlib.ticker import PercentFormatter

    def draw(axis: "Axes") -> None:
        axis.plot([point["coverage"] for point in points], [point["error"] for point in points], "-", lw=1.6, color=VALIDATION)
        axis.set(xlabel="share of images answered, the surest first", xlim=(0, 1.02), ylim=(0, None))
        axis.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))

    return svg(draw, title="error among answers", description=f"by the share answered; {points[-1]['error']:.3f} if all are")
