"""report.html: one page on a run, without outside resources, that can be sent by mail."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tlkit.data.samples import LARGEST_FOLD
from tlkit.evaluation.metrics import difference_interval
from tlkit.files import write_atomically
from tlkit.report.templates import template
from tlkit.terminal import counted

MATRIX_CLASSES = 40
"""Up to so many classes the page has the whole confusion matrix, and one table of classes."""
FEW_CONFUSIONS, MANY_CONFUSIONS, HARDEST_CLASSES = 6, 30, 20
LARGE_GAP = 0.05
"""Between the accuracies of training and validation: more is called overfitting, where the images can prove it."""
MOST_ROWS = 5000
"""Rows of the table of all classes: the page stays below some megabytes."""


def write_report(
    file: Path, *, name: str, metrics: Mapping[str, Any], facts: Mapping[str, Any], recipe_yaml: str, curves: Path, augmentations: Path
) -> None:
    """Write a run's report. metrics: the content of metrics.json. facts: what was trained on what, label -> text, in the order to show.

    augmentations: a sheet of training images, which need not be there.
    """
    measured = metrics.get("test") or metrics["val"]
    page = template("report.html").render(
        name=name,
        measured=measured,
        multilabel="exact_match" in measured,
        measured_on="test" if metrics.get("test") else "validation",
        validation=metrics["val"],
        gap=gap_note(metrics),
        best=metrics["best"],
        uneven=_is_uneven(measured),
        audit=metrics["audit"],
        facts=facts,
        recipe_yaml=recipe_yaml,
        curves=base64.b64encode(curves.read_bytes()).decode(),
        augmentations=base64.b64encode(augmentations.read_bytes()).decode() if augmentations.is_file() else "",
        **_of_classes(measured),
    )
    write_atomically(file, page)  # a run that has it is finished: half of one, on a full disk, must not be there


def gap_note(metrics: Mapping[str, Any]) -> str:
    """Return what the accuracies of training and validation say of each other; empty where they don't compare.

    A multilabel accuracy is a share of answers that aren't independent, a sampler draws classes as often as each other, and every training
    image is its own nearest neighbour.
    """
    best, val = metrics["best"], metrics["val"]
    conditions = best["train_conditions"]
    if "exact_match" in val or best["fitted_by"] == "nearest neighbours" or "drawn class by class" in conditions:
        return ""
    gap = best["train_accuracy"] - val["accuracy"]
    low, high = difference_interval((best["train_accuracy"], metrics["pictures"]["train"]), (val["accuracy"], val["pictures"]))
    interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    if low <= 0 and (gap <= 0 or high <= LARGE_GAP):
        return f"no gap that would indicate overfitting ({100 * gap:.1f} points; {interval})."
    if low <= 0:
        return f"a gap of {100 * gap:.1f} points, which {counted(val['pictures'], 'validation image')} can't tell from none ({interval})."
    if gap <= LARGE_GAP:
        return f"a gap of {100 * gap:.1f} points ({interval})."
    less = _advice(best["fitted_by"], conditions)
    return f"a gap of {100 * gap:.1f} points ({interval}), which indicates overfitting. {less} may narrow it."


def _advice(fitted_by: str, conditions: Sequence[str]) -> str:
    if fitted_by:
        return f"A {'larger weight_decay' if fitted_by == 'L-BFGS' else 'smaller c'}, or more images,"
    augmentation = "more augmentation" if "augmented" in conditions else "augmentation"
    dropout = "more dropout" if "with dropout" in conditions else "dropout"
    return f"More images, {augmentation}, {dropout} or more weight decay"


def _is_uneven(measured: Mapping[str, Any]) -> bool:
    """Return whether classes differ as much in the images measured as makes balanced accuracy the primary metric in training."""
    counts = [row["pictures"] for row in measured["per_class"].values() if row["pictures"]]
    return bool(counts) and max(counts) > LARGEST_FOLD * min(counts)


def write_repeats_report(
    file: Path, *, name: str, kind: Literal["fold", "seed"], numbers: Sequence[int], summary: Mapping[str, Any], recipe_yaml: str
) -> None:
    """Write the page on several folds or seeds, which links to theirs. numbers: of each. summary: the content of their metrics.json."""
    page = template("repeats.html").render(
        name=name, kind=kind, numbers=numbers, summary=summary, over=summary[f"over_{kind}s"], recipe_yaml=recipe_yaml
    )
    write_atomically(file, page)


def _of_classes(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page shows of single classes: all of a few; of many the hardest ones, and the most frequent confusions."""
    classes = list(measured["per_class"])
    few = len(classes) <= MATRIX_CLASSES
    confusions, most = _confusions(measured), FEW_CONFUSIONS if few else MANY_CONFUSIONS
    seen = [name for name in classes if measured["per_class"][name]["pictures"]]
    return {
        "all_classes": classes if len(classes) <= MOST_ROWS else [],
        "hardest": [] if few else sorted(seen, key=lambda name: float(measured["per_class"][name]["f1"]))[:HARDEST_CLASSES],
        "confusions": confusions[:most],
        "confusions_left": len(confusions[most:]),
        "matrix": measured.get("confusion", []) if few else [],
    }


def _confusions(measured: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Return (true class, called, images) of all confusions, the most frequent first; of a multilabel split, none."""
    classes = list(measured["per_class"])
    table = ((i, j, count) for i, row in enumerate(measured.get("confusion", ())) for j, count in enumerate(row))
    cells = measured.get("confusion_cells", table)
    mistakes = [(classes[i], classes[j], count) for i, j, count in cells if i != j and count]
    return sorted(mistakes, key=lambda mistake: -mistake[2])
